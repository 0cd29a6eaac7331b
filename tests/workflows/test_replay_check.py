"""Before a deploy: the jobs that run are replayed on the new code, and one that it would take elsewhere is named."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.client import Client

from tests.workflows.conftest import Floor
from tests.workflows.test_job import ship, until
from workers.replay_check import ReplayReport, replay_running
from workflows.job import JobWorkflow


@workflow.defn(name="JobWorkflow", sandboxed=False)  # the sandbox would import this whole file
class TimerFirst:
    """A next version that begins otherwise: with a timer, where the present one calls an activity."""

    @workflow.run
    async def run(self, argument: Any) -> None:
        """Sleep, so that the first command is another one."""
        await workflow.sleep(1)


async def replayed(client: Client, code: type, *names: str) -> ReplayReport:
    """Replay these workflows when visibility shows them all (bounded by the test's own timeout)."""
    query = " OR ".join(f"WorkflowId = '{name}'" for name in names)
    while True:
        report = await replay_running(client, code, query)
        if report.replayed == len(names):
            return report
        await asyncio.sleep(0.1)


async def test_running_jobs_replay_wherever_they_stand(floor: Floor, temporal_client: Client) -> None:
    """A parked job and one at its gate go on with the present code, and the latter then ships."""
    parked = await floor.start()
    await until(parked, "queued")
    floor.job_id += "-gate"
    await floor.factory()
    gate = await floor.start(grant=floor.grant())
    await until(gate, "testing")
    assert await replayed(temporal_client, JobWorkflow, parked.id, gate.id) == ReplayReport(2, {})
    await ship(gate)
    assert (await gate.result())["stage"] == "shipped"
    await parked.terminate()


async def test_job_that_new_code_would_take_elsewhere_is_named(floor: Floor, temporal_client: Client) -> None:
    """The check can fail: it says which job, and that the code is not deterministic for it."""
    await floor.factory()
    handle = await floor.start(grant=floor.grant())
    await until(handle, "testing")
    report = await replayed(temporal_client, TimerFirst, handle.id)
    assert list(report.failures) == [handle.id]
    assert "ondeterminism" in report.failures[handle.id]
    await ship(handle)
    await handle.result()
