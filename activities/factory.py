"""What the activities of a factory are given by its agent: paths, collaborators, ports to the API. Holds no state.

The ports are protocols, because their implementations (`workers/`) may not be imported from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from activities.orders import Orders
from activities.running import RunningAttempts
from activities.supervision import ApiAddress, Supervisors
from activities.workspace import Workspaces
from core.attempt import BuildResult
from core.redactor import Redactor
from core.settings import Settings
from engines.base import Engine

LogStream = Literal["stdout", "stderr", "verify", "factory"]


@dataclass(frozen=True, slots=True)
class FactoryPaths:
    """Where a factory keeps its things; `root` is `<home>/factories/<name>`."""

    root: Path

    @property
    def mirrors(self) -> Path:
        """Return the folder of bare mirrors, one for each repository."""
        return self.root / "mirrors"

    @property
    def attempts(self) -> Path:
        """Return the folder of attempts."""
        return self.root / "attempts"

    @property
    def spool(self) -> Path:
        """Return the folder of what the API has not been told yet."""
        return self.root / "spool"

    def attempt(self, job_id: str, epoch: int) -> Path:
        """Return the folder of one attempt."""
        return self.attempts / f"{job_id}.{epoch}"

    def home(self, engine: str) -> Path:
        """Return the private HOME of an engine."""
        return self.root / "homes" / engine


class AttemptReports(Protocol):
    """What one attempt tells the API; everything but `deliver` is spooled and returns at once."""

    def started(self, *, pid: int | None, engine_version: str, workdir: str, resumed_session: str = "") -> None:
        """Tell that the engine runs."""
        ...

    def log(self, stream: LogStream, text: str, at: datetime | None = None) -> None:
        """Add one redacted line of output."""
        ...

    def event(self, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Add one step."""
        ...

    def checkpoint(self, sha: str) -> None:
        """Tell where the work so far is kept."""
        ...

    async def deliver(self, result: BuildResult) -> None:
        """Hand in the result, and everything before it; waits for as long as the API is away.

        Raises:
            StaleEpoch: the attempt's lease is gone; nothing of it counts any more.

        """
        ...

    async def quarantined(self, ref: str, sha: str, message: str) -> None:
        """Tell where the work lies that was finished without a lease; waits for as long as the API is away.

        Raises:
            GigafactoryError: the API will not take it.

        """
        ...

    async def confirm(self) -> Literal["", "cancelled"]:
        """Tell the ledger that the attempt lives, so that it keeps the lease; return why it is to stop, if it is.

        Raises:
            StaleEpoch: the attempt's lease is gone; nothing of it counts any more.
            GigafactoryError: the API does not answer, or not as it should.

        """
        ...

    async def flush(self, limit_s: float) -> None:
        """Send what waits now, and wait for that as long as `limit_s`."""
        ...

    async def upload(self, path: str, body: bytes, *, kind: Literal["file", "diff", "log"], media_type: str) -> None:
        """Store one captured file; a small one is spooled like everything else.

        Raises:
            GigafactoryError: the API did not take it.

        """
        ...


class Reports(Protocol):
    """Opens the reports of attempts."""

    def attempt(self, job_id: str, epoch: int) -> AttemptReports:
        """Return the reports of one attempt, also of one that was opened before."""
        ...


@dataclass(frozen=True, slots=True)
class Rescue:
    """What was done about a run whose supervisor is dead."""

    group_dead: bool
    checkpoint_sha: str
    """Newest checkpoint that the remote holds; empty for none."""


@dataclass(frozen=True)
class FactoryContext:
    """One factory, as its activities see it."""

    name: str
    settings: Settings
    paths: FactoryPaths
    environ: Mapping[str, str]
    """The agent's own environment; engines get what is allow-listed of it."""
    workspaces: Workspaces
    supervisors: Supervisors
    reports: Reports
    engine: Callable[[str], Engine]
    """Returns an engine by name; raises NotFound."""
    rescue: Callable[[Path], Awaitable[Rescue]]
    """Kills and salvages the run in a folder after its supervisor was killed."""
    redactor: Redactor
    """Knows the credentials that are present; streams get a `Redactor.sharing` of it."""
    api: ApiAddress | None = None
    engine_versions: Mapping[str, str] = field(default_factory=dict)
    running: RunningAttempts = field(default_factory=RunningAttempts)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the agent was told to go: running attempts end with a checkpoint."""
    orders: Orders = field(default_factory=Orders)
    """What the fleet, or a file on this machine, wants to be stopped."""
