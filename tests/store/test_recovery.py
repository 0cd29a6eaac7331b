"""Jobs whose workflow is gone begin their next life where they stand; a new generation fences off what came before."""

from __future__ import annotations

from typing import Any

import pytest

from core.attempt import BuildResult, Verdict
from core.errors import StaleEpoch
from core.job import Condition, Stage
from core.lifecycle import Entry
from store.recovery import GENERATION
from store.views import Restarted
from tests.store.fleet import BASE, CANDIDATE, CHECKPOINT, Fleet

PAUSED = Condition(type="paused", reason="operator", message="not now")
ANSWER = BuildResult(job_id="j-1", epoch=1, outcome="succeeded", candidate_sha=CANDIDATE, base_sha=BASE, changed=True)
VERDICT = Verdict(job_id="j-1", epoch=1, candidate_sha=CANDIDATE, verify="passed")


@pytest.fixture
async def floor(fleet: Fleet) -> Fleet:
    """Return a ledger in which `j-1` builds on `f1`, its start delivered."""
    await fleet.factory("f1")
    await fleet.building("j-1", lock="deploy")
    await fleet.deliver()
    return fleet


async def in_review(floor: Fleet) -> None:
    """Let the attempt hand its candidate in."""
    await floor.accept("j-1", 1, answer=ANSWER)


async def at_gate(floor: Fleet, **values: Any) -> None:
    """Bring the job to its ship gate."""
    await in_review(floor)
    verdict = VERDICT.model_dump(mode="json")
    await floor.record("j-1", Stage.TESTING, epoch=1, verdict=verdict, end_lease=True, conditions=(), **values)


async def entry(floor: Fleet, kind: str, **data: Any) -> None:
    """Write an event as the workflow does."""
    await floor.record("j-1", entries=(Entry(type=kind, data=data),))


async def restart(floor: Fleet) -> Restarted:
    """Restart the job, which must work."""
    restarted = await floor.ledger.enqueue_start("j-1", floor.tick(), life=(await floor.job("j-1")).life)
    assert restarted is not None
    return restarted


async def test_running_attempt_is_superseded(floor: Fleet) -> None:
    """Its seat and lock are free, its writes refused; the next epoch goes on from the checkpoint."""
    await floor.checkpoint("j-1", 1, CHECKPOINT)
    assert await restart(floor) == Restarted(job_id="j-1", life=2, at="queue", superseded=1)
    assert await floor.busy("f1") == 0
    with pytest.raises(StaleEpoch):
        await floor.accept("j-1", 1)
    (grant,) = await floor.ledger.dispatch(floor.now)
    assert (grant.epoch, grant.checkpoint_sha) == (2, CHECKPOINT)


async def test_job_at_its_gate_keeps_candidate_and_lock(floor: Fleet) -> None:
    """It is not queued, nothing of it is built again, and its next workflow begins at the gate."""
    await at_gate(floor)
    assert await restart(floor) == Restarted(job_id="j-1", life=2, at="gate")
    assert await floor.stage("j-1") == Stage.TESTING
    assert await floor.ledger.dispatch(floor.now) == ()
    payload = await floor.ledger.start_payload("j-1")
    assert payload.grant is None
    assert payload.standing is not None
    assert payload.standing.grant is not None
    assert (payload.standing.grant.epoch, payload.standing.candidate_sha, payload.standing.base_sha) == (
        1,
        CANDIDATE,
        BASE,
    )
    assert (payload.standing.verify, payload.standing.shipping) == ("passed", False)


async def test_candidate_that_is_not_judged_keeps_its_seat(floor: Fleet) -> None:
    """The judge needs the factory's worktree, and its record frees the seat."""
    await in_review(floor)
    assert (await restart(floor)).at == "gate"
    assert await floor.busy("f1") == 1
    standing = (await floor.ledger.start_payload("j-1")).standing
    assert standing is not None
    assert (standing.stage, standing.verify, standing.candidate_sha) == (Stage.REVIEW, "", CANDIDATE)


@pytest.mark.parametrize(
    ("events", "shipping"),
    [
        ((("decision.ship", CANDIDATE),), True),
        ((("decision.ship", CANDIDATE), ("gate.ship", "")), False),
        ((("decision.ship", "e" * 40),), False),
        ((), False),
    ],
    ids=["under way", "came back", "of another candidate", "never"],
)
async def test_ship_under_way_is_told(floor: Fleet, events: tuple[tuple[str, str], ...], shipping: bool) -> None:
    """The last word about the candidate decides, from the event log."""
    await at_gate(floor, approved_by="ada")
    for kind, sha in events:
        await entry(floor, kind, sha=sha)
    await restart(floor)
    standing = (await floor.ledger.start_payload("j-1")).standing
    assert standing is not None
    assert (standing.shipping, standing.approved_by) == (shipping, "ada")


@pytest.mark.parametrize("word", ["cancel", "pause"])
async def test_job_that_was_being_stopped_is_paused(floor: Fleet, word: str) -> None:
    """An operator's word that was not carried out yet is not forgotten: the job waits for the next one."""
    await entry(floor, f"decision.{word}")
    await restart(floor)
    job = await floor.job("j-1")
    assert [condition.type for condition in job.conditions] == ["paused"]
    assert word in job.conditions[0].message
    assert await floor.ledger.dispatch(floor.now) == ()


async def test_queued_jobs_keep_what_they_wait_for(floor: Fleet) -> None:
    """Paused stays paused, and out of admission; failures and losses still count."""
    counts = {"failures": 1, "reclaims": 2}
    entries = (Entry(type="job.requeued", data=counts),)
    await floor.record("j-1", Stage.QUEUED, epoch=1, entries=entries, conditions=(PAUSED,), attempt_outcome="crash")
    await floor.deliver()
    assert (await restart(floor)).superseded == 0
    assert (await floor.job("j-1")).conditions == (PAUSED,)
    assert await floor.ledger.dispatch(floor.now) == ()
    standing = (await floor.ledger.start_payload("j-1")).standing
    assert standing is not None
    assert (standing.failures, standing.reclaims) == (1, 2)
    assert standing.story == ("epoch 1 on f1/shell: crash: ",)


async def test_life_that_has_passed_is_not_restarted(floor: Fleet) -> None:
    """Who found a workflow missing may come late: another has begun the next life, and it runs."""
    assert await floor.ledger.enqueue_start("j-1", floor.tick(), life=1) is not None
    await floor.deliver()
    assert await floor.ledger.enqueue_start("j-1", floor.tick(), life=1) is None
    assert (await floor.job("j-1")).life == 2


async def test_unfinished_jobs_come_in_pages_by_id(floor: Fleet) -> None:
    """Ended jobs are left out, and writing to a job does not move it."""
    for job_id in ("j-2", "j-3", "j-4"):
        await floor.submit(job_id)
    await floor.record("j-3", Stage.CANCELLED)
    first = await floor.ledger.unfinished_page("", 2)
    assert [job.id for job in first] == ["j-1", "j-2"]
    assert [job.start_pending for job in first] == [False, True]
    await floor.ledger.hold("j-1", "x", floor.tick())
    assert [job.id for job in await floor.ledger.unfinished_page("j-2", 2)] == ["j-4"]


async def test_new_generation_refuses_everything_of_before(floor: Fleet) -> None:
    """Also an epoch that the restored ledger never gave out and would give out next."""
    await floor.submit("j-2")
    assert await floor.ledger.raise_generation("ada", floor.tick()) == 1
    for epoch in (1, 2):
        with pytest.raises(StaleEpoch):
            await floor.accept("j-1", epoch)
    assert (await restart(floor)).superseded == 1
    await floor.deliver()
    grants = {grant.job_id: grant for grant in await floor.ledger.dispatch(floor.now)}
    assert {job_id: grant.epoch for job_id, grant in grants.items()} == {"j-1": GENERATION + 1, "j-2": GENERATION + 1}
    assert await floor.ledger.raise_generation("ada", floor.tick()) == 2
    (line,) = [line for line in await floor.ledger.audit() if line.data == {"generation": 2}]
    assert (line.type, line.actor) == ("ledger.restored", "ada")


async def test_new_generation_leaves_judged_candidates_and_ended_jobs(floor: Fleet) -> None:
    """A human may still ship what was judged; what ended for good has no further epoch."""
    await at_gate(floor)
    await floor.submit("j-2")
    await floor.record("j-2", Stage.CANCELLED)
    await floor.ledger.raise_generation("ada", floor.tick())
    assert (await restart(floor)).at == "gate"
    assert (await floor.job("j-1")).life == GENERATION + 1
    assert (await floor.job("j-2")).epoch == 0


async def test_new_generation_does_not_judge_under_an_old_epoch(floor: Fleet) -> None:
    """A candidate that was not judged is built again: its epoch can write no more."""
    await in_review(floor)
    await floor.ledger.raise_generation("ada", floor.tick())
    assert await restart(floor) == Restarted(job_id="j-1", life=GENERATION + 1, at="queue", superseded=1)
    assert await floor.busy("f1") == 0
