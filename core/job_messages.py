"""What goes in and out of the job workflow and its control-side activities. *Pure.*

Messages are lenient towards newer writers (`core.job.Message`), so that a worker of an older version can read them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from core.attempt import BuildResult, Grant
from core.dag import Wait
from core.job import JobSpec, Message, Stage
from core.job_events import Action, Policy, Standing
from core.lifecycle import Decided, Record

CONTROL_QUEUE = "gf.control"
"""Workflow tasks, and the local activities that run beside them."""
IO_QUEUE = "gf.io"
"""Control-side activities that may take longer: routing, reconciling."""
IO_SILENCE = timedelta(seconds=20)
"""Those that may take longer than a moment beat; one that told nothing for so long died with its control worker."""
WORKER_GONE = "WorkerShutdown"
"""Type of the error of a step whose worker went away: the step did nothing wrong. The SDK's own name for it."""

RECORDS_PER_LIFE = 1_000_000
"""Records of one life of a job are numbered from `life * RECORDS_PER_LIFE`, so that lives never share a number."""


LIFE_MEMO = "life"
"""Memo field of a job's workflow: which life of the job it is."""


class JobInput(Message):
    """Argument of `JobWorkflow`."""

    job_id: str
    product_id: str = "default"
    spec: JobSpec
    grant: Grant | None = None
    """The grant that admission gave at submit; None: the job waits for one."""
    policy: Policy = Policy()
    life: int = 1
    """1 for the first workflow of the job, +1 for each requeue of an ended job."""
    epoch: int = 0
    """Last epoch of earlier lives."""
    note: str = ""
    """A human's words to the next attempt, from the requeue that began this life."""
    failure: str = ""
    """What went wrong in the life before."""
    session_id: str | None = None
    """Engine session of the last attempt, and its engine."""
    engine: str | None = None
    standing: Standing | None = None
    """Where the job stands, when this life takes the place of a workflow that is gone."""
    children: Wait | None = None
    """What its child jobs keep it from shipping; None: nothing."""
    ready: bool = False
    """Whether admission may give it a seat already: its parents are done, and its base is known."""


class JobOutcome(Message):
    """Result of `JobWorkflow`."""

    job_id: str
    stage: Stage
    epoch: int
    commits: tuple[str, ...] = ()


class ActRequest(Message):
    """Argument of the `act` update."""

    action: Action
    sha: str = ""
    by: str = ""
    reason: str = ""


class ActReply(Message):
    """Answer of the `act` update: where the job is after the action was taken in."""

    stage: Stage
    conditions: tuple[str, ...] = ()


class JobRef(Message):
    """Argument of control-side activities that need nothing but the job."""

    job_id: str
    product_id: str = "default"


class WriteRequest(Message):
    """Argument of `write_record`."""

    job_id: str
    product_id: str = "default"
    seq: int
    record: Record
    decided: Decided | None = None
    """Where the workflow is with it."""


class WriteReply(Message):
    """Answer of `write_record`."""

    children: Wait | None = None
    """What child jobs keep the job from shipping, when the record brings it to its gate or ships it; None: nothing."""
    ahead: Decided | None = None
    """Another decision had been written under that number: the workflow goes on from there (`core.repeated`)."""


class ChildrenReply(Wait):
    """Answer of `resolve_children`."""


class HoldRequest(Message):
    """Argument of `hold`: the job must not get a seat until it is routed again."""

    job_id: str
    reason: str = ""


class ParentsReply(Message):
    """Answer of `resolve_parents`."""

    outcome: Literal["ready", "waiting", "failed"]
    message: str = ""
    base_sha: str = ""
    """When they are done: the commit that the base branch is at now, with what the parents shipped."""


class RouteReply(Message):
    """Answer of `route`: a grant, or none for now."""

    grant: Grant | None = None
    until: datetime | None = None
    """See `core.job_events.Parked`."""
    message: str = ""


class ReclaimRequest(Message):
    """Argument of `reclaim`: an epoch whose activity was lost."""

    job_id: str
    epoch: int
    reason: str = ""
    stop: bool = False
    """The attempt is wanted to end, should it live."""


class ReclaimReply(Message):
    """Answer of `reclaim`: the result that the attempt had handed in, or that it lives on, or neither: it is lost."""

    accepted: BuildResult | None = None
    living_s: float | None = None
    """It told of itself without a heartbeat; that word is good for so long, then ask again."""


class PlaceRequest(Message):
    """Argument of `place_step`: a workspace step whose factory does not answer."""

    job_id: str
    epoch: int
    step: str
    avoid: str = ""
    """Factory that did not answer; taken again only when there is no other."""


class PlaceReply(Message):
    """Answer of `place_step`: a living factory that can reach the candidate, or an empty name."""

    factory: str = ""


class LostSignal(Message):
    """Payload of the `lease_lost` signal."""

    epoch: int
    reason: str = ""
    checkpoint_sha: str = ""


class HandedInSignal(Message):
    """Payload of the `handed_in` signal: the ledger has the result of an attempt that Temporal does not know."""

    epoch: int


class InterruptSignal(Message):
    """Payload of the `interrupt` signal."""

    epoch: int
    reason: str = ""


class ReconcileReply(Message):
    """What one pass of the reconciler looked at and mended."""

    checked: int = 0
    restarted: tuple[str, ...] = ()
    """Jobs whose workflow was missing and was started again."""
    failed: tuple[str, ...] = ()
    """Jobs whose workflow was terminated; they are `failed` and may be requeued."""
    regranted: tuple[str, ...] = ()
    """Jobs whose workflow did not know of their grant, and was told again."""
    lost: tuple[str, ...] = ()
    """Jobs of which a step was silent for too long without Temporal noticing; it is done again, unless it is done."""
    freed_seats: int = 0


class RecoveredJob(Message):
    """What recovery found about one unfinished job, and what it did."""

    id: str
    product_id: str
    stage: Stage
    """Before anything was done."""
    found: Literal["running", "starting", "closed", "missing"]
    """How its workflow was: `starting`, its start is on its way; `closed`, the reconciler will end the job."""
    life: int = 0
    """The life that begins now, for a missing one."""
    at: Literal["", "queue", "gate"] = ""
    """Where that life begins: queued, or in review or testing with the candidate that it had."""
    superseded: int = 0
    """Epoch of the attempt that was running and does not count any more; 0 for none."""
