from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from core.attempt import BuildResult, DeathCertificate
from core.errors import Conflict, NotFound, StaleEpoch
from core.job import FailureKind, Stage
from store.attempts import MAX_REFUSED_EVENTS
from store.chain import digest
from store.messages import ArtifactFile, AttemptReport, AttemptStep, HandedIn, LogBlock, StartedInfo
from tests.store.fleet import CANDIDATE, CHECKPOINT, START, Fleet

Write = Callable[[Fleet, int], Awaitable[object]]

WRITES: dict[str, Write] = {
    "started": lambda f, e: f.started("j-1", e),
    "checkpoint": lambda f, e: f.checkpoint("j-1", e, "e" * 40),
    "result": lambda f, e: f.accept("j-1", e, "e" * 40),
    "log": lambda f, e: f.logs("j-1", e, 1, f.line("late")),
    "event": lambda f, e: f.steps("j-1", e, 1, AttemptStep(at=f.now, type="tool")),
    "artifact": lambda f, e: f.report("j-1", e, files=(ArtifactFile(path="x", size=1, sha256="s", location="l"),)),
    "ship": lambda f, e: f.ledger.guard_epoch("j-1", e, f.now, kind="ship", content=b"push"),
}
"""Every write that an attempt can make, by the kind under which it is refused."""

ADDITIVE = ["checkpoint", "log", "event", "artifact", "ship"]


@pytest.fixture
async def floor(fleet: Fleet) -> Fleet:
    """Return a fleet with one factory and job j-1 building there under epoch 1."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    return fleet


async def footprint(fleet: Fleet) -> tuple[object, ...]:
    """Return everything that a write could have changed, without the trace of its refusal."""
    job = await fleet.job("j-1")
    shown = job.model_dump(exclude={"updated_at", "event_seq", "refused_writes", "attempts"})
    attempts = [attempt.model_dump(exclude={"refused_writes"}) for attempt in job.attempts]
    events = [event.seq for event in await fleet.events("j-1") if event.type != "write.refused"]
    return shown, attempts, len(events), await fleet.ledger.read_logs("j-1"), await fleet.ledger.artifacts("j-1")


# --- the fence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITES)
async def test_write_of_a_lost_epoch_is_refused_and_leaves_only_a_trace(floor: Fleet, kind: str) -> None:
    """After a lease is lost no write of its epoch takes effect; each leaves an event with its kind and digest."""
    await floor.lose("j-1", 1)
    before = await footprint(floor)

    with pytest.raises(StaleEpoch) as caught:
        await WRITES[kind](floor, 1)

    assert caught.value.fields == {"job_id": "j-1", "epoch": 1, "newest_epoch": 1, "lease": "lost"}
    assert await footprint(floor) == before
    (trace,) = await floor.events("j-1", "write.refused")
    assert (trace.data["kind"], trace.epoch, trace.data["lease"]) == (kind, 1, "lost")
    assert len(trace.data["sha256"]) == 64


@pytest.mark.parametrize("kind", WRITES)
async def test_write_of_a_superseded_epoch_is_refused(floor: Fleet, kind: str) -> None:
    """A newer grant ends what an older epoch may do, whatever became of its lease."""
    await floor.record("j-1", Stage.QUEUED, epoch=1, attempt_outcome="crash", end_lease=True)
    assert await floor.ledger.route("j-1", floor.now) is not None
    before = await footprint(floor)

    with pytest.raises(StaleEpoch) as caught:
        await WRITES[kind](floor, 1)

    assert caught.value.fields["newest_epoch"] == 2
    assert await footprint(floor) == before
    await WRITES[kind](floor, 2)


@pytest.mark.parametrize("epoch", [0, -1, 2, 2**31, 10**30])
async def test_write_of_an_epoch_that_never_was_is_refused(floor: Fleet, epoch: int) -> None:
    """A made-up epoch is refused like a lost one, and leaves its trace."""
    with pytest.raises(StaleEpoch):
        await floor.logs("j-1", epoch, 1, floor.line("x"))

    (trace,) = await floor.events("j-1", "write.refused")
    assert (trace.epoch, trace.data["claimed_epoch"], trace.data["lease"]) == (0, epoch, "unknown")
    assert (await floor.job("j-1")).refused_writes == 1


@pytest.mark.parametrize("kind", WRITES)
async def test_write_about_an_unknown_job_is_not_found(fleet: Fleet, kind: str) -> None:
    """An attempt of a job that does not exist is told so."""
    with pytest.raises(NotFound, match="j-1"):
        await WRITES[kind](fleet, 1)


@pytest.mark.parametrize("kind", ADDITIVE)
async def test_output_of_an_ended_attempt_still_comes_in(floor: Fleet, kind: str) -> None:
    """What an attempt still had in its spool when it ended in good order is not lost."""
    await floor.record("j-1", Stage.FAILED, epoch=1, attempt_outcome="crash", end_lease=True)

    await WRITES[kind](floor, 1)

    assert await floor.events("j-1", "write.refused") == []


async def test_ended_attempt_cannot_finish(floor: Fleet) -> None:
    """After its end an attempt brings no result."""
    await floor.record("j-1", Stage.FAILED, epoch=1, attempt_outcome="crash", end_lease=True)

    with pytest.raises(StaleEpoch):
        await WRITES["result"](floor, 1)


async def test_first_word_after_the_end_is_kept_and_moves_nothing(fleet: Fleet) -> None:
    """A short attempt may be over before its `started` arrives: no write is refused, no stage changes."""
    await fleet.factory("f1")
    await fleet.granted("j-1")
    await fleet.record("j-1", Stage.FAILED, epoch=1, attempt_outcome="crash", end_lease=True)

    await fleet.started("j-1", 1, engine_version="2.1")

    job = await fleet.job("j-1")
    assert (job.stage, job.attempts[0].engine_version) == (Stage.FAILED, "2.1")
    assert await fleet.events("j-1", "write.refused") == []


async def test_flood_of_stale_writes_is_bounded_and_counted(floor: Fleet) -> None:
    """A zombie cannot fill the event log: some refusals are told one by one, the rest are counted."""
    await floor.lose("j-1", 1)
    flood = MAX_REFUSED_EVENTS + 15
    for number in range(flood):
        with pytest.raises(StaleEpoch):
            await floor.logs("j-1", 1, number + 1, floor.line("zombie"))

    assert len(await floor.events("j-1", "write.refused")) == MAX_REFUSED_EVENTS
    job = await floor.job("j-1")
    assert job.refused_writes == job.attempts[0].refused_writes == flood
    assert (await floor.ledger.verify_chain("j-1")).ok


async def test_refused_log_text_is_kept_as_digest_only(floor: Fleet) -> None:
    """What a refused write brought can be recognised, but not read."""
    await floor.lose("j-1", 1)
    report = AttemptReport(logs=(LogBlock(stream="stdout", first_seq=1, lines=(floor.line("password 123"),)),))
    with pytest.raises(StaleEpoch):
        await floor.ledger.report("j-1", 1, report, floor.now)

    (trace,) = await floor.events("j-1", "write.refused")
    sha256 = digest(report.model_dump(mode="json", exclude_defaults=True))
    assert trace.data["sha256"] == sha256
    assert "123" not in trace.model_dump_json(include={"message", "data"}).replace(sha256, "")


async def test_guard_of_a_current_epoch_writes_nothing(floor: Fleet) -> None:
    """Asking whether an epoch counts costs no event."""
    before = await floor.ledger.latest_ids("j-1")
    await floor.ledger.guard_epoch("j-1", 1, floor.now)

    assert await floor.ledger.latest_ids("j-1") == before


# --- started ------------------------------------------------------------------------------------------------------


async def test_started_brings_an_assigned_job_to_building(fleet: Fleet) -> None:
    """The attempt's first word moves the job, and says which engine version runs."""
    await fleet.factory("f1")
    await fleet.granted("j-1")
    await fleet.started("j-1", 1, engine_version="2.1", pid=7)

    job = await fleet.job("j-1")
    assert (job.stage, job.attempts[0].engine_version, job.attempts[0].started_at) == (
        Stage.BUILDING,
        "2.1",
        fleet.now,
    )


async def test_started_twice_is_started_once(floor: Fleet) -> None:
    """A repeated message changes nothing."""
    before = await footprint(floor)
    await floor.started("j-1", 1, engine_version="9")

    assert await footprint(floor) == before


# --- accept -------------------------------------------------------------------------------------------------------


async def test_accept_takes_one_result(floor: Fleet) -> None:
    """The first result of a living lease is taken; the same again is fine, another one is refused."""
    await floor.accept("j-1", 1)
    await floor.accept("j-1", 1)
    with pytest.raises(StaleEpoch):
        await floor.accept("j-1", 1, "f" * 40)

    assert len(await floor.events("j-1", "attempt.accepted")) == 1
    accepted = await floor.ledger.accepted_result("j-1", 1)
    assert accepted is not None
    assert (accepted.candidate_sha, accepted.outcome) == (CANDIDATE, "succeeded")
    assert await floor.ledger.accepted_result("j-1", 2) is None


async def test_accept_keeps_the_whole_answer(floor: Fleet) -> None:
    """A workflow that never heard the attempt's answer finds it in the ledger."""
    answer = BuildResult(
        job_id="j-1",
        epoch=1,
        outcome="succeeded",
        candidate_sha=CANDIDATE,
        base_sha="b" * 40,
        changed=True,
        tool_calls=3,
    )
    await floor.accept("j-1", 1, answer=answer)

    assert await floor.ledger.accepted_result("j-1", 1) == answer


async def test_accept_of_the_same_result_after_the_end_is_fine(floor: Fleet) -> None:
    """A retry of the last message, sent after the lease ended, is no mistake."""
    await floor.accept("j-1", 1)
    await floor.record("j-1", Stage.REVIEW, epoch=1, attempt_outcome="succeeded", end_lease=True)

    await floor.accept("j-1", 1)


async def test_accepted_lease_cannot_be_lost(floor: Fleet) -> None:
    """Whoever comes first wins: after a result was taken, news of a death changes nothing."""
    await floor.accept("j-1", 1)

    assert not await floor.lose("j-1", 1)
    assert (await floor.job("j-1")).attempts[0].lease == "accepted"
    assert await floor.busy("f1") == 1


async def test_accept_and_loss_at_once_have_one_winner(floor: Fleet) -> None:
    """Racing writers agree on one outcome."""
    accepted, lost = await asyncio.gather(floor.accept("j-1", 1), floor.lose("j-1", 1), return_exceptions=True)

    lease = (await floor.job("j-1")).attempts[0].lease
    assert (accepted is None, lost, lease) in [(True, False, "accepted"), (False, True, "lost")]


ANSWER = BuildResult(
    job_id="j-1", epoch=1, outcome="succeeded", candidate_sha=CANDIDATE, base_sha="b" * 40, checkpoint_sha=CHECKPOINT
)


async def test_accepted_result_brings_the_job_to_its_review(floor: Fleet) -> None:
    """The attempt's last act and the stage that follows are one transaction."""
    await floor.accept("j-1", 1, answer=ANSWER)

    job = await floor.job("j-1")
    assert (job.stage, job.candidate_sha, job.base_sha, job.checkpoint_sha) == (
        Stage.REVIEW,
        CANDIDATE,
        "b" * 40,
        CHECKPOINT,
    )
    assert await floor.ledger.accepted_result("j-1", 1) == ANSWER


async def test_result_in_one_report_with_the_first_word_misses_no_stage(fleet: Fleet) -> None:
    """A short attempt tells everything at once: the job still goes through every stage."""
    await fleet.factory("f1")
    await fleet.granted("j-1")
    await fleet.report("j-1", 1, started=StartedInfo(), result=HandedIn(sha=CANDIDATE, answer=ANSWER))

    moves = [(event.data["from"], event.data["to"]) for event in await fleet.events("j-1", "stage.changed")]
    assert moves[-2:] == [("assigned", "building"), ("building", "review")]


async def test_late_result_is_refused_alone(floor: Fleet) -> None:
    """Of a report that comes after the end the lines are kept, and only the result is refused."""
    await floor.record("j-1", Stage.FAILED, epoch=1, attempt_outcome="crash", end_lease=True)
    block = LogBlock(stream="stdout", first_seq=1, lines=(floor.line("last words"),))

    with pytest.raises(StaleEpoch):
        await floor.report("j-1", 1, logs=(block,), result=HandedIn(sha=CANDIDATE, answer=ANSWER))

    assert [line.text for line in await floor.ledger.read_logs("j-1")] == ["last words"]
    (trace,) = await floor.events("j-1", "write.refused")
    assert trace.data["kind"] == "result"
    assert await floor.stage("j-1") == Stage.FAILED


async def test_stale_report_is_refused_whole(floor: Fleet) -> None:
    """Nothing of a lost epoch's report takes effect; one trace names all that it brought."""
    await floor.lose("j-1", 1)
    before = await footprint(floor)
    block = LogBlock(stream="stdout", first_seq=1, lines=(floor.line("late"),))

    with pytest.raises(StaleEpoch):
        await floor.report("j-1", 1, logs=(block,), checkpoint="e" * 40, result=HandedIn(sha=CANDIDATE, answer=ANSWER))

    assert await footprint(floor) == before
    (trace,) = await floor.events("j-1", "write.refused")
    assert trace.data["kind"] == "log, checkpoint, result"


# --- lost ---------------------------------------------------------------------------------------------------------


async def test_lost_lease_frees_its_seat_and_tells_the_workflow(floor: Fleet) -> None:
    """The ledger knows first: the seat is free, the attempt is over, the workflow gets a signal."""
    await floor.deliver()
    assert await floor.ledger.mark_lost("j-1", 1, "agent died", CHECKPOINT, floor.now)

    assert await floor.busy("f1") == 0
    job = await floor.job("j-1")
    assert (job.stage, job.reclaims, job.checkpoint_sha, job.checkpoint_epoch) == (Stage.BUILDING, 1, CHECKPOINT, 1)
    assert (job.attempts[0].outcome, job.attempts[0].lease) == ("lease_lost", "lost")
    (row,) = await floor.deliver()
    assert (row.name, row.payload) == (
        "lease_lost",
        {"epoch": 1, "reason": "agent died", "checkpoint_sha": CHECKPOINT},
    )


async def test_lost_lease_is_lost_once(floor: Fleet) -> None:
    """A second word of the same death changes nothing, and an epoch that never was cannot be lost."""
    await floor.deliver()
    assert await floor.lose("j-1", 1)
    assert not await floor.lose("j-1", 1)
    assert not await floor.lose("j-1", 2)

    assert (await floor.job("j-1")).reclaims == 1
    assert len(await floor.deliver()) == 1
    with pytest.raises(NotFound):
        await floor.lose("j-x", 1)


async def test_lost_lease_reported_by_the_workflow_sends_no_signal(floor: Fleet) -> None:
    """Who knows already is not told."""
    await floor.deliver()
    await floor.ledger.mark_lost("j-1", 1, "no heartbeat", "", floor.now, tell_workflow=False)

    assert await floor.deliver() == []


def certificate(**values: object) -> DeathCertificate:
    """Return a certificate for epoch 1 of j-1."""
    return DeathCertificate.model_validate(
        {"job_id": "j-1", "epoch": 1, "group_dead": True, "checkpoint_sha": CHECKPOINT, "issued_at": START} | values
    )


async def test_death_certificate_brings_its_salvage(floor: Fleet) -> None:
    """The next attempt goes on from what the supervisor saved."""
    assert await floor.ledger.mark_lost("j-1", 1, "agent died", "", floor.now, certificate=certificate())

    assert (await floor.job("j-1")).checkpoint_sha == CHECKPOINT
    (event,) = await floor.events("j-1", "lease.lost")
    assert event.data["certified"] is True


async def test_factory_of_an_agent_that_was_proven_dead_gets_nothing_until_it_is_heard_of(floor: Fleet) -> None:
    """Its seats are free again, but nobody is there: a grant would wait for the lease. The next beat brings it back."""
    await floor.ledger.mark_lost("j-1", 1, "gone", "", floor.now, certificate=certificate(reason="agent_died"))
    await floor.submit("j-2")
    await floor.ledger.dispatch(floor.now)

    assert await floor.ledger.grant("j-2") is None
    assert (await floor.ledger.factory("f1")).state == "offline"

    assert (await floor.beat("f1")).returned
    await floor.ledger.dispatch(floor.now)
    assert await floor.ledger.grant("j-2") is not None


@pytest.mark.parametrize("reason", ["fenced", "supervisor_died", "orphan_found"])
async def test_certificate_that_does_not_speak_of_the_agent_leaves_the_factory_alone(floor: Fleet, reason: str) -> None:
    """Whoever tells of an orphan, or of a lease that ran out, may well live."""
    await floor.ledger.mark_lost("j-1", 1, "gone", "", floor.now, certificate=certificate(reason=reason))

    assert (await floor.ledger.factory("f1")).state == "online"


@pytest.mark.parametrize("wrong", [{"group_dead": False}, {"epoch": 2}, {"job_id": "j-2"}])
async def test_death_certificate_that_proves_nothing_is_refused(floor: Fleet, wrong: dict[str, object]) -> None:
    """Living processes, another attempt: the lease goes on."""
    with pytest.raises(Conflict):
        await floor.ledger.mark_lost("j-1", 1, "agent died", "", floor.now, certificate=certificate(**wrong))

    assert (await floor.job("j-1")).attempts[0].lease == "living"


# --- checkpoint ---------------------------------------------------------------------------------------------------


async def test_checkpoint_is_shown_and_told_once(floor: Fleet) -> None:
    """The newest checkpoint counts; the same one again adds no event."""
    for sha in ("1" * 40, CHECKPOINT, CHECKPOINT):
        await floor.checkpoint("j-1", 1, sha)

    job = await floor.job("j-1")
    assert (job.checkpoint_sha, job.checkpoint_epoch) == (CHECKPOINT, 1)
    assert len(await floor.events("j-1", "attempt.checkpoint")) == 2


# --- adopted ------------------------------------------------------------------------------------------------------

FAILED = BuildResult(job_id="j-1", epoch=1, outcome="failed", failure=FailureKind.ENGINE_ERROR, message="no tokens")


async def adopted(floor: Fleet) -> None:
    """Have epoch 1 of j-1 adopted: it told of itself, then its heartbeat timed out."""
    await floor.deliver()
    await floor.ledger.confirm_lease("j-1", 1, floor.now)
    assert await floor.ledger.adopt("j-1", 1, floor.now) is not None


@pytest.mark.req("F6")
async def test_attempt_that_told_of_itself_keeps_its_lease_for_a_lease_s_time(floor: Fleet) -> None:
    """Its last word is good for as long as a heartbeat would be; each further one counts anew, silence ends it."""
    assert not await floor.ledger.confirm_lease("j-1", 1, floor.now)
    floor.tick(20)
    assert await floor.ledger.adopt("j-1", 1, floor.now) == timedelta(seconds=10)
    await floor.ledger.confirm_lease("j-1", 1, floor.now)
    floor.tick(29)
    assert await floor.ledger.adopt("j-1", 1, floor.now) == timedelta(seconds=1)
    floor.tick(1)
    assert await floor.ledger.adopt("j-1", 1, floor.now) is None
    assert len(await floor.events("j-1", "attempt.adopted")) == 1


async def test_attempt_that_never_told_of_itself_is_not_adopted(floor: Fleet) -> None:
    """A vanished machine costs its lease and no more."""
    assert await floor.ledger.adopt("j-1", 1, floor.now) is None


@pytest.mark.req("F5")
@pytest.mark.parametrize("end", ["lost", "newer epoch"])
async def test_lost_attempt_is_not_adopted_and_hears_that_it_has_to_stop(floor: Fleet, end: str) -> None:
    """Adoption never brings back what somebody else may have taken over."""
    await floor.ledger.confirm_lease("j-1", 1, floor.now)
    await floor.lose("j-1", 1)
    if end == "newer epoch":
        await floor.record("j-1", Stage.QUEUED, epoch=1, attempt_outcome="lease_lost", end_lease=True)
        assert await floor.ledger.route("j-1", floor.now) is not None
    assert await floor.ledger.adopt("j-1", 1, floor.now) is None
    with pytest.raises(StaleEpoch):
        await floor.ledger.confirm_lease("j-1", 1, floor.now)


async def test_clock_of_the_ledger_s_other_host_does_not_stretch_a_lease(floor: Fleet) -> None:
    """A word from the future, as another host's clock may write it, is good for one lease and no more."""
    await floor.ledger.confirm_lease("j-1", 1, floor.now + timedelta(hours=1))
    assert await floor.ledger.adopt("j-1", 1, floor.now) == timedelta(seconds=30)


async def test_adopted_attempt_hears_that_it_is_wanted_to_stop(floor: Fleet) -> None:
    """Temporal cannot bring it a cancel any more; the answer to its own word does."""
    await adopted(floor)
    assert not await floor.ledger.confirm_lease("j-1", 1, floor.now)
    assert await floor.ledger.adopt("j-1", 1, floor.now, stop=True) is not None
    assert await floor.ledger.confirm_lease("j-1", 1, floor.now)


@pytest.mark.parametrize("answer", [ANSWER, FAILED], ids=["candidate", "failure"])
async def test_result_of_an_adopted_attempt_is_signalled(floor: Fleet, answer: BuildResult) -> None:
    """No activity tells the workflow, so the outbox does, once; what it says lies in the ledger."""
    await adopted(floor)
    for _ in range(2):
        await floor.report("j-1", 1, result=HandedIn(sha=answer.candidate_sha, answer=answer))

    (row,) = await floor.deliver()
    assert (row.name, row.payload) == ("handed_in", {"epoch": 1})
    assert await floor.ledger.accepted_result("j-1", 1) == answer
    failed = answer.outcome == "failed"
    assert await floor.stage("j-1") == (Stage.BUILDING if failed else Stage.REVIEW)
    assert len(await floor.events("j-1", "attempt.accepted")) == (0 if failed else 1)


async def test_result_of_an_attempt_with_an_activity_is_not_signalled(floor: Fleet) -> None:
    """On the ordinary way the activity's own answer is enough, also after a short outage."""
    await floor.deliver()
    await floor.ledger.confirm_lease("j-1", 1, floor.now)
    await floor.accept("j-1", 1, answer=ANSWER)
    assert await floor.deliver() == []
