"""A pass of the reconciler over a real ledger and a real Temporal server; whole stacks are in `tests/e2e`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities import reconcile
from activities.reconcile import Reconciler
from core.attempt import workflow_id
from core.job import Stage
from core.job_messages import LIFE_MEMO
from core.settings import Settings
from store import migrate, open_ledger
from tests.store.fleet import Fleet


@workflow.defn(name="JobWorkflow")
class Ended:
    """A workflow that ends at once with the outcome it is given."""

    @workflow.run
    async def run(self, outcome: Any) -> Any:
        """Return it."""
        return outcome


@workflow.defn(name="JobWorkflow")
class Building:
    """A workflow in whose engine activity Temporal believes for an hour after a beat."""

    def __init__(self) -> None:
        self.failure = ApplicationError("")

    @workflow.run
    async def run(self) -> None:
        """Run the engine and stay."""
        try:
            await workflow.execute_activity(
                "run_engine",
                start_to_close_timeout=timedelta(days=1),
                heartbeat_timeout=timedelta(hours=1),
                retry_policy=RetryPolicy(maximum_attempts=1),
            )
        except ActivityError as error:
            self.failure = cast("ApplicationError", error.cause)
        await asyncio.Event().wait()

    @workflow.update
    async def told(self) -> dict[str, str | None]:
        """Return what it was told about the engine."""
        await workflow.wait_condition(lambda: bool(self.failure.type))
        return {"type": self.failure.type, "message": self.failure.message}


@activity.defn
async def run_engine() -> None:
    """Beat once, and never again."""
    handle = activity.client().get_async_activity_handle(task_token=activity.info().task_token)
    await handle.heartbeat({"epoch": 1})
    activity.raise_complete_async()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Return a ledger of the test's own."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    await migrate(url)
    ledger = open_ledger(Settings(home=tmp_path, database_url=url, seat_wait_s=0))
    yield Fleet(ledger, url)
    await ledger.close()


class Pass:
    """Jobs whose workflows are what a test says, and passes over them."""

    def __init__(self, client: Client, fleet: Fleet) -> None:
        self.client = client
        self.fleet = fleet
        self.wakes = 0
        self.prefix = f"j-{uuid4().hex[:8]}"

    async def job(self, name: str) -> str:
        """Put a queued job, whose start was delivered, into the ledger."""
        job_id = f"{self.prefix}-{name}"
        await self.fleet.submit(job_id)
        await self.fleet.deliver()
        return job_id

    async def running(self, name: str) -> str:
        """Add a job whose workflow is alive."""
        job_id = await self.job(name)
        await self.client.start_workflow(
            "JobWorkflow", None, id=workflow_id("default", job_id), task_queue=f"nobody-{job_id}"
        )
        return job_id

    async def terminated(self, name: str) -> str:
        """Add a job whose workflow was terminated."""
        job_id = await self.running(name)
        await self.client.get_workflow_handle(workflow_id("default", job_id)).terminate()
        return job_id

    async def ended(self, name: str, outcome: Any, life: int = 1) -> str:
        """Add a job whose workflow ended with `outcome`."""
        job_id = await self.job(name)
        runner = UnsandboxedWorkflowRunner()
        async with Worker(self.client, task_queue=job_id, workflows=[Ended], workflow_runner=runner):
            await self.client.execute_workflow(
                "JobWorkflow",
                outcome,
                id=workflow_id("default", job_id),
                task_queue=job_id,
                memo={LIFE_MEMO: life},
            )
        return job_id

    async def building(self, name: str) -> str:
        """Add a job that builds, and whose engine was heard of once."""
        job_id = f"{self.prefix}-{name}"
        await self.fleet.building(job_id)
        await self.fleet.deliver()
        async with self._worker(job_id):
            handle = await self.client.start_workflow(
                "JobWorkflow", id=workflow_id("default", job_id), task_queue=job_id
            )
            async with asyncio.timeout(30):
                while not any(
                    one.HasField("last_heartbeat_time")
                    for one in (await handle.describe()).raw_description.pending_activities
                ):
                    await asyncio.sleep(0.02)
        return job_id

    async def told(self, job_id: str) -> Any:
        """Return what the workflow of a job that builds was told about its engine."""
        async with self._worker(job_id), asyncio.timeout(30):
            return await self.client.get_workflow_handle(workflow_id("default", job_id)).execute_update("told")

    def _worker(self, queue: str) -> Worker:
        runner = UnsandboxedWorkflowRunner()
        return Worker(
            self.client, task_queue=queue, workflows=[Building], activities=[run_engine], workflow_runner=runner
        )

    async def run(self, later: timedelta = timedelta(0)) -> Any:
        """Run one pass and return its reply; for Temporal it is that much later."""

        def wake() -> None:
            self.wakes += 1

        environment = ActivityEnvironment()
        environment.info = replace(environment.info, started_time=datetime.now(UTC) + later)
        return await environment.run(Reconciler(self.fleet.ledger, self.client, wake).reconcile)


@pytest.fixture
def floor(temporal_client: Client, fleet: Fleet) -> Pass:
    """Return passes over an empty ledger."""
    return Pass(temporal_client, fleet)


async def test_pass_mends_what_differs_and_leaves_the_rest(floor: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing: started again; terminated: failed; alive: nothing. Also when there are more jobs than a page holds."""
    monkeypatch.setattr(reconcile, "PAGE", 2)
    alive = [await floor.running(f"alive{number}") for number in range(3)]
    missing = await floor.job("missing")
    terminated = await floor.terminated("terminated")
    starting = f"{floor.prefix}-starting"
    await floor.fleet.submit(starting)

    reply = await floor.run()

    assert (reply.checked, reply.restarted, reply.failed, reply.regranted) == (5, (missing,), (terminated,), ())
    assert floor.wakes == 1
    assert await floor.fleet.stage(terminated) == Stage.FAILED
    for job_id in (*alive, starting):
        assert [event.type for event in await floor.fleet.events(job_id)] == ["job.submitted"]
    again = await floor.run()
    assert (again.checked, again.restarted, again.failed) == (3, (), ())


async def test_job_that_cannot_be_mended_does_not_keep_others_from_it(floor: Pass) -> None:
    """An outcome that no lifecycle has, and one that cannot be read, are logged; the next job is mended."""
    impossible = await floor.ended("a", {"job_id": "a", "stage": "shipped", "epoch": 1})
    garbage = await floor.ended("b", ["garbage"])
    terminated = await floor.terminated("c")

    reply = await floor.run()

    assert (reply.checked, reply.failed) == (3, (terminated,))
    for job_id in (impossible, garbage):
        assert await floor.fleet.stage(job_id) == Stage.QUEUED


async def test_end_that_only_temporal_knows_is_written(floor: Pass) -> None:
    """A job whose workflow ended without its last record takes over that end."""
    job_id = await floor.ended("a", {"job_id": "a", "stage": "cancelled", "epoch": 0})
    await floor.run()
    assert await floor.fleet.stage(job_id) == Stage.CANCELLED


@pytest.mark.parametrize("accepted", [False, True])
async def test_engine_whose_silence_temporal_does_not_notice_is_given_up(floor: Pass, accepted: bool) -> None:
    """Once it is overdue; also when its result came to the ledger before it fell silent. The workflow is told."""
    await floor.fleet.factory()
    job_id = await floor.building("silent")
    if accepted:
        await floor.fleet.accept(job_id, 1)

    assert (await floor.run(timedelta(minutes=59))).lost == ()
    assert (await floor.run(timedelta(minutes=61))).lost == (job_id,)

    error = await floor.told(job_id)
    assert error["type"] == "WorkerShutdown"
    assert "Temporal did not notice" in error["message"]
    assert await floor.fleet.events(job_id, "lease.lost") == []  # the workflow asks whether it is lost
    assert (await floor.run(timedelta(minutes=61))).lost == ()


async def test_workflow_of_an_earlier_life_is_no_workflow_of_this_one(floor: Pass) -> None:
    """A requeued job whose next workflow never came is started, not ended once more by the old one's outcome."""
    job_id = await floor.ended("a", {"job_id": "a", "stage": "failed", "epoch": 0})
    await floor.run()
    await floor.fleet.ledger.requeue(job_id, floor.fleet.tick())
    await floor.fleet.deliver()

    reply = await floor.run()

    assert reply.restarted == (job_id,)
    assert (await floor.fleet.job(job_id)).life == 3
