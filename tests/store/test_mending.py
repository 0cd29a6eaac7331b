from __future__ import annotations

from core.job import FailureKind, Stage
from core.lifecycle import Entry, Record
from tests.store.fleet import Fleet

END = Record(
    path=(Stage.FAILED,),
    epoch=1,
    entries=(Entry(type="job.failed", message="its workflow was terminated"),),
    attempt_outcome=FailureKind.CRASH,
    end_lease=True,
    release_locks=True,
)


async def test_life_is_ended_once_and_everything_it_holds_is_free(fleet: Fleet) -> None:
    """The second of two reconcilers that saw the same dead workflow changes nothing."""
    await fleet.factory("f1")
    await fleet.building("j-1")

    assert await fleet.ledger.end_life("j-1", 1, END, fleet.tick())
    assert not await fleet.ledger.end_life("j-1", 1, END, fleet.tick())

    job = await fleet.job("j-1")
    assert (job.stage, [attempt.outcome for attempt in job.attempts]) == (Stage.FAILED, ["crash"])
    assert await fleet.busy("f1") == 0
    assert len(await fleet.events("j-1", "job.failed")) == 1
    assert (await fleet.ledger.explanation("j-1", fleet.now)).message == "j-1 is failed: its workflow was terminated"


async def test_life_that_went_on_or_ended_meanwhile_is_left_alone(fleet: Fleet) -> None:
    """Between the look at a workflow and the write the job may ship, or fail and be requeued: that stands."""
    await fleet.factory("f1")
    await fleet.building("shipped")
    await fleet.ship("shipped")
    await fleet.building("requeued")
    await fleet.record("requeued", Stage.FAILED, epoch=1, end_lease=True)
    await fleet.ledger.requeue("requeued", fleet.tick())
    before = {name: await fleet.events(name) for name in ("shipped", "requeued")}

    for name in before:
        assert not await fleet.ledger.end_life(name, 1, END, fleet.tick())

    assert {name: await fleet.events(name) for name in before} == before
    assert await fleet.stage("requeued") == Stage.QUEUED


async def test_grant_is_told_again_only_when_no_engine_started_within_the_lease(fleet: Fleet) -> None:
    """The same grant under the same epoch, at most once in a lease; an engine that runs needs none."""
    await fleet.factory("f1")
    await fleet.building("j-2")
    grant = await fleet.granted("j-1")
    await fleet.deliver()

    fleet.tick(grant.lease_ttl_s - 0.5)
    assert not await fleet.ledger.resend_grant("j-1", fleet.now)
    fleet.tick(1)
    assert await fleet.ledger.resend_grant("j-1", fleet.now)
    assert not await fleet.ledger.resend_grant("j-1", fleet.tick())
    assert not await fleet.ledger.resend_grant("j-2", fleet.now)

    (row,) = await fleet.deliver()
    assert (row.job_id, row.name, row.payload) == ("j-1", "granted", grant.model_dump(mode="json"))
