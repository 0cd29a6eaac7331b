"""What the API hears when Temporal or the control workers do not answer."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.client import Client

from core.attempt import workflow_id
from core.errors import NotFound, Unavailable
from core.job import Stage
from core.settings import Settings
from store import migrate, open_ledger
from store.views import JobView
from tests.store.fleet import make_spec
from workflows import job_client
from workflows.job_client import JobClient


def review(job_id: str) -> JobView:
    """Return a job that waits for a human."""
    now = datetime.now(UTC)
    values = {"id": job_id, "product_id": "default", "title": "t", "stage": Stage.REVIEW, "priority": "medium"}
    times = {"submitted_at": now, "updated_at": now, "queued_at": now}
    return JobView.model_validate(values | times | {"repository": {}, "ship": "branch", "review_policy": "manual"})


@pytest.fixture
async def jobs(temporal_client: Client, tmp_path: Path) -> JobClient:
    """Return a client of jobs, with an empty ledger."""
    settings = Settings(home=tmp_path)
    await migrate(settings.ledger_url)
    return JobClient(temporal_client, open_ledger(settings), settings)


async def test_action_that_no_control_worker_takes_is_unavailable(
    jobs: JobClient, temporal_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told that the action may still be taken, and where to look; it is no bug of ours."""
    monkeypatch.setattr(job_client, "RPC_TIMEOUT_S", 0.3)
    job_id = f"j-{uuid4().hex[:8]}"
    await temporal_client.start_workflow(
        "JobWorkflow", id=workflow_id("default", job_id), task_queue=f"nobody-{job_id}"
    )
    with pytest.raises(Unavailable, match=f"reject of job {job_id}") as caught:
        await jobs.act(review(job_id), "reject")
    assert "gf status" in caught.value.hint


async def test_action_on_a_job_without_a_workflow_is_not_found(jobs: JobClient) -> None:
    """The caller is told that the reconciler looks after it."""
    job_id = f"j-{uuid4().hex[:8]}"
    await jobs._ledger.submit(
        make_spec(),
        job_id=job_id,
        idempotency_key=None,
        canonical={},
        snapshot={},
        submitted_by="ada",
        now=datetime.now(UTC),
    )
    with pytest.raises(NotFound, match="has no running workflow"):
        await jobs.act(review(job_id), "reject")
