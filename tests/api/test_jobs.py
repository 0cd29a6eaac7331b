"""Looking at jobs, and acting on them."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any

import pytest

from api.waiting import waits_for
from core.attempt import Verdict
from core.job import Condition, Stage
from core.lifecycle import Entry, Record
from tests.api.conftest import Api, Manifest, some_factory

SHA = "b" * 40


async def at_the_gate(
    api: Api, manifest: Manifest, *, verify: str = "passed", out_of_scope: tuple[str, ...] = ()
) -> str:
    """Return a job whose candidate the gates have judged."""
    job_id = await api.submit(manifest())
    grant = await api.grant(job_id)
    verdict = Verdict(
        job_id=job_id,
        epoch=grant.epoch,
        candidate_sha=SHA,
        verify=verify,  # type: ignore[arg-type]
        out_of_scope=out_of_scope,
    )
    blocked = Condition(type="blocked", reason="scope", message=f"outside: {', '.join(out_of_scope)}")
    passed = verify == "passed" and not out_of_scope
    record = Record(
        path=(Stage.REVIEW, Stage.TESTING) if passed else (Stage.REVIEW,),
        epoch=grant.epoch,
        entries=(Entry(type="gate.verify", message=verify),),
        candidate_sha=SHA,
        verdict=verdict.model_dump(mode="json"),
        conditions=(blocked,) if out_of_scope else (),
        end_lease=True,
    )
    await api.ledger.record(job_id, 1, record, datetime.now(UTC))
    return job_id


async def get(api: Api, path: str, **query: Any) -> Any:
    """GET a document."""
    answer = await api.user.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- documents --------------------------------------------------------------------------------------------------------


async def test_job_document_tells_everything(api: Api, manifest: Manifest) -> None:
    """The document has what the contract promises, and unknown numbers are null and not 0."""
    job_id = await at_the_gate(api, manifest)
    document = await get(api, f"/fleet/jobs/{job_id}")
    promised = {"id", "product_id", "title", "stage", "conditions", "attempts", "commits", "candidate_sha", "tokens"}
    assert promised | {"cost", "waiting", "verdict", "repository", "workflow_id"} <= document.keys()
    assert {"epoch", "factory", "engine", "outcome"} <= document["attempts"][0].keys()
    assert (document["tokens"], document["cost"]["usd"]) == (None, None)
    assert document["workflow_id"] == f"gf-job-default-{job_id}"


async def test_snapshot_is_what_was_submitted(api: Api, manifest: Manifest) -> None:
    """The manifest is kept as written, with the provenance of each value and the profile."""
    text = manifest("profile: solo")
    snapshot = await get(api, f"/fleet/jobs/{await api.submit(text)}/snapshot")
    assert snapshot["documents"]["manifest"] == text
    assert snapshot["documents"]["profile"]["name"] == "solo"
    assert snapshot["spec"]["engine"] == "shell"
    assert {row["field"] for row in snapshot["documents"]["provenance"]} >= {"engine", "timeout", "verify"}


async def test_unknown_job_is_404_on_every_path(api: Api) -> None:
    """Each path of a job that does not exist answers 404 with its id in the message."""
    for rest in (
        "",
        "/snapshot",
        "/events",
        "/events/check",
        "/logs",
        "/stream",
        "/explanation",
        "/artifacts",
        "/diff",
    ):
        answer = await api.user.get(f"/fleet/jobs/j-0000000000{rest}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), rest
        assert "j-0000000000" in answer.json()["detail"]


async def test_id_that_no_job_can_have_is_422(api: Api) -> None:
    """A malformed id is told as such."""
    assert (await api.user.get("/fleet/jobs/J%20%00")).status_code == 422


async def test_list_is_paged_newest_first_and_filtered(api: Api, manifest: Manifest) -> None:
    """Pages follow each other without gap or repetition; filters by stage and product hold."""
    jobs = [{"manifest": manifest(f"product: {'left' if n % 2 else 'right'}")} for n in range(7)]
    ids = [job["id"] for job in (await api.user.post("/fleet/jobs", json={"jobs": jobs})).json()["jobs"]]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await get(api, "/fleet/jobs", limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == sorted(ids, reverse=True)
    left = await get(api, "/fleet/jobs", product="left")
    assert len(left["jobs"]) == 3
    assert (await get(api, "/fleet/jobs", stage=["shipped", "failed"]))["jobs"] == []
    assert len((await get(api, "/fleet/jobs", stage=["queued", "failed"]))["jobs"]) == 7


@pytest.mark.parametrize("query", [{"cursor": "x"}, {"limit": 0}, {"limit": 1000}, {"stage": "done"}], ids=str)
async def test_malformed_list_query_is_refused(api: Api, query: dict[str, Any]) -> None:
    """A cursor that is none, a limit out of range, a stage that is none: 422."""
    assert (await api.user.get("/fleet/jobs", params=query)).status_code == 422


async def test_events_go_on_behind_a_number_and_their_chain_holds(api: Api, manifest: Manifest) -> None:
    """`after` pages the log; the chain is checked on demand."""
    job_id = await at_the_gate(api, manifest)
    everything = await get(api, f"/fleet/jobs/{job_id}/events")
    seqs = [event["seq"] for event in everything["events"]]
    assert seqs == list(range(1, len(seqs) + 1))
    assert everything["next_after"] == seqs[-1]
    rest = await get(api, f"/fleet/jobs/{job_id}/events", after=2, limit=2)
    assert [event["seq"] for event in rest["events"]] == [3, 4]
    checked = await get(api, f"/fleet/jobs/{job_id}/events/check")
    assert (checked["ok"], checked["events"]) == (True, len(seqs))


async def test_explanation_says_why_a_job_waits(api: Api, manifest: Manifest) -> None:
    """No factory: the router's complete answer, as value and as lines, with what the job waits for."""
    job_id = await api.submit(manifest("capabilities: [has:xcode]"))
    found = await get(api, f"/fleet/jobs/{job_id}/explanation")
    assert found["stage"] == "queued"
    assert found["explanation"]["verdict"] == "never"
    assert found["waiting"]["kind"] == "capacity"
    assert any("has:xcode" in line for line in found["lines"])


async def test_explanation_of_a_place_says_why_not_there(api: Api, manifest: Manifest) -> None:
    """For a job that waits, the reasons of one factory and what would help; an unknown factory or job is a 404."""
    await api.ledger.register_factory(some_factory(), datetime.now(UTC))
    job_id = await api.submit(manifest("capabilities: [has:xcode]"))
    found = await get(api, f"/fleet/jobs/{job_id}/explanation/brisk-otter")
    assert (found["stage"], found["decided_at"]) == ("queued", None)
    assert found["answer"]["verdict"] == "never"
    assert [rejection["code"] for rejection in found["answer"]["rejections"]] == ["capability"]
    assert found["lines"][-1] == "  smallest change: drop has:xcode"
    for path in (f"/fleet/jobs/{job_id}/explanation/nowhere", "/fleet/jobs/j-none/explanation/brisk-otter"):
        assert (await api.user.get(path)).status_code == 404


async def test_explanation_of_a_place_is_that_of_the_decision(api: Api, manifest: Manifest) -> None:
    """A job that has a seat: why it was that one, also of a factory that came only later."""
    job_id = await at_the_gate(api, manifest, verify="passed")
    answer = (await get(api, f"/fleet/jobs/{job_id}/explanation/brisk-otter"))["answer"]
    assert answer["verdict"] == "runs_there"
    await api.ledger.register_factory(some_factory("late-otter"), datetime.now(UTC))
    late = await get(api, f"/fleet/jobs/{job_id}/explanation/late-otter")
    assert late["answer"] is None
    assert late["message"].startswith(f"late-otter was not in the fleet when {job_id} was placed")


# --- what a job waits for ---------------------------------------------------------------------------------------------


async def test_open_gate_waits_for_a_human_with_the_ship_command(api: Api, manifest: Manifest) -> None:
    """Verify green, or nothing to verify: a person decides, and is told how."""
    for verify in ("passed", "none"):
        job_id = await at_the_gate(api, manifest, verify=verify)
        waiting = (await get(api, f"/fleet/jobs/{job_id}"))["waiting"]
        assert (waiting["kind"], waiting["command"]) == ("human", f"gf ship {job_id}")


async def test_blocked_gate_waits_for_a_human_without_the_ship_command(api: Api, manifest: Manifest) -> None:
    """Out of scope: the paths are shown, and shipping is not what is offered."""
    job_id = await at_the_gate(api, manifest, out_of_scope=("etc/passwd",))
    waiting = (await get(api, f"/fleet/jobs/{job_id}"))["waiting"]
    assert waiting["kind"] == "human"
    assert "etc/passwd" in waiting["message"]
    assert "gf ship" not in waiting["command"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stage": Stage.QUEUED}, "capacity"),
        ({"stage": Stage.ASSIGNED}, None),
        ({"stage": Stage.BUILDING}, None),
        ({"stage": Stage.REVIEW}, None),
        ({"stage": Stage.TESTING}, "human"),
        ({"stage": Stage.TESTING, "review_policy": "auto"}, None),
        ({"stage": Stage.SHIPPED}, None),
        ({"stage": Stage.DEAD_LETTER}, None),
        ({"stage": Stage.BUILDING, "conditions": (Condition(type="paused", reason="operator", message=""),)}, "human"),
        ({"conditions": (Condition(type="blocked", reason="parents", message="j-1"),)}, "parents"),
        ({"conditions": (Condition(type="blocked", reason="backoff", message="later"),)}, "time"),
        ({"conditions": (Condition(type="blocked", reason="usage_limit", message="later"),)}, "time"),
        ({"conditions": (Condition(type="blocked", reason="something new", message="?"),)}, "human"),
    ],
    ids=str,
)
async def test_what_a_job_waits_for(
    api: Api, manifest: Manifest, changes: dict[str, Any], expected: str | None
) -> None:
    """Each way of standing still has its kind; a job that moves or has ended waits for nothing."""
    job = await api.ledger.job(await api.submit(manifest()))
    found = waits_for(job.model_copy(update=changes))
    assert (found and found.kind) == expected


# --- actions ----------------------------------------------------------------------------------------------------------


async def test_action_reaches_the_workflow_with_its_author(api: Api, manifest: Manifest) -> None:
    """Action, candidate, reason and who did it are handed on; the answer says where the job is."""
    job_id = await at_the_gate(api, manifest)
    body = {"action": "ship", "sha": SHA, "reason": "looks good"}
    answer = await api.user.post(f"/fleet/jobs/{job_id}/actions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"id": job_id, "action": "ship", "stage": "testing", "conditions": []}
    assert api.temporal.taken == [{"job": job_id, "action": "ship", "sha": SHA, "reason": "looks good", "by": "tess"}]


async def test_illegal_action_is_409_with_the_reason(api: Api, manifest: Manifest) -> None:
    """What the workflow refuses comes back as a problem with its words."""
    job_id = await api.submit(manifest())
    api.temporal.refusal = f"job {job_id} is queued; ship is possible from review or testing"
    answer = await api.user.post(f"/fleet/jobs/{job_id}/actions", json={"action": "ship", "sha": SHA})
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_action")
    assert answer.json()["detail"] == api.temporal.refusal


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"action": "destroy"},
        {"action": 3},
        {"action": "ship", "sha": "zz"},
        {"action": "ship", "sha": "a" * 65},
        {"action": "pause", "force": True},
        {"action": "pause", "reason": "x" * 2001},
    ],
    ids=lambda body: str(body)[:40],
)
async def test_malformed_action_is_422_and_reaches_nobody(api: Api, manifest: Manifest, body: Any) -> None:
    """Garbage stops at the door."""
    job_id = await api.submit(manifest())
    answer = await api.user.post(f"/fleet/jobs/{job_id}/actions", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]
    assert api.temporal.taken == []


# --- while Temporal is away -------------------------------------------------------------------------------------------


async def test_reads_and_submit_work_while_temporal_is_away(api: Api, manifest: Manifest) -> None:
    """A job is taken in and shown; only an action has to wait, and says so with 503 and when to come back."""
    api.temporal.away = True
    job_id = await api.submit(manifest())
    assert (await get(api, f"/fleet/jobs/{job_id}"))["stage"] == "queued"
    answer = await api.user.post(f"/fleet/jobs/{job_id}/actions", json={"action": "cancel"})
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "unavailable", True)
    assert answer.headers["retry-after"] == "1"
    health = await get(api, "/fleet/health")
    assert health["status"] == "degraded"
    assert health["parts"] == {"ledger": "ok", "temporal": "not connected yet"}


async def test_health_is_down_without_tables(api: Api) -> None:
    """A ledger without its tables makes the API not ready: 503."""
    with sqlite3.connect(api.home / "ledger.db") as database:
        database.execute("ALTER TABLE jobs RENAME TO gone")
    answer = await api.stranger.get("/fleet/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "down")
    assert answer.json()["parts"]["ledger"] != "ok"
