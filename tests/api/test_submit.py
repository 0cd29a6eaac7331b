"""Taking jobs in over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.conftest import Api, Manifest


async def test_submit_takes_a_job_in_and_tells_its_id(api: Api, manifest: Manifest) -> None:
    """A sound job file becomes a queued job of the caller, and a pass of the dispatcher is asked for."""
    answer = await api.user.post("/fleet/jobs", json={"manifest": manifest("verify: test -f hi.txt")})
    assert answer.status_code == 201, answer.text
    (job,) = answer.json()["jobs"]
    assert job["created"] is True
    assert job["title"] == "A job"
    document = (await api.user.get(f"/fleet/jobs/{job['id']}")).json()
    assert document["stage"] == "queued"
    assert document["submitted_by"] == "tess"
    assert api.dispatcher.wakes == 1
