"""What goes into the ledger. *Pure.*"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from core.absence import Absence
from core.access import Access
from core.attempt import BuildResult
from core.job import JobSpec, Message

MAX_LOG_CHARS = 65_536
"""Longest log line that is kept whole; what is cut off is counted at its end."""
MAX_STEP_MESSAGE_CHARS = 4_000
MAX_STEP_DATA_CHARS = 16_000
"""Longest data of one step as JSON; longer data is kept as size and digest."""


class Submission(Message):
    """One job as it is handed in."""

    job_id: str
    spec: JobSpec
    canonical: dict[str, Any] = Field(default_factory=dict)
    """The canonical manifest; equal content means the same job under one idempotency key."""
    documents: dict[str, Any] = Field(default_factory=dict)
    """What is kept beside the spec: `manifest` as written, `provenance` of each field, `profile`."""
    idempotency_key: str | None = None
    submitted_by: str = ""
    name: str = ""
    """What the submitter calls it (a file, a key), for messages about several jobs."""
    base_known_at: datetime | None = None
    """When its base was looked up: what parents shipped later is not in it. None: nobody knows."""
    child_of: str | None = None
    """The running job that it is a part of: that one does not ship before this one has."""


class StartedInfo(Message):
    """What an attempt says of itself when its engine was started."""

    engine_version: str = ""
    pid: int | None = None
    workdir: str = ""
    resumed_session: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class LogLine(Message):
    """One redacted line of an attempt's output."""

    at: datetime
    text: str


class AttemptStep(Message):
    """Something that the engine did: a tool call, a message, a limit notice."""

    at: datetime
    type: str
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class LogBlock(Message):
    """Lines of one stream, numbered without gaps by attempt and stream from `first_seq`."""

    stream: str
    first_seq: int = Field(ge=1)
    lines: tuple[LogLine, ...]


class StepBlock(Message):
    """Steps, numbered without gaps by attempt from `first_seq`."""

    first_seq: int = Field(ge=1)
    steps: tuple[AttemptStep, ...]


class ArtifactFile(Message):
    """A captured file; its bytes lie at `location`, outside the ledger."""

    path: str
    kind: str = "file"
    media_type: str = "application/octet-stream"
    size: int = Field(ge=0)
    sha256: str
    location: str


class HandedIn(Message):
    """An attempt's last act: its candidate, and the whole answer of the engine activity when it is known."""

    sha: str = ""
    answer: BuildResult | None = None


class AttemptReport(Message):
    """Everything that an attempt has to tell since its last report; taken in by one transaction."""

    started: StartedInfo | None = None
    logs: tuple[LogBlock, ...] = ()
    steps: StepBlock | None = None
    files: tuple[ArtifactFile, ...] = ()
    checkpoint: str | None = None
    result: HandedIn | None = None

    @property
    def kind(self) -> str:
        """Return what the report brings, as a refusal names it, e.g. `log, result`."""
        parts = {
            "started": self.started,
            "log": self.logs,
            "event": self.steps,
            "artifact": self.files,
            "checkpoint": self.checkpoint,
            "result": self.result,
        }
        return ", ".join(name for name, part in parts.items() if part)


class StationOffer(Message):
    """The seats that a factory has for one engine."""

    engine: str
    version: str = ""
    usable: bool = True
    repair: str = ""
    seats: int = Field(default=1, ge=0)


class FactoryStatus(Message):
    """What changes from beat to beat; None leaves what is known as it is."""

    load: Decimal | None = None
    """Load average per core."""
    free_disk_gb: Decimal | None = None
    free_memory_gb: Decimal | None = None
    sentinel: str | None = None
    """The sentinel file that stops the factory; empty: none is there."""
    warm_repositories: tuple[str, ...] | None = None
    health: Decimal | None = Field(default=None, ge=0, le=1)
    absences: tuple[Absence, ...] = ()
    """What the machine's clocks told since the last beat; the newest is kept as `absence`, each is in the audit log."""


class Registration(Message):
    """A factory agent that reports for work."""

    name: str = Field(min_length=1, max_length=200)
    host: str
    pid: int
    instance: str
    """Random id of this agent process."""
    version: str = ""
    capabilities: tuple[str, ...] = ()
    stations: tuple[StationOffer, ...] = ()
    seats: int = Field(default=3, ge=0)
    status: FactoryStatus = FactoryStatus()
    details: dict[str, Any] = Field(default_factory=dict)
    """What people may want to know of the machine; `cost_class` is read from here."""
    declared: tuple[str, ...] = ()
    """Capabilities that the machine's settings claim, beside those that the agent detected (`capabilities`)."""
    boot: str = ""
    """Which boot of which machine the agent runs in; a cloned machine has booted by itself."""
    replaces: str = ""
    """`instance` of the agent before it, as that one left it on the machine, if it is proven dead (pid, start time)."""
    product_id: str = "default"


FactoryState = Literal["online", "offline", "draining", "quarantined"]


class NewToken(Message):
    """A token that comes into the ledger; of the secret itself only the digest does."""

    id: str
    sha256: str
    name: str
    access: Access
    expires_at: datetime | None = None
    """None: it opens until it is revoked."""
    origin: str = ""
    """The file in which a local token was made; empty for one that the API made."""
