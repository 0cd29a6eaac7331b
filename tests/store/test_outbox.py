from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from core.job import Dependency, Stage
from core.settings import Settings
from store import open_ledger
from store.messages import Submission
from store.outbox import CLAIM_S, MAX_RETRY_S
from tests.store.fleet import Fleet, make_spec


async def names(fleet: Fleet) -> list[str]:
    """Claim once and return what came."""
    return [f"{row.job_id} {row.name}" for row in await fleet.ledger.claim_outbox(fleet.now)]


async def test_claimed_row_is_kept_from_others_for_a_while(fleet: Fleet) -> None:
    """A row is handed out once; when its holder dies, it comes again."""
    await fleet.submit("j-1")

    assert await names(fleet) == ["j-1 start"]
    assert await names(fleet) == []
    fleet.tick(CLAIM_S - 1)
    assert await names(fleet) == []
    fleet.tick(2)
    (row,) = await fleet.ledger.claim_outbox(fleet.now)
    assert row.attempts == 2


async def test_delivered_row_is_gone(fleet: Fleet) -> None:
    """What was delivered is not delivered again, and saying so twice does no harm."""
    await fleet.submit("j-1")
    (row,) = await fleet.ledger.claim_outbox(fleet.now)
    await fleet.ledger.outbox_done(row.id)
    await fleet.ledger.outbox_done(row.id)
    await fleet.ledger.outbox_failed(row.id, "late", fleet.now)

    fleet.tick(3600)
    assert await names(fleet) == []


async def test_failed_row_comes_again_later_each_time(fleet: Fleet) -> None:
    """The wait grows with each failure, up to a bound, and the last error is kept with the row."""
    await fleet.submit("j-1")
    waits = []
    (row,) = await fleet.ledger.claim_outbox(fleet.now)
    for number in range(9):
        failed_at = fleet.now
        await fleet.ledger.outbox_failed(row.id, f"error {number}", fleet.now)
        while not (rows := await fleet.ledger.claim_outbox(fleet.now)):
            fleet.tick(1)
        (row,) = rows
        assert row.error == f"error {number}"
        waits.append((fleet.now - failed_at).total_seconds())

    assert waits == [1, 2, 4, 8, 16, 32, *[MAX_RETRY_S] * 3]


async def test_rows_of_one_job_are_handed_out_in_order(fleet: Fleet) -> None:
    """A signal never overtakes the start of its workflow, nor an earlier signal; other jobs do not wait."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    assert await names(fleet) == ["j-1 start"]
    await fleet.ledger.dispatch(fleet.now)
    await fleet.lose("j-1", 1)
    await fleet.submit("j-2")

    assert await names(fleet) == ["j-2 start"]
    assert await names(fleet) == []
    fleet.tick(CLAIM_S + 1)
    rows = await fleet.ledger.claim_outbox(fleet.now)
    assert [f"{row.job_id} {row.name}" for row in rows] == ["j-1 start", "j-2 start"]
    await fleet.ledger.outbox_done(rows[0].id)
    (granted,) = await fleet.ledger.claim_outbox(fleet.now)
    assert granted.name == "granted"
    assert await names(fleet) == []
    await fleet.ledger.outbox_done(granted.id)
    assert await names(fleet) == ["j-1 lease_lost"]


async def test_workflow_that_is_still_to_be_started_needs_no_signal(fleet: Fleet) -> None:
    """A job that gets its seat before its workflow starts is told by the start itself."""
    await fleet.factory("f1")
    grant = await fleet.granted("j-1")

    (row,) = await fleet.ledger.claim_outbox(fleet.now)
    payload = await fleet.ledger.start_payload(row.job_id)
    assert (payload.grant, payload.epoch, payload.life) == (grant, 0, 1)
    await fleet.ledger.outbox_done(row.id)
    assert await names(fleet) == []


async def test_start_that_was_tried_does_not_swallow_signals(fleet: Fleet) -> None:
    """A start that may have reached Temporal without the grant is followed by the signal."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    (row,) = await fleet.ledger.claim_outbox(fleet.now)
    await fleet.ledger.outbox_failed(row.id, "no answer", fleet.now)
    await fleet.ledger.dispatch(fleet.now)

    fleet.tick(5)
    assert [row.name for row in await fleet.deliver()] == ["start", "granted"]


async def test_claims_at_once_hand_out_each_row_once(fleet: Fleet) -> None:
    """Callers that claim together share the rows, none gets one twice."""
    for n in range(30):
        await fleet.submit(f"j-{n}")

    claimed = await asyncio.gather(*(fleet.ledger.claim_outbox(fleet.now, 10) for _ in range(6)))

    ids = [row.id for rows in claimed for row in rows]
    assert len(ids) == len(set(ids)) == 30
    assert max(len(rows) for rows in claimed) <= 10


async def test_signals_to_an_ended_job_are_dropped(fleet: Fleet) -> None:
    """A workflow that closes is not signalled afterwards."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    await fleet.deliver()
    await fleet.ledger.dispatch(fleet.now)
    await fleet.record("j-1", Stage.CANCELLED)

    assert await names(fleet) == []


async def test_stale_rows_are_found(fleet: Fleet) -> None:
    """The reconciler sees what was not delivered for too long."""
    await fleet.submit("j-1")
    written = fleet.now
    fleet.tick(100)
    await fleet.submit("j-2")

    (row,) = await fleet.ledger.stale_outbox(fleet.tick(-50))
    assert (row.job_id, row.created_at) == ("j-1", written)


@pytest.mark.parametrize("kind", ["start", "signal"])
async def test_row_says_where_it_goes(fleet: Fleet, kind: str) -> None:
    """Each row names product and job, which is the workflow's id."""
    await fleet.factory("f1")
    await fleet.submit("j-1", product_id="toys")
    if kind == "signal":
        await fleet.deliver()
        await fleet.ledger.dispatch(fleet.now)

    (row,) = await fleet.ledger.claim_outbox(fleet.now)
    assert (row.kind, row.product_id, row.job_id) == (kind, "toys", "j-1")


@pytest.fixture
async def patient(settings: Settings) -> AsyncIterator[Fleet]:
    """Return a fleet whose jobs get their workflow with their seat, or after a minute."""
    ledger = open_ledger(settings.model_copy(update={"seat_wait_s": 60.0}))
    yield Fleet(ledger, settings.ledger_url)
    await ledger.close()


async def test_job_gets_its_workflow_with_its_seat(patient: Fleet) -> None:
    """Nothing is started for a job that only waits; its grant brings the start forward, and needs no signal."""
    await patient.submit("j-1")
    assert await names(patient) == []
    await patient.factory("f1")
    (grant,) = await patient.ledger.dispatch(patient.tick(10))

    (row,) = await patient.deliver()
    assert (row.name, (await patient.ledger.start_payload("j-1")).grant) == ("start", grant)


async def test_job_that_waits_long_for_its_seat_gets_its_workflow_without(patient: Fleet) -> None:
    """From then on it is told of its grant by a signal."""
    await patient.submit("j-1")
    patient.tick(59)
    assert await names(patient) == []
    patient.tick(1)
    assert [row.name for row in await patient.deliver()] == ["start"]
    await patient.factory("f1")
    await patient.ledger.dispatch(patient.now)
    assert await names(patient) == ["j-1 granted"]


async def test_start_is_hurried_for_who_wants_to_act(patient: Fleet) -> None:
    """An operator's action needs the workflow now; one that was handed out is not handed out again."""
    await patient.submit("j-1")
    assert await patient.ledger.hurry_start("j-1", patient.now)
    assert await names(patient) == ["j-1 start"]
    assert not await patient.ledger.hurry_start("j-1", patient.now)
    assert await names(patient) == []


async def test_job_that_cannot_have_a_seat_yet_is_started_at_once(patient: Fleet) -> None:
    """The workflow of a job whose base is to be looked up anew is what makes it ready for a seat."""
    await patient.factory("f1")
    await patient.granted("parent")
    await patient.deliver()
    known_at = patient.now
    await patient.ship("parent")
    await patient.deliver()
    patient.tick()
    await patient.ledger.submit_all(
        [
            Submission(
                job_id="child",
                spec=make_spec(deps=(Dependency(job_id="parent"),)),
                canonical={},
                documents={},
                submitted_by="ada",
                base_known_at=known_at,
            )
        ],
        patient.now,
    )
    assert (await patient.job("child")).held == "workflow"
    assert await names(patient) == ["child start"]
