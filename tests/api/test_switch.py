"""The kill switch, limits, drains and quarantines over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Api, Manifest
from tests.api.test_factories import offer

BEAT = {"instance": "a1", "sentinel": "", "free_memory_gb": 3.5}


@pytest.mark.req("F9")
async def test_halt_keeps_jobs_waiting_until_it_is_released(api: Api, manifest: Manifest) -> None:
    """Whoever asks why a job waits hears who halted it; a release asks for a pass of the dispatcher."""
    await api.factory.post("/fleet/factories", json=offer())
    halted = await api.user.post("/fleet/halts", json={"reason": "bad prompt"})
    assert (halted.status_code, halted.json()["stopped"]) == (200, []), halted.text
    job_id = await api.submit(manifest())
    why = (await api.user.get(f"/fleet/jobs/{job_id}/explanation")).json()
    assert why["message"].endswith("the fleet was halted by tess: bad prompt")
    told = (await api.user.get("/fleet/halts")).json()
    assert [(halt["scope"], halt["actor"]) for halt in told["halts"]] == [("fleet", "tess")]

    wakes = api.dispatcher.wakes
    released = await api.user.post("/fleet/halts/release", json={})
    assert (released.json()["halts"], api.dispatcher.wakes) == ([], wakes + 1)
    assert (await api.user.get("/fleet/halts")).json()["released"][0]["released_by"] == "tess"
    assert (await api.user.post("/fleet/halts/release", json={})).status_code == 404


async def test_halt_that_stops_what_runs_names_it(api: Api, manifest: Manifest) -> None:
    """The answer lists the attempts that the switch stops."""
    job_id = await api.submit(manifest())
    await api.grant(job_id)
    answer = await api.user.post("/fleet/halts", json={"scope": "engine", "name": "shell", "stop_running": True})
    assert [(one["job_id"], one["engine"]) for one in answer.json()["stopped"]] == [(job_id, "shell")]


@pytest.mark.parametrize("body", [{"scope": "engine"}, {"name": "shell"}, {"scope": "room", "name": "x"}], ids=str)
async def test_halt_of_nothing_in_particular_is_refused(api: Api, body: dict[str, Any]) -> None:
    """A scope needs its name, so that a slip of the hand never halts something else."""
    assert (await api.user.post("/fleet/halts", json=body)).status_code == 422
    assert (await api.user.get("/fleet/halts")).json()["halts"] == []


@pytest.mark.req("F8")
async def test_beat_brings_the_orders_that_concern_the_factory(api: Api) -> None:
    """Drain with hand-over and halts come with the answer to a beat; the ledger hears of floors and sentinel."""
    await api.factory.post("/fleet/factories", json=offer())
    path = "/fleet/factories/brisk-otter"
    for name in ("brisk-otter", "other"):
        await api.user.post("/fleet/halts", json={"scope": "factory", "name": name})
    drained = await api.user.post(f"{path}/drain", json={"reason": "new disk", "hand_over_s": 0})
    assert drained.json() == {"name": "brisk-otter", "state": "draining"}

    orders = (await api.factory.post(f"{path}/heartbeat", json=BEAT)).json()
    assert (orders["state"], orders["hand_over"], orders["switch"]["epoch"]) == ("draining", True, 2)
    assert [halt["name"] for halt in orders["switch"]["halts"]] == ["brisk-otter"]
    await api.factory.post(f"{path}/heartbeat", json=BEAT | {"sentinel": "/x/KILL"})
    factory = (await api.user.get(path)).json()
    assert factory["status"]["free_memory_gb"] == "3.5"
    assert factory["activity"]["doing"] == "blocked"
    for reason in ("drained by tess: new disk", "factory brisk-otter was halted", "the file /x/KILL is there"):
        assert reason in factory["activity"]["reason"]
    assert factory["drain"]["reason"] == "new disk"


async def test_drain_of_an_operator_outlives_the_agent(api: Api) -> None:
    """Only `undrain` ends it; an agent's own word ends with its next start."""
    await api.factory.post("/fleet/factories", json=offer())
    path = "/fleet/factories/brisk-otter"
    await api.user.post(f"{path}/drain", json={})
    assert (await api.factory.post("/fleet/factories", json=offer())).json()["state"] == "draining"
    assert (await api.user.post(f"{path}/undrain")).json()["state"] == "online"
    assert (await api.user.post(f"{path}/undrain")).status_code == 409

    await api.factory.post(f"{path}/drain", json={"instance": "a1"})
    assert (await api.user.get(path)).json()["activity"]["reason"] == "its agent is leaving"
    assert (await api.factory.post("/fleet/factories", json=offer())).json()["state"] == "online"


async def test_release_is_for_quarantined_factories(api: Api) -> None:
    """One that is in good standing is not released by mistake."""
    await api.factory.post("/fleet/factories", json=offer())
    assert (await api.user.post("/fleet/factories/brisk-otter/release")).status_code == 409
    assert (await api.user.post("/fleet/factories/nobody/release")).status_code == 404


@pytest.mark.req("R2")
async def test_limits_are_set_listed_and_forgotten(api: Api) -> None:
    """Null forgets; a limit of nothing is refused, because that is what a halt is for."""
    body = {"kind": "engine", "name": "shell", "jobs": 2}
    (limit,) = (await api.user.post("/fleet/limits", json=body)).json()["limits"]
    assert (limit["jobs"], limit["set_by"], limit["running"]) == (2, "tess", 0)
    assert (await api.user.get("/fleet/limits")).json()["limits"] == [limit]
    assert (await api.user.post("/fleet/limits", json=body | {"jobs": 0})).status_code == 422
    assert (await api.user.post("/fleet/limits", json=body | {"jobs": None})).json()["limits"] == []
    assert (await api.user.post("/fleet/limits", json=body | {"jobs": None})).status_code == 404
