"""What can happen to a job and what can be done about it: state, events, commands. *Pure.*

`core.decision.decide` takes a `JobState` and an event and returns the next `JobState` with commands.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from core.attempt import BuildResult, Grant, Resume, ShipResult, Verdict
from core.dag import Outcome, Wait
from core.job import Condition, FailureKind, JobSpec, Message, Stage
from core.lifecycle import ENDED, Record

Action = Literal["ship", "approve", "reject", "requeue", "cancel", "pause", "resume"]
ACTIONS: tuple[Action, ...] = ("ship", "approve", "reject", "requeue", "cancel", "pause", "resume")
Step = Literal["", "build", "judge", "ship"]


class Policy(Message):
    """The settings that bear on a job's life; fixed when its workflow starts."""

    reclaim_limit: int = 5
    scope_mode: Literal["deny", "warn"] = "deny"
    locks_until: Literal["end", "verdict"] = "end"


class JobState(Message):
    """All that the lifecycle remembers about a job."""

    job_id: str
    spec: JobSpec
    policy: Policy = Policy()
    stage: Stage = Stage.QUEUED
    step: Step = ""
    """What is running for the job right now."""
    stopping: Literal["", "cancelled", "paused", "interrupted"] = ""
    """The running step was asked to end; what for."""
    stopping_because: str = ""
    """For `interrupted`: why, in the words of whoever asked."""
    epoch: int = 0
    grant: Grant | None = None
    candidate_sha: str = ""
    base_sha: str = ""
    verify: Literal["", "passed", "failed", "none"] = ""
    approved_by: str = ""
    """On whose word the candidate is being shipped."""
    failures: int = 0
    reclaims: int = 0
    moves: int = 0
    """Attempts in a row that ended because of the place (`core.job.OF_THE_PLACE`)."""
    conditions: tuple[Condition, ...] = ()
    wake_at: datetime | None = None
    """When to look again although nothing happened; None while something is running or a human decides."""
    resume: Resume = Resume()
    story: tuple[str, ...] = ()
    """One line per ended attempt, newest last, for diagnostics."""

    def blocked(self, reason: str) -> Condition | None:
        """Return the `blocked` condition with that reason, if the job has it."""
        return next((c for c in self.conditions if c.type == "blocked" and c.reason == reason), None)

    @property
    def paused(self) -> bool:
        """Return whether an operator paused the job."""
        return any(condition.type == "paused" for condition in self.conditions)

    @property
    def ended(self) -> bool:
        """Return whether nothing more will happen in this life of the job."""
        return self.stage in ENDED


# --- events -----------------------------------------------------------------------------------------------------


class Standing(Message):
    """Where the ledger says that a job stands whose workflow is gone: its next one goes on from there."""

    stage: Stage = Stage.QUEUED
    conditions: tuple[Condition, ...] = ()
    failures: int = 0
    reclaims: int = 0
    story: tuple[str, ...] = ()
    grant: Grant | None = None
    """Of the attempt whose candidate is in review or testing; None: the job waits for a seat."""
    candidate_sha: str = ""
    base_sha: str = ""
    verify: Literal["", "passed", "failed", "none"] = ""
    """Empty: the candidate was not judged yet."""
    shipping: bool = False
    """It was being shipped; `approved_by` says on whose word."""
    approved_by: str = ""


class Started(Message):
    """The workflow began: with the grant that admission already had, or without one."""

    grant: Grant | None = None
    standing: Standing | None = None
    """For a job that did not begin just now."""
    children: Wait | None = None
    """What its child jobs keep it from shipping; None: nothing."""
    ready: bool = False
    """Whether admission may give it a seat already: its parents are done, and its base is known."""


class ParentsResolved(Message):
    """What the parents of the job are at."""

    outcome: Literal["ready", "waiting", "failed"]
    message: str = ""
    base_sha: str = ""
    """When they are done: where the work starts, so that it has what they shipped; empty leaves it as it is."""


class ChildrenChanged(Message):
    """What the child jobs of the job come to is not what it was."""


class ChildrenResolved(Message):
    """What the child jobs of the job are at, for its ship gate."""

    outcome: Outcome
    message: str = ""
    held_ship: bool = False
    """The ship that was decided on did not begin because of them."""


class Granted(Message):
    """Admission gave the job a seat."""

    grant: Grant


class Parked(Message):
    """Admission has no seat for the job now; it hears by `Granted` when there is one."""

    until: datetime | None = None
    """When the first engine that may do it can be asked again, if all of them rest; None: it waits for a seat."""
    message: str = ""
    """Which engines rest until when, and why."""


class Built(Message):
    """The engine activity answered."""

    result: BuildResult
    moves_on: bool = True
    """False: a usage limit holds the job until its reset, as it did before jobs moved on to another engine."""


class StepBroken(Message):
    """The running step ended without an answer that can be used."""

    epoch: int
    step: Step
    failure: FailureKind
    message: str
    began: bool = True
    """Whether a factory had taken it; a job cannot have hurt one that has not."""


class LeaseLost(Message):
    """The ledger marked an epoch as lost (a death certificate, or the operator of a factory)."""

    epoch: int
    reason: str = ""
    checkpoint_sha: str = ""


class Interrupt(Message):
    """The control plane wants what runs for this epoch to end, and the job to be queued again."""

    epoch: int
    reason: str = ""


class Judged(Message):
    """Scope and verify of the candidate are known."""

    verdict: Verdict


class ShipEnded(Message):
    """The ship step answered."""

    result: ShipResult


class Act(Message):
    """An operator's action that `refusal` found legal."""

    action: Action
    by: str = ""
    sha: str = ""
    reason: str = ""


class Refused(Message):
    """An operator's action that came early, named another candidate, or could not be understood."""

    action: str
    message: str
    by: str = ""


class ParentsChanged(Message):
    """A parent reached an end or a gate: ask again."""


class Tick(Message):
    """The time `wake_at` has come."""


Event = (
    Started
    | ParentsResolved
    | Granted
    | Parked
    | Built
    | StepBroken
    | LeaseLost
    | Interrupt
    | Judged
    | ShipEnded
    | Act
    | Refused
    | ParentsChanged
    | ChildrenChanged
    | ChildrenResolved
    | Tick
)

# --- commands ---------------------------------------------------------------------------------------------------


class Write(Message):
    """Write this to the ledger before anything else happens."""

    record: Record


class ResolveParents(Message):
    """Ask the ledger what the parents are at."""


class ResolveChildren(Message):
    """Ask the ledger what the child jobs are at."""


class Route(Message):
    """Ask admission for a seat."""


class Hold(Message):
    """Tell admission that the job must not get a seat for now."""


class Build(Message):
    """Run the engine under `grant`."""

    grant: Grant
    resume: Resume


class Judge(Message):
    """Run scope and verify on the candidate."""

    grant: Grant
    base_sha: str
    candidate_sha: str


class Ship(Message):
    """Land the candidate."""

    grant: Grant
    base_sha: str
    candidate_sha: str
    approved_by: str


def step_command(state: JobState) -> Build | Judge | Ship:
    """Return the command that runs the step in which the state is."""
    grant = state.grant
    assert grant is not None  # no step without one
    if state.step == "build":
        return Build(grant=grant, resume=state.resume)
    if state.step == "judge":
        return Judge(grant=grant, base_sha=state.base_sha, candidate_sha=state.candidate_sha)
    assert state.step == "ship"
    return Ship(grant=grant, base_sha=state.base_sha, candidate_sha=state.candidate_sha, approved_by=state.approved_by)


class Retract(Message):
    """Close the fence on the remote behind a candidate that a human rejected; best effort."""

    grant: Grant
    base_sha: str
    candidate_sha: str


class StopStep(Message):
    """Cancel the running step; with `wait` its answer is still wanted, otherwise it is forgotten."""

    wait: bool


class Finish(Message):
    """The life is over; the workflow returns."""


Command = Write | ResolveParents | ResolveChildren | Route | Hold | Build | Judge | Ship | Retract | StopStep | Finish


class Decision(Message):
    """The new state and what to do, in order."""

    state: JobState
    commands: tuple[Command, ...] = ()
