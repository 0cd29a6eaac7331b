"""Taking jobs in over HTTP: all mistakes at once, nothing by halves, the same job once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from api.ids import ALPHABET, JobIds
from tests.api.conftest import Api, Manifest, git


async def jobs_in(api: Api) -> list[dict[str, Any]]:
    """Return all jobs that the API lists."""
    found: list[dict[str, Any]] = (await api.user.get("/fleet/jobs")).json()["jobs"]
    return found


async def test_submit_takes_a_job_in_and_tells_its_id(api: Api, manifest: Manifest, repository: Path) -> None:
    """A sound job file becomes a queued job of the caller, placed at the tip of its repository, and is dispatched."""
    answer = await api.user.post("/fleet/jobs", json={"manifest": manifest("verify: test -f hi.txt")})
    assert answer.status_code == 201, answer.text
    (job,) = answer.json()["jobs"]
    assert (job["created"], job["title"], job["stage"]) == (True, "A job", "queued")
    document = (await api.user.get(f"/fleet/jobs/{job['id']}")).json()
    assert document["submitted_by"] == "tess"
    assert document["repository"]["base_sha"] == git(repository, "rev-parse", "main")
    assert api.dispatcher.wakes == 1
    submitted_at = (await api.ledger.job(job["id"])).submitted_at
    assert await api.ledger.claim_outbox(submitted_at) == ()
    rows = await api.ledger.claim_outbox(submitted_at + timedelta(seconds=api.backend.settings.seat_wait_s))
    assert [(row.kind, row.job_id) for row in rows] == [("start", job["id"])]


async def test_job_sent_as_fields_is_the_same_job(api: Api, manifest: Manifest, repository: Path) -> None:
    """Front matter as a JSON object with `body` is another spelling of the file."""
    fields = {
        "engine": "shell",
        "repo": str(repository),
        "idempotency-key": "k",
        "body": "# A job\n\necho hi > hi.txt\n",
    }
    first = await api.user.post("/fleet/jobs", json={"manifest": fields})
    again = await api.user.post("/fleet/jobs", json={"manifest": manifest("idempotency-key: k")})
    assert first.status_code == 201, first.text
    assert again.status_code == 200, again.text
    assert again.json()["jobs"][0]["id"] == first.json()["jobs"][0]["id"]
    assert again.json()["jobs"][0]["created"] is False


async def test_cwd_is_relative_to_the_file(api: Api, manifest: Manifest, repository: Path) -> None:
    """`cwd: .` is the directory that the caller names, and what was left out is told."""
    (repository / "dirty.txt").write_text("x")
    job = {"manifest": manifest(where="cwd: ."), "cwd_base": str(repository), "source": "job.md"}
    answer = await api.user.post("/fleet/jobs", json=job)
    assert answer.status_code == 201, answer.text
    assert any("dirty.txt" in notice for notice in answer.json()["jobs"][0]["notices"])


BROKEN = {
    "no front matter": ("# only a body\n", "front-matter"),
    "front matter not closed": ("---\nengine: shell\n", "front-matter"),
    "no YAML": ("---\nengine: [\n---\nx\n", "front-matter"),
    "unknown field": ("---\nengine: shell\nrepo: {repo}\nretires: 3\n---\nx\n", "retires"),
    "unknown engine": ("---\nengine: shel\nrepo: {repo}\n---\nx\n", "engine"),
    "unknown profile": ("---\nprofile: nobody\nrepo: {repo}\n---\nx\n", "profile"),
    "no place to work on": ("---\nengine: shell\n---\nx\n", "cwd"),
    "two places": ("---\nengine: shell\nrepo: {repo}\ncwd: /\n---\nx\n", "repo"),
    "bad duration": ("---\nengine: shell\nrepo: {repo}\ntimeout: soon\n---\nx\n", "timeout"),
    "ship mode not allowed": ("---\nengine: shell\nrepo: {repo}\nship: base\n---\nx\n", "ship"),
    "not built yet": ("---\nengine: shell\nrepo: {repo}\nship: pr\n---\nx\n", "ship"),
    "empty body": ("---\nengine: shell\nrepo: {repo}\n---\n\n", "body"),
    "no such repository": ("---\nengine: shell\nrepo: {repo}/nothing\n---\nx\n", "repo"),
    "no such branch": ("---\nengine: shell\nrepo: {repo}\nbase: mian\n---\nx\n", "base"),
    "no such directory": ("---\nengine: shell\ncwd: {repo}/nothing\n---\nx\n", "cwd"),
    "body that the engine cannot play": ("---\nengine: replay\nrepo: {repo}\n---\nno steps\n", "body"),
    "unknown parent": ("---\nengine: shell\nrepo: {repo}\ndeps: [j-0000000000]\n---\nx\n", "deps"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_manifest_is_refused_with_its_field_and_starts_nothing(
    api: Api, repository: Path, case: str
) -> None:
    """Each kind of mistake is a 422 that names field and problem; there is no job and no message afterwards."""
    text, path = BROKEN[case]
    answer = await api.user.post("/fleet/jobs", json={"manifest": text.replace("{repo}", str(repository))})
    problem = answer.json()
    assert answer.status_code == 422, problem
    assert problem["code"] in ("invalid_manifest", "invalid_input")
    assert any(item["path"].startswith(path) for item in problem["errors"]), problem
    assert all(item["message"] for item in problem["errors"])
    assert await jobs_in(api) == []
    assert api.dispatcher.wakes == 0


async def test_every_mistake_is_told_at_once_with_its_line(api: Api) -> None:
    """Five mistakes give five problems, each with the line that it stands in."""
    text = "---\nengine: shel\ntimeout: soon\nverfy: x\npriority: urgent\nship: pr\n---\n\n"
    problem = (await api.user.post("/fleet/jobs", json={"manifest": text, "source": "job.md"})).json()
    lines = {item["path"]: item.get("line") for item in problem["errors"]}
    assert {"engine": 2, "timeout": 3, "verfy": 4, "priority": 5, "ship": 6}.items() <= lines.items()
    assert {"cwd", "body"} <= lines.keys()
    suggestions = {item["path"]: item.get("suggestion") for item in problem["errors"]}
    assert suggestions["engine"] == "shell"
    assert suggestions["verfy"] == "verify"
    assert problem["detail"].startswith("job.md is not valid")


async def test_one_broken_file_of_several_starts_none(api: Api, manifest: Manifest) -> None:
    """A batch is taken in as a whole; the mistakes name their file."""
    jobs = [
        {"manifest": manifest(), "source": "good.md"},
        {"manifest": manifest("timeout: soon"), "source": "bad.md"},
        {"manifest": manifest("priority: no"), "source": "worse.md"},
    ]
    answer = await api.user.post("/fleet/jobs", json={"jobs": jobs})
    assert answer.status_code == 422
    assert [item["path"] for item in answer.json()["errors"]] == ["bad.md: timeout", "worse.md: priority"]
    assert await jobs_in(api) == []


async def test_conflict_of_one_job_of_several_starts_none(api: Api, manifest: Manifest) -> None:
    """What only the ledger can refuse undoes the whole batch too."""
    await api.submit(manifest("idempotency-key: k"))
    jobs = [{"manifest": manifest()}, {"manifest": manifest("idempotency-key: k", "priority: high")}]
    assert (await api.user.post("/fleet/jobs", json={"jobs": jobs})).status_code == 409
    assert len(await jobs_in(api)) == 1


async def test_batch_is_taken_in_in_order_and_may_name_its_own_jobs(api: Api, manifest: Manifest) -> None:
    """A job of a batch may wait for another one by that one's idempotency key."""
    jobs = [
        {"manifest": manifest("idempotency-key: child", "deps: ['key:parent']")},
        {"manifest": manifest("idempotency-key: parent")},
    ]
    answer = await api.user.post("/fleet/jobs", json={"jobs": jobs})
    assert answer.status_code == 201, answer.text
    child, parent = (job["id"] for job in answer.json()["jobs"])
    assert (await api.user.get(f"/fleet/jobs/{child}")).json()["deps"][0]["job_id"] == parent
    later = await api.submit(manifest("deps: ['key:parent']"))
    assert (await api.user.get(f"/fleet/jobs/{later}")).json()["deps"][0]["job_id"] == parent


async def test_unknown_key_of_a_parent_is_told(api: Api, manifest: Manifest) -> None:
    """`key:` of nobody is a mistake in `deps`, with its line."""
    answer = await api.user.post("/fleet/jobs", json={"manifest": manifest("deps: ['key:nobody']")})
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert (problem["path"], problem["line"]) == ("deps[0]", 4)


# --- idempotency ------------------------------------------------------------------------------------------------------


async def test_same_key_and_content_is_one_job(api: Api, manifest: Manifest) -> None:
    """Sent five times at once under one key, by header or field, there is one job."""
    plain, keyed = manifest(), manifest("idempotency-key: k-1")
    calls = [
        api.user.post("/fleet/jobs", json={"manifest": plain}, headers={"Idempotency-Key": "k-1"}) for _ in range(4)
    ]
    answers = await asyncio.gather(*calls, api.user.post("/fleet/jobs", json={"manifest": keyed}))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 201]
    assert len({answer.json()["jobs"][0]["id"] for answer in answers}) == 1
    assert len(await jobs_in(api)) == 1


async def test_same_key_with_other_content_names_the_fields(api: Api, manifest: Manifest) -> None:
    """Other content under the key is a conflict that says what differs and whose key it is."""
    first = await api.submit(manifest("idempotency-key: k"))
    answer = await api.user.post("/fleet/jobs", json={"manifest": manifest("idempotency-key: k", "timeout: 3m")})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "idempotency_conflict")
    assert problem["job_id"] == first
    assert any("timeout" in name for name in problem["differs"])


async def test_key_of_header_and_file_must_be_the_same(api: Api, manifest: Manifest) -> None:
    """Two different keys for one job are a mistake, and so is one key for two jobs."""
    two_keys = await api.user.post(
        "/fleet/jobs", json={"manifest": manifest("idempotency-key: a")}, headers={"Idempotency-Key": "b"}
    )
    two_jobs = await api.user.post(
        "/fleet/jobs",
        json={"jobs": [{"manifest": manifest()}, {"manifest": manifest()}]},
        headers={"Idempotency-Key": "b"},
    )
    assert (two_keys.status_code, two_jobs.status_code) == (422, 422)
    assert await jobs_in(api) == []


# --- explain ----------------------------------------------------------------------------------------------------------


async def test_explain_tells_fields_place_and_routing_and_starts_nothing(api: Api, manifest: Manifest) -> None:
    """Every field with its source, the repository, and what the router would do; no job comes of it."""
    answer = await api.user.post("/fleet/explain", json={"manifest": manifest("profile: solo", "ship: base")})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    sources = {row["field"]: row["source"] for row in found["fields"]}
    assert sources["ship"] == "job"
    assert sources["timeout"] == "default"
    assert found["repository"]["base"] == "main"
    assert found["routing"]["verdict"] == "never"
    assert found["routing_lines"]
    assert await jobs_in(api) == []


async def test_explain_of_a_broken_file_tells_what_submit_would(api: Api) -> None:
    """Explain and submit give the same mistakes."""
    job = {"manifest": "---\nengine: shel\n---\nx\n"}
    explained = (await api.user.post("/fleet/explain", json=job)).json()
    refused = (await api.user.post("/fleet/jobs", json=job)).json()
    assert explained["errors"] == refused["errors"]


# --- ids --------------------------------------------------------------------------------------------------------------


def test_job_ids_grow_and_never_repeat() -> None:
    """Ten thousand ids in a row are distinct, sorted by age, and twelve characters of a plain alphabet."""
    maker = JobIds()
    made = [maker.next_id() for _ in range(10_000)]
    assert made == sorted(set(made))
    assert all(len(job_id) == 12 and set(job_id[2:]) <= set(ALPHABET) for job_id in made)
