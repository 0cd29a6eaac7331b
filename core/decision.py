"""`decide(state, event, now)`: what a job does next. *Pure.*

The workflow feeds every happening (an answer of a factory, a human's word, a timer) into `decide` and performs the
commands that come back, in order; it takes no decision of its own. The state remembers just enough to decide; what
people look at is written by `Write` commands into the ledger.

Rules that the code below keeps, each with a property test:
  * no stage is skipped and no terminal stage is left (`core.lifecycle.TRANSITIONS`);
  * an answer that carries another epoch than the running one changes nothing;
  * a ship names the candidate it approves, and is refused, never stored, when it comes early or names another;
  * every failure ends in a retry, a requeue, `failed` or `dead_letter`, with its history.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from core.attempt import BuildResult, Grant, Resume, ShipResult, Verdict
from core.dag import Wait
from core.errors import IllegalAction
from core.job import OF_THE_PLACE, Condition, Cooldown, FailureKind, JobSpec, Message, Stage
from core.job_events import (
    ACTIONS,
    Act,
    Action,
    Built,
    ChildrenChanged,
    ChildrenResolved,
    Command,
    Decision,
    Event,
    Finish,
    Granted,
    Hold,
    Interrupt,
    JobState,
    Judged,
    LeaseLost,
    ParentsChanged,
    ParentsResolved,
    Parked,
    Refused,
    ResolveChildren,
    ResolveParents,
    Retract,
    Route,
    ShipEnded,
    Started,
    StepBroken,
    StopStep,
    Tick,
    Write,
    step_command,
)
from core.lifecycle import Entry, Record, check_transition
from core.recovery import POLICY_APPROVAL, gate_again, restored

MessageT = TypeVar("MessageT", bound=Message)

MAX_BACKOFF = timedelta(hours=1)
DEFAULT_COOLDOWN = timedelta(minutes=15)
"""How long an engine is left alone at a place where it cannot work, when nobody says when it can again."""
LONGEST_COOLDOWN = timedelta(days=35)
"""No provider's window is longer than a month; a later reset is not believed."""
SHORTEST_COOLDOWN = timedelta(seconds=1)
"""Doubles with each move of the job, so that one whose engines are limited again and again asks ever less often."""
SHORTEST_REST = timedelta(seconds=1)
"""A job does not ask again before, whatever time it was told: clocks differ."""
WAITING_BACKSTOP = timedelta(minutes=5)
"""A job that waits for its parents asks again after this time, in case a signal was lost."""
STORY_LINES = 20
CHILD_REASONS = ("children", "child_failed")
"""Reasons of the condition that child jobs keep a job from shipping."""


# --- what operators may do ----------------------------------------------------------------------------------------


def refusal(state: JobState, act: Act) -> str | None:
    """Return why `act` is not legal in `state`, with the next step; None when it is legal."""
    if state.ended:
        return f"job {state.job_id} has ended in {state.stage}; only requeue of a failed job is possible"
    if state.step == "ship" and act.action != "approve":
        return f"job {state.job_id} is being shipped right now"
    if state.stopping:
        return f"job {state.job_id} is already being stopped ({state.stopping})"
    return _REFUSALS[act.action](state, act)


def _refuse_gate(state: JobState, act: Act) -> str | None:
    """Return why the gate is not open for a decision on `act.sha` (empty for work in a directory without git)."""
    if state.stage not in (Stage.REVIEW, Stage.TESTING) or state.step:
        return (
            f"job {state.job_id} is {state.stage}{f' ({state.step} is running)' if state.step else ''}; "
            f"{act.action} is possible from review or testing"
        )
    if not act.sha and state.candidate_sha:
        return f"{act.action} must name the candidate it approves: {state.candidate_sha}"
    if act.sha != state.candidate_sha:
        return f"{act.sha[:12]} is not the candidate of job {state.job_id}; that is {state.candidate_sha}"
    return None


def _refuse_ship(state: JobState, act: Act) -> str | None:
    closed = _refuse_gate(state, act)
    if closed:
        return closed
    if state.paused:
        return f"job {state.job_id} is paused; resume it first"
    for reason in ("scope", "conflict", *CHILD_REASONS):
        condition = state.blocked(reason)
        if condition:
            return f"the ship gate is blocked ({reason}): {condition.message}"
    return None


def _refuse_reject(state: JobState, act: Act) -> str | None:
    if state.stage not in (Stage.REVIEW, Stage.TESTING) or state.step:
        return f"job {state.job_id} is {state.stage}; reject is possible from review or testing"
    if act.sha and act.sha != state.candidate_sha:
        return f"{act.sha[:12]} is not the candidate of job {state.job_id}; that is {state.candidate_sha}"
    return None


def _refuse_requeue(state: JobState, act: Act) -> str | None:
    if state.step:
        return f"job {state.job_id} is running ({state.step}); cancel or pause it first"
    if state.paused:
        return f"job {state.job_id} is paused; resume it first"
    if state.stage == Stage.QUEUED and not _sleeping(state) and not state.blocked("cooldown"):
        return f"job {state.job_id} is queued already"
    return None


def _refuse_cancel(state: JobState, act: Act) -> str | None:
    return None


def _refuse_pause(state: JobState, act: Act) -> str | None:
    return f"job {state.job_id} is paused already" if state.paused else None


def _refuse_resume(state: JobState, act: Act) -> str | None:
    return None if state.paused else f"job {state.job_id} is not paused"


_REFUSALS: dict[str, Callable[[JobState, Act], str | None]] = {
    "ship": _refuse_ship,
    "approve": _refuse_gate,
    "reject": _refuse_reject,
    "requeue": _refuse_requeue,
    "cancel": _refuse_cancel,
    "pause": _refuse_pause,
    "resume": _refuse_resume,
}


def legal_actions(state: JobState) -> tuple[Action, ...]:
    """Return the actions that are legal now, ship and approve meaning the present candidate."""
    return tuple(action for action in ACTIONS if refusal(state, Act(action=action, sha=state.candidate_sha)) is None)


# --- decide -------------------------------------------------------------------------------------------------------


def decide(state: JobState, event: Event, now: datetime) -> Decision:
    """Return the new state and the commands that `event` leads to at the aware time `now`.

    An event that does not fit (another epoch, a step that is not running, an ended job) changes nothing: the same
    event may arrive twice or late.

    Raises:
        IllegalAction: for an `Act` that `refusal` would have refused.

    """
    if state.ended and not isinstance(event, Refused):
        return Decision(state=state)
    handler: Callable[[JobState, Any, datetime], Decision] = _HANDLERS[type(event)]
    return handler(state, event, now)


def _on_started(state: JobState, event: Started, now: datetime) -> Decision:
    if event.standing is not None:
        state = restored(state, event.standing)
        if state.grant is not None:
            held = _held_by(state, event.children or Wait(outcome="ready"))
            return _prefixed(*_conditions_changed(state, held, "child jobs"), onto=gate_again(held, event.standing))
    if event.grant is not None:
        return _begin_build(state, event.grant)
    if state.paused or _sleeping(state):
        return Decision(state=state)
    if state.spec.deps and not event.ready:
        return Decision(state=_update(state, wake_at=now + WAITING_BACKSTOP), commands=(ResolveParents(),))
    return Decision(state=state)


def _on_parents(state: JobState, event: ParentsResolved, now: datetime) -> Decision:
    if state.stage != Stage.QUEUED:
        return Decision(state=state)
    if event.outcome == "ready":
        conditions = _without(state, "parents", "parent_failed")
        unblocked = _update(state, conditions=conditions, wake_at=None)
        entry = Entry(type="parents.done", message="the parents are done", data={"base_sha": event.base_sha})
        write = Write(record=Record(entries=(entry,), conditions=conditions, base_sha=event.base_sha or None))
        writes = (write,) if event.base_sha or conditions != state.conditions else ()
        return Decision(state=unblocked, commands=(*writes, *(() if unblocked.paused else (Route(),))))
    reason = "parents" if event.outcome == "waiting" else "parent_failed"
    condition = Condition(type="blocked", reason=reason, message=event.message)
    conditions = (*_without(state, "parents", "parent_failed"), condition)
    waiting = _update(state, conditions=conditions, wake_at=now + WAITING_BACKSTOP)
    return Decision(state=waiting, commands=_conditions_changed(state, waiting, event.message))


def _on_parents_changed(state: JobState, event: ParentsChanged, now: datetime) -> Decision:
    if state.stage != Stage.QUEUED or state.step or not state.spec.deps or _sleeping(state):
        return Decision(state=state)
    return Decision(state=state, commands=(ResolveParents(),))


def _on_children_changed(state: JobState, event: ChildrenChanged, now: datetime) -> Decision:
    """Look again when the gate is what the job waits at; before that, the record that brings it there tells."""
    at_gate = state.stage in (Stage.REVIEW, Stage.TESTING) and not state.step
    return Decision(state=state, commands=(ResolveChildren(),) if at_gate else ())


def _on_children(state: JobState, event: ChildrenResolved, now: datetime) -> Decision:
    """Close or open the ship gate; a candidate that the policy would have shipped is shipped when the last is done."""
    if state.stage not in (Stage.REVIEW, Stage.TESTING) or state.step != ("ship" if event.held_ship else ""):
        return Decision(state=state)
    gate = _held_by(_update(state, step=""), event)
    writes = _conditions_changed(state, gate, event.message)
    if gate.stage == Stage.TESTING and gate.spec.review_policy == "auto" and not gate.conditions:
        return _prefixed(*writes, onto=_start_ship(gate, POLICY_APPROVAL))
    return Decision(state=gate, commands=writes)


def _held_by(state: JobState, children: Wait | ChildrenResolved) -> JobState:
    """Return the state with the condition that its child jobs make, or without one."""
    conditions = _without(state, *CHILD_REASONS)
    if children.outcome != "ready":
        reason = "children" if children.outcome == "waiting" else "child_failed"
        conditions = (*conditions, Condition(type="blocked", reason=reason, message=children.message[:2000]))
    return _update(state, conditions=conditions)


def _on_granted(state: JobState, event: Granted, now: datetime) -> Decision:
    if event.grant.epoch <= state.epoch or state.step or state.stage not in (Stage.QUEUED, Stage.ASSIGNED):
        return Decision(state=state)
    if state.paused:
        record = Record(
            path=(Stage.QUEUED,),
            epoch=event.grant.epoch,
            attempt_outcome=FailureKind.CANCELLED,
            attempt_message="the job was paused before it began",
            end_lease=True,
            release_locks=True,
        )
        return Decision(state=_update(state, epoch=event.grant.epoch), commands=(Hold(), Write(record=record)))
    return _begin_build(state, event.grant)


def _on_parked(state: JobState, event: Parked, now: datetime) -> Decision:
    """Wait: the ledger hands capacity over, and the reconciler repeats a grant that went unheard.

    Only where all engines rest there is a time to ask again; until then any other place may still take the job.
    """
    if state.stage != Stage.QUEUED or state.step:
        return Decision(state=state)
    if event.until is None:
        return Decision(state=_update(state, wake_at=None))
    condition = Condition(type="blocked", reason="cooldown", message=event.message[:2000], until=event.until)
    conditions = (*_without(state, "cooldown"), condition)
    resting = _update(state, conditions=conditions, wake_at=max(event.until, now + SHORTEST_REST))
    entry = Entry(type="job.rests", message=condition.message, data={"until": event.until.isoformat()})
    return Decision(state=resting, commands=(Write(record=Record(entries=(entry,), conditions=conditions)),))


def _on_tick(state: JobState, event: Tick, now: datetime) -> Decision:
    if state.wake_at is None or now < state.wake_at or state.step or state.stage != Stage.QUEUED:
        return Decision(state=state)
    if state.paused:
        return Decision(state=_update(state, wake_at=None))
    if state.blocked("parents") or state.blocked("parent_failed"):
        return Decision(state=_update(state, wake_at=now + WAITING_BACKSTOP), commands=(ResolveParents(),))
    awake = _update(state, conditions=_without(state, "backoff", "usage_limit", "cooldown"), wake_at=None)
    return Decision(state=awake, commands=(*_conditions_changed(state, awake, "waited long enough"), Route()))


def _on_built(state: JobState, event: Built, now: datetime) -> Decision:
    """Judge a candidate; the ledger wrote `review` and the result when it accepted them from the attempt."""
    result = event.result
    if state.step != "build" or result.epoch != state.epoch or state.grant is None:
        return Decision(state=state)
    succeeded = result.outcome == "succeeded" and _judgeable(state.spec, result)
    if state.stopping and not (succeeded and state.stopping == "interrupted"):  # a candidate is not thrown away
        return _stopped(state, result, now)
    if not succeeded:
        failure = result.failure or FailureKind.BAD_RESULT
        return _attempt_failed(state, failure, result.message, now, result=result, moves_on=event.moves_on)
    judged = _move(state, Stage.REVIEW)
    judged = _update(judged, step="judge", candidate_sha=result.candidate_sha, base_sha=result.base_sha, verify="")
    judged = _update(judged, stopping="", stopping_because="", moves=0)
    return Decision(state=judged, commands=(step_command(judged),))


def _judgeable(spec: JobSpec, result: BuildResult) -> bool:
    """Return whether a success carries what the gates need (a directory without git has no commits)."""
    return bool(result.candidate_sha and result.base_sha) or spec.repository.kind == "directory"


def _on_judged(state: JobState, event: Judged, now: datetime) -> Decision:
    verdict = event.verdict
    if state.step != "judge" or verdict.epoch != state.epoch or verdict.candidate_sha != state.candidate_sha:
        return Decision(state=state)
    if state.stopping:  # the word came too late for the step, not for the job
        return _stopped(state, None, now)
    entries = _gate_entries(verdict)
    if verdict.verify == "failed":
        message = f"verify failed: `{verdict.verify_command}` exited with {verdict.verify_exit_code}"
        return _attempt_failed(state, FailureKind.VERIFY_FAILED, message, now, verdict=verdict, entries=entries)
    open_scope = not verdict.out_of_scope or state.policy.scope_mode == "warn"
    passed = verdict.verify == "passed" and open_scope
    known = _without(state, *CHILD_REASONS)  # whether they hold it now is the answer to this record
    conditions = known if open_scope else (*known, _scope_condition(verdict))
    at_gate = _move(state, Stage.TESTING) if passed else state
    at_gate = _update(at_gate, step="", verify=verdict.verify, conditions=conditions, wake_at=None)
    record = Record(
        path=(Stage.REVIEW, Stage.TESTING) if passed else (Stage.REVIEW,),
        epoch=state.epoch,
        entries=entries,
        candidate_sha=state.candidate_sha,
        base_sha=state.base_sha,
        conditions=conditions,
        attempt_outcome="succeeded",
        verdict=verdict.model_dump(mode="json"),
        end_lease=True,
        release_locks=state.policy.locks_until == "verdict",
    )
    commands: tuple[Command, ...] = (Write(record=record),)
    if passed and state.spec.review_policy == "auto" and not at_gate.paused:
        shipping = _start_ship(at_gate, POLICY_APPROVAL)
        return Decision(state=shipping.state, commands=(*commands, *shipping.commands))
    return Decision(state=at_gate, commands=commands)


def _on_ship_ended(state: JobState, event: ShipEnded, now: datetime) -> Decision:
    result = event.result
    if state.step != "ship" or result.epoch != state.epoch:
        return Decision(state=state)
    if result.outcome == "shipped":
        record = Record(
            path=(Stage.SHIPPED,),
            epoch=state.epoch,
            entries=(Entry(type="job.shipped", message=result.message, data=_ship_data(result)),),
            conditions=(),
            commits=result.commits,
            shipped_ref=result.ref,
            end_lease=True,
            release_locks=True,
        )
        ended = _update(_move(state, Stage.SHIPPED), step="", conditions=())
        return Decision(state=ended, commands=(Write(record=record), Finish()))
    return _gate_blocked(state, f"{result.outcome}: {result.message}", _ship_data(result))


def _on_step_broken(state: JobState, event: StepBroken, now: datetime) -> Decision:
    if event.step != state.step or event.epoch != state.epoch:
        return Decision(state=state)
    if state.stopping:
        return _stopped(state, None, now)
    if event.step == "ship":
        return _gate_blocked(state, event.message, {"failure": event.failure})
    return _attempt_failed(state, event.failure, event.message, now, began=event.began)


def _on_lease_lost(state: JobState, event: LeaseLost, now: datetime) -> Decision:
    if event.epoch != state.epoch or state.step != "build":
        return Decision(state=state)
    if state.stopping:
        return _prefixed(StopStep(wait=False), onto=_stopped(state, None, now))
    lost = _attempt_failed(state, FailureKind.LEASE_LOST, event.reason or "the attempt was lost", now)
    return _prefixed(StopStep(wait=False), onto=lost)


def _on_interrupt(state: JobState, event: Interrupt, now: datetime) -> Decision:
    """Stop what runs: an attempt goes back to the queue, a verify begins again where it may; a ship is left alone."""
    if event.epoch != state.epoch or state.stopping or state.step not in ("build", "judge"):
        return Decision(state=state)
    entry = Entry(type="attempt.interrupted", message=event.reason[:2000], data={"step": state.step})
    note = Write(record=Record(epoch=state.epoch, entries=(entry,)))
    if state.step == "judge":
        return Decision(state=state, commands=(StopStep(wait=False), note))
    stopping = _update(state, stopping="interrupted", stopping_because=event.reason)
    return Decision(state=stopping, commands=(StopStep(wait=True), note))


def _on_refused(state: JobState, event: Refused, now: datetime) -> Decision:
    entry = Entry(
        type="decision.refused",
        message=f"{event.action} was refused: {event.message}"[:2000],
        data={"action": event.action[:200], "by": event.by[:200]},
    )
    return Decision(state=state, commands=(Write(record=Record(entries=(entry,))),))


def _on_act(state: JobState, event: Act, now: datetime) -> Decision:
    message = refusal(state, event)
    if message:
        raise IllegalAction(message, action=event.action, job_id=state.job_id, stage=str(state.stage))
    return _ACTS[event.action](state, event, now)


# --- actions ------------------------------------------------------------------------------------------------------


def _act_ship(state: JobState, act: Act, now: datetime) -> Decision:
    shipping = _start_ship(state, act.by)
    note = Record(entries=(_act_entry(act),), approved_by=act.by or None)
    return Decision(state=shipping.state, commands=(Write(record=note), *shipping.commands))


def _act_approve(state: JobState, act: Act, now: datetime) -> Decision:
    return Decision(
        state=state, commands=(Write(record=Record(entries=(_act_entry(act),), approved_by=act.by or None)),)
    )


def _act_reject(state: JobState, act: Act, now: datetime) -> Decision:
    record = Record(
        path=(Stage.FAILED,),
        epoch=state.epoch,
        entries=(_act_entry(act),),
        conditions=(),
        end_lease=True,
        release_locks=True,
    )
    rejected = _update(_move(state, Stage.FAILED), conditions=())
    retract: tuple[Command, ...] = ()
    if state.grant is not None and state.candidate_sha:
        retract = (Retract(grant=state.grant, base_sha=state.base_sha, candidate_sha=state.candidate_sha),)
    return Decision(state=rejected, commands=(Write(record=record), *retract, Finish()))


def _act_requeue(state: JobState, act: Act, now: datetime) -> Decision:
    resume = _update(state.resume, note=act.reason or state.resume.note)
    record = Record(
        path=() if state.stage == Stage.QUEUED else (Stage.QUEUED,),
        epoch=state.epoch,
        entries=(_act_entry(act),),
        conditions=(),
        end_lease=True,
        release_locks=True,
        end_cooldowns=state.blocked("cooldown") is not None,
    )
    queued = state if state.stage == Stage.QUEUED else _move(state, Stage.QUEUED)
    queued = _update(queued, resume=resume, conditions=(), candidate_sha="", verify="", wake_at=None)
    onward: Command = ResolveParents() if state.spec.deps else Route()
    return Decision(state=queued, commands=(Write(record=record), onward))


def _act_cancel(state: JobState, act: Act, now: datetime) -> Decision:
    if state.step:
        note = Record(entries=(_act_entry(act),))
        return Decision(state=_update(state, stopping="cancelled"), commands=(StopStep(wait=True), Write(record=note)))
    record = Record(
        path=(Stage.CANCELLED,),
        epoch=state.epoch,
        entries=(_act_entry(act),),
        conditions=(),
        end_lease=True,
        release_locks=True,
    )
    cancelled = _update(_move(state, Stage.CANCELLED), conditions=(), wake_at=None)
    return Decision(state=cancelled, commands=(Hold(), Write(record=record), Finish()))


def _act_pause(state: JobState, act: Act, now: datetime) -> Decision:
    if state.step == "build":
        note = Record(entries=(_act_entry(act),))
        return Decision(state=_update(state, stopping="paused"), commands=(StopStep(wait=True), Write(record=note)))
    paused = _update(state, conditions=(*state.conditions, _paused_condition(act.reason)))
    record = Record(entries=(_act_entry(act),), conditions=paused.conditions)
    hold: tuple[Command, ...] = (Hold(),) if state.stage == Stage.QUEUED else ()
    return Decision(state=paused, commands=(*hold, Write(record=record)))


def _act_resume(state: JobState, act: Act, now: datetime) -> Decision:
    conditions = tuple(c for c in _without(state, "cooldown") if c.type != "paused")
    resumed = _update(state, conditions=conditions)
    write = Write(record=Record(entries=(_act_entry(act),), conditions=conditions))
    if state.stage != Stage.QUEUED:
        return Decision(state=resumed, commands=(write,))
    if _sleeping(resumed) and state.wake_at and state.wake_at > now:
        return Decision(state=resumed, commands=(write,))
    resumed = _update(resumed, wake_at=None)
    onward: Command = ResolveParents() if state.spec.deps and state.epoch == 0 else Route()
    return Decision(state=resumed, commands=(write, onward))


_ACTS: dict[str, Callable[[JobState, Act, datetime], Decision]] = {
    "ship": _act_ship,
    "approve": _act_approve,
    "reject": _act_reject,
    "requeue": _act_requeue,
    "cancel": _act_cancel,
    "pause": _act_pause,
    "resume": _act_resume,
}

_HANDLERS: dict[type, Callable[[JobState, Any, datetime], Decision]] = {
    Started: _on_started,
    ParentsResolved: _on_parents,
    Granted: _on_granted,
    Parked: _on_parked,
    Built: _on_built,
    StepBroken: _on_step_broken,
    LeaseLost: _on_lease_lost,
    Interrupt: _on_interrupt,
    Judged: _on_judged,
    ShipEnded: _on_ship_ended,
    Act: _on_act,
    Refused: _on_refused,
    ParentsChanged: _on_parents_changed,
    ChildrenChanged: _on_children_changed,
    ChildrenResolved: _on_children,
    Tick: _on_tick,
}

# --- pieces -------------------------------------------------------------------------------------------------------


def _begin_build(state: JobState, grant: Grant) -> Decision:
    """Start an attempt; the ledger wrote `assigned` with the grant, the factory writes `building`."""
    assigned = state if state.stage == Stage.ASSIGNED else _move(state, Stage.ASSIGNED)
    building = _update(
        _move(assigned, Stage.BUILDING),
        step="build",
        epoch=grant.epoch,
        grant=grant,
        candidate_sha="",
        verify="",
        wake_at=None,
        conditions=_without(state, "capacity", "backoff", "usage_limit", "cooldown", "parents", "parent_failed"),
    )
    build = step_command(building)
    if state.blocked("cooldown") is None:
        return Decision(state=building, commands=(build,))
    message = f"{grant.engine} on {grant.factory} can take it"  # the rest may have been written after the grant
    return Decision(state=building, commands=(*_conditions_changed(state, building, message), build))


def _start_ship(state: JobState, by: str) -> Decision:
    if state.grant is None:  # a candidate exists only after a grant
        raise IllegalAction(f"job {state.job_id} has no candidate", job_id=state.job_id)
    shipping = _update(state, step="ship", approved_by=by)
    return Decision(state=shipping, commands=(step_command(shipping),))


def _gate_blocked(state: JobState, message: str, data: dict[str, Any]) -> Decision:
    """Back to `review` with the reason why the candidate could not land; a human requeues, rejects or cancels."""
    condition = Condition(type="blocked", reason="conflict", message=message[:4000])
    blocked = state if state.stage == Stage.REVIEW else _move(state, Stage.REVIEW)
    blocked = _update(blocked, step="", conditions=(*_without(state, "conflict"), condition))
    record = Record(
        path=() if state.stage == Stage.REVIEW else (Stage.REVIEW,),
        epoch=state.epoch,
        entries=(Entry(type="gate.ship", message=message[:2000], data=data),),
        conditions=blocked.conditions,
    )
    return Decision(state=blocked, commands=(Write(record=record),))


def _stopped(state: JobState, result: BuildResult | None, now: datetime) -> Decision:
    """The running step ended because it was asked to: end the job, put it aside, or queue it again."""
    if state.stopping == "interrupted":
        message = state.stopping_because or "interrupted"
        running = _update(state, stopping="", stopping_because="")
        return _attempt_failed(running, FailureKind.INTERRUPTED, message, now, result=result)
    cancelled = state.stopping == "cancelled"
    target = Stage.CANCELLED if cancelled else Stage.QUEUED
    conditions = () if cancelled else (*state.conditions, _paused_condition(""))
    stopped = _update(
        _move(state, target),
        step="",
        stopping="",
        conditions=conditions,
        wake_at=None,
        candidate_sha="",
        verify="",
    )
    record = Record(
        path=(target,),
        epoch=state.epoch,
        conditions=conditions,
        attempt_outcome=FailureKind.CANCELLED,
        attempt_message=f"stopped by an operator ({state.stopping})",
        attempt_result=result.model_dump(mode="json") if result else None,
        usage=result.usage if result else None,
        checkpoint_sha=(result.checkpoint_sha or None) if result else None,
        end_lease=True,
        release_locks=True,
    )
    commands: tuple[Command, ...] = (Hold(), Write(record=record))
    return Decision(state=stopped, commands=(*commands, Finish()) if cancelled else commands)


def _attempt_failed(
    state: JobState,
    failure: FailureKind,
    message: str,
    now: datetime,
    *,
    result: BuildResult | None = None,
    verdict: Verdict | None = None,
    entries: tuple[Entry, ...] = (),
    moves_on: bool = True,
    began: bool = True,
) -> Decision:
    """Decide between another attempt, a sleep, `failed` and `dead_letter`.

    Where the place is to blame the job asks for another one at once; whether there is one, the router knows.
    """
    line = f"epoch {state.epoch} on {_where(state)}: {failure}: {message}"[:500]
    retry_at = result.retry_at if result else None
    cooldown = _cooldown(state, failure, message, retry_at, now) if failure in OF_THE_PLACE and moves_on else None
    told = _update(
        state,
        step="",
        moves=state.moves + 1 if cooldown else 0,
        story=(*state.story, line)[-STORY_LINES:],
        resume=_resume_after(state, failure, message, result, verdict),
    )
    onward = _queued_again(told) if cooldown else _after_failure(told, failure, message, retry_at, now, began=began)
    record = Record(
        path=(onward.stage,),
        epoch=state.epoch,
        entries=(*entries, _failure_entry(onward, failure, message, cooldown)),
        conditions=onward.conditions,
        attempt_outcome=failure,
        attempt_message=message[:2000],
        attempt_result=result.model_dump(mode="json") if result else None,
        verdict=verdict.model_dump(mode="json") if verdict else None,
        usage=result.usage if result else None,
        checkpoint_sha=(result.checkpoint_sha or None) if result else None,
        end_lease=True,
        release_locks=True,
        exclude_factory=failure == FailureKind.LEASE_LOST,
        cooldown=cooldown,
    )
    if onward.ended:
        return Decision(state=onward, commands=(Write(record=record), Finish()))
    if onward.paused or _sleeping(onward):
        return Decision(state=onward, commands=(Hold(), Write(record=record)))
    return Decision(state=onward, commands=(Write(record=record), Route()))


def _after_failure(
    state: JobState, failure: FailureKind, message: str, retry_at: datetime | None, now: datetime, *, began: bool
) -> JobState:
    """Return the state a failure leads to; retries count only what `retry` counts."""
    if failure in (FailureKind.LEASE_LOST, FailureKind.INTERRUPTED):
        lost = failure == FailureKind.LEASE_LOST and began
        if lost and state.reclaims >= state.policy.reclaim_limit:
            return _update(_move(state, Stage.DEAD_LETTER), conditions=())
        return _update(_queued_again(state), reclaims=state.reclaims + lost)
    if failure == FailureKind.RATE_LIMITED:
        until = _reset(retry_at, now)
        return _sleep(state, "usage_limit", f"usage limit of the engine's provider: {message}", until)
    retry = state.spec.retry
    if retry is None or failure not in retry.on:
        return _update(_move(state, Stage.FAILED), conditions=())
    if state.failures >= retry.max:
        return _update(_move(state, Stage.DEAD_LETTER), conditions=())
    wait = min(timedelta(seconds=retry.backoff_s * 2**state.failures), MAX_BACKOFF)
    counted = _update(state, failures=state.failures + 1)
    return _sleep(counted, "backoff", f"retry {counted.failures} of {retry.max} after {failure}", now + wait)


def _queued_again(state: JobState) -> JobState:
    """Return the state of a job that wants another place at once."""
    return _update(_move(state, Stage.QUEUED), conditions=_paused_only(state), wake_at=None)


def _cooldown(
    state: JobState, failure: FailureKind, message: str, retry_at: datetime | None, now: datetime
) -> Cooldown:
    """Return how long the engine of the running attempt is left alone there: as it was told, within reason."""
    least = min(SHORTEST_COOLDOWN * 2 ** min(state.moves, 16), MAX_BACKOFF)
    return Cooldown(until=max(_reset(retry_at, now), now + least), reason=f"{failure}: {message}"[:500])


def _reset(told: datetime | None, now: datetime) -> datetime:
    """Return the time that a provider told, where it is to come and can be; otherwise a default."""
    return told if told is not None and now < told <= now + LONGEST_COOLDOWN else now + DEFAULT_COOLDOWN


def _sleep(state: JobState, reason: str, message: str, until: datetime) -> JobState:
    condition = Condition(type="blocked", reason=reason, message=message[:2000], until=until)
    return _update(_move(state, Stage.QUEUED), conditions=(*_paused_only(state), condition), wake_at=until)


def _resume_after(
    state: JobState, failure: FailureKind, message: str, result: BuildResult | None, verdict: Verdict | None
) -> Resume:
    """Return what the next attempt is told."""
    tail = (verdict.log_tail if verdict else result.log_tail if result else "")[-2000:]
    session, engine = state.resume.session_id, state.resume.engine
    if result is not None and result.session_id and state.grant is not None:
        session, engine = result.session_id, state.grant.engine
    return Resume(
        session_id=session,
        engine=engine,
        note=state.resume.note,
        failure=f"{failure}: {message}" + (f"\n{tail}" if tail else ""),
    )


def _failure_entry(onward: JobState, failure: FailureKind, message: str, cooldown: Cooldown | None) -> Entry:
    if onward.stage == Stage.QUEUED:
        data: dict[str, Any] = {"failure": failure, "failures": onward.failures, "reclaims": onward.reclaims}
        data |= {"cooldown_until": cooldown.until.isoformat()} if cooldown else {}
        return Entry(type="job.requeued", message=f"{failure}: {message}"[:2000], data=data)
    return Entry(
        type=f"job.{onward.stage}",
        message=f"{failure}: {message}"[:2000],
        data={"failure": failure, "history": list(onward.story), "checkpoint": _checkpoint(onward)},
    )


def _checkpoint(state: JobState) -> str:
    """Return the ref that keeps the work of the last attempt."""
    return f"refs/gigafactory/wip/{state.job_id}/{state.epoch}" if state.epoch else ""


def _gate_entries(verdict: Verdict) -> tuple[Entry, ...]:
    scope = Entry(
        type="gate.scope",
        message="in scope" if not verdict.out_of_scope else f"{len(verdict.out_of_scope)} path(s) out of scope",
        data={"out_of_scope": list(verdict.out_of_scope), "changed_paths": verdict.changed_paths},
    )
    verify = Entry(
        type="gate.verify",
        message=verdict.verify if verdict.verify != "failed" else f"failed: {verdict.verify_command}",
        data={"exit_code": verdict.verify_exit_code, "duration_s": verdict.verify_duration_s},
    )
    return (scope, verify)


def _scope_condition(verdict: Verdict) -> Condition:
    shown = ", ".join(verdict.out_of_scope[:20])
    more = f" and {len(verdict.out_of_scope) - 20} more" if len(verdict.out_of_scope) > 20 else ""
    return Condition(
        type="blocked",
        reason="scope",
        message=f"changes outside allowed-scope: {shown}{more}; requeue with a note, reject, or cancel",
    )


def _paused_condition(reason: str) -> Condition:
    return Condition(type="paused", reason="operator", message=reason or "paused by an operator")


def _ship_data(result: ShipResult) -> dict[str, Any]:
    return {"commits": list(result.commits), "ref": result.ref, "outcome": result.outcome}


def _act_entry(act: Act) -> Entry:
    by = f" by {act.by}" if act.by else ""
    why = f": {act.reason}" if act.reason else ""
    return Entry(
        type=f"decision.{act.action}",
        message=f"{act.action}{by}{why}"[:2000],
        data={"by": act.by[:200], "sha": act.sha, "reason": act.reason[:2000]},
    )


def _where(state: JobState) -> str:
    return f"{state.grant.factory}/{state.grant.engine}" if state.grant else "no factory"


def _without(state: JobState, *reasons: str) -> tuple[Condition, ...]:
    return tuple(c for c in state.conditions if not (c.type == "blocked" and c.reason in reasons))


def _paused_only(state: JobState) -> tuple[Condition, ...]:
    return tuple(condition for condition in state.conditions if condition.type == "paused")


def _sleeping(state: JobState) -> bool:
    """Return whether the job waits for a time: the end of a backoff or of a usage limit."""
    return any(state.blocked(reason) for reason in ("backoff", "usage_limit"))


def _conditions_changed(before: JobState, after: JobState, message: str) -> tuple[Command, ...]:
    """Return the write that shows changed conditions, or nothing when they are the same."""
    if before.conditions == after.conditions:
        return ()
    entry = Entry(type="conditions.changed", message=message[:2000])
    return (Write(record=Record(entries=(entry,), conditions=after.conditions)),)


def _move(state: JobState, stage: Stage) -> JobState:
    """Return `state` in `stage`; the only place where a stage changes."""
    check_transition(state.stage, stage)
    return _update(state, stage=stage)


def _prefixed(*commands: Command, onto: Decision) -> Decision:
    return Decision(state=onto.state, commands=(*commands, *onto.commands))


def _update(model: MessageT, **changes: Any) -> MessageT:
    return model.model_copy(update=changes)
