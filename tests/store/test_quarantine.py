"""Automatic quarantine, drains and what factories do, on both databases."""

from __future__ import annotations

from datetime import timedelta

import pytest

from core.errors import Conflict, NotFound
from core.job import Stage
from store.views import DrainOrder
from tests.store.fleet import Fleet


async def spoil(fleet: Fleet, *job_ids: str, on: str = "f1") -> None:
    """Let a factory lose jobs, each at a time of its own; another one then brings them through."""
    for job_id in job_ids:
        grant = await fleet.building(job_id, capabilities=(f"factory:{on}",))
        assert grant.factory == on
        await fleet.record(
            job_id,
            Stage.FAILED,
            epoch=1,
            attempt_outcome="crash",
            attempt_message="boom",
            end_lease=True,
            release_locks=True,
        )
        fleet.tick(60)


async def do_well(fleet: Fleet, *job_ids: str, on: str = "f2") -> None:
    """Let a factory bring jobs through."""
    for job_id in job_ids:
        await fleet.building(job_id, capabilities=(f"factory:{on}",))
        await fleet.ship(job_id)
        fleet.tick(60)


@pytest.fixture
async def pair(fleet: Fleet) -> Fleet:
    """Return a fleet of two factories that can be told apart by a capability."""
    for name in ("f1", "f2"):
        await fleet.factory(name, capabilities=("os:linux", f"factory:{name}"), boot="b-1")
    return fleet


async def test_factory_that_spoils_what_others_do_well_is_set_aside(pair: Fleet) -> None:
    """After the third incident it takes nothing more, and the evidence names the jobs."""
    await do_well(pair, "g-1", "g-2", "g-3", "g-4")
    await spoil(pair, "b-1", "b-2")
    assert (await pair.ledger.factory("f1")).state == "online"
    await spoil(pair, "b-3")

    row = await pair.ledger.factory("f1")
    assert (row.state, row.activity.doing) == ("quarantined", "blocked")
    assert row.quarantine is not None
    assert [ending.job_id for ending in row.quarantine.evidence.spoilt] == ["b-1", "b-2", "b-3"]
    assert "it spoilt 3" in row.activity.reason
    await pair.submit("j-1", capabilities=("factory:f1",))
    assert await pair.ledger.dispatch(pair.now) == ()
    (line,) = [line for line in await pair.ledger.audit() if line.type == "factory.quarantined"]
    assert line.subject == "f1"


async def test_quarantine_outlives_a_restart_and_ends_with_a_release(pair: Fleet) -> None:
    """Only an operator ends it; what the factory spoilt before counts no more then."""
    await do_well(pair, "g-1", "g-2", "g-3", "g-4", "g-5")
    await spoil(pair, "b-1", "b-2", "b-3")
    await pair.factory(
        "f1", instance="b", capabilities=("os:linux", "factory:f1"), pid=200, boot="b-1", replaces="f1-a"
    )
    await pair.beat("f1", "b")
    assert (await pair.ledger.factory("f1")).state == "quarantined"

    await pair.ledger.release_factory("f1", "ada", pair.now)
    assert (await pair.ledger.factory("f1")).state == "online"
    await spoil(pair, "b-4")
    assert (await pair.ledger.factory("f1")).state == "online"
    with pytest.raises(Conflict, match="not quarantined"):
        await pair.ledger.release_factory("f1", "ada", pair.now)
    with pytest.raises(NotFound):
        await pair.ledger.release_factory("f9", "ada", pair.now)


async def test_trouble_of_the_world_sets_nobody_aside(pair: Fleet) -> None:
    """When the others spoil as much, it is not the machine."""
    await do_well(pair, "g-1", "g-2")
    await spoil(pair, "b-1", "b-2", on="f2")
    await spoil(pair, "b-3", "b-4", "b-5")
    assert (await pair.ledger.factory("f1")).state == "online"


async def test_last_factory_is_never_set_aside(pair: Fleet) -> None:
    """A bad factory is better than none."""
    await do_well(pair, "g-1", "g-2", "g-3", "g-4")
    await pair.ledger.factory_state("f2", "offline")
    await spoil(pair, "b-1", "b-2", "b-3", "b-4")
    assert (await pair.ledger.factory("f1")).state == "online"


# --- drain --------------------------------------------------------------------------------------------------------


async def test_drained_factory_takes_nothing_until_it_is_undrained(fleet: Fleet) -> None:
    """An operator's order outlives restarts and silences; what runs goes on."""
    await fleet.factory("f1", boot="b-1")
    await fleet.building("j-1")
    await fleet.submit("j-2")
    await fleet.ledger.drain_factory("f1", DrainOrder(by="ada", reason="new disk", at=fleet.now), fleet.now)

    assert await fleet.ledger.dispatch(fleet.now) == ()
    activity = (await fleet.ledger.factory("f1")).activity
    assert (activity.doing, activity.reason) == ("working", "drained by ada: new disk")
    await fleet.factory("f1", instance="b", pid=200, boot="b-1", replaces="f1-a")
    await fleet.ledger.sweep_factories(fleet.tick(20), timedelta(seconds=15))
    assert (await fleet.beat("f1", "b")).state == "draining"
    assert await fleet.ledger.dispatch(fleet.now) == ()

    assert await fleet.ledger.undrain_factory("f1", "ada", fleet.now) == "online"
    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["j-2"]
    with pytest.raises(Conflict, match="no operator has drained"):
        await fleet.ledger.undrain_factory("f1", "ada", fleet.now)


async def test_agent_is_told_to_hand_over_when_the_time_has_come(fleet: Fleet) -> None:
    """Until then what runs may finish; without a time for as long as it takes."""
    await fleet.factory("f1")
    order = DrainOrder(by="ada", at=fleet.now, hand_over_at=fleet.now + timedelta(seconds=10))
    await fleet.ledger.drain_factory("f1", order, fleet.now)
    assert not (await fleet.beat("f1")).hand_over
    fleet.tick(10)
    assert (await fleet.beat("f1")).hand_over

    await fleet.ledger.drain_factory("f1", DrainOrder(by="ada", at=fleet.now), fleet.now)
    assert not (await fleet.beat("f1")).hand_over


# --- what a factory does ------------------------------------------------------------------------------------------


async def test_activity_follows_the_leases(fleet: Fleet) -> None:
    """Idle, assigned, working, idle again, offline: as the leases and the agent's word say."""
    seen = []

    async def look() -> None:
        seen.append((await fleet.ledger.factories())[0].activity.doing.value)

    await fleet.factory("f1")
    await look()
    grant = await fleet.granted("j-1")
    await look()
    await fleet.started("j-1", grant.epoch)
    await look()
    await fleet.ship("j-1")
    await look()
    await fleet.ledger.factory_state("f1", "draining")
    await look()
    await fleet.ledger.factory_state("f1", "offline")
    await look()
    assert seen == ["idle", "assigned", "working", "idle", "blocked", "offline"]
