"""Jobs that wait for jobs, over HTTP: cycles, blocked children and the choices, child jobs, the graph."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from core.job import Stage
from core.lifecycle import Record
from tests.api.conftest import Api, Manifest


async def submit_set(api: Api, *jobs: tuple[str, str]) -> dict[str, Any]:
    """Submit (file name, text) pairs as one request; return status and document."""
    body = {"jobs": [{"manifest": text, "source": name} for name, text in jobs]}
    answer = await api.user.post("/fleet/jobs", json=body)
    document: dict[str, Any] = answer.json()
    return document | {"status_code": answer.status_code}


async def ended(api: Api, job_id: str, stage: Stage) -> None:
    """End a job."""
    await api.ledger.record(job_id, 1, Record(path=(stage,)), datetime.now(UTC))


async def document(api: Api, path: str) -> dict[str, Any]:
    """GET a document."""
    answer = await api.user.get(path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_cycle_is_printed_with_the_names_that_the_user_gave(api: Api, manifest: Manifest) -> None:
    """Nobody knows the ids of jobs that were not taken in: keys name them, as the files do."""
    answer = await submit_set(
        api,
        ("lay.md", manifest("idempotency-key: lay", "deps: ['key:paint']")),
        ("dry.md", manifest("idempotency-key: dry", "deps: ['key:lay']")),
        ("paint.md", manifest("idempotency-key: paint", "deps: ['key:dry']")),
    )
    assert answer["status_code"] == 422
    told = answer["detail"].removeprefix("the dependencies form a cycle: ").split(" → ")
    assert (told[0], set(told), len(told)) == (told[-1], {"lay", "dry", "paint"}, 4)
    assert {"lay": "paint", "dry": "lay", "paint": "dry"}[told[0]] == told[1]
    assert (await document(api, "/fleet/jobs"))["jobs"] == []


async def test_failed_parent_is_shown_with_the_choices_and_may_be_dropped(api: Api, manifest: Manifest) -> None:
    """Retry the parent, do without it, or give up: each as a command; `unblock` is one of them."""
    parent = await api.submit(manifest())
    child = await api.submit(manifest(f"deps: [{parent}]"))
    waiting = (await document(api, f"/fleet/jobs/{child}"))["waiting"]
    assert (waiting["kind"], waiting["choices"], waiting["command"]) == ("parents", [], f"gf dag {child}")

    await ended(api, parent, Stage.FAILED)
    waiting = (await document(api, f"/fleet/jobs/{child}"))["waiting"]
    assert waiting["choices"] == [f"gf requeue {parent}", f"gf unblock {child} --drop {parent}", f"gf cancel {child}"]

    before = api.dispatcher.wakes
    answer = await api.user.post(f"/fleet/jobs/{child}/unblock", json={"drop": [parent], "reason": "not needed"})
    assert (answer.status_code, answer.json()["conditions"]) == (200, [])
    assert api.dispatcher.wakes == before + 1
    job = await document(api, f"/fleet/jobs/{child}")
    assert [(dep["job_id"], dep["state"]) for dep in job["deps"]] == [(parent, "dropped")]
    again = await api.user.post(f"/fleet/jobs/{child}/unblock", json={"drop": [parent]})
    assert (again.status_code, again.json()["code"]) == (409, "illegal_action")


async def test_cancelled_parent_cannot_be_retried(api: Api, manifest: Manifest) -> None:
    """Only what is possible is offered."""
    parent = await api.submit(manifest())
    child = await api.submit(manifest(f"deps: [{parent}]"))
    await ended(api, parent, Stage.CANCELLED)
    waiting = (await document(api, f"/fleet/jobs/{child}"))["waiting"]
    assert waiting["choices"] == [f"gf unblock {child} --drop {parent}", f"gf cancel {child}"]


async def test_unblock_wants_who_runs_the_fleet(api: Api, manifest: Manifest) -> None:
    """Who decides about candidates does not thereby decide about the order of work."""
    parent = await api.submit(manifest())
    child = await api.submit(manifest(f"deps: [{parent}]"))
    for role, status in (("viewer", 403), ("reviewer", 403), ("operator", 200)):
        secret = (await api.made(name=role, roles=[role]))["secret"]
        path, body = f"/fleet/jobs/{child}/unblock", {"drop": [parent]}
        assert (await api.call(secret, "POST", path, json=body)).status_code == status


async def test_child_jobs_are_submitted_under_a_running_job(api: Api, manifest: Manifest) -> None:
    """All of a request, or none; the whole shows them, and one that has ended takes none."""
    whole = await api.submit(manifest())
    body = {"jobs": [{"manifest": manifest()}, {"manifest": manifest()}]}
    answer = await api.user.post(f"/fleet/jobs/{whole}/children", json=body)
    assert answer.status_code == 201
    parts = {job["id"] for job in answer.json()["jobs"]}
    job = await document(api, f"/fleet/jobs/{whole}")
    assert ({child["job_id"] for child in job["children"]}, job["children_total"]) == (parts, 2)

    await ended(api, whole, Stage.CANCELLED)
    late = await api.user.post(f"/fleet/jobs/{whole}/children", json={"manifest": manifest()})
    assert (late.status_code, late.json()["code"]) == (409, "illegal_action")
    assert len((await document(api, "/fleet/jobs"))["jobs"]) == 3
    assert (await api.user.post("/fleet/jobs/j-nobody/children", json={"manifest": manifest()})).status_code == 404


async def test_dag_shows_what_is_connected_and_all_that_waits(api: Api, manifest: Manifest) -> None:
    """Around one job, or everything; with the state of every edge."""
    parent = await api.submit(manifest())
    child = await api.submit(manifest(f"deps: [{{job: {parent}, until: testing}}]"))
    await api.submit(manifest())
    for path in (f"/fleet/jobs/{parent}/dag", f"/fleet/jobs/{child}/dag", "/fleet/dag"):
        found = await document(api, path)
        assert {job["id"] for job in found["jobs"]} == {parent, child}
        (edge,) = found["edges"]
        assert edge == {"job_id": child, "waits_for": parent, "gate": "start", "until": "testing", "state": "open"}


async def test_dag_of_all_is_that_of_the_products_that_the_token_reaches(api: Api, manifest: Manifest) -> None:
    """A token of one product sees nothing of another's graph."""
    parent = await api.submit(manifest())
    await api.submit(manifest(f"deps: [{parent}]"))
    secret = (await api.made(name="toys", roles=["viewer"], products=["toys"]))["secret"]
    assert (await api.call(secret, "GET", "/fleet/dag")).json()["jobs"] == []
    assert (await api.call(secret, "GET", f"/fleet/jobs/{parent}/dag")).status_code in (403, 404)


async def test_request_of_a_thousand_jobs_is_one_transaction(api: Api, manifest: Manifest) -> None:
    """A fan-out and its join come in together; each place is looked up once, and everything waits where it should."""
    script = manifest("idempotency-key: root")
    leaves = [
        {"manifest": manifest(f"idempotency-key: leaf-{n}", "deps: ['key:root']"), "source": f"leaf-{n}.md"}
        for n in range(998)
    ]
    join = manifest(f"deps: {[f'key:leaf-{n}' for n in range(998)]}")
    jobs = [{"manifest": join}, *leaves, {"manifest": script}]
    answer = await api.user.post("/fleet/jobs", json={"jobs": jobs}, timeout=60)
    assert answer.status_code == 201, answer.text[:500]
    ids = [job["id"] for job in answer.json()["jobs"]]
    assert len(set(ids)) == 1000
    last = await document(api, f"/fleet/jobs/{ids[0]}")
    assert (last["deps_total"], len(last["deps"]), last["held"]) == (998, 100, "parents")
    assert (await api.ledger.parents_state(ids[1])).waiting == (ids[-1],)
    assert [event.type for event in await api.ledger.events(ids[0])] == ["job.submitted"]
