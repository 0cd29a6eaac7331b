from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from core.errors import Conflict, NotFound
from core.job import Stage
from store.messages import FactoryStatus
from tests.store.fleet import Fleet

TTL = timedelta(seconds=15)


async def state(fleet: Fleet, name: str = "f1") -> str:
    """Return a factory's state."""
    return (await fleet.ledger.factory(name)).state


async def test_registered_factory_is_listed_with_its_stations(fleet: Fleet) -> None:
    """What an agent says of its machine is what the fleet shows."""
    await fleet.factory("f2", stations={"shell": 2, "codex": 1}, seats=2, details={"os": "Debian"}, version="0.1")
    await fleet.factory("f1")

    one, two = await fleet.ledger.factories()
    assert (one.name, two.name) == ("f1", "f2")
    assert (two.host, two.pid, two.state, two.seats, two.version) == ("host-f2", 100, "online", 2, "0.1")
    assert two.details == {"os": "Debian"}
    assert [(s.engine, s.seats, s.busy, s.usable) for s in two.stations] == [
        ("codex", 1, 0, True),
        ("shell", 2, 0, True),
    ]


@pytest.mark.parametrize("other", [{"pid": 200}, {"host": "clone"}])
async def test_second_living_agent_of_one_name_is_refused(fleet: Fleet, other: dict[str, Any]) -> None:
    """A cloned machine, or a second start, does not take a living agent's name: it is told who has it."""
    await fleet.factory("f1")
    fleet.tick(5)

    with pytest.raises(Conflict, match="alive already: process 100 on host-f1"):
        await fleet.factory("f1", instance="b", **other)

    assert (await fleet.ledger.factory("f1")).instance == "f1-a"


async def test_agent_takes_over_from_a_silent_one(fleet: Fleet) -> None:
    """After three missed beats the name is free for another process."""
    await fleet.factory("f1")
    fleet.tick(16)
    await fleet.factory("f1", instance="b", pid=200)

    assert (await fleet.ledger.factory("f1")).pid == 200
    with pytest.raises(Conflict, match="another agent"):
        await fleet.beat("f1")


@pytest.mark.parametrize(
    "claim",
    [
        {"host": "elsewhere", "boot": "b-1", "replaces": "f1-a"},
        {"boot": "b-2", "replaces": "f1-a"},
        {"boot": "b-1", "replaces": "f1-0"},
        {"boot": "b-1"},
    ],
    ids=["another host", "another boot", "another predecessor", "nothing proven"],
)
async def test_agent_without_proof_waits_until_the_name_is_free(fleet: Fleet, claim: dict[str, Any]) -> None:
    """Whoever cannot know that the living agent is dead does not take its place."""
    await fleet.factory("f1", boot="b-1")
    with pytest.raises(Conflict):
        await fleet.factory("f1", instance="b", pid=200, **claim)


async def test_agent_takes_over_at_once_from_one_that_it_proves_dead(fleet: Fleet) -> None:
    """A restarted agent that found its predecessor's instance on its machine, and that one dead, need not wait."""
    await fleet.factory("f1", boot="b-1")
    await fleet.factory("f1", instance="b", pid=200, boot="b-1", replaces="f1-a")

    assert (await fleet.ledger.factory("f1")).instance == "b"


async def test_machine_whose_boots_cannot_be_told_apart_proves_nothing(fleet: Fleet) -> None:
    """Two machines without an id of their boot are not taken for one."""
    await fleet.factory("f1")
    with pytest.raises(Conflict):
        await fleet.factory("f1", instance="b", pid=200, replaces="f1-a")


async def test_agent_that_left_is_replaced_at_once(fleet: Fleet) -> None:
    """A factory that signed off holds its name no longer."""
    await fleet.factory("f1")
    await fleet.ledger.factory_state("f1", "offline")
    await fleet.factory("f1", instance="b", pid=200)

    assert await state(fleet) == "online"


async def test_same_agent_registers_again(fleet: Fleet) -> None:
    """An agent that repeats its registration brings the fleet up to date, stations and all."""
    await fleet.factory("f1", stations={"shell": 3, "codex": 1})
    await fleet.granted("j-1", engine="codex")
    await fleet.factory("f1", stations={"shell": 5, "claude": 1}, seats=9)

    row = await fleet.ledger.factory("f1")
    assert row.seats == 9
    assert [(s.engine, s.seats, s.busy, s.usable) for s in row.stations] == [
        ("claude", 1, 0, True),
        ("codex", 0, 1, False),
        ("shell", 5, 0, True),
    ]


async def test_registrations_of_one_name_at_once_have_one_winner(fleet: Fleet) -> None:
    """Of agents that start together under one name exactly one is taken."""
    answers = await asyncio.gather(
        *(fleet.factory("f1", instance=f"i{n}", pid=n) for n in range(1, 7)), return_exceptions=True
    )

    assert sum(isinstance(answer, Conflict) for answer in answers) == 5
    (winner,) = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert (await fleet.ledger.factory("f1")).instance == winner.instance


async def test_beat_brings_load_and_keeps_what_it_does_not_say(fleet: Fleet) -> None:
    """A beat changes what it names and nothing else."""
    await fleet.factory("f1")
    await fleet.beat("f1", load=Decimal("0.25"), free_disk_gb=Decimal(7))
    fleet.tick(5)
    assert not (await fleet.beat("f1", load=Decimal("0.75"))).returned

    row = await fleet.ledger.factory("f1")
    assert row.last_beat_at == fleet.now
    assert FactoryStatus.model_validate(row.status) == FactoryStatus(load=Decimal("0.75"), free_disk_gb=Decimal(7))


async def test_beat_of_an_unknown_factory_asks_for_registration(fleet: Fleet) -> None:
    """An agent whose ledger was replaced learns that it must register."""
    with pytest.raises(NotFound, match="f9"):
        await fleet.beat("f9")
    with pytest.raises(NotFound, match="f9"):
        await fleet.ledger.factory_state("f9", "draining")
    with pytest.raises(NotFound, match="f9"):
        await fleet.ledger.factory("f9")


async def test_silent_factory_goes_offline_but_its_leases_stay(fleet: Fleet) -> None:
    """Silence stops new grants; whether an attempt is lost is decided by its lease alone."""
    await fleet.factory("f1")
    await fleet.factory("f2")
    grant = await fleet.building("j-1")
    fleet.tick(10)
    await fleet.beat("f2")
    fleet.tick(10)

    assert await fleet.ledger.sweep_factories(fleet.now, TTL) == ("f1",)
    assert await fleet.ledger.sweep_factories(fleet.now, TTL) == ()

    assert (await state(fleet, "f1"), await state(fleet, "f2")) == ("offline", "online")
    assert await fleet.ledger.grant("j-1") == grant
    assert await fleet.stage("j-1") == Stage.BUILDING
    assert (await fleet.beat("f1")).returned
    assert await state(fleet, "f1") == "online"


async def test_default_silence_is_three_beats(fleet: Fleet) -> None:
    """Without a time of its own the sweep takes three times the setting `factory_beat_s`."""
    await fleet.factory("f1")
    assert await fleet.ledger.sweep_factories(fleet.tick(14)) == ()
    assert await fleet.ledger.sweep_factories(fleet.tick(2)) == ("f1",)


async def test_draining_factory_stays_draining(fleet: Fleet) -> None:
    """Beats, and a silence, do not make a factory that wants to leave take jobs again; a new start does."""
    await fleet.factory("f1")
    await fleet.ledger.factory_state("f1", "draining")
    await fleet.beat("f1")
    assert await state(fleet) == "draining"
    await fleet.ledger.sweep_factories(fleet.tick(20), TTL)
    assert await state(fleet) == "offline"
    await fleet.beat("f1")
    assert await state(fleet) == "draining"
    await fleet.factory("f1")
    assert await state(fleet) == "online"
