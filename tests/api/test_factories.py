"""Factories report for work, beat, drain and leave."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Api


def offer(**changes: Any) -> dict[str, Any]:
    """Return what an agent says of its machine."""
    values = {
        "name": "brisk-otter",
        "instance": "a1",
        "host": "box",
        "pid": 4711,
        "version": "0.1.0",
        "os": "linux",
        "arch": "x86_64",
        "cores": 8,
        "mem_gb": 15.6,
        "free_disk_gb": 99.5,
        "seats": 3,
        "capabilities": ["os:linux", "node=20.11.0"],
        "stations": [{"engine": "shell", "version": "1.0", "seats": 3, "usable": True, "repair": ""}],
        "credentials": ["anthropic"],
        "tools": [{"name": "git", "version": "2.39", "usable": True, "repair": ""}],
    }
    return values | changes


async def test_factory_that_registers_is_listed_with_pid_and_stations(api: Api) -> None:
    """Name, state, pid and stations are in the list; a pass of the dispatcher is asked for."""
    answer = await api.factory.post("/fleet/factories", json=offer())
    assert (answer.status_code, answer.json()) == (200, {"name": "brisk-otter", "state": "online"}), answer.text
    (listed,) = (await api.user.get("/fleet/factories")).json()["factories"]
    assert (listed["name"], listed["state"], listed["pid"]) == ("brisk-otter", "online", 4711)
    assert listed["stations"] == [
        {"engine": "shell", "version": "1.0", "usable": True, "repair": "", "seats": 3, "busy": 0}
    ]
    assert listed["details"]["credentials"] == ["anthropic"]
    assert api.dispatcher.wakes == 1


async def test_second_living_agent_of_a_name_is_refused(api: Api) -> None:
    """A cloned machine is told so; the same agent may report again."""
    await api.factory.post("/fleet/factories", json=offer())
    again = await api.factory.post("/fleet/factories", json=offer())
    clone = await api.factory.post("/fleet/factories", json=offer(instance="b2", pid=4712))
    assert (again.status_code, clone.status_code) == (200, 409)
    assert "4711" in clone.json()["detail"]


async def test_heartbeat_knows_state_and_owner(api: Api) -> None:
    """An unknown name is 404 (report again), another agent's name is 409 (stop)."""
    beat = {"instance": "a1", "load": 0.5, "busy": {"shell": 1}, "free_disk_gb": 12.5}
    assert (await api.factory.post("/fleet/factories/brisk-otter/heartbeat", json=beat)).status_code == 404
    await api.factory.post("/fleet/factories", json=offer())
    good = await api.factory.post("/fleet/factories/brisk-otter/heartbeat", json=beat)
    other = await api.factory.post("/fleet/factories/brisk-otter/heartbeat", json=beat | {"instance": "b2"})
    assert (good.status_code, good.json()["state"]) == (200, "online")
    assert other.status_code == 409
    assert (await api.user.get("/fleet/factories/brisk-otter")).json()["status"]["free_disk_gb"] == "12.5"


async def test_draining_and_leaving_are_the_agents_own_word(api: Api) -> None:
    """Drain and leave set the state; an agent that lost its name cannot; an operator may drain without an instance."""
    await api.factory.post("/fleet/factories", json=offer())
    path = "/fleet/factories/brisk-otter"
    assert (await api.factory.post(f"{path}/drain", json={"instance": "b2"})).status_code == 409
    assert (await api.user.post(f"{path}/drain", json={})).json()["state"] == "draining"
    assert (await api.factory.post(f"{path}/leave", json={"instance": "a1"})).json()["state"] == "offline"
    assert (await api.user.post("/fleet/factories/none/leave", json={})).status_code == 404


@pytest.mark.parametrize(
    "change",
    [{"name": "a b"}, {"name": ""}, {"pid": -1}, {"seats": -1}, {"stations": [{"engine": 3}]}, {"instance": ""}],
    ids=str,
)
async def test_malformed_offer_is_refused(api: Api, change: dict[str, Any]) -> None:
    """What no factory can be is told by field."""
    answer = await api.factory.post("/fleet/factories", json=offer(**change))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"].startswith(f"body.{next(iter(change))}")


@pytest.mark.req("F4")
async def test_absence_that_a_factory_tells_of_is_shown_and_audited(api: Api) -> None:
    """The newest stays visible, also after further beats; the audit log has each."""
    await api.factory.post("/fleet/factories", json=offer())
    beat = "/fleet/factories/brisk-otter/heartbeat"
    absences = [{"kind": "suspended", "by_s": 312.4}, {"kind": "clock_jumped", "by_s": -60.0}]
    assert (await api.factory.post(beat, json={"instance": "a1", "absences": absences})).status_code == 200
    assert (await api.factory.post(beat, json={"instance": "a1"})).status_code == 200
    (listed,) = (await api.user.get("/fleet/factories")).json()["factories"]
    said = "the machine was suspended for 312 s; its time of day jumped back by 60 s"
    assert listed["status"]["absence"]["message"] == said
    lines = (await api.user.get("/fleet/audit")).json()["lines"]
    (line,) = [line for line in lines if line["type"] == "factory.absent"]
    assert (line["subject"], line["message"], line["data"]["absences"]) == ("brisk-otter", said, absences)
    wrong = {"instance": "a1", "absences": [{"kind": "bored", "by_s": 1}]}
    assert (await api.factory.post(beat, json=wrong)).status_code == 422
