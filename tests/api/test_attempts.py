"""What factories write: reports, files, death certificates, beats; all of it behind the fence of its epoch."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Any

import pytest

from api.backend import utc_now
from core.attempt import BuildResult
from tests.api.conftest import Api, Manifest

AT = "2026-01-02T03:04:05+00:00"
SHA = "a" * 40


def report(**parts: Any) -> dict[str, Any]:
    """Return a report of an attempt."""
    return {"factory": "brisk-otter", "instance": "a1", **parts}


def lines(*texts: str, stream: str = "stdout", first_seq: int = 1) -> dict[str, Any]:
    """Return a block of log lines."""
    return {"stream": stream, "first_seq": first_seq, "lines": [{"at": AT, "text": text} for text in texts]}


async def running(api: Api, manifest: Manifest) -> str:
    """Return a job that epoch 1 has a seat for."""
    job_id = await api.submit(manifest())
    await api.grant(job_id)
    return job_id


async def test_report_is_applied_whole_and_again_changes_nothing(api: Api, manifest: Manifest) -> None:
    """Start, lines, steps, checkpoint and result arrive in one request; sent twice, they are there once."""
    job_id = await running(api, manifest)
    body = report(
        started={"at": AT, "pid": 7, "engine_version": "1.2", "workdir": "/w"},
        logs=[lines("one", "two"), lines("oops", stream="stderr")],
        events={
            "first_seq": 1,
            "events": [{"at": AT, "type": "tool", "message": "edit a.txt", "data": {"tool": "edit"}}],
        },
        checkpoint={"sha": SHA},
        result={"sha": SHA, "answer": BuildResult(job_id=job_id, epoch=1, outcome="succeeded").model_dump(mode="json")},
    )
    path = f"/fleet/attempts/{job_id}/1/report"
    for _ in range(2):
        answer = await api.factory.post(path, json=body)
        assert (answer.status_code, answer.json()) == (200, {"accepted": True}), answer.text
    shown = (await api.user.get(f"/fleet/jobs/{job_id}/logs")).json()["lines"]
    assert [(line["stream"], line["text"]) for line in shown] == [
        ("stdout", "one"),
        ("stdout", "two"),
        ("stderr", "oops"),
    ]
    steps = [
        e for e in (await api.user.get(f"/fleet/jobs/{job_id}/events")).json()["events"] if e["type"] == "attempt.step"
    ]
    assert [step["message"] for step in steps] == ["edit a.txt"]
    document = (await api.user.get(f"/fleet/jobs/{job_id}")).json()
    assert document["stage"] == "review"
    assert document["checkpoint_sha"] == SHA
    accepted = await api.ledger.accepted_result(job_id, 1)
    assert accepted is not None


async def test_output_after_the_result_is_still_taken(api: Api, manifest: Manifest) -> None:
    """Verify prints after the candidate was accepted; its lines belong to the same epoch."""
    job_id = await running(api, manifest)
    path = f"/fleet/attempts/{job_id}/1/report"
    assert (await api.factory.post(path, json=report(result={"sha": SHA}))).status_code == 200
    assert (await api.factory.post(path, json=report(logs=[lines("ok", stream="verify")]))).status_code == 200


@pytest.mark.parametrize(
    "part",
    [
        {"started": {"at": AT}},
        {"logs": [lines("late")]},
        {"events": {"first_seq": 1, "events": [{"at": AT, "type": "tool"}]}},
        {"checkpoint": {"sha": SHA}},
        {"result": {"sha": SHA}},
    ],
    ids=lambda part: str(next(iter(part))),
)
@pytest.mark.parametrize("epoch", [1, 2])
async def test_write_of_a_lost_or_unknown_epoch_is_refused_and_leaves_a_trace(
    api: Api, manifest: Manifest, part: dict[str, Any], epoch: int
) -> None:
    """Nothing of a stale write is applied; 409 `stale_epoch` tells the attempt to stop, an event tells the auditor."""
    job_id = await running(api, manifest)
    await api.ledger.mark_lost(job_id, 1, "test", "", (await api.ledger.job(job_id)).updated_at)
    answer = await api.factory.post(f"/fleet/attempts/{job_id}/{epoch}/report", json=report(**part))
    assert answer.status_code == 409
    assert answer.json()["code"] == "stale_epoch"
    assert answer.json()["epoch"] == epoch
    document = (await api.user.get(f"/fleet/jobs/{job_id}")).json()
    assert (document["checkpoint_sha"], document["refused_writes"]) == ("", 1)
    assert (await api.user.get(f"/fleet/jobs/{job_id}/logs")).json()["lines"] == []
    events = (await api.user.get(f"/fleet/jobs/{job_id}/events")).json()["events"]
    assert [event["type"] for event in events].count("write.refused") == 1
    assert "attempt.started" not in [event["type"] for event in events]


async def test_malformed_report_names_every_field(api: Api, manifest: Manifest) -> None:
    """Wrong types and missing parts are told at once, with the path of each."""
    job_id = await running(api, manifest)
    body = {"started": {"at": "today"}, "logs": [{"stream": "STD OUT", "first_seq": 0, "lines": []}]}
    answer = await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=body)
    paths = {item["path"] for item in answer.json()["errors"]}
    assert answer.status_code == 422
    assert paths == {"body.started.at", "body.logs.0.stream", "body.logs.0.first_seq"}


async def test_report_of_a_newer_factory_is_read(api: Api, manifest: Manifest) -> None:
    """Fields that this version does not know are ignored, so that a newer factory can report to it."""
    job_id = await running(api, manifest)
    answer = await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=report(logs=[lines("x")], novelty=1))
    assert answer.status_code == 200


async def test_report_wakes_readers(api: Api, manifest: Manifest) -> None:
    """Streams of the job in this process hear of a report at once."""
    job_id = await running(api, manifest)
    with api.backend.wakeups.listening(job_id) as changed:
        await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=report(logs=[lines("x")]))
        assert changed.is_set()


# --- files ------------------------------------------------------------------------------------------------------------


async def send_file(api: Api, job_id: str, path: str, content: bytes, **changes: Any) -> Any:
    """Send a captured file of epoch 1."""
    query = {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "kind": "file"} | changes
    return await api.factory.post(f"/fleet/attempts/{job_id}/1/artifacts", params=query, content=content)


async def test_captured_file_is_kept_and_can_be_had(api: Api, manifest: Manifest) -> None:
    """The bytes come back as they were, as a download, and are listed with size and hash."""
    job_id = await running(api, manifest)
    content = bytes(range(256)) * 5000
    for _ in range(2):
        assert (await send_file(api, job_id, "out/report.html", content)).status_code == 201
    (listed,) = (await api.user.get(f"/fleet/jobs/{job_id}/artifacts")).json()["artifacts"]
    assert (listed["path"], listed["size"]) == ("out/report.html", len(content))
    assert "location" not in listed
    got = await api.user.get(listed["href"])
    assert got.content == content
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"].startswith("attachment")


async def test_diff_of_the_newest_attempt_is_served_as_text(api: Api, manifest: Manifest) -> None:
    """The file named `diff.patch` is what `/diff` answers; without one it is 404 with a hint."""
    job_id = await running(api, manifest)
    missing = await api.user.get(f"/fleet/jobs/{job_id}/diff")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    diff = b"diff --git a/x b/x\n+\xc3\xa4\n"
    await send_file(api, job_id, "diff.patch", diff, kind="diff")
    got = await api.user.get(f"/fleet/jobs/{job_id}/diff")
    assert (got.content, got.headers["content-type"]) == (diff, "text/x-diff; charset=utf-8")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "a/./b", "a\nb", "a\\b", "x" * 300, "."])
async def test_path_that_leaves_its_place_is_refused(api: Api, manifest: Manifest, path: str) -> None:
    """No captured file is written outside its attempt's directory."""
    job_id = await running(api, manifest)
    answer = await send_file(api, job_id, path, b"x")
    assert answer.status_code == 422
    assert not (api.home / "artifacts").exists()


async def test_file_with_another_hash_is_refused_and_leaves_nothing(api: Api, manifest: Manifest) -> None:
    """A body that was cut or changed on the way is not kept."""
    job_id = await running(api, manifest)
    answer = await send_file(api, job_id, "a.txt", b"x", sha256="0" * 64)
    assert answer.status_code == 422
    assert list((api.home / "artifacts" / job_id / "1").iterdir()) == []


async def test_file_of_a_stale_epoch_is_refused_before_it_is_read(api: Api, manifest: Manifest) -> None:
    """The fence comes first: nothing of a stale attempt reaches the disk."""
    job_id = await running(api, manifest)
    await api.ledger.mark_lost(job_id, 1, "test", "", (await api.ledger.job(job_id)).updated_at)
    answer = await send_file(api, job_id, "a.txt", b"x")
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_epoch")
    assert not (api.home / "artifacts").exists()


def small_file(path: str = "diff.patch", content: bytes = b"+x\n", **changes: Any) -> dict[str, Any]:
    """Return a small file as it travels in a report."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"path": path, "kind": "diff", "sha256": sha256, "body": b64encode(content).decode()} | changes


async def test_small_file_travels_in_a_report(api: Api, manifest: Manifest) -> None:
    """It is kept like one that has a request of its own; the same report again is the same file."""
    job_id = await running(api, manifest)
    for _ in range(2):
        answer = await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=report(files=[small_file()]))
        assert answer.status_code == 200, answer.text
    assert (await api.user.get(f"/fleet/jobs/{job_id}/diff")).content == b"+x\n"
    assert [file.name for file in (api.home / "artifacts" / job_id / "1").iterdir()] == ["diff.patch"]


@pytest.mark.parametrize(("field", "value"), [("path", "../x"), ("sha256", "0" * 64)])
async def test_bad_small_file_is_refused_with_its_field(api: Api, manifest: Manifest, field: str, value: str) -> None:
    """Nothing of a report with a bad file is taken, not even the good file before it."""
    job_id = await running(api, manifest)
    files = [small_file("good.txt"), small_file() | {field: value}]
    body = report(logs=[lines("x")], files=files)
    answer = await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=body)
    assert [problem["path"] for problem in answer.json()["errors"]] == [f"body.files.1.{field}"]
    assert not (api.home / "artifacts").exists()
    assert (await api.user.get(f"/fleet/jobs/{job_id}/logs")).json()["lines"] == []


async def test_small_file_of_a_stale_epoch_changes_nothing(api: Api, manifest: Manifest) -> None:
    """A zombie's file does not take the place of what was captured before."""
    job_id = await running(api, manifest)
    await send_file(api, job_id, "diff.patch", b"first", kind="diff")
    await api.ledger.mark_lost(job_id, 1, "test", "", (await api.ledger.job(job_id)).updated_at)
    answer = await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=report(files=[small_file()]))
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_epoch")
    assert (await api.user.get(f"/fleet/jobs/{job_id}/diff")).content == b"first"
    assert [file.name for file in (api.home / "artifacts" / job_id / "1").iterdir()] == ["diff.patch"]


# --- death ------------------------------------------------------------------------------------------------------------


def certificate(job: str, **changes: Any) -> dict[str, Any]:
    """Return a death certificate of epoch 1."""
    values = {"job_id": job, "epoch": 1, "group_dead": True, "checkpoint_sha": SHA, "reason": "agent_died"}
    return values | {"issued_at": AT} | changes


async def test_death_certificate_frees_the_seat_at_once(api: Api, manifest: Manifest) -> None:
    """The epoch is lost, the checkpoint known, a pass asked for; a second certificate is old news."""
    job_id = await running(api, manifest)
    path = f"/fleet/attempts/{job_id}/1/death"
    wakes = api.dispatcher.wakes
    first = await api.factory.post(path, json=certificate(job_id))
    second = await api.factory.post(path, json=certificate(job_id))
    assert (first.json(), second.json()) == ({"accepted": True}, {"accepted": False})
    assert api.dispatcher.wakes > wakes
    job = await api.ledger.job(job_id)
    assert (job.attempts[0].lease, job.checkpoint_sha) == ("lost", SHA)


@pytest.mark.parametrize("change", [{"job_id": "j-other"}, {"epoch": 2}, {"issued_at": "x"}, {"group_dead": "perhaps"}])
async def test_certificate_for_another_attempt_or_malformed_is_refused(
    api: Api, manifest: Manifest, change: dict[str, Any]
) -> None:
    """A certificate says which attempt it is about, and that must be the one of the path."""
    job_id = await running(api, manifest)
    answer = await api.factory.post(f"/fleet/attempts/{job_id}/1/death", json=certificate(job_id, **change))
    assert answer.status_code == 422


async def test_certificate_without_certainty_is_refused(api: Api, manifest: Manifest) -> None:
    """As long as something of the group may live, the lease decides."""
    job_id = await running(api, manifest)
    answer = await api.factory.post(f"/fleet/attempts/{job_id}/1/death", json=certificate(job_id, group_dead=False))
    assert answer.status_code == 409
    assert (await api.ledger.job(job_id)).attempts[0].lease == "living"


@pytest.mark.req("F6")
async def test_attempt_that_says_it_lives_hears_whether_it_may_go_on(api: Api, manifest: Manifest) -> None:
    """It may; it is wanted to stop; it has lost its lease; a stranger may not speak for it."""
    job_id = await running(api, manifest)
    path = f"/fleet/attempts/{job_id}/1/alive"
    answer = await api.factory.post(path, json={})
    assert (answer.status_code, answer.json()) == (200, {"stop": ""})
    await api.ledger.request_stop(job_id, utc_now())
    assert (await api.factory.post(path, json={})).json() == {"stop": "cancelled"}
    await api.ledger.mark_lost(job_id, 1, "silent", "", utc_now())
    answer = await api.factory.post(path, json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_epoch")


@pytest.mark.req("F6")
async def test_result_of_an_adopted_attempt_wakes_who_delivers_signals(api: Api, manifest: Manifest) -> None:
    """The workflow waits for it; nobody else would tell it before the next pass."""
    job_id = await running(api, manifest)
    await api.factory.post(f"/fleet/attempts/{job_id}/1/alive", json={})
    assert await api.ledger.adopt(job_id, 1, utc_now()) is not None
    wakes = api.dispatcher.wakes
    body = report(result={"sha": SHA})
    assert (await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=body)).status_code == 200
    assert api.dispatcher.wakes == wakes + 1


@pytest.mark.req("F5")
async def test_work_that_was_finished_without_a_lease_is_shown_once_and_changes_nothing(
    api: Api, manifest: Manifest
) -> None:
    """Its ref is in the job's events; the lease is given up with it, and no candidate comes of it."""
    job_id = await running(api, manifest)
    path, ref = f"/fleet/attempts/{job_id}/1/quarantined", f"refs/gigafactory/quarantine/{job_id}/1"
    body = {"ref": ref, "sha": SHA, "message": "the engine ended without a lease (exited)"}
    answers = [(await api.factory.post(path, json=body)).json() for _ in range(2)]
    assert answers == [{"accepted": True}, {"accepted": False}]
    events = (await api.user.get(f"/fleet/jobs/{job_id}/events")).json()["events"]
    (kept,) = [event for event in events if event["type"] == "attempt.quarantined"]
    assert (kept["data"]["ref"], kept["data"]["sha"], kept["epoch"]) == (ref, SHA, 1)
    document = (await api.user.get(f"/fleet/jobs/{job_id}")).json()
    assert (document["attempts"][0]["outcome"], document["candidate_sha"]) == ("lease_lost", "")
    wrong = await api.factory.post(path, json=body | {"ref": "refs/heads/main"})
    assert wrong.status_code == 422
