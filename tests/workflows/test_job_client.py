"""What the API hears when Temporal or the control workers do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from core.attempt import workflow_id
from core.errors import IllegalAction, NotFound, Unavailable
from core.job import Stage
from core.job_messages import ActReply, ActRequest
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
async def jobs(temporal_client: Client, tmp_path: Path) -> AsyncIterator[JobClient]:
    """Return a client of jobs, with an empty ledger."""
    settings = Settings(home=tmp_path)
    await migrate(settings.ledger_url)
    ledger = open_ledger(settings)
    yield JobClient(temporal_client, ledger, settings)
    await ledger.close()


async def submitted(jobs: JobClient) -> str:
    """Return a queued job of the ledger."""
    job_id = f"j-{uuid4().hex[:8]}"
    await jobs._ledger.submit(
        make_spec(),
        job_id=job_id,
        idempotency_key=None,
        canonical={},
        snapshot={},
        submitted_by="t",
        now=datetime.now(UTC),
    )
    return job_id


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
    job_id = await submitted(jobs)
    await jobs._ledger.hurry_start(job_id, datetime.now(UTC))
    for row in await jobs._ledger.claim_outbox(datetime.now(UTC)):  # as if it had been delivered
        await jobs._ledger.outbox_done(row.id)
    with pytest.raises(NotFound, match="has no running workflow"):
        await jobs.act(review(job_id), "reject")


async def test_action_on_a_job_that_waits_for_its_seat_starts_its_workflow(
    jobs: JobClient, temporal_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has none before; here no control worker takes the action, but it is brought."""
    monkeypatch.setattr(job_client, "RPC_TIMEOUT_S", 0.3)
    job_id = await submitted(jobs)
    await jobs.deliver_due()
    handle = temporal_client.get_workflow_handle(workflow_id("default", job_id))
    with pytest.raises(RPCError, match="not found"):
        await handle.describe()
    with pytest.raises(Unavailable, match=f"pause of job {job_id}"):
        await jobs.act(await jobs._ledger.job(job_id), "pause")
    assert (await handle.describe()).status == WorkflowExecutionStatus.RUNNING
    await handle.terminate()


async def test_action_waits_for_the_workflow_that_another_process_is_starting(
    jobs: JobClient, temporal_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It claimed the start before us and has not come to Temporal yet: the job is there, and the action is taken."""
    monkeypatch.setattr(job_client, "RPC_TIMEOUT_S", 0.3)
    job_id = await submitted(jobs)
    await jobs._ledger.hurry_start(job_id, datetime.now(UTC))
    (claimed,) = await jobs._ledger.claim_outbox(datetime.now(UTC))
    missed = asyncio.Event()

    async def start_pending(job_id: str) -> bool:
        missed.set()
        return await really_pending(job_id)

    really_pending = jobs._ledger.start_pending
    monkeypatch.setattr(jobs._ledger, "start_pending", start_pending)
    acting = asyncio.create_task(jobs.act(await jobs._ledger.job(job_id), "pause"))
    await missed.wait()
    await jobs.deliver(claimed)
    await jobs._ledger.outbox_done(claimed.id)
    with pytest.raises(Unavailable, match=f"pause of job {job_id}"):  # it was brought; here nobody takes it
        await acting
    await temporal_client.get_workflow_handle(workflow_id("default", job_id)).terminate()


@workflow.defn(name="JobWorkflow")
class Behind:
    """A job's workflow that believes that it is in some stage, until it is told that it is at the gate."""

    @workflow.init
    def __init__(self, stage: str) -> None:
        self._stage = stage

    @workflow.run
    async def run(self, _stage: str) -> None:
        """Live on."""
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    def catch_up(self) -> None:
        """Know better."""
        self._stage = "testing"

    @workflow.update
    async def act(self, _request: ActRequest) -> ActReply:
        """Take it."""
        return ActReply(stage=Stage.TESTING)

    @act.validator
    def refuse(self, _request: ActRequest) -> None:
        """Refuse what is not legal in the stage that is believed in."""
        if self._stage != "testing":
            raise ApplicationError(f"judge is running in {self._stage}", self._stage, type="illegal_action")


async def test_workflow_that_is_behind_its_own_record_is_waited_for(
    jobs: JobClient, temporal_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote a stage and lost its worker before its history knew; people see the stage, and may act on it."""
    job_id, queue = await submitted(jobs), f"behind-{uuid4().hex[:8]}"
    asked = asyncio.Event()

    async def behind(*_: object) -> bool:
        asked.set()
        return await really_behind(*_)  # type: ignore[arg-type]

    really_behind = jobs._is_behind
    monkeypatch.setattr(jobs, "_is_behind", behind)
    async with Worker(
        temporal_client, task_queue=queue, workflows=[Behind], workflow_runner=UnsandboxedWorkflowRunner()
    ):
        handle = await temporal_client.start_workflow(
            "JobWorkflow", "review", id=workflow_id("default", job_id), task_queue=queue
        )
        acting = asyncio.create_task(jobs.act(await jobs._ledger.job(job_id), "ship", sha="a" * 40))
        await asked.wait()
        await handle.signal("catch_up")
        assert (await acting).stage == Stage.TESTING
        await handle.terminate()


async def test_refusal_by_a_workflow_that_knows_where_it_is_stands(jobs: JobClient, temporal_client: Client) -> None:
    """The stage is that of the ledger: the answer comes at once, with the reason."""
    job_id, queue = await submitted(jobs), f"behind-{uuid4().hex[:8]}"
    async with Worker(
        temporal_client, task_queue=queue, workflows=[Behind], workflow_runner=UnsandboxedWorkflowRunner()
    ):
        handle = await temporal_client.start_workflow(
            "JobWorkflow", "queued", id=workflow_id("default", job_id), task_queue=queue
        )
        with pytest.raises(IllegalAction, match="judge is running in queued"):
            await jobs.act(await jobs._ledger.job(job_id), "ship", sha="a" * 40)
        await handle.terminate()
