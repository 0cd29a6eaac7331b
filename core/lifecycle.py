"""The life of a job as data: stages, their legal changes, and what the ledger writes for each. *Pure.*

`TRANSITIONS` is the whole state machine of the stages; the diagram in `docs/reference/lifecycle.md` is drawn from it
and both the workflow (through `core.decision.decide`) and the ledger check against it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from core.attempt import Usage
from core.dag import Wait
from core.errors import IllegalTransition
from core.job import Condition, Cooldown, Message, Stage

TRANSITIONS: dict[Stage, tuple[Stage, ...]] = {
    Stage.QUEUED: (Stage.ASSIGNED, Stage.FAILED, Stage.DEAD_LETTER, Stage.CANCELLED),
    Stage.ASSIGNED: (Stage.BUILDING, Stage.QUEUED, Stage.FAILED, Stage.DEAD_LETTER, Stage.CANCELLED),
    Stage.BUILDING: (Stage.REVIEW, Stage.QUEUED, Stage.FAILED, Stage.DEAD_LETTER, Stage.CANCELLED),
    Stage.REVIEW: (
        Stage.TESTING,
        Stage.SHIPPED,
        Stage.QUEUED,
        Stage.FAILED,
        Stage.DEAD_LETTER,
        Stage.CANCELLED,
    ),
    Stage.TESTING: (
        Stage.SHIPPED,
        Stage.REVIEW,
        Stage.QUEUED,
        Stage.FAILED,
        Stage.DEAD_LETTER,
        Stage.CANCELLED,
    ),
    Stage.FAILED: (Stage.QUEUED,),
    Stage.DEAD_LETTER: (Stage.QUEUED,),
    Stage.SHIPPED: (),
    Stage.CANCELLED: (),
}
"""Every legal stage change. `failed` and `dead_letter` are left only by an operator's requeue, which begins a new
life of the job; `shipped` and `cancelled` are never left."""

TERMINAL = (Stage.SHIPPED, Stage.CANCELLED)
ENDED = (Stage.SHIPPED, Stage.CANCELLED, Stage.FAILED, Stage.DEAD_LETTER)
"""Stages in which the job's workflow is closed."""


def check_transition(start: Stage, finish: Stage) -> None:
    """Raise `IllegalTransition`, naming both ends, unless the lifecycle has the change `start` → `finish`."""
    if finish not in TRANSITIONS[start]:
        legal = ", ".join(TRANSITIONS[start]) or "nothing: it is an end"
        raise IllegalTransition(
            f"a job cannot go from {start} to {finish}; from {start} it may go to {legal}",
            start=str(start),
            finish=str(finish),
        )


def state_diagram() -> str:
    """Return the transitions as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> queued"]
    lines += [f"    {start} --> {finish}" for start, finishes in TRANSITIONS.items() for finish in finishes]
    lines += [f"    {stage} --> [*]" for stage in TERMINAL]
    return "\n".join(lines) + "\n"


class Entry(Message):
    """One line for the job's event log."""

    type: str
    """`stage.changed`, `gate.scope`, `gate.verify`, `decision.refused`, `job.retry`, …"""
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class Record(Message):
    """What the ledger must write for one decision, in one transaction; idempotent by (job, seq).

    `path` is the stages to go through from the present one, in order (empty: no change). The projection fields
    overwrite what the ledger shows for the job; None leaves it as it is.
    """

    path: tuple[Stage, ...] = ()
    entries: tuple[Entry, ...] = ()
    conditions: tuple[Condition, ...] | None = None
    epoch: int = 0
    """Epoch this record is about; 0 for none."""
    attempt_outcome: str | None = None
    """Ends the attempt `epoch` with this outcome: `succeeded` or a FailureKind value."""
    attempt_message: str = ""
    attempt_result: dict[str, Any] | None = None
    """BuildResult as JSON: timings, session, engine version, exit code, log tail."""
    verdict: dict[str, Any] | None = None
    """Verdict as JSON: scope, verify, changes."""
    usage: Usage | None = None
    candidate_sha: str | None = None
    base_sha: str | None = None
    checkpoint_sha: str | None = None
    commits: tuple[str, ...] | None = None
    shipped_ref: str | None = None
    approved_by: str | None = None
    end_lease: bool = False
    """The attempt's lease and seat end here (the ledger frees them whatever state the lease is in)."""
    release_locks: bool = False
    exclude_factory: bool = False
    """Prefer another factory than this epoch's for the next grant (its agent was lost)."""
    cooldown: Cooldown | None = None
    """The engine of this epoch is not asked on its factory before then, by no job."""
    end_cooldowns: bool = False
    """The engines that may do the job are asked again at once, wherever they were not to be (an operator's word)."""

    def timeless(self) -> dict[str, Any]:
        """Return, as JSON, what was decided, without the moments that were counted from the time of the decision.

        A workflow task whose worker died is done again later: it decides the same, for other moments.
        """
        decided = self.model_dump(mode="json", exclude={"cooldown": {"until"}, "conditions": {"__all__": {"until"}}})
        for entry in decided["entries"]:
            entry["data"].pop("cooldown_until", None)
        return decided


class Decided(Message):
    """Where a workflow is with its newest record: its task may be forgotten, and be done again by another worker."""

    seq: int
    state: dict[str, Any]
    """What `core.repeated.remembered` keeps of the `JobState`."""
    taken: tuple[str, ...] = ()
    """Fingerprints of the events that the same workflow task had taken in by then."""


class RecordAck(Message):
    """Answer to a `Record`: whether it was new, whether capacity became free, whether other jobs are to be told."""

    applied: bool
    freed: bool = False
    told: bool = False
    """Messages to the jobs that wait for this one lie in the outbox."""
    children: Wait | None = None
    """What child jobs keep the job from shipping, when the record brings it to its gate."""
    ahead: Decided | None = None
    """The number had been given to another decision: that one holds, and this is how far the ledger is."""
