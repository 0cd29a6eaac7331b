"""A critical job finds no seat: a low one makes way for it, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from core.job import FailureKind, Priority, Stage
from core.router_policy import Limits, RoutingPolicy
from core.settings import Settings
from store import open_ledger
from tests.store.fleet import Fleet

pytestmark = pytest.mark.req("R6")
LOW = Priority.LOW


@pytest.fixture
async def preempting(settings: Settings) -> AsyncIterator[Fleet]:
    """Return a fleet whose critical jobs may have low ones paused."""
    routing = RoutingPolicy(limits=Limits(preemption=True))
    ledger = open_ledger(settings.model_copy(update={"routing": routing}))
    yield Fleet(ledger, settings.ledger_url)
    await ledger.close()


async def interrupts(fleet: Fleet) -> list[tuple[str, int]]:
    """Take what lies in the outbox for workflows; return job and epoch of each attempt that is to be interrupted."""
    return [(row.job_id, row.payload["epoch"]) for row in await fleet.deliver() if row.name == "interrupt"]


async def interrupted(fleet: Fleet, job_id: str, epoch: int) -> None:
    """Do what the workflow does when its attempt was interrupted."""
    outcome = FailureKind.INTERRUPTED
    await fleet.record(job_id, Stage.QUEUED, epoch=epoch, attempt_outcome=outcome, end_lease=True, release_locks=True)
    assert await fleet.ledger.ready(job_id, fleet.now)


async def test_critical_job_has_a_low_one_paused_and_gets_its_seat(preempting: Fleet) -> None:
    """Agent and workflow of the paused job are told, its trail says for whom; it goes on when the other one is done."""
    fleet = preempting
    await fleet.factory("f1", stations={"shell": 1})
    await fleet.building("low", priority=LOW)
    await fleet.submit("urgent", priority=Priority.CRITICAL)
    await fleet.deliver()

    assert await fleet.ledger.dispatch(fleet.now) == ()

    assert await interrupts(fleet) == [("low", 1)]
    assert (await fleet.ledger.link_news([("low", 1)])).stops == {("low", 1): "preempted"}
    (event,) = await fleet.events("low", "job.preempted")
    assert event.data == {"for": "urgent", "factory": "f1", "engine": "shell"}
    assert "urgent" in event.message
    assert await fleet.ledger.dispatch(fleet.tick()) == (), "it was asked, and is not asked again"
    assert await interrupts(fleet) == []

    await interrupted(fleet, "low", 1)
    (urgent,) = await fleet.ledger.dispatch(fleet.now)
    assert urgent.job_id == "urgent"
    await fleet.started("urgent", urgent.epoch)
    await fleet.ship("urgent")
    (again,) = await fleet.ledger.dispatch(fleet.now)
    assert (again.job_id, again.epoch) == ("low", 2)
    assert (await fleet.ledger.verify_chain("low")).ok


async def test_nobody_is_paused_unless_the_setting_allows_it(fleet: Fleet) -> None:
    """By default nobody's work stops for another job."""
    await fleet.factory("f1", stations={"shell": 1})
    await fleet.building("low", priority=LOW)
    await fleet.submit("urgent", priority=Priority.CRITICAL)
    await fleet.deliver()

    assert await fleet.ledger.dispatch(fleet.now) == ()

    assert await fleet.events("low", "job.preempted") == []
    assert await interrupts(fleet) == []
    assert (await fleet.ledger.link_news([("low", 1)])).stops == {}


async def test_attempt_that_has_delivered_or_is_cancelled_does_not_make_way(preempting: Fleet) -> None:
    """Its seat becomes free anyway; pausing it would only cost what it did."""
    fleet = preempting
    await fleet.factory("f1", stations={"shell": 2}, seats=2)
    await fleet.building("delivered", priority=LOW)
    await fleet.accept("delivered", 1)
    await fleet.building("cancelled", priority=LOW)
    await fleet.ledger.request_stop("cancelled", fleet.now)
    await fleet.submit("urgent", priority=Priority.CRITICAL)
    await fleet.deliver()

    assert await fleet.ledger.dispatch(fleet.now) == ()

    assert await interrupts(fleet) == []
    assert (await fleet.ledger.link_news([("cancelled", 1)])).stops == {("cancelled", 1): "cancelled"}


async def test_pausing_comes_to_rest_and_leaves_those_alone_who_were_paused_often(preempting: Fleet) -> None:
    """Wave after wave of critical jobs: each wave comes to rest by itself, and nobody is paused beyond the bound."""
    fleet = preempting
    await fleet.factory("f1", stations={"shell": 2}, seats=2)
    lows = ["low-0", "low-1"]
    for job_id in lows:
        await fleet.building(job_id, priority=LOW)
    pauses = []
    for wave in range(4):
        urgent = [f"urgent-{wave}-{number}" for number in range(2)]
        for job_id in urgent:
            await fleet.submit(job_id, priority=Priority.CRITICAL)
        await fleet.deliver()
        pauses.append(await until_rest(fleet))
        for job_id in urgent:
            if await fleet.stage(job_id) == Stage.BUILDING:
                await fleet.ship(job_id)
        await until_rest(fleet)

    assert pauses == [2, 2, 0, 0], "each gave its critical job a seat, and the third wave finds nobody to pause"
    for job_id in lows:
        assert len(await fleet.events(job_id, "job.preempted")) == Limits().preemption_bound
        assert await fleet.stage(job_id) == Stage.BUILDING


async def until_rest(fleet: Fleet) -> int:
    """Dispatch, start and pause until nothing happens any more; return how often a job was paused."""
    pauses = 0
    for _ in range(20):
        grants = await fleet.ledger.dispatch(fleet.tick())
        for grant in grants:
            await fleet.started(grant.job_id, grant.epoch)
        paused = await interrupts(fleet)
        for job_id, epoch in paused:
            await interrupted(fleet, job_id, epoch)
        pauses += len(paused)
        if not grants and not paused:
            return pauses
    raise AssertionError("it never comes to rest")
