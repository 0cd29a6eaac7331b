"""What the routes work with, made once per process and handed to every request. *Does no I/O itself.*"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Protocol

from fastapi import Depends
from starlette.requests import Request

from api.ids import JobIds
from api.link import Links
from api.owners import Owners
from api.shelf import ProfileShelf
from api.sse import Wakeups
from core.job_messages import ActReply, RecoveredJob
from core.settings import Settings
from store.ledger import Ledger
from store.token_book import TokenBook
from store.views import JobView


class JobActions(Protocol):
    """Brings actions to job workflows; `workflows.job_client.JobClient` in the product."""

    async def act(self, job: JobView, action: str, *, sha: str = "", reason: str = "", by: str = "") -> ActReply:
        """Bring `action` to `job`."""

    async def recover(self, after_id: str, limit: int, *, replace: bool) -> tuple[RecoveredJob, ...]:
        """Give unfinished jobs the workflow that they lack."""

    async def end_unknown(self) -> tuple[str, ...]:
        """End job workflows that the ledger has no unfinished job for."""


class Temporal(Protocol):
    """What the routes need of Temporal; `api.background.TemporalLink` in the product."""

    @property
    def jobs(self) -> JobActions:
        """Return the way to job workflows, or raise Unavailable."""

    async def health(self) -> str:
        """Return `ok`, or in a few words why not."""


class Wakes(Protocol):
    """Hands out seats and messages when woken; `api.background.Dispatcher` in the product."""

    def wake(self) -> None:
        """Ask for a pass."""


@dataclass(frozen=True)
class Backend:
    """The parts of one API process."""

    settings: Settings
    ledger: Ledger
    book: TokenBook
    temporal: Temporal
    dispatcher: Wakes
    shelf: ProfileShelf
    wakeups: Wakeups = field(default_factory=Wakeups)
    ids: JobIds = field(default_factory=JobIds)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    instance_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @cached_property
    def owners(self) -> Owners:
        """Return who knows whose a record is."""
        return Owners(self.ledger)

    @cached_property
    def links(self) -> Links:
        """Return the links of the factories' agents to this process."""
        return Links(self.ledger)

    @property
    def artifacts_dir(self) -> Path:
        """Return where captured files lie."""
        return self.settings.home / "artifacts"

    def temporal_ui(self) -> str:
        """Return the address of Temporal's Web UI, as the running stack says it; empty when there is none."""
        try:
            document = json.loads((self.settings.home / "run" / "stack.json").read_text())
            return str(document["urls"]["temporal_ui"] or "").rstrip("/")
        except (OSError, ValueError, LookupError, TypeError):
            return ""


async def backend_of(request: Request) -> Backend:  # not plain: FastAPI runs a plain one in a thread
    """Return the parts of the process that serves `request`."""
    backend = request.app.state.backend
    assert isinstance(backend, Backend)
    return backend


Parts = Annotated[Backend, Depends(backend_of)]
"""What a route takes to get at the backend."""


def utc_now() -> datetime:
    """Return the present time, aware."""
    return datetime.now(UTC)
