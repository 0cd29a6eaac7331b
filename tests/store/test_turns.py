"""Fair turns are the ledger's: whoever dispatches goes on where the others are, on both databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle

import pytest

from core.job import Stage
from core.router import plan
from core.router_policy import Limits, ProductPolicy, RoutingPolicy
from core.settings import Settings
from store import admission, open_ledger
from store.admission import Admitted, LeaseTerms
from store.database import open_database
from tests.store.fleet import Fleet, value

pytestmark = pytest.mark.req("R4")
SHARES = RoutingPolicy(products={"big": ProductPolicy(share=3)})


@asynccontextmanager
async def several(settings: Settings, routing: RoutingPolicy, count: int) -> AsyncIterator[list[Fleet]]:
    """Give one ledger as so many processes have it open."""
    async with AsyncExitStack() as stack:
        fleets = []
        for _ in range(count):
            ledger = open_ledger(settings.model_copy(update={"routing": routing}))
            stack.push_async_callback(ledger.close)
            fleets.append(Fleet(ledger, settings.ledger_url))
        yield fleets


async def backlog(fleet: Fleet, products: Sequence[str], jobs: int) -> None:
    """Let each product have so many jobs waiting for one seat."""
    await fleet.factory("f1", stations={"shell": 1}, seats=1)
    for number in range(jobs):
        for product in products:
            await fleet.submit(f"{product}-{number}", product_id=product)


async def serve(fleet: Fleet) -> str:
    """Let one job have the seat and end; return its product."""
    (grant,) = await fleet.ledger.dispatch(fleet.now)
    await fleet.record(grant.job_id, Stage.CANCELLED, epoch=grant.epoch, end_lease=True)
    return grant.product_id


async def test_shares_hold_over_all_who_dispatch(settings: Settings) -> None:
    """Three ledgers that dispatch in turn serve the products as one would: nobody's share begins anew with another."""
    async with several(settings, SHARES, 3) as fleets:
        await backlog(fleets[0], ("big", "small"), 12)
        served = [await serve(fleet) for fleet, _ in zip(cycle(fleets), range(12), strict=False)]

    assert Counter(served) == {"big": 9, "small": 3}
    assert max(served[at : at + 4].count("small") for at in range(9)) <= 2


async def test_shares_hold_over_restarts(settings: Settings) -> None:
    """A process that starts anew goes on where the last one was."""
    served = []
    for number in range(8):
        async with several(settings, SHARES, 1) as (fleet,):
            if number == 0:
                await backlog(fleet, ("big", "small"), 8)
            served.append(await serve(fleet))

    assert Counter(served) == {"big": 6, "small": 2}


async def test_plan_counts_only_if_nobody_granted_anything_since(settings: Settings) -> None:
    """Its order rests on turns that have been taken meanwhile; though its own seat is free, it is made again."""
    async with several(settings, SHARES, 1) as (fleet,):
        await fleet.factory("f1", stations={"shell": 1}, seats=1)
        await fleet.submit("j-1")
        planned = plan(await fleet.ledger.snapshot(fleet.now))
        await fleet.factory("f2", stations={"codex": 1}, seats=1)
        await fleet.ledger.hold("j-1", "test", fleet.now)
        await fleet.granted("other", engine="codex")
        await fleet.ledger.ready("j-1", fleet.now)
        database = open_database(fleet.url)
        try:
            admitted = await database.write(admission.admit, planned, terms=LeaseTerms(30, 5), now=fleet.now)
        finally:
            await database.close()

        assert admitted == Admitted((), skipped=1)
        assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["j-1"]


async def test_overtaken_are_counted_though_another_grant_lost_its_race(settings: Settings) -> None:
    """Who was passed over by a grant that came true is counted, whatever became of the rest of its plan."""
    routing = RoutingPolicy(products={"new": ProductPolicy(share=16)})
    async with several(settings, routing, 1) as (fleet,):
        await fleet.factory("f1", stations={"shell": 3}, seats=3)
        await fleet.granted("runs", product_id="old")
        await fleet.submit("waits", product_id="old")
        for number in range(2):
            await fleet.submit(f"new-{number}", product_id="new")
        planned = plan(await fleet.ledger.snapshot(fleet.now))
        assert [grant.job_id for grant in planned.grants] == ["new-0", "new-1"]
        await fleet.ledger.hold("new-1", "operator", fleet.now)
        database = open_database(fleet.url)
        try:
            admitted = await database.write(admission.admit, planned, terms=LeaseTerms(30, 5), now=fleet.now)
        finally:
            await database.close()

        assert [grant.job_id for grant in admitted.grants] == ["new-0"]
        assert await value(fleet, "SELECT overtaken FROM jobs WHERE id = 'waits'") == 1


async def test_factory_that_was_passed_over_is_known_to_all(settings: Settings) -> None:
    """Counts of two processes add up in the ledger until the factory goes before the others, and then begin anew."""
    routing = RoutingPolicy(limits=Limits(factory_bound=4))
    async with several(settings, routing, 2) as fleets:
        await fleets[0].factory("cheap", stations={"shell": 1}, seats=1)
        await fleets[0].factory("dear", stations={"shell": 1}, seats=1, details={"cost_class": 9})
        for number in range(6):
            await fleets[0].submit(f"j-{number}")
            await fleets[0].ledger.hold(f"j-{number}", "test", fleets[0].now)
        went = []
        for number, fleet in zip(range(6), cycle(fleets), strict=False):
            await fleet.ledger.ready(f"j-{number}", fleet.now)
            (grant,) = await fleet.ledger.dispatch(fleet.now)
            went.append(grant.factory)
            await fleet.record(grant.job_id, Stage.CANCELLED, epoch=grant.epoch, end_lease=True)

    assert went == ["cheap", "cheap", "cheap", "cheap", "dear", "cheap"]
