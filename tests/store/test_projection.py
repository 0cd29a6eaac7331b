from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from core.attempt import Usage
from core.errors import Conflict, IllegalAction, IllegalTransition, NotFound, StaleEpoch
from core.job import Condition, Cooldown, Dependency, Stage
from core.job_messages import RECORDS_PER_LIFE
from core.lifecycle import TRANSITIONS, Decided, Entry, Record
from store.projection import stages_to_go
from tests.store.fleet import BASE, CANDIDATE, CHECKPOINT, Fleet


@pytest.fixture
async def floor(fleet: Fleet) -> Fleet:
    """Return a fleet with one factory and job j-1 building there under epoch 1."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    return fleet


# --- once ---------------------------------------------------------------------------------------------------------


async def test_record_is_applied_once_for_each_number(floor: Fleet) -> None:
    """The workflow may repeat a write for ever: it counts once, and the answer stays the same."""
    record = Record(path=(Stage.FAILED,), epoch=1, attempt_outcome="crash", end_lease=True)
    first = await floor.ledger.record("j-1", 7, record, floor.now)
    events = await floor.events("j-1")
    again = await floor.ledger.record("j-1", 7, record, floor.tick())

    assert (first.applied, first.freed) == (True, True)
    assert (again.applied, again.freed) == (False, True)
    assert await floor.events("j-1") == events
    assert await floor.busy("f1") == 0


async def test_record_from_several_callers_at_once_is_applied_once(floor: Fleet) -> None:
    """Two workers that write the same decision together write it once."""
    record = Record(path=(Stage.REVIEW,), epoch=1, attempt_outcome="succeeded", candidate_sha=CANDIDATE)
    answers = await asyncio.gather(*(floor.ledger.record("j-1", 1, record, floor.now) for _ in range(5)))

    assert sum(answer.applied for answer in answers) == 1
    assert await floor.stage("j-1") == Stage.REVIEW


async def test_record_with_a_used_number_and_other_content_is_a_conflict(floor: Fleet) -> None:
    """A number that means two things is a mistake that must be seen."""
    await floor.ledger.record("j-1", 1, Record(approved_by="ada"), floor.now)

    with pytest.raises(Conflict, match="record 1"):
        await floor.ledger.record("j-1", 1, Record(approved_by="eve"), floor.now)
    with pytest.raises(NotFound):
        await floor.ledger.record("j-x", 1, Record(), floor.now)


async def test_record_whose_number_another_has_changes_nothing_and_is_told_how_far_the_ledger_is(floor: Fleet) -> None:
    """The newest of the life: what a forgotten task wrote holds, also where it wrote twice; no other life's counts."""
    first, second = (Decided(seq=RECORDS_PER_LIFE + seq, state={"stage": "building"}) for seq in (1, 2))
    for decided, who in ((first, "ada"), (second, "bob")):
        await floor.ledger.record("j-1", decided.seq, Record(approved_by=who), floor.now, decided=decided)
    before = (await floor.job("j-1")).model_dump(), await floor.events("j-1")
    other = Record(path=(Stage.FAILED,), epoch=1, end_lease=True)

    ack = await floor.ledger.record("j-1", first.seq, other, floor.tick(), decided=first)

    assert (ack.applied, ack.freed, ack.ahead) == (False, False, second)
    assert ((await floor.job("j-1")).model_dump(), await floor.events("j-1")) == before
    next_life = second.seq + RECORDS_PER_LIFE
    await floor.ledger.record("j-1", next_life, Record(), floor.now)
    with pytest.raises(Conflict, match="other content"):
        await floor.ledger.record("j-1", first.seq, other, floor.now, decided=first)


async def test_record_of_a_task_that_is_done_again_later_counts_once(floor: Fleet) -> None:
    """Its worker died after it had written: the same decision comes again, for later moments; the first ones stay."""

    def requeued(now: datetime) -> Record:
        until = now + timedelta(seconds=5)
        return Record(
            path=(Stage.QUEUED,),
            epoch=1,
            attempt_outcome="rate_limited",
            entries=(Entry(type="job.requeued", message="limited", data={"cooldown_until": until.isoformat()}),),
            conditions=(Condition(type="blocked", reason="backoff", message="again later", until=until),),
            cooldown=Cooldown(until=until, reason="limited"),
        )

    written = floor.now
    await floor.ledger.record("j-1", 1, requeued(written), written)
    events = await floor.events("j-1")
    later = floor.tick(20)

    assert not (await floor.ledger.record("j-1", 1, requeued(later), later)).applied
    assert await floor.events("j-1") == events
    assert [condition.until for condition in (await floor.job("j-1")).conditions] == [written + timedelta(seconds=5)]


# --- stages -------------------------------------------------------------------------------------------------------


async def test_record_writes_every_stage_of_its_path(floor: Fleet) -> None:
    """A path of several stages is several changes in the event log, in one transaction."""
    await floor.record("j-1", Stage.REVIEW, Stage.TESTING, Stage.SHIPPED, epoch=1)

    changes = [(e.data["from"], e.data["to"]) for e in await floor.events("j-1", "stage.changed")]
    assert changes[-3:] == [("building", "review"), ("review", "testing"), ("testing", "shipped")]


async def test_record_puts_in_the_building_that_the_attempt_could_not_report(fleet: Fleet) -> None:
    """When the attempt's first word was lost, the ledger still shows no skipped stage."""
    await fleet.factory("f1")
    await fleet.granted("j-1")
    await fleet.record("j-1", Stage.REVIEW, epoch=1)

    changes = [e.data["to"] for e in await fleet.events("j-1", "stage.changed")]
    assert changes == ["assigned", "building", "review"]


async def test_record_of_an_illegal_path_changes_nothing(floor: Fleet) -> None:
    """A change that the lifecycle does not have is refused whole: no event, no field, no seat."""
    await floor.record("j-1", Stage.FAILED, epoch=1, end_lease=True)
    before = (await floor.job("j-1")).model_dump(), await floor.events("j-1")

    with pytest.raises(IllegalTransition) as caught:
        await floor.record("j-1", Stage.REVIEW, epoch=1, candidate_sha=CANDIDATE, entries=(Entry(type="x"),))

    assert caught.value.fields == {"start": "failed", "finish": "review"}
    assert ((await floor.job("j-1")).model_dump(), await floor.events("j-1")) == before


async def test_record_that_arrived_already_is_applied_without_a_change(floor: Fleet) -> None:
    """A job that is where the path ends stays there; the rest of the record counts."""
    await floor.record("j-1", Stage.REVIEW, epoch=1)
    await floor.record("j-1", Stage.REVIEW, epoch=1, candidate_sha=CANDIDATE)

    job = await floor.job("j-1")
    assert (job.stage, job.candidate_sha) == (Stage.REVIEW, CANDIDATE)
    assert [e.data["to"] for e in await floor.events("j-1", "stage.changed")].count("review") == 1


def test_stages_to_go_never_skips_and_never_assigns() -> None:
    """From every stage, every path of up to three stages either leads there by legal steps or is refused."""
    from itertools import product

    for present in Stage:
        for length in (1, 2, 3):
            for path in product(Stage, repeat=length):
                try:
                    steps = stages_to_go(present, path)
                except IllegalTransition:
                    continue
                at = present
                for step in steps:
                    assert step in TRANSITIONS[at]
                    assert step != Stage.ASSIGNED
                    at = step
                assert at == path[-1]


# --- fields -------------------------------------------------------------------------------------------------------


async def test_record_overwrites_what_it_carries_and_leaves_the_rest(floor: Fleet) -> None:
    """The job's document shows the newest value of each field."""
    usage = Usage(input_tokens=100, output_tokens=20, cost_usd=Decimal("0.0123"), cost_source="reported")
    blocked = Condition(type="blocked", reason="scope", message="outside")
    await floor.record(
        "j-1",
        Stage.REVIEW,
        epoch=1,
        attempt_outcome="succeeded",
        attempt_result={"exit_code": 0, "session_id": "s-1", "engine_version": "3.2"},
        usage=usage,
        candidate_sha=CANDIDATE,
        base_sha="9" * 40,
        checkpoint_sha=CHECKPOINT,
        conditions=(blocked,),
    )
    await floor.record("j-1", epoch=1, verdict={"verify": "passed"}, approved_by="ada")

    job = await floor.job("j-1")
    assert (job.candidate_sha, job.base_sha, job.checkpoint_sha) == (CANDIDATE, "9" * 40, CHECKPOINT)
    assert (job.conditions, job.verdict, job.approved_by) == ((blocked,), {"verify": "passed"}, "ada")
    assert (job.tokens, job.cost.usd, job.cost.source, job.cost.complete) == (120, Decimal("0.0123"), "reported", True)
    (attempt,) = job.attempts
    assert (attempt.outcome, attempt.exit_code, attempt.session_id) == ("succeeded", 0, "s-1")
    assert (attempt.engine_version, attempt.verdict, attempt.usage) == ("3.2", {"verify": "passed"}, usage)


async def test_record_of_the_end_shows_what_was_shipped(floor: Fleet) -> None:
    """A shipped job names its commits and where they are."""
    await floor.record("j-1", Stage.REVIEW, epoch=1, attempt_outcome="succeeded")
    await floor.record(
        "j-1",
        Stage.SHIPPED,
        epoch=1,
        commits=(CANDIDATE,),
        shipped_ref="refs/heads/main",
        conditions=(),
        end_lease=True,
    )

    job = await floor.job("j-1")
    assert (job.commits, job.shipped_ref, job.conditions, job.ended_at) == (
        (CANDIDATE,),
        "refs/heads/main",
        (),
        floor.now,
    )


async def test_job_back_in_the_queue_shows_no_candidate(floor: Fleet) -> None:
    """After a reject nobody can ship the old candidate by its name in the document."""
    await floor.record(
        "j-1", Stage.REVIEW, epoch=1, candidate_sha=CANDIDATE, base_sha=BASE, verdict={"verify": "failed"}
    )
    await floor.record("j-1", Stage.QUEUED, epoch=1, end_lease=True)

    job = await floor.job("j-1")
    assert (job.candidate_sha, job.verdict, job.base_sha) == ("", None, BASE)


# --- seats --------------------------------------------------------------------------------------------------------


async def test_record_frees_the_seat_once(floor: Fleet) -> None:
    """The first record that ends the lease frees it; further ones have nothing to free."""
    await floor.accept("j-1", 1)
    first = await floor.record("j-1", Stage.REVIEW, epoch=1, end_lease=True)
    second = await floor.record("j-1", Stage.TESTING, epoch=1, end_lease=True)

    assert (first.freed, second.freed) == (True, False)
    assert await floor.busy("f1") == 0


async def test_resting_job_keeps_no_seat(floor: Fleet) -> None:
    """A job that waits or has ended has no seat, also when its record forgets to say so or names no epoch."""
    ack = await floor.record("j-1", Stage.CANCELLED)

    assert ack.freed
    assert await floor.busy("f1") == 0
    assert (await floor.job("j-1")).attempts[0].outcome == "cancelled"


async def test_requeued_job_waits_until_it_is_routed(floor: Fleet) -> None:
    """Between a failure and the next route nobody hands the job a seat: its backoff is kept."""
    await floor.record("j-1", Stage.QUEUED, epoch=1, attempt_outcome="crash", end_lease=True)

    assert await floor.ledger.dispatch(floor.now) == ()
    grant = await floor.ledger.route("j-1", floor.now)
    assert grant is not None
    assert grant.epoch == 2


async def test_hold_survives_the_record_that_queues(floor: Fleet) -> None:
    """A hold that was set before the job came back to the queue still counts."""
    await floor.ledger.hold("j-1", "usage_limit", floor.now)
    await floor.record("j-1", Stage.QUEUED, epoch=1, attempt_outcome="rate_limited", end_lease=True)

    assert (await floor.job("j-1")).held == "usage_limit"


# --- parents and children -----------------------------------------------------------------------------------------


async def test_end_of_a_parent_starts_its_children_in_the_same_write(floor: Fleet) -> None:
    """Jobs that wait are rows without a workflow; the write that ends their last parent orders their workflows."""
    await floor.submit("child-1", deps=(Dependency(job_id="j-1"),))
    await floor.submit("child-2", deps=(Dependency(job_id="j-1"),))
    await floor.submit("other")
    await floor.deliver()
    assert (await floor.ledger.parents_state("child-1")).outcome == "waiting"

    await floor.ship("j-1")

    rows = await floor.deliver()
    assert [(row.job_id, row.kind, row.payload) for row in rows] == [
        ("child-1", "start", {"life": 1}),
        ("child-2", "start", {"life": 1}),
    ]
    assert (await floor.ledger.parents_state("child-1")).outcome == "ready"


async def test_child_that_waits_until_testing_hears_of_testing(floor: Fleet) -> None:
    """A dependency until `testing` is over when the parent's verify passed, one until `shipped` is not."""
    await floor.submit("early", deps=(Dependency(job_id="j-1", until="testing"),))
    await floor.submit("late", deps=(Dependency(job_id="j-1"),))
    await floor.deliver()
    await floor.record("j-1", Stage.REVIEW, Stage.TESTING, epoch=1)

    assert [row.job_id for row in await floor.deliver()] == ["early"]
    assert (await floor.ledger.parents_state("early")).outcome == "ready"
    state = await floor.ledger.parents_state("late")
    assert (state.outcome, state.waiting) == ("waiting", ("j-1",))


@pytest.mark.parametrize("end", [Stage.FAILED, Stage.DEAD_LETTER, Stage.CANCELLED])
async def test_failed_parent_is_named_to_its_children(floor: Fleet, end: Stage) -> None:
    """Children of a failed parent say so, with its name, and get no seat."""
    await floor.submit("child", deps=(Dependency(job_id="j-1"),))
    await floor.record("j-1", end, epoch=1)

    state = await floor.ledger.parents_state("child")
    assert (state.outcome, state.failed) == ("failed", ("j-1",))
    assert f"j-1 ({end})" in state.message
    assert not await floor.ledger.ready("child", floor.now)


async def test_ended_child_is_not_signalled(floor: Fleet) -> None:
    """Nobody signals a workflow that is closed."""
    await floor.submit("child", deps=(Dependency(job_id="j-1"),))
    await floor.deliver()
    await floor.record("child", Stage.CANCELLED)
    await floor.ship("j-1")

    assert await floor.deliver() == []


# --- requeue and restart --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Stage.FAILED, Stage.DEAD_LETTER])
async def test_requeue_of_a_failed_job_begins_another_life(floor: Fleet, end: Stage) -> None:
    """The workflow starts anew, with the next epoch, the last checkpoint, and the operator's words."""
    await floor.submit("child", deps=(Dependency(job_id="j-1"),))
    await floor.checkpoint("j-1", 1, CHECKPOINT)
    result = {"session_id": "s-9", "exit_code": 1}
    await floor.record("j-1", end, epoch=1, attempt_outcome="crash", attempt_message="boom", attempt_result=result)
    await floor.deliver()

    assert await floor.ledger.requeue("j-1", floor.tick(), by="ada", note="try again") == 2

    job = await floor.job("j-1")
    assert (job.stage, job.life, job.held, job.ended_at, job.conditions) == (Stage.QUEUED, 2, None, None, ())
    (grant,) = await floor.ledger.dispatch(floor.now)
    assert (grant.epoch, grant.checkpoint_sha) == (2, CHECKPOINT)
    rows = await floor.deliver()
    assert [(row.kind, row.job_id) for row in rows] == [("start", "j-1")]
    child = await floor.job("child")  # has no workflow to tell: its row says that it waits again
    assert (child.held, [condition.reason for condition in child.conditions]) == ("parents", ["parents"])
    payload = await floor.ledger.start_payload("j-1")
    assert (payload.life, payload.epoch, payload.grant, payload.note) == (2, 1, grant, "try again")
    assert (payload.failure, payload.session_id, payload.engine) == ("crash: boom", "s-9", "shell")


@pytest.mark.parametrize("end", [Stage.SHIPPED, Stage.CANCELLED])
async def test_requeue_of_a_job_that_ended_for_good_is_refused(floor: Fleet, end: Stage) -> None:
    """Shipped and cancelled jobs stay what they are."""
    await floor.record("j-1", Stage.REVIEW, epoch=1)
    await floor.record("j-1", end, epoch=1)

    with pytest.raises(IllegalTransition):
        await floor.ledger.requeue("j-1", floor.now)


async def test_requeue_of_a_running_job_is_left_to_its_workflow(floor: Fleet) -> None:
    """A job that has not ended is not restarted under its workflow's feet."""
    with pytest.raises(IllegalAction):
        await floor.ledger.requeue("j-1", floor.now)


async def test_records_of_another_life_have_other_numbers(floor: Fleet) -> None:
    """Numbers of one life never hide the records of the next."""
    await floor.ledger.record("j-1", 1_000_001, Record(path=(Stage.FAILED,), epoch=1), floor.now)
    await floor.ledger.requeue("j-1", floor.now)

    ack = await floor.ledger.record("j-1", 2_000_001, Record(path=(Stage.CANCELLED,)), floor.now)
    assert ack.applied


async def test_job_whose_workflow_is_gone_is_started_again(floor: Fleet) -> None:
    """What the lost workflow had running is fenced off; the new one goes on from the checkpoint."""
    await floor.checkpoint("j-1", 1, CHECKPOINT)
    assert not await floor.ledger.enqueue_start("j-1", floor.now)
    await floor.deliver()

    assert await floor.ledger.enqueue_start("j-1", floor.now)
    assert not await floor.ledger.enqueue_start("j-1", floor.now)

    assert await floor.busy("f1") == 0
    (grant,) = await floor.ledger.dispatch(floor.now)
    assert (grant.epoch, grant.checkpoint_sha) == (2, CHECKPOINT)
    with pytest.raises(StaleEpoch):
        await floor.accept("j-1", 1)
    assert [row.kind for row in await floor.deliver()] == ["start"]
    assert (await floor.ledger.start_payload("j-1")).life == 2


async def test_ended_job_is_not_started_again(floor: Fleet) -> None:
    """The reconciler cannot bring an ended job back."""
    await floor.ship("j-1")
    await floor.deliver()

    assert not await floor.ledger.enqueue_start("j-1", floor.now)
