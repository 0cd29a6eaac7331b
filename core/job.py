"""What a job is once it was accepted: its stages, its immutable snapshot, its conditions. *Pure.*

`JobSpec` is the snapshot that is kept with the job for ever: manifest values with the profile resolved into them.
Everything after intake (router, workflow, factory) works from it and never from the file. Messages are lenient:
unknown fields are ignored and new ones have defaults, so that a rollback can read what a newer version wrote.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Message(BaseModel):
    """Base of everything that is stored or crosses a process: frozen, lenient towards newer writers."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stage(StrEnum):
    """Where a job is in its life; the legal changes between stages are data in `core.lifecycle`."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    BUILDING = "building"
    REVIEW = "review"
    TESTING = "testing"
    SHIPPED = "shipped"
    FAILED = "failed"
    DEAD_LETTER = "dead_letter"
    CANCELLED = "cancelled"


class Priority(StrEnum):
    """How urgent a job is; the order of the members is the order of service."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def rank(self) -> int:
        """Return 0 for critical … 3 for low."""
        return list(Priority).index(self)


class FailureKind(StrEnum):
    """Why an attempt ended without a candidate that passed its gates; `retry.on` names these."""

    TIMEOUT = "timeout"
    VERIFY_FAILED = "verify_failed"
    CRASH = "crash"
    ENGINE_ERROR = "engine_error"
    RATE_LIMITED = "rate_limited"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    """The engine cannot work at that place, whatever the job: not installed, not signed in, out of credit, not to be
    understood."""
    WORKSPACE = "workspace"
    BAD_RESULT = "bad_result"
    LEASE_LOST = "lease_lost"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Stopped for the sake of the fleet (kill switch, drain): nobody's fault, and nothing is counted."""


RETRYABLE_BY_MANIFEST = (
    FailureKind.TIMEOUT,
    FailureKind.VERIFY_FAILED,
    FailureKind.CRASH,
    FailureKind.ENGINE_ERROR,
    FailureKind.WORKSPACE,
    FailureKind.BAD_RESULT,
)


OF_THE_PLACE = (FailureKind.RATE_LIMITED, FailureKind.ENGINE_UNAVAILABLE)
"""Ends that say something about the engine at that place, and nothing about job or machine: the job moves on."""


class Cooldown(Message):
    """Until when an engine is not asked on a factory again, and why."""

    until: datetime
    """Aware."""
    reason: str


class Condition(Message):
    """A reason why a job does not move although its stage is not an end; shown beside the stage."""

    type: Literal["blocked", "paused"]
    reason: str
    """Stable code: `parents`, `parent_failed`, `scope`, `conflict`, `cooldown`, `backoff`, `operator`."""
    message: str
    until: datetime | None = None


class RepositoryKind(StrEnum):
    """How the workspace of a job comes about."""

    GIT = "git"
    """A worktree per attempt from a cached mirror of `url`."""
    DIRECTORY = "directory"
    """A directory without git: the job runs in place, without scope gate and merge."""


class Repository(Message):
    """Where a job's work starts and goes to; resolved once, at submit."""

    kind: RepositoryKind = RepositoryKind.GIT
    url: str
    """Git URL or absolute path of the remote; for `directory` the directory itself."""
    base: str = "main"
    """Branch that the work starts from and that `ship: base` merges into."""
    base_sha: str = ""
    """Commit that the first attempt starts from; empty for `directory`."""
    host: str | None = None
    """Host name the job is pinned to, because `url` is a path there; None when any factory can reach it."""
    base_checked_out: bool = False
    """The base branch is checked out in the user's own working tree: ship never moves it there."""
    notes: tuple[str, ...] = ()
    """What the user should know: uncommitted changes left out, no git, checked-out base."""


class RetrySpec(Message):
    """How often and when a failed attempt is repeated; `max` counts attempts after the first."""

    max: int = 0
    backoff_s: float = 30.0
    """Wait before the first retry; doubles with each further one, one hour at the most."""
    on: tuple[FailureKind, ...] = RETRYABLE_BY_MANIFEST


class BudgetSpec(Message):
    """Ceilings of one job; None means no ceiling of that kind."""

    usd: Decimal | None = None
    tokens: int | None = None
    wall_s: int | None = None


class Dependency(Message):
    """A parent job that must have reached a stage before this job may start."""

    job_id: str
    until: Literal["shipped", "testing"] = "shipped"


class ShipMode(StrEnum):
    """Where an approved candidate goes."""

    BRANCH = "branch"
    """Push `gigafactory/<job>`; the base stays as it is."""
    BASE = "base"
    """Merge into the base branch, where profile and setting allow it."""
    PR = "pr"
    """Open a pull request (not built yet: refused)."""


class LeaseLoss(StrEnum):
    """What an engine does whose attempt does not count any more."""

    STOP = "stop"
    """It is killed."""
    FINISH_QUARANTINED = "finish-quarantined"
    """It runs to its end; what it leaves is kept and shown, and never applied."""


class ProfileRef(Message):
    """Which profile, in which version, was resolved into a job."""

    name: str
    version: int = 1
    sha256: str = ""


class JobSpec(Message):
    """The immutable snapshot of an accepted job: manifest and profile resolved, quantities in base units."""

    title: str
    body: str
    """The prompt as written; for the `shell` and `replay` engines the script."""
    persona: str = ""
    """The profile's persona; engines that read prose get it before the body."""
    repository: Repository
    profile: ProfileRef | None = None
    product_id: str = "default"
    engine: str | None = None
    """Explicit engine; None leaves the choice to `engine_class` and the router."""
    engine_class: str | None = None
    engine_preference: tuple[str, ...] = ()
    """Engines in the order the profile prefers them."""
    model: str | None = None
    allowed_tools: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    prefers: tuple[str, ...] = ()
    weights: dict[str, int] = Field(default_factory=dict)
    """Parts of the router's score that count otherwise for this job."""
    priority: Priority = Priority.MEDIUM
    yolo: bool = False
    lock: str | None = None
    timeout_s: int = 3600
    on_lease_loss: LeaseLoss = LeaseLoss.STOP
    verify: tuple[str, ...] = ()
    """Shell command lines, run in order in a clean checkout of the candidate; the first failure ends it."""
    retry: RetrySpec | None = None
    """None: a failed attempt ends the job in `failed`; otherwise exhausted retries end in `dead_letter`."""
    review_policy: Literal["auto", "manual"] = "manual"
    ship: ShipMode = ShipMode.BRANCH
    allowed_scope: tuple[str, ...] = ()
    """Globs; empty: everything is in scope."""
    shares_scope: bool = False
    """Other jobs may work on the same paths at the same time."""
    artifacts: tuple[str, ...] = ()
    """Globs in the worktree that are captured after the run."""
    deps: tuple[Dependency, ...] = ()
    budget: BudgetSpec = BudgetSpec()
    tracker_item: str | None = None
    idempotency_key: str | None = None
    manifest_sha256: str = ""
    """Hash of the canonical manifest (front matter + body), the `content` of idempotency."""

    @property
    def prompt(self) -> str:
        """Return persona and body as one prompt."""
        return f"{self.persona.rstrip()}\n\n{self.body}" if self.persona else self.body
