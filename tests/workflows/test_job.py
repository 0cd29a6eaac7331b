"""The job workflow on a real Temporal server: what it survives, refuses and writes."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from core.attempt import BuildResult
from core.dag import Wait
from core.job import FailureKind, RetrySpec
from core.job_events import JobState
from core.job_messages import ParentsReply, ReclaimReply, RouteReply
from tests.waiting import PATIENCE_S
from tests.workflows.conftest import BASE, CANDIDATE, Floor, keep_history


async def until(handle: WorkflowHandle[Any, Any], stage: str, step: str = "") -> JobState:
    """Wait until the job is in `stage` with `step` running (bounded by the test's own timeout)."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            state: JobState = await handle.query("state", result_type=JobState)
            if (state.stage.value, state.step) == (stage, step):
                return state
            await asyncio.sleep(0.02)


async def ship(handle: WorkflowHandle[Any, Any], sha: str = CANDIDATE) -> Any:
    """Send the update that the API sends."""
    return await handle.execute_update("act", {"action": "ship", "sha": sha, "by": "ann"})


def refusal_of(error: WorkflowUpdateFailedError) -> str:
    """Return the sentence with which an update was refused."""
    assert isinstance(error.cause, ApplicationError)
    return error.cause.message


async def test_granted_job_ships_in_few_events(floor: Floor) -> None:
    """Start with a grant → testing → ship: at most 45 events and two search-attribute upserts."""
    await floor.factory()
    handle = await floor.start(grant=floor.grant())
    await until(handle, "testing")
    await ship(handle)
    outcome = await handle.result()
    assert outcome["stage"] == "shipped"
    assert floor.control.stages == ["review", "testing", "shipped"]
    events = Counter(event.event_type for event in (await handle.fetch_history()).events)
    assert sum(events.values()) <= 45
    assert events[EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES] <= 2
    await keep_history(handle, "granted-ship-by-update")


async def test_parked_job_waits_for_its_grant_and_ships_by_signal(floor: Floor) -> None:
    """A job without a seat waits for `granted`; the `temporal` CLI's ship signal is as good as the API's update."""
    await floor.factory()
    handle = await floor.start()
    await handle.signal("granted", floor.grant().model_dump(mode="json"))
    await until(handle, "testing")
    await handle.signal("ship", CANDIDATE)
    assert (await handle.result())["stage"] == "shipped"
    assert len((await handle.fetch_history()).events) <= 45
    await keep_history(handle, "parked-ship-by-signal")


async def test_early_foreign_and_garbage_signals_are_recorded_as_refused(floor: Floor) -> None:
    """Nothing that a stranger signals ships a job early, ships another commit, or stops the job."""
    gate = asyncio.Event()

    async def build(request: dict[str, Any]) -> Any:
        await gate.wait()
        return await floor.built(request)

    await floor.factory(build=build)
    handle = await floor.start(grant=floor.grant())
    await until(handle, "building", "build")
    await handle.signal("ship", CANDIDATE)
    await handle.signal("ship", args=[{"sha": ["no", "sha"]}])
    await handle.signal("ship", args=[b"\x00\xff"])
    await handle.signal("granted", "garbage")
    await handle.signal("no-such-signal")
    gate.set()
    await until(handle, "testing")
    await handle.signal("ship", "a" * 40)
    await handle.signal("ship")
    async with asyncio.timeout(PATIENCE_S):
        while floor.control.entries.count("decision.refused") < 7:
            await asyncio.sleep(0.02)
    assert (await until(handle, "testing")).step == ""
    await ship(handle)
    await handle.result()
    await keep_history(handle, "refused-signals")


async def settled_history(handle: WorkflowHandle[Any, Any]) -> int:
    """Return the length of the history once no workflow task is under way: a state is told before it is recorded."""
    busy = (EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED, EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED)
    async with asyncio.timeout(PATIENCE_S):
        while (events := (await handle.fetch_history()).events)[-1].event_type in busy:
            await asyncio.sleep(0.02)
    return len(events)


async def test_illegal_update_is_refused_with_a_reason_and_leaves_no_event(floor: Floor) -> None:
    """The API's refusals cost the history nothing."""
    await floor.factory()
    handle = await floor.start(grant=floor.grant())
    await until(handle, "testing")
    before = await settled_history(handle)
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await ship(handle, "a" * 40)
    assert "is not the candidate" in refusal_of(caught.value)
    assert len((await handle.fetch_history()).events) == before
    await handle.execute_update("act", {"action": "reject", "by": "ann", "reason": "no"})
    assert (await handle.result())["stage"] == "failed"
    assert floor.retracted == [CANDIDATE]
    await keep_history(handle, "rejected")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "garbage",
        {"job_id": "other", "epoch": 1, "outcome": "succeeded"},
        {"outcome": 7, "candidate_sha": ["x"]},
        {"candidate_sha": "z" * 100},
    ],
    ids=["empty", "text", "foreign", "wrong-types", "bad-sha"],
)
async def test_garbage_engine_result_fails_the_attempt_not_the_workflow(floor: Floor, answer: Any) -> None:
    """A malformed answer ends the attempt as `bad_result`; the workflow task never fails."""

    async def build(_request: dict[str, Any]) -> Any:
        return answer

    await floor.factory(build=build)
    handle = await floor.start(grant=floor.grant())
    assert (await handle.result())["stage"] == "failed"
    assert floor.control.last.attempt_outcome == "bad_result"
    kinds = {event.event_type for event in (await handle.fetch_history()).events}
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in kinds


async def test_lost_heartbeat_goes_on_elsewhere_and_the_old_answer_is_ignored(floor: Floor) -> None:
    """A factory that falls silent loses the job after its lease; the next epoch builds on another factory."""

    async def silent(_request: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    await floor.factory(build=silent)
    second = f"{floor.name}b"
    await floor.factory(name=second)
    floor.control.routes.append(floor.grant(2, second))
    handle = await floor.start(grant=floor.grant(1, ttl_s=1))
    state = await until(handle, "testing")
    assert (state.epoch, state.reclaims) == (2, 1)
    assert floor.control.reclaims[0].epoch == 1
    await ship(handle)
    await handle.result()
    await keep_history(handle, "lost-lease")


async def silent(_request: dict[str, Any]) -> Any:
    """Be an engine that Temporal hears nothing of."""
    await asyncio.Event().wait()


async def reclaimed(floor: Floor, times: int = 1) -> None:
    """Wait until the ledger was asked so often about an attempt without a heartbeat."""
    async with asyncio.timeout(PATIENCE_S):
        while len(floor.control.reclaims) < times:
            await asyncio.sleep(0.02)


@pytest.mark.req("F6")
@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
async def test_attempt_that_lives_on_without_its_activity_hands_in_its_result(floor: Floor, outcome: str) -> None:
    """No newer epoch is granted while the ledger says that it lives; the ledger's signal brings the result."""
    await floor.factory(build=silent)
    floor.control.living.append(ReclaimReply(living_s=60))
    handle = await floor.start(grant=floor.grant(1, ttl_s=1))
    await reclaimed(floor)
    assert (await until(handle, "building", "build")).epoch == 1
    attempt = {"job_id": floor.job_id, "epoch": 1}
    failed = attempt | {"outcome": "failed", "failure": "engine_error", "message": "no tokens"}
    result = await floor.built(attempt) if outcome == "succeeded" else failed
    floor.control.accepted = ReclaimReply(accepted=BuildResult.model_validate(result))
    await handle.signal("handed_in", {"epoch": 1})
    if outcome == "failed":
        assert (await handle.result())["stage"] == "failed"
        assert floor.control.last.attempt_outcome == "engine_error"
        return
    await until(handle, "testing")
    await ship(handle)
    assert (await handle.result())["stage"] == "shipped"
    await keep_history(handle, "adopted")


async def test_adopted_attempt_that_falls_silent_goes_on_elsewhere(floor: Floor) -> None:
    """Its word is good for a lease; then the ledger is asked again, and what it says counts."""
    await floor.factory(build=silent)
    second = f"{floor.name}b"
    await floor.factory(name=second)
    floor.control.living.extend([ReclaimReply(living_s=0.3), ReclaimReply(living_s=0.3)])
    floor.control.routes.append(floor.grant(2, second))
    handle = await floor.start(grant=floor.grant(1, ttl_s=1))
    state = await until(handle, "testing")
    assert (state.epoch, state.reclaims, len(floor.control.reclaims)) == (2, 1, 3)
    await ship(handle)
    await handle.result()
    await keep_history(handle, "adopted-and-lost")


async def test_cancel_of_an_adopted_attempt_goes_through_the_ledger(floor: Floor) -> None:
    """There is no activity to cancel: the ledger is told that it is to stop, and its last word ends the job."""
    await floor.factory(build=silent)
    floor.control.living.extend([ReclaimReply(living_s=60), ReclaimReply(living_s=60)])
    handle = await floor.start(grant=floor.grant(1, ttl_s=1))
    await reclaimed(floor)
    await handle.execute_update("act", {"action": "cancel", "by": "ann"})
    await reclaimed(floor, 2)
    assert [request.stop for request in floor.control.reclaims] == [False, True]
    last = BuildResult(
        job_id=floor.job_id, epoch=1, outcome="failed", failure=FailureKind.CANCELLED, checkpoint_sha="e" * 40
    )
    floor.control.accepted = ReclaimReply(accepted=last)
    await handle.signal("handed_in", {"epoch": 1})
    assert (await handle.result())["stage"] == "cancelled"
    assert floor.control.last.checkpoint_sha == "e" * 40
    await keep_history(handle, "adopted-and-cancelled")


async def test_death_certificate_of_an_adopted_attempt_moves_the_job_at_once(floor: Floor) -> None:
    """Whoever proves that it is dead need not wait until its last word is too old."""
    await floor.factory(build=silent)
    second = f"{floor.name}b"
    await floor.factory(name=second)
    floor.control.living.append(ReclaimReply(living_s=60))
    floor.control.routes.append(floor.grant(2, second))
    handle = await floor.start(grant=floor.grant(1, ttl_s=1))
    await reclaimed(floor)
    await handle.signal("lease_lost", {"epoch": 1, "reason": "agent died"})
    assert (await until(handle, "testing")).epoch == 2


async def test_death_certificate_moves_the_job_at_once(floor: Floor) -> None:
    """`lease_lost` does not wait for the lease: the next epoch starts although 60 s are left."""

    async def silent(_request: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    await floor.factory(build=silent)
    second = f"{floor.name}b"
    await floor.factory(name=second)
    floor.control.routes.append(floor.grant(2, second))
    handle = await floor.start(grant=floor.grant(1, ttl_s=60))
    await until(handle, "building", "build")
    await handle.signal("lease_lost", {"epoch": 1, "reason": "agent died"})
    assert (await until(handle, "testing")).epoch == 2
    await ship(handle)
    await handle.result()
    await keep_history(handle, "death-certificate")


async def test_result_accepted_before_the_loss_is_used(floor: Floor) -> None:
    """When the ledger accepted the result and only Temporal did not hear of it, nothing is built again."""

    async def silent(_request: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    await floor.factory(build=silent)
    result = BuildResult.model_validate(await floor.built({"job_id": floor.job_id, "epoch": 1}))
    floor.control.accepted = ReclaimReply(accepted=result)
    handle = await floor.start(grant=floor.grant(1, ttl_s=1))
    state = await until(handle, "testing")
    assert (state.epoch, state.candidate_sha, state.base_sha) == (1, CANDIDATE, BASE)
    await handle.execute_update("act", {"action": "cancel", "by": "ann"})
    assert (await handle.result())["stage"] == "cancelled"


async def test_cancel_reaches_the_engine_and_waits_for_its_last_word(floor: Floor) -> None:
    """Cancel is delivered by heartbeat; the attempt's checkpoint is written with the end."""

    async def build(request: dict[str, Any]) -> Any:
        try:
            while True:
                activity.heartbeat()
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            return {
                "job_id": request["job_id"],
                "epoch": 1,
                "outcome": "failed",
                "failure": "cancelled",
                "checkpoint_sha": "e" * 40,
            }

    await floor.factory(build=build)
    handle = await floor.start(grant=floor.grant(1))
    await until(handle, "building", "build")
    await handle.execute_update("act", {"action": "cancel", "by": "ann"})
    assert (await handle.result())["stage"] == "cancelled"
    assert floor.control.last.checkpoint_sha == "e" * 40
    await keep_history(handle, "cancelled-while-building")


async def test_workflow_cancellation_is_a_cancel_of_the_job(floor: Floor) -> None:
    """Cancelling in Temporal's Web UI ends the job like `gf cancel`: written, freed, shown."""
    await floor.factory()
    handle = await floor.start()
    await handle.cancel()
    assert (await handle.result())["stage"] == "cancelled"
    assert floor.control.last.release_locks


async def test_retry_after_red_verify_then_success(floor: Floor) -> None:
    """`retry: {max: 1}`: the second attempt is told what failed and may succeed."""
    told: list[str] = []

    async def build(request: dict[str, Any]) -> Any:
        told.append(request["resume"]["failure"])
        return await floor.built(request)

    async def judge(request: dict[str, Any]) -> Any:
        verdict = await floor.judged(request)
        return verdict if request["epoch"] == 2 else verdict | {"verify": "failed", "verify_command": "make check"}

    await floor.factory(build=build, judge=judge)
    floor.control.routes.append(floor.grant(2))
    handle = await floor.start(grant=floor.grant(1), retry=RetrySpec(max=1, backoff_s=0.1))
    await until(handle, "testing")
    assert told[0] == ""
    assert "make check" in told[1]
    await ship(handle)
    await handle.result()
    await keep_history(handle, "retry-after-red-verify")


async def test_limited_job_moves_on_rests_and_wakes(floor: Floor) -> None:
    """A limit asks for another place at once; a rest is a durable timer that a grant cuts short; nothing is counted."""
    ends: dict[int, dict[str, Any]] = {
        1: {"failure": "rate_limited", "retry_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()},
        2: {"failure": "engine_unavailable"},
        3: {"failure": "rate_limited"},
    }

    async def build(request: dict[str, Any]) -> Any:
        epoch = request["epoch"]
        if epoch not in ends:
            return await floor.built(request)
        return {"job_id": request["job_id"], "epoch": epoch, "outcome": "failed", **ends[epoch]}

    await floor.factory(build=build)
    later = RouteReply(until=datetime.now(UTC) + timedelta(hours=1), message="every engine rests")
    soon = RouteReply(until=datetime.now(UTC) + timedelta(seconds=1), message="every engine rests a moment")
    floor.control.routes += [floor.grant(2), later, soon, floor.grant(4)]
    handle = await floor.start(grant=floor.grant(1))
    async with asyncio.timeout(PATIENCE_S):
        while (resting := await until(handle, "queued")).wake_at is None:
            await asyncio.sleep(0.02)
    assert (resting.epoch, resting.wake_at) == (2, later.until)

    await handle.signal("granted", floor.grant(3))
    state = await until(handle, "testing")
    assert (state.epoch, state.failures, state.reclaims) == (4, 0, 0)
    assert floor.control.entries.count("job.rests") == 2
    assert floor.control.holds == 0

    def cooldowns() -> list[bool]:
        return [r.record.cooldown is not None for r in floor.control.records if r.record.attempt_outcome]

    async with asyncio.timeout(PATIENCE_S):  # the state is told before its record is written
        while len(cooldowns()) < 4:
            await asyncio.sleep(0.02)
    assert cooldowns() == [True, True, True, False]
    await ship(handle)
    await handle.result()
    await keep_history(handle, "failover")


async def test_workspace_step_moves_when_its_factory_is_gone(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify runs on another factory when the one that built is gone."""
    second = f"{floor.name}b"
    floor.control.place = second

    async def silent(_request: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    await floor.factory(judge=silent)
    await floor.factory(name=second)
    handle = await floor.start(grant=floor.grant(1, ttl_s=4))
    await until(handle, "testing")
    await ship(handle)
    assert (await handle.result())["stage"] == "shipped"
    await keep_history(handle, "judged-elsewhere")


async def test_child_waits_for_its_parent_and_wakes_when_it_is_done(floor: Floor) -> None:
    """A job with `deps` shows what it waits for and is routed when the parent is done."""
    await floor.factory()
    floor.control.parents.append(ParentsReply(outcome="waiting", message="waits for j-0"))
    floor.control.routes.append(floor.grant(1))
    handle = await floor.start(deps=({"job_id": "j-0"},))
    async with asyncio.timeout(PATIENCE_S):
        while not (await handle.query("state", result_type=JobState)).blocked("parents"):
            await asyncio.sleep(0.02)
    await handle.signal("parents_changed")
    await until(handle, "testing")
    await ship(handle)
    await handle.result()
    await keep_history(handle, "child-of-a-parent")


async def test_conflict_at_ship_returns_to_review_and_requeue_goes_on(floor: Floor) -> None:
    """A conflict is shown at the gate; requeue with a note builds again."""
    outcomes = ["conflict", "shipped"]

    async def ship_step(request: dict[str, Any]) -> Any:
        return await floor.shipped(request) | {"outcome": outcomes.pop(0), "message": "both changed a.txt"}

    await floor.factory(ship=ship_step)
    floor.control.routes.append(floor.grant(2))
    handle = await floor.start(grant=floor.grant(1))
    await until(handle, "testing")
    await ship(handle)
    state = await until(handle, "review")
    assert "both changed a.txt" in state.conditions[0].message
    await handle.execute_update("act", {"action": "requeue", "by": "ann", "reason": "use the new API"})
    await until(handle, "testing")
    await ship(handle)
    assert (await handle.result())["stage"] == "shipped"
    await keep_history(handle, "conflict-requeue")


@pytest.mark.req("F9")
async def test_interrupt_while_building_queues_the_job_and_counts_nothing(floor: Floor) -> None:
    """The kill switch ends the attempt; the next grant goes on, without a retry; an old interrupt is passed over."""

    async def build(request: dict[str, Any]) -> Any:
        if request["epoch"] == 2:
            return await floor.built(request)
        while True:
            activity.heartbeat()
            await asyncio.sleep(0.05)

    await floor.factory(build=build)
    floor.control.routes.append(floor.grant(2))
    handle = await floor.start(grant=floor.grant(1))
    await until(handle, "building", "build")
    await handle.signal("interrupt", {"epoch": 1, "reason": "the fleet was halted by ada"})
    await handle.signal("interrupt", {"epoch": 1, "reason": "again"})
    state = await until(handle, "testing")
    assert (state.epoch, state.failures, state.reclaims) == (2, 0, 0)
    written = [request.record for request in floor.control.records]
    (ended,) = [record for record in written if record.attempt_outcome == "interrupted"]
    assert (ended.epoch, ended.attempt_message) == (1, "the fleet was halted by ada")
    await ship(handle)
    await handle.result()
    await keep_history(handle, "interrupted")


async def test_pause_and_resume_while_building(floor: Floor) -> None:
    """Pause checkpoints and frees the seat; resume is routed again."""

    async def build(request: dict[str, Any]) -> Any:
        if request["epoch"] == 2:
            return await floor.built(request)
        while True:
            activity.heartbeat()
            await asyncio.sleep(0.05)

    await floor.factory(build=build)
    handle = await floor.start(grant=floor.grant(1))
    await until(handle, "building", "build")
    await handle.execute_update("act", {"action": "pause", "by": "ann"})
    state = await until(handle, "queued")
    assert state.paused
    floor.control.routes.append(floor.grant(2))
    await handle.execute_update("act", {"action": "resume", "by": "ann"})
    await until(handle, "testing")
    await ship(handle)
    await handle.result()
    await keep_history(handle, "pause-resume")


HELD = Wait(outcome="waiting", message="waits for its child jobs: j-2 (queued)")


async def until_gate(handle: WorkflowHandle[Any, Any], *, held: bool) -> JobState:
    """Wait until the job's gate is held, or free."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            state = await until(handle, "testing")
            if bool(state.conditions) == held:
                return state
            await asyncio.sleep(0.02)


async def test_child_jobs_hold_the_gate_and_their_end_opens_it(floor: Floor) -> None:
    """The record that brings the job to its gate tells of its child jobs; a signal makes the workflow look again."""
    await floor.factory()
    floor.control.children.append(HELD)
    handle = await floor.start(grant=floor.grant())
    await until_gate(handle, held=True)
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await ship(handle)
    assert "(children): waits for its child jobs: j-2" in refusal_of(caught.value)
    await handle.signal("children_changed", {"outcome": "ready"})
    await until_gate(handle, held=False)
    await ship(handle)
    assert (await handle.result())["stage"] == "shipped"
    await keep_history(handle, "child-jobs-hold-the-gate")


async def test_child_job_that_comes_with_the_word_to_ship_is_waited_for(floor: Floor) -> None:
    """Whichever the ledger has first counts: the ship does not begin, and is allowed again when the child is done."""
    await floor.factory()
    floor.control.children.extend([None, HELD])
    handle = await floor.start(grant=floor.grant())
    await until(handle, "testing")
    await ship(handle)
    state = await until_gate(handle, held=True)
    assert (state.step, state.conditions[0].reason) == ("", "children")
    await handle.signal("children_changed", {"outcome": "ready"})
    await until_gate(handle, held=False)
    await ship(handle)
    assert (await handle.result())["stage"] == "shipped"
    await keep_history(handle, "child-job-with-the-word-to-ship")
