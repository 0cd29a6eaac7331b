"""What comes out of the ledger. *Pure.*"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer

from core.access import Access
from core.attempt import Grant, Usage
from core.dag import EdgeState, Gate, Until, Wait
from core.factory_state import FactoryActivity
from core.flakiness import FlakyEvidence
from core.job import Condition, JobSpec, Message, Priority, Stage
from core.job_events import Standing
from core.roles import Role
from core.router_explain import Explanation
from core.router_why_not import WhyNot
from core.switch import Halt, SwitchState
from store.column_types import utc_text
from store.messages import FactoryState

LeaseState = Literal["living", "accepted", "lost", "ended"]
LimitKind = Literal["product", "engine"]


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
    cooldown_until: datetime | None = None
    """For one that ended because of its place: until then no job was given to that engine there."""
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
    """A job that another one waits for, and what it is at."""

    job_id: str
    until: Until
    stage: Stage
    state: EdgeState = "open"
    """`done`: waited for no more; `failed`: it ended without what is waited for; `dropped`: by an operator."""


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
    """Parents, those that hold the job back first; the first hundred of `deps_total`."""
    deps_total: int = 0
    children: tuple[DependencyView, ...] = ()
    """Child jobs that its ship gate waits for, in the same way; the first hundred of `children_total`."""
    children_total: int = 0
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
    told: bool = False
    """A message to the job's workflow is on its way."""


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


class WaitState(Wait):
    """What the jobs that a job waits for at one gate are at; `waiting` and `failed` have the first twenty of them."""

    waiting: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


class DagJobView(Message):
    """A job in a graph of what waits for what."""

    id: str
    title: str
    stage: Stage


class DagEdgeView(Message):
    """One job waits for another at one of its gates."""

    job_id: str
    waits_for: str
    gate: Gate
    until: Until
    state: EdgeState


class DagView(Message):
    """Jobs and what they wait for; `truncated`: there are more."""

    jobs: tuple[DagJobView, ...] = ()
    edges: tuple[DagEdgeView, ...] = ()
    truncated: bool = False


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
    ready: bool
    """Whether admission may give it a seat already."""
    children: WaitState
    priority: Priority
    submitted_at: datetime
    note: str = ""
    failure: str = ""
    """How the life before ended."""
    session_id: str | None = None
    """Engine session of the last attempt, and its engine."""
    engine: str | None = None
    standing: Standing | None = None
    """Where the job stands, when it does not begin from nothing."""


class StationRow(Message):
    """The seats of one engine on one factory, and how many are taken."""

    engine: str
    version: str = ""
    usable: bool
    repair: str = ""
    seats: int
    busy: int
    cooldown_until: datetime | None = None
    """The engine rests there until then; a time in the past means nothing any more."""
    cooldown_reason: str = ""


class DrainOrder(Message):
    """An operator's order that a factory takes no further jobs; it holds until it is taken back."""

    by: str = ""
    reason: str = ""
    at: datetime
    hand_over_at: datetime | None = None
    """When attempts that still run are ended with a checkpoint and go on elsewhere; None: they may finish."""


class Quarantine(Message):
    """Why a factory was quarantined."""

    at: datetime
    evidence: FlakyEvidence


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
    declared: tuple[str, ...] = ()
    """Capabilities that the machine's settings claim; `capabilities` are those that the agent detected."""
    attested: tuple[str, ...] = ()
    """Capabilities that an operator vouched for."""
    unattested: tuple[str, ...] = ()
    """Sensitive ones that the factory claims and nobody vouched for: they do not count."""
    seats: int
    busy: int
    stations: tuple[StationRow, ...]
    status: dict[str, Any]
    details: dict[str, Any]
    registered_at: datetime
    last_beat_at: datetime
    drain: DrainOrder | None = None
    """An operator's order that is in force."""
    quarantine: Quarantine | None = None
    """Why it was set aside, until an operator releases it."""
    activity: FactoryActivity
    """What it is doing, and why it can take nothing when that is so."""


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


class Restarted(Message):
    """A job whose workflow was gone, and how its next life begins."""

    job_id: str
    life: int
    at: Literal["queue", "gate"]
    """`gate`: in review or testing, with the candidate that it had."""
    superseded: int = 0
    """Epoch of the attempt that was running and does not count any more; 0 for none."""


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


class PlaceExplanation(Message):
    """Why a job does not run on a certain factory, or that it does."""

    job_id: str
    factory: str
    stage: Stage
    decided_at: datetime | None
    """When the stored decision was taken; None: computed just now from the present fleet."""
    answer: WhyNot | None
    """None when the router was never asked, or did not know the factory when it decided."""
    message: str


class TokenRow(Message):
    """A token as the ledger knows it; nobody knows the secret but who was given it."""

    id: str
    product_id: str
    sha256: str
    name: str
    roles: tuple[Role, ...]
    products: tuple[str, ...] | None
    factory: str | None
    origin: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    reason: str
    """Why it was revoked."""
    successor: str | None
    """The token that took its place by rotation; until `expires_at` both are good."""
    revision: int

    @property
    def access(self) -> Access:
        """Return what the token may do."""
        return Access(roles=self.roles, products=self.products, factory=self.factory)

    def opens(self, now: datetime) -> bool:
        """Return whether the token is good at `now`."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


class TokenChanges(Message):
    """What changed about tokens since a revision, and the token that was asked for."""

    revision: int
    changed: tuple[TokenRow, ...]
    found: TokenRow | None = None


class AuditLine(Message):
    """One line of the fleet's audit log; as JSON it holds what its hash is made of."""

    seq: int
    product_id: str
    at: HashedTime
    type: str
    actor: str
    subject: str
    message: str
    data: dict[str, Any]
    prev_hash: str
    hash: str


class AuditReport(Message):
    """What checking the audit log found."""

    ok: bool
    lines: int
    broken_at: int | None = None
    """Number of the first line that does not fit."""


class HaltRow(Halt):
    """One pull of the kill switch as the ledger keeps it."""

    product_id: str
    released_epoch: int | None = None
    """Kill epoch of its release; None: in force."""
    released_at: datetime | None = None
    released_by: str = ""


class StoppedAttempt(Message):
    """A running attempt that a pull of the switch stops."""

    job_id: str
    epoch: int
    product_id: str
    factory: str
    engine: str


class Pulled(Message):
    """What a pull of the switch did."""

    halt: Halt
    stopped: tuple[StoppedAttempt, ...] = ()


class BeatAnswer(Message):
    """What a factory's agent hears when it beats."""

    state: FactoryState
    returned: bool = False
    """It was offline before, so it may take jobs again."""
    hand_over: bool = False
    """It drains, and what still runs is to end now with a checkpoint and go on elsewhere."""
    switch: SwitchState = SwitchState()
    """How the kill switch stands, as far as it concerns this factory."""


class LimitRow(Message):
    """How many jobs of a product, or on an engine, may run at once."""

    kind: LimitKind
    name: str
    jobs: int
    set_by: str = ""
    """Empty: a setting."""
    set_at: datetime | None = None
    running: int = 0
    """Jobs that hold a seat now."""
