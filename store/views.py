"""What comes out of the ledger. *Pure.*"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer

from core.attempt import Grant, Usage
from core.job import Condition, JobSpec, Message, Priority, Stage
from core.router_explain import Explanation
from store.column_types import utc_text
from store.messages import FactoryState

LeaseState = Literal["living", "accepted", "lost", "ended"]


class Submitted(Message):
    """Answer to a submission."""

    job_id: str
    created: bool
    """False: the same content was submitted under the same key before; `job_id` is that job's."""


class AttemptView(Message):
    """One attempt."""

    epoch: int
    life: int = 1
    factory: str
    engine: str
    engine_version: str = ""
    host: str = ""
    lease: LeaseState
    outcome: str | None = None
    """`succeeded` or a FailureKind; None while it runs."""
    granted_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    message: str = ""
    usage: Usage = Usage()
    exit_code: int | None = None
    session_id: str | None = None
    verdict: dict[str, Any] | None = None
    log_lines: int = 0
    refused_writes: int = 0
    """Writes that came after the lease was gone and were not applied."""


class Cost(Message):
    """What a job cost so far; `usd` None is unknown."""

    usd: Decimal | None = None
    source: Literal["reported", "estimated", "unknown"] = "unknown"
    complete: bool = False
    """Every ended attempt told its cost; otherwise `usd` is a lower bound."""


class DependencyView(Message):
    """A parent and what it is at."""

    job_id: str
    until: Literal["shipped", "testing"]
    stage: Stage


class JobView(Message):
    """A job as people and programs see it."""

    id: str
    product_id: str
    title: str
    stage: Stage
    conditions: tuple[Condition, ...] = ()
    held: str | None = None
    """Why admission passes over the queued job; None: it may have a seat."""
    priority: Priority
    profile: str | None = None
    engine: str | None = None
    repository: dict[str, Any]
    ship: str
    review_policy: str
    deps: tuple[DependencyView, ...] = ()
    attempts: tuple[AttemptView, ...] = ()
    epoch: int = 0
    life: int = 1
    reclaims: int = 0
    commits: tuple[str, ...] = ()
    candidate_sha: str = ""
    base_sha: str = ""
    checkpoint_sha: str = ""
    checkpoint_epoch: int = 0
    verdict: dict[str, Any] | None = None
    shipped_ref: str = ""
    approved_by: str = ""
    tokens: int | None = None
    """Sum over the attempts; None is unknown."""
    cost: Cost = Cost()
    tracker_item: str | None = None
    submitted_by: str = ""
    submitted_at: datetime
    updated_at: datetime
    queued_at: datetime
    ended_at: datetime | None = None
    event_seq: int = 0
    refused_writes: int = 0


class JobPage(Message):
    """Jobs, newest first, and where the next page begins."""

    items: tuple[JobView, ...]
    next_cursor: str | None = None


class JobDocuments(Message):
    """The immutable snapshot of a job with the documents it was made from."""

    job_id: str
    spec: JobSpec
    documents: dict[str, Any]


HashedTime = Annotated[datetime, PlainSerializer(utc_text, when_used="json")]
"""A time that JSON shows exactly as it was hashed."""


class EventView(Message):
    """One line of a job's event log; as JSON it holds what its hash is made of."""

    job_id: str
    seq: int
    at: HashedTime
    type: str
    epoch: int = 0
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    prev_hash: str
    hash: str
    product_id: str = "default"
    attempt_seq: int | None = None


class LogView(Message):
    """One stored log line; `id` grows over all jobs."""

    id: int
    job_id: str
    epoch: int
    stream: str
    seq: int
    at: datetime
    text: str


class ReportAck(Message):
    """Answer to an attempt's report: how many of its log lines and steps were new."""

    lines: int = 0
    steps: int = 0


class ArtifactView(Message):
    """One captured file."""

    id: int
    job_id: str
    epoch: int
    path: str
    kind: str
    media_type: str
    size: int
    sha256: str
    location: str
    at: datetime


class LatestIds(Message):
    """How far a job's log and event log reach; 0 when there is nothing."""

    event_seq: int
    log_id: int
    stage: Stage


class ChainReport(Message):
    """What checking a job's event log found."""

    job_id: str
    ok: bool
    events: int
    broken_at: int | None = None
    """Number of the first event that does not fit; one past the end when events are missing there."""
    problem: str = ""


class ParentsState(Message):
    """What the parents of a job are at."""

    outcome: Literal["ready", "waiting", "failed"]
    waiting: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    message: str = ""


class OutboxRow(Message):
    """One message that is to leave the ledger."""

    id: int
    kind: Literal["start", "signal"]
    name: str
    job_id: str
    product_id: str
    payload: dict[str, Any]
    created_at: datetime
    attempts: int
    error: str = ""


class StartPayload(Message):
    """What a job's workflow starts with."""

    job_id: str
    product_id: str
    stage: Stage
    """An ended stage: the message is old, and nothing is to be started."""
    spec: JobSpec
    grant: Grant | None
    life: int
    epoch: int
    """Last epoch before `grant`."""
    parents: ParentsState
    priority: Priority
    submitted_at: datetime
    note: str = ""
    failure: str = ""
    """How the life before ended."""
    session_id: str | None = None
    """Engine session of the last attempt, and its engine."""
    engine: str | None = None


class StationRow(Message):
    """The seats of one engine on one factory, and how many are taken."""

    engine: str
    version: str = ""
    usable: bool
    repair: str = ""
    seats: int
    busy: int


class FactoryRow(Message):
    """A factory as the ledger knows it."""

    name: str
    product_id: str
    host: str
    pid: int
    instance: str
    version: str
    state: FactoryState
    capabilities: tuple[str, ...]
    seats: int
    busy: int
    stations: tuple[StationRow, ...]
    status: dict[str, Any]
    details: dict[str, Any]
    registered_at: datetime
    last_beat_at: datetime


class SeatCorrection(Message):
    """A count of taken seats that did not match the leases, and was set right."""

    factory: str
    engine: str
    """Empty: the factory as a whole."""
    was: int
    now: int


class UnfinishedJob(Message):
    """A job whose workflow should be alive; what the reconciler compares with."""

    id: str
    product_id: str
    stage: Stage
    life: int
    epoch: int
    lease: LeaseState | None
    updated_at: datetime
    start_pending: bool
    """Its start message was not delivered yet."""


class JobExplanation(Message):
    """Why a job is where it is: the router's answer, and what keeps the job from the router."""

    job_id: str
    stage: Stage
    held: str | None
    conditions: tuple[Condition, ...]
    decided_at: datetime | None
    """When the stored decision was taken; None: computed just now from the present fleet."""
    explanation: Explanation | None
    message: str
