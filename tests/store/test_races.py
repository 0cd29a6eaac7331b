"""What happens to a plan when the fleet changes between planning and granting; each race here is made on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import store.dispatcher
from core.job import Stage
from core.router import FleetSnapshot, Plan, plan
from store import admission
from store.admission import Admitted, LeaseTerms
from store.database import Database, open_database
from tests.store.fleet import Fleet

Change = Callable[[Fleet], Awaitable[object]]


@pytest.fixture
async def database(fleet: Fleet) -> AsyncIterator[Database]:
    """Return the fleet's database, as another process would open it."""
    opened = open_database(fleet.url)
    yield opened
    await opened.close()


async def admit(database: Database, fleet: Fleet, planned: Plan) -> Admitted:
    """Grant what was planned from an older snapshot."""
    return await database.write(admission.admit, planned, terms=LeaseTerms(30, 5), now=fleet.now)


async def grant_other(fleet: Fleet, **values: object) -> None:
    """Give a seat to another job, while j-1 is looked away from."""
    await fleet.ledger.hold("j-1", "test", fleet.now)
    await fleet.granted("other", **values)
    await fleet.ledger.ready("j-1", fleet.now)


async def other_fills_the_factory(fleet: Fleet) -> None:
    """All seats of the factory are gone, though the station has one."""
    await fleet.factory("f1", stations={"shell": 1, "codex": 1}, seats=1)
    await grant_other(fleet, engine="codex")


CHANGES: dict[str, Change] = {
    "seat": grant_other,
    "factory": other_fills_the_factory,
    "lock": lambda fleet: grant_other(fleet, engine="codex", lock="deploy"),
    "scope": lambda fleet: grant_other(fleet, engine="codex", allowed_scope=("src/api/**",)),
    "granted": lambda fleet: fleet.ledger.dispatch(fleet.now),
    "held": lambda fleet: fleet.ledger.hold("j-1", "operator", fleet.now),
    "cancelled": lambda fleet: fleet.record("j-1", Stage.CANCELLED),
    "draining": lambda fleet: fleet.ledger.factory_state("f1", "draining"),
    "offline": lambda fleet: fleet.ledger.sweep_factories(fleet.tick(60)),
    "unusable": lambda fleet: fleet.factory("f1", stations={"shell": 1, "codex": 1}, seats=2, unusable=("shell",)),
    "gone": lambda fleet: fleet.factory("f1", stations={"codex": 1}, seats=2),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_grant_that_lost_its_race_changes_nothing(fleet: Fleet, database: Database, change: str) -> None:
    """A planned grant whose ground is gone is skipped: no epoch, no lease, no seat, no lock, no event."""
    await fleet.factory("f1", stations={"shell": 1, "codex": 1}, seats=2)
    await fleet.submit("j-1", lock="deploy", allowed_scope=("src/**",))
    planned = plan(await fleet.ledger.snapshot(fleet.now))
    assert [grant.job_id for grant in planned.grants] == ["j-1"]
    await CHANGES[change](fleet)
    before = await fleet.job("j-1"), await fleet.ledger.factories(), (await fleet.ledger.snapshot(fleet.now)).locks

    admitted = await admit(database, fleet, planned)

    assert admitted == Admitted((), skipped=1)
    after = await fleet.job("j-1"), await fleet.ledger.factories(), (await fleet.ledger.snapshot(fleet.now)).locks
    assert after == before
    assert await fleet.ledger.recount_seats(fleet.now) == ()
    assert (await fleet.ledger.verify_chain("j-1")).ok


async def test_lost_race_of_one_grant_leaves_the_others(fleet: Fleet, database: Database) -> None:
    """Each grant of a pass stands for itself."""
    await fleet.factory("f1", stations={"shell": 3})
    for n in range(3):
        await fleet.submit(f"j-{n}")
    planned = plan(await fleet.ledger.snapshot(fleet.now))
    await fleet.ledger.hold("j-1", "operator", fleet.now)

    admitted = await admit(database, fleet, planned)

    assert ([grant.job_id for grant in admitted.grants], admitted.skipped) == (["j-0", "j-2"], 1)
    assert await fleet.busy("f1") == 2


async def test_dispatch_plans_again_after_a_lost_race(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process was faster, the same call looks again and finds what is left."""
    await fleet.factory("f1", stations={"shell": 1})
    await fleet.submit("a")
    await fleet.submit("b")
    stale = await fleet.ledger.snapshot(fleet.now)
    await fleet.ledger.dispatch(fleet.now)
    await fleet.factory("f2", stations={"shell": 1})
    snapshots = [stale]

    def plan_from_the_stale_one_first(snapshot: FleetSnapshot, *arguments: Any, **options: Any) -> Plan:
        return plan(snapshots.pop() if snapshots else snapshot, *arguments, **options)

    monkeypatch.setattr(store.dispatcher, "plan", plan_from_the_stale_one_first)

    (grant,) = await fleet.ledger.dispatch(fleet.now)

    assert grant.job_id == "b"
    assert (await fleet.busy("f1"), await fleet.busy("f2")) == (1, 1)
