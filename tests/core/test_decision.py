"""`decide`: the way that goes well, every way that does not, and what holds for any sequence of events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.attempt import BuildResult, Grant, ShipResult, Verdict
from core.decision import decide, legal_actions, refusal
from core.errors import IllegalAction
from core.job import Dependency, FailureKind, JobSpec, Repository, RetrySpec, Stage
from core.job_events import (
    ACTIONS,
    Act,
    Action,
    Build,
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
    Judge,
    Judged,
    LeaseLost,
    ParentsChanged,
    ParentsResolved,
    Parked,
    Policy,
    Refused,
    ResolveChildren,
    ResolveParents,
    Route,
    Ship,
    ShipEnded,
    Started,
    Step,
    StepBroken,
    StopStep,
    Tick,
    Write,
)
from core.lifecycle import TERMINAL, TRANSITIONS, Record

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CANDIDATE = "c" * 40
BASE = "b" * 40


def spec(**changes: object) -> JobSpec:
    """Return a job's snapshot with defaults."""
    values: dict[str, object] = {
        "title": "t",
        "body": "b",
        "repository": Repository(url="/r.git", base_sha=BASE),
        "verify": ("true",),
    }
    return JobSpec.model_validate(values | changes)


def fresh(**changes: object) -> JobState:
    """Return the state of a job whose workflow just began."""
    return JobState(job_id="j-1", spec=spec(**changes))


def grant(epoch: int = 1, factory: str = "f1") -> Grant:
    """Return a grant of `epoch`."""
    return Grant(job_id="j-1", epoch=epoch, factory=factory, engine="shell", granted_at=NOW)


def built(epoch: int = 1) -> Built:
    """Return a success with a candidate."""
    return Built(
        result=BuildResult(
            job_id="j-1", epoch=epoch, outcome="succeeded", candidate_sha=CANDIDATE, base_sha=BASE, changed=True
        )
    )


def failed(kind: FailureKind, epoch: int = 1, retry_at: datetime | None = None) -> Built:
    """Return a failure of `kind`."""
    return Built(
        result=BuildResult(
            job_id="j-1", epoch=epoch, outcome="failed", failure=kind, message="broken", retry_at=retry_at
        )
    )


def judged(verify: str = "passed", epoch: int = 1, out_of_scope: tuple[str, ...] = ()) -> Judged:
    """Return a verdict."""
    return Judged(
        verdict=Verdict.model_validate(
            {
                "job_id": "j-1",
                "epoch": epoch,
                "candidate_sha": CANDIDATE,
                "verify": verify,
                "out_of_scope": out_of_scope,
                "verify_command": "make test",
                "verify_exit_code": 1,
            }
        )
    )


def shipped(outcome: str = "shipped", epoch: int = 1) -> ShipEnded:
    """Return the answer of a ship step."""
    return ShipEnded(
        result=ShipResult.model_validate(
            {"job_id": "j-1", "epoch": epoch, "outcome": outcome, "commits": ("d" * 40,), "ref": "main"}
        )
    )


def act(action: Action, sha: str = "", reason: str = "") -> Act:
    """Return an operator's action."""
    return Act(action=action, sha=sha, by="ann", reason=reason)


def play(state: JobState, *events: Event, now: datetime = NOW) -> tuple[JobState, list[Command]]:
    """Feed events one after another; return the last state and all commands."""
    commands: list[Command] = []
    for event in events:
        decision = decide(state, event, now)
        state = decision.state
        commands += decision.commands
    return state, commands


def path_of(commands: list[Command]) -> list[Stage]:
    """Return the stages that the writes go through."""
    return [stage for command in commands if isinstance(command, Write) for stage in command.record.path]


def last_record(commands: list[Command]) -> Record:
    """Return the last thing written."""
    return [command.record for command in commands if isinstance(command, Write)][-1]


def at_gate(**changes: object) -> JobState:
    """Return a job whose verify passed and that waits for a human."""
    return play(fresh(**changes), Started(grant=grant()), built(), judged())[0]


def test_happy_path_goes_through_every_stage_and_waits_for_a_human() -> None:
    """Granted → built → judged waits in testing; ship with the candidate's SHA ends in shipped."""
    state, commands = play(fresh(), Started(grant=grant()), built(), judged())
    assert state.stage == Stage.TESTING
    assert [type(command) for command in commands] == [Build, Judge, Write]
    assert path_of(commands) == [Stage.REVIEW, Stage.TESTING]
    state, commands = play(state, act("ship", CANDIDATE), shipped())
    assert state.stage == Stage.SHIPPED
    assert [type(command) for command in commands] == [Write, Ship, Write, Finish]
    record = last_record(commands)
    assert record.commits == ("d" * 40,)
    assert record.release_locks
    assert record.end_lease


def test_no_verify_stays_in_review_and_may_be_shipped_from_there() -> None:
    """Without a verify there is no `testing`; a human may ship from `review`."""
    state, _ = play(fresh(verify=()), Started(grant=grant()), built(), judged("none"))
    assert state.stage == Stage.REVIEW
    assert play(state, act("ship", CANDIDATE), shipped())[0].stage == Stage.SHIPPED


def test_auto_policy_ships_only_what_was_verified() -> None:
    """`review-policy: auto` ships after a passed verify, and waits for a human when there was none."""
    _, commands = play(fresh(review_policy="auto"), Started(grant=grant()), built(), judged())
    assert isinstance(commands[-1], Ship)
    state, commands = play(fresh(review_policy="auto", verify=()), Started(grant=grant()), built(), judged("none"))
    assert state.stage == Stage.REVIEW
    assert not any(isinstance(command, Ship) for command in commands)


@pytest.mark.parametrize(
    ("sha", "part"),
    [("", "must name the candidate"), ("a" * 40, "is not the candidate"), (CANDIDATE[:12], "is not the candidate")],
)
def test_ship_of_another_or_no_sha_is_refused(sha: str, part: str) -> None:
    """A ship names exactly the candidate it approves."""
    message = refusal(at_gate(), act("ship", sha))
    assert message is not None
    assert part in message
    with pytest.raises(IllegalAction):
        decide(at_gate(), act("ship", sha), NOW)


def test_early_ship_is_refused_and_not_remembered() -> None:
    """A ship before the gate changes nothing and does not ship later."""
    state, _ = play(fresh(), Started(grant=grant()))
    assert refusal(state, act("ship", CANDIDATE)) is not None
    state, commands = play(state, Refused(action="ship", message="early"), built(), judged())
    assert state.stage == Stage.TESTING
    assert not any(isinstance(command, Ship) for command in commands)
    entries = [entry.type for command in commands if isinstance(command, Write) for entry in command.record.entries]
    assert "decision.refused" in entries


def test_out_of_scope_stops_at_the_gate_with_the_paths_shown() -> None:
    """Verify may be green: changes outside the scope keep the job in review and refuse the ship."""
    state, _ = play(fresh(), Started(grant=grant()), built(), judged(out_of_scope=("etc/passwd",)))
    assert state.stage == Stage.REVIEW
    message = refusal(state, act("ship", CANDIDATE))
    assert message is not None
    assert "etc/passwd" in message
    assert set(legal_actions(state)) == {"approve", "reject", "requeue", "cancel", "pause"}


def test_scope_mode_warn_lets_it_pass() -> None:
    """With `scope_mode: warn` the paths are recorded and the gate opens."""
    state = fresh().model_copy(update={"policy": Policy(scope_mode="warn")})
    assert play(state, Started(grant=grant()), built(), judged(out_of_scope=("x",)))[0].stage == Stage.TESTING


def test_failure_without_retry_ends_in_failed() -> None:
    """No `retry` in the manifest: the first failure ends the job, visibly."""
    state, commands = play(fresh(), Started(grant=grant()), failed(FailureKind.CRASH))
    assert state.stage == Stage.FAILED
    assert isinstance(commands[-1], Finish)
    assert last_record(commands).entries[-1].type == "job.failed"


def test_retries_back_off_double_and_end_in_the_dead_letter() -> None:
    """`retry: {max: 2, backoff: 10s}` waits 10 s, then 20 s, then gives up with the whole history."""
    state = fresh(retry=RetrySpec(max=2, backoff_s=10))
    now, waits = NOW, []
    state, _ = play(state, Started(grant=grant(1)))
    for epoch in (1, 2):
        state, commands = play(state, failed(FailureKind.CRASH, epoch), now=now)
        assert state.stage == Stage.QUEUED
        assert any(isinstance(command, Hold) for command in commands)
        assert state.wake_at is not None
        waits.append((state.wake_at - now).total_seconds())
        now = state.wake_at
        state, commands = play(state, Tick(), now=now)
        assert isinstance(commands[-1], Route)
        state, _ = play(state, Granted(grant=grant(epoch + 1)), now=now)
    assert waits == [10, 20]
    state, commands = play(state, failed(FailureKind.CRASH, 3), now=now)
    assert state.stage == Stage.DEAD_LETTER
    assert len(last_record(commands).entries[-1].data["history"]) == 3


def test_a_kind_that_retry_does_not_name_is_not_retried() -> None:
    """`retry.on: [timeout]` leaves a crash to `failed`."""
    state = fresh(retry=RetrySpec(max=3, on=(FailureKind.TIMEOUT,)))
    assert play(state, Started(grant=grant()), failed(FailureKind.CRASH))[0].stage == Stage.FAILED


def test_verify_failure_is_retried_with_its_log() -> None:
    """A red verify goes back to the engine, which is told what failed."""
    state = fresh(retry=RetrySpec(max=1, backoff_s=1))
    state, commands = play(state, Started(grant=grant()), built(), judged("failed"))
    assert state.stage == Stage.QUEUED
    assert "make test" in state.resume.failure
    assert last_record(commands).attempt_outcome == FailureKind.VERIFY_FAILED


def limited(until: datetime | None = None, epoch: int = 1) -> Built:
    """Return the end of an attempt at a provider's limit."""
    return failed(FailureKind.RATE_LIMITED, epoch, until)


@pytest.mark.req("L5", "F6")
@pytest.mark.parametrize("kind", [FailureKind.RATE_LIMITED, FailureKind.ENGINE_UNAVAILABLE])
def test_end_because_of_the_place_moves_on_at_once_and_counts_nothing(kind: FailureKind) -> None:
    """A limit or a broken engine closes the place until the time that was told; the job asks for another one."""
    until = NOW + timedelta(hours=3)
    state, commands = play(fresh(), Started(grant=grant()), failed(kind, retry_at=until))
    assert (state.stage, state.failures, state.reclaims, state.conditions) == (Stage.QUEUED, 0, 0, ())
    assert isinstance(commands[-1], Route)
    record = last_record(commands)
    assert record.cooldown is not None
    assert (record.cooldown.until, record.cooldown.reason) == (until, f"{kind}: broken")
    assert record.entries[-1].data["cooldown_until"] == until.isoformat()
    assert not record.exclude_factory


@pytest.mark.req("L5")
def test_job_rests_when_all_its_engines_do_and_wakes_by_itself() -> None:
    """The time is shown and is a timer; then the job asks again."""
    until = NOW + timedelta(hours=3)
    state, commands = play(
        fresh(), Started(grant=grant()), limited(until), Parked(until=until, message="claude on f1 until noon")
    )
    condition = state.blocked("cooldown")
    assert condition is not None
    assert (condition.until, condition.message, state.wake_at) == (until, "claude on f1 until noon", until)
    assert last_record(commands).conditions == (condition,)
    assert not any(isinstance(command, Hold) for command in commands), "any other place may take it meanwhile"
    assert play(state, Tick(), now=until - timedelta(seconds=1))[1] == []
    awake, commands = play(state, Tick(), now=until)
    assert isinstance(commands[-1], Route)
    assert last_record(commands).conditions == awake.conditions == ()


@pytest.mark.req("L5", "F6")
def test_resting_job_takes_a_place_that_comes_early() -> None:
    """Another factory or a freed engine hands over a grant before the reset, and the sign is taken away."""
    until = NOW + timedelta(hours=3)
    resting, _ = play(fresh(), Started(grant=grant()), limited(until), Parked(until=until, message="rests"))
    state, commands = play(resting, Granted(grant=grant(2, "f2")))
    assert (state.stage, state.conditions, state.wake_at) == (Stage.BUILDING, (), None)
    assert last_record(commands).conditions == ()
    assert isinstance(commands[-1], Build)


@pytest.mark.req("L5")
def test_operator_wakes_a_resting_job_and_ends_the_cooldowns() -> None:
    """Requeue is the word that the engines work again; a pause and a resume only ask again."""
    until = NOW + timedelta(hours=3)
    resting, _ = play(fresh(), Started(grant=grant()), limited(until), Parked(until=until, message="rests"))
    assert refusal(resting, act("requeue")) is None
    state, commands = play(resting, act("requeue"))
    assert last_record(commands).end_cooldowns
    assert (state.conditions, isinstance(commands[-1], Route)) == ((), True)
    state, commands = play(resting, act("pause"), act("resume"))
    assert (state.conditions, isinstance(commands[-1], Route)) == ((), True)
    assert not any(command.record.end_cooldowns for command in commands if isinstance(command, Write))


@pytest.mark.parametrize(
    "told",
    [None, NOW, NOW - timedelta(hours=1), NOW + timedelta(days=36), datetime.max.replace(tzinfo=UTC)],
    ids=["nothing", "now", "the past", "too late", "never"],
)
def test_limit_without_a_time_to_come_gets_a_default(told: datetime | None) -> None:
    """A provider that does not say when, or says what cannot be, is left alone for a quarter of an hour."""
    _, commands = play(fresh(), Started(grant=grant()), limited(told))
    cooldown = last_record(commands).cooldown
    assert cooldown is not None
    assert cooldown.until == NOW + timedelta(minutes=15)


def test_limit_again_and_again_is_asked_ever_less_often() -> None:
    """Each move in a row doubles the shortest cooldown, an hour at the most; an attempt of its own ends the row."""
    state, _ = play(fresh(retry=RetrySpec(max=9)), Started(grant=grant()))
    waits = []
    for epoch in range(1, 25):
        state, commands = play(state, limited(NOW + timedelta(milliseconds=1), epoch))
        cooldown = last_record(commands).cooldown
        assert cooldown is not None
        waits.append((cooldown.until - NOW).total_seconds())
        state, _ = play(state, Granted(grant=grant(epoch + 1)))
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 3600
    state, _ = play(state, failed(FailureKind.CRASH, 25))
    assert state.moves == 0


def test_limit_of_a_workflow_from_before_failover_holds_the_job() -> None:
    """Such a job goes on as its history says: it sleeps until the reset, wherever else it could run."""
    until = NOW + timedelta(hours=3)
    old = limited(until).model_copy(update={"moves_on": False})
    state, commands = play(fresh(), Started(grant=grant()), old)
    assert (state.stage, state.wake_at, state.failures) == (Stage.QUEUED, until, 0)
    assert [type(command) for command in commands[-2:]] == [Hold, Write]
    assert last_record(commands).cooldown is None
    assert isinstance(play(state, Tick(), now=until)[1][-1], Route)


@pytest.mark.req("E4")
def test_session_stays_with_the_engine_that_it_is_of() -> None:
    """An attempt without a session leaves the last one known, under its own engine's name."""
    first = limited(NOW + timedelta(hours=1))
    first = first.model_copy(update={"result": first.result.model_copy(update={"session_id": "s-1"})})
    other = grant(2).model_copy(update={"engine": "codex"})
    state, _ = play(fresh(), Started(grant=grant()), first)
    assert (state.resume.session_id, state.resume.engine) == ("s-1", "shell")
    state, _ = play(state, Granted(grant=other), failed(FailureKind.ENGINE_UNAVAILABLE, 2))
    assert (state.resume.session_id, state.resume.engine) == ("s-1", "shell")
    assert "engine_unavailable" in state.resume.failure


def test_lost_lease_is_routed_again_at_once_and_bounded() -> None:
    """A lost lease is no retry of the manifest, but a poison job ends in the dead letter."""
    state, _ = play(fresh(), Started(grant=grant(1)))
    for epoch in range(1, 6):
        state, commands = play(state, LeaseLost(epoch=epoch, reason="agent died"))
        assert state.stage == Stage.QUEUED
        assert isinstance(commands[0], StopStep)
        assert isinstance(commands[-1], Route)
        assert last_record(commands).exclude_factory
        state, _ = play(state, Granted(grant=grant(epoch + 1)))
    state, commands = play(state, LeaseLost(epoch=6, reason="agent died"))
    assert state.stage == Stage.DEAD_LETTER
    (letter,) = [entry for entry in last_record(commands).entries if entry.type == "job.dead_letter"]
    where = "f1/shell: lease_lost: agent died"
    assert letter.data["history"] == [f"epoch {epoch} on {where}" for epoch in range(1, 7)]
    assert letter.data["checkpoint"] == "refs/gigafactory/wip/j-1/6"


def test_attempts_that_no_factory_took_do_not_make_a_job_poison() -> None:
    """A factory that was gone before it heard of the job was not killed by it."""
    state, _ = play(fresh(), Started(grant=grant(1)))
    for epoch in range(1, 21):
        untaken = StepBroken(
            epoch=epoch, step="build", failure=FailureKind.LEASE_LOST, message="not taken", began=False
        )
        state, commands = play(state, untaken)
        assert isinstance(commands[-1], Route)
        state, _ = play(state, Granted(grant=grant(epoch + 1)))
    assert state.reclaims == 0


def test_interruptions_between_losses_do_not_make_a_job_poison() -> None:
    """What an operator or a drain ended says nothing about the job."""
    state, _ = play(fresh(), Started(grant=grant(1)))
    for epoch in range(1, 12):
        ended = LeaseLost(epoch=epoch) if epoch % 2 else failed(FailureKind.INTERRUPTED, epoch)
        state, _ = play(state, ended, Granted(grant=grant(epoch + 1)))
    assert (state.stage, state.reclaims) == (Stage.DEAD_LETTER, 5)


def test_child_jobs_hold_the_ship_gate_until_they_are_done() -> None:
    """The gate is closed with the reason; their end opens it for the human, who then may ship."""
    state, _ = play(fresh(), Started(grant=grant()), built(), judged())
    held, commands = play(state, ChildrenResolved(outcome="waiting", message="waits for its child jobs: j-2 (queued)"))
    assert [condition.reason for condition in held.conditions] == ["children"]
    assert last_record(commands).conditions == held.conditions
    assert "j-2" in (refusal(held, Act(action="ship", sha=CANDIDATE)) or "")
    assert play(held, ChildrenChanged())[1] == [ResolveChildren()]
    failed_child, _ = play(held, ChildrenResolved(outcome="failed", message="j-2 (failed)"))
    assert [condition.reason for condition in failed_child.conditions] == ["child_failed"]
    done, _ = play(failed_child, ChildrenResolved(outcome="ready"))
    assert (done.conditions, done.step) == ((), "")
    assert "ship" in legal_actions(done)


def test_ship_that_child_jobs_hold_back_begins_when_they_are_done() -> None:
    """A policy that ships by itself does so at the end of the last child, once."""
    state, commands = play(fresh(review_policy="auto"), Started(grant=grant()), built(), judged())
    assert isinstance(commands[-1], Ship)
    held, _ = play(state, ChildrenResolved(outcome="waiting", message="j-2", held_ship=True))
    assert (held.step, [condition.reason for condition in held.conditions]) == ("", ["children"])
    shipping, commands = play(held, ChildrenResolved(outcome="ready"))
    assert (shipping.step, shipping.conditions, isinstance(commands[-1], Ship)) == ("ship", (), True)
    assert play(shipping, ChildrenResolved(outcome="waiting", message="late")) == (shipping, [])


def test_child_jobs_are_not_looked_at_before_the_gate() -> None:
    """While the job runs its children hold nothing back; the record that brings it to the gate has the answer."""
    state, _ = play(fresh(), Started(grant=grant()))
    assert play(state, ChildrenChanged()) == (state, [])
    assert play(state, ChildrenResolved(outcome="waiting")) == (state, [])


def test_interrupted_attempts_are_queued_again_and_count_nothing() -> None:
    """However often the kill switch or a drain stops a job, it never ends for it; its work goes on in the next one."""
    state, _ = play(fresh(retry=RetrySpec(max=1)), Started(grant=grant(1)))
    for epoch in range(1, 9):
        stopped = failed(FailureKind.INTERRUPTED, epoch)
        work = stopped.result.model_copy(update={"checkpoint_sha": f"{epoch:040}"})
        state, commands = play(state, Built(result=work))
        record = last_record(commands)
        assert (state.stage, state.reclaims, state.failures) == (Stage.QUEUED, 0, 0)
        assert (record.attempt_outcome, record.checkpoint_sha) == (FailureKind.INTERRUPTED, f"{epoch:040}")
        assert record.end_lease
        assert not record.exclude_factory
        assert isinstance(commands[-1], Route)
        state, _ = play(state, Granted(grant=grant(epoch + 1)))


@pytest.mark.parametrize(
    "ending",
    [
        failed(FailureKind.CANCELLED),
        failed(FailureKind.CRASH),
        StepBroken(epoch=1, step="build", failure=FailureKind.LEASE_LOST, message="no heartbeat"),
        LeaseLost(epoch=1),
    ],
    ids=["cancelled", "crash", "silent", "lost"],
)
def test_interrupt_stops_the_build_whatever_its_end_looks_like(ending: Event) -> None:
    """The step is stopped and its answer awaited; then the job is queued, with the reason in its record."""
    state, commands = play(fresh(), Started(grant=grant()), Interrupt(epoch=1, reason="the fleet was halted by ada"))
    assert StopStep(wait=True) in commands
    assert state.stage == Stage.BUILDING
    state, commands = play(state, ending)
    assert (state.stage, state.stopping, state.reclaims, state.conditions) == (Stage.QUEUED, "", 0, ())
    assert last_record(commands).attempt_outcome == FailureKind.INTERRUPTED
    assert last_record(commands).attempt_message == "the fleet was halted by ada"
    assert isinstance(commands[-1], Route)


def test_candidate_that_came_before_the_interrupt_is_kept() -> None:
    """An engine that was done is not asked to do it again: its candidate is judged."""
    state, commands = play(fresh(), Started(grant=grant()), Interrupt(epoch=1), built())
    assert (state.stage, state.step, state.stopping) == (Stage.REVIEW, "judge", "")
    assert isinstance(commands[-1], Judge)


def test_interrupt_begins_verify_again_and_leaves_the_rest_alone() -> None:
    """The candidate stays; the running verify is stopped without being given up. A ship, another epoch: nothing."""
    judging, _ = play(fresh(), Started(grant=grant()), built())
    state, commands = play(judging, Interrupt(epoch=1, reason="halted"))
    assert state == judging
    assert commands[0] == StopStep(wait=False)
    assert play(judging, Interrupt(epoch=2)) == (judging, [])
    shipping, _ = play(judging, judged(), act("ship", CANDIDATE))
    assert play(shipping, Interrupt(epoch=1)) == (shipping, [])


def test_answers_of_a_lost_epoch_change_nothing() -> None:
    """What epoch 1 says after epoch 2 began is ignored."""
    state, _ = play(fresh(), Started(grant=grant(1)), LeaseLost(epoch=1), Granted(grant=grant(2)))
    late: tuple[Event, ...] = (
        built(1),
        failed(FailureKind.CRASH, 1),
        StepBroken(epoch=1, step="build", failure=FailureKind.LEASE_LOST, message="x"),
        LeaseLost(epoch=1),
        Granted(grant=grant(1)),
    )
    assert play(state, *late) == (state, [])


@pytest.mark.parametrize("events", [(), (built(),)], ids=["building", "judging"])
def test_cancel_stops_the_step_and_keeps_the_work(events: tuple[Event, ...]) -> None:
    """Cancel waits for the step's end, so that the last checkpoint is known."""
    state, _ = play(fresh(), Started(grant=grant()), *events)
    step: Step = state.step
    state, commands = play(state, act("cancel"))
    assert commands[0] == StopStep(wait=True)
    assert state.stage != Stage.CANCELLED
    broken = StepBroken(epoch=1, step=step, failure=FailureKind.CANCELLED, message="cancelled")
    state, commands = play(state, broken)
    assert state.stage == Stage.CANCELLED
    assert isinstance(commands[-1], Finish)


def test_pause_while_building_checkpoints_and_resume_goes_on() -> None:
    """Pause ends the attempt with its work kept; nothing is routed until resume."""
    state, _ = play(fresh(), Started(grant=grant()), act("pause"), failed(FailureKind.CANCELLED))
    assert state.paused
    assert state.stage == Stage.QUEUED
    assert refusal(state, act("requeue")) is not None
    state, commands = play(state, act("resume"))
    assert not state.paused
    assert isinstance(commands[-1], Route)


def test_a_grant_for_a_paused_job_is_given_back() -> None:
    """A grant that crossed with the pause frees its seat again."""
    state, _ = play(fresh(), Started(), act("pause"))
    state, commands = play(state, Granted(grant=grant(1)))
    assert state.stage == Stage.QUEUED
    assert last_record(commands).end_lease
    assert not any(isinstance(command, Build) for command in commands)


def test_parents_gate_the_first_route() -> None:
    """A job with parents asks for them first, shows what it waits for, and is routed when they are done."""
    state = fresh(deps=(Dependency(job_id="j-0"),))
    state, commands = play(state, Started())
    assert [type(command) for command in commands] == [ResolveParents]
    state, _ = play(state, ParentsResolved(outcome="waiting", message="waits for j-0"))
    assert state.blocked("parents") is not None
    state, commands = play(state, ParentsChanged())
    assert [type(command) for command in commands] == [ResolveParents]
    state, commands = play(state, ParentsResolved(outcome="ready"))
    assert isinstance(commands[-1], Route)
    assert state.conditions == ()


def test_failed_parent_blocks_visibly() -> None:
    """A parent that failed leaves its child blocked with the reason, and cancellable."""
    state = fresh(deps=(Dependency(job_id="j-0"),))
    state, _ = play(state, Started(), ParentsResolved(outcome="failed", message="j-0 failed"))
    condition = state.blocked("parent_failed")
    assert condition is not None
    assert "j-0 failed" in condition.message
    assert play(state, act("cancel"))[0].stage == Stage.CANCELLED


@pytest.mark.parametrize("outcome", ["conflict", "verify_failed", "fenced"])
def test_a_ship_that_cannot_land_ends_in_review_with_the_reason(outcome: str) -> None:
    """A moved base in conflict goes back to review; a second ship is refused until somebody acts."""
    state, _ = play(at_gate(), act("ship", CANDIDATE), shipped(outcome))
    assert state.stage == Stage.REVIEW
    assert refusal(state, act("ship", CANDIDATE)) is not None
    state, commands = play(state, act("requeue", reason="rebase please"))
    assert state.stage == Stage.QUEUED
    assert state.resume.note == "rebase please"
    assert isinstance(commands[-1], Route)


def test_verdict_that_comes_although_the_job_is_being_cancelled_ends_it() -> None:
    """The word was too late for the step, not for the job: nobody is left with a job that refuses every word."""
    stopping, _ = play(fresh(), Started(grant=grant()), built(), act("cancel"))
    assert (stopping.step, stopping.stopping) == ("judge", "cancelled")
    state, commands = play(stopping, judged())
    assert (state.stage, state.stopping) == (Stage.CANCELLED, "")
    assert isinstance(commands[-1], Finish)


def test_nothing_is_possible_while_shipping_and_after_the_end() -> None:
    """Ship cannot be overtaken by cancel; an ended job refuses everything."""
    shipping, _ = play(at_gate(), act("ship", CANDIDATE))
    assert refusal(shipping, act("cancel")) is not None
    ended, _ = play(shipping, shipped())
    assert legal_actions(ended) == ()
    assert play(ended, built(), judged(), LeaseLost(epoch=1), Tick()) == (ended, [])


# --- any sequence -----------------------------------------------------------------------------------------------------

epochs = st.integers(min_value=0, max_value=4)
kinds = st.sampled_from(list(FailureKind))
events = st.one_of(
    st.builds(Granted, grant=st.builds(grant, epochs)),
    st.builds(Parked, until=st.sampled_from([None, NOW, NOW + timedelta(hours=1)])),
    st.builds(built, epochs),
    st.builds(failed, kinds, epochs),
    st.builds(judged, st.sampled_from(["passed", "failed", "none"]), epochs, st.sampled_from([(), ("x",)])),
    st.builds(shipped, st.sampled_from(["shipped", "conflict", "verify_failed", "fenced"]), epochs),
    st.builds(
        StepBroken,
        epoch=epochs,
        step=st.sampled_from(["build", "judge", "ship"]),
        failure=kinds,
        message=st.just("m"),
    ),
    st.builds(LeaseLost, epoch=epochs),
    st.builds(Interrupt, epoch=epochs),
    st.builds(ParentsResolved, outcome=st.sampled_from(["ready", "waiting", "failed"])),
    st.builds(act, st.sampled_from(ACTIONS), st.sampled_from(["", CANDIDATE])),
    st.just(Tick()),
    st.just(ParentsChanged()),
    st.just(Refused(action="x", message="y")),
)
specs = st.builds(
    spec,
    review_policy=st.sampled_from(["auto", "manual"]),
    retry=st.sampled_from([None, RetrySpec(max=1, backoff_s=1)]),
    deps=st.sampled_from([(), (Dependency(job_id="j-0"),)]),
)


def step(state: JobState, event: Event, now: datetime) -> Decision:
    """Decide, counting a refused action as nothing."""
    try:
        return decide(state, event, now)
    except IllegalAction:
        assert isinstance(event, Act)
        assert refusal(state, event) is not None
        return Decision(state=state)


@settings(max_examples=400)
@given(specs, st.booleans(), st.lists(events, max_size=30))
def test_any_sequence_skips_no_stage_and_leaves_no_end(job: JobSpec, granted: bool, sequence: list[Event]) -> None:
    """Whatever happens: only legal changes, ends stay ends, at most one step, and an end is always written."""
    state = JobState(job_id="j-1", spec=job)
    ledger_stage = Stage.QUEUED
    now = NOW
    for event in (Started(grant=grant() if granted else None), *sequence):
        before, now = state, now + timedelta(seconds=30)
        decision = step(state, event, now)
        state = decision.state
        for command in decision.commands:
            if isinstance(command, Build):
                assert ledger_stage == Stage.QUEUED
                ledger_stage = Stage.BUILDING
            if isinstance(command, Judge):
                assert ledger_stage == Stage.BUILDING
                ledger_stage = Stage.REVIEW  # written when the candidate was accepted
            if isinstance(command, Write):
                for stage in command.record.path:
                    if stage != ledger_stage or stage not in (Stage.QUEUED, Stage.REVIEW):  # `assigned`, `building`
                        assert stage in TRANSITIONS[ledger_stage], (ledger_stage, stage, event)
                    ledger_stage = stage
        assert ledger_stage == state.stage
        assert (sum(isinstance(c, Build | Judge | Ship) for c in decision.commands)) <= 1
        if before.stage in TERMINAL:
            assert state.stage == before.stage
        if state.ended and not before.ended:
            assert isinstance(decision.commands[-1], Finish)
            assert last_record(list(decision.commands)).end_lease
            assert state.step == ""


@settings(max_examples=200)
@given(specs, st.lists(events, max_size=25))
def test_any_live_job_moves_waits_for_a_time_or_shows_why_not(job: JobSpec, sequence: list[Event]) -> None:
    """No job is stuck in silence: a step runs, a time is set, a human or the ledger is asked, or a condition tells."""
    state = JobState(job_id="j-1", spec=job)
    now = NOW
    asked_ledger = False
    for event in (Started(grant=grant()), *sequence):
        now += timedelta(seconds=1)
        before = state
        decision = step(state, event, now)
        state = decision.state
        asked_ledger = state.stage == Stage.QUEUED and (
            any(isinstance(command, Route | ResolveParents) for command in decision.commands)
            or (asked_ledger and before.stage == Stage.QUEUED)
        )
        at_a_gate = state.stage in (Stage.REVIEW, Stage.TESTING)
        assert state.ended or state.step or state.wake_at or at_a_gate or asked_ledger or state.conditions, event


@settings(max_examples=200)
@given(specs, st.lists(events, max_size=25))
def test_decide_ships_only_an_approved_candidate(job: JobSpec, sequence: list[Event]) -> None:
    """A ship command follows only an action that named the candidate, or the auto policy after a green verify."""
    state = JobState(job_id="j-1", spec=job)
    now = NOW
    for event in (Started(grant=grant()), *sequence):
        now += timedelta(seconds=1)
        decision = step(state, event, now)
        if any(isinstance(command, Ship) for command in decision.commands):
            by_human = isinstance(event, Act) and event.action == "ship" and event.sha == state.candidate_sha
            by_policy = isinstance(event, Judged) and event.verdict.verify == "passed" and job.review_policy == "auto"
            assert by_human or by_policy
            assert not state.blocked("scope")
        state = decision.state
