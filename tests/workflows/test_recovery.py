"""Workflows that are gone are begun again from a real ledger on a real Temporal server; nobody works on the jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from core.attempt import BuildResult, Verdict, workflow_id
from core.job import Stage
from core.job_messages import LIFE_MEMO, RecoveredJob
from core.settings import Settings
from store import migrate, open_ledger
from store.recovery import GENERATION
from tests.store.fleet import BASE, CANDIDATE, Fleet
from workflows.job_client import JobClient


@dataclass
class Site:
    """A ledger, and the way from it to Temporal; each job's id begins with `prefix`."""

    fleet: Fleet
    client: Client
    jobs: JobClient
    prefix: str

    async def recover(self, *, replace: bool = False) -> dict[str, RecoveredJob]:
        """Recover everything; return what was found by the job's own part of its id."""
        found = await self.jobs.recover("", 100, replace=replace)
        return {job.id.removeprefix(self.prefix): job for job in found}

    async def delivered(self, name: str) -> str:
        """Submit a job and start its workflow, as the API does."""
        job_id = self.prefix + name
        await self.fleet.submit(job_id)
        await self.jobs.deliver_due()
        return job_id

    async def lost(self, name: str) -> str:
        """Submit a job whose start was delivered to a server that has forgotten it."""
        job_id = self.prefix + name
        await self.fleet.submit(job_id)
        await self.fleet.deliver()
        return job_id

    async def workflow(self, job_id: str) -> tuple[WorkflowExecutionStatus | None, int]:
        """Return how the job's newest workflow is, and of which life it is; (None, 0) for none."""
        try:
            found = await self.client.get_workflow_handle(workflow_id("default", job_id)).describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return None, 0
        return found.status, await found.memo_value(LIFE_MEMO, 0)


@pytest.fixture
async def site(tmp_path: Path, temporal_client: Client) -> AsyncIterator[Site]:
    """Return an empty ledger beside the server that all tests share."""
    settings = Settings(home=tmp_path, seat_wait_s=0)
    await migrate(settings.ledger_url)
    ledger = open_ledger(settings)
    fleet = Fleet(ledger, settings.ledger_url)
    prefix = f"j-{uuid4().hex[:8]}-"
    yield Site(fleet, temporal_client, JobClient(temporal_client, ledger, settings), prefix)
    for job in await ledger.unfinished_page("", 100):
        try:
            await temporal_client.get_workflow_handle(workflow_id("default", job.id)).terminate()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
    await ledger.close()


async def test_missing_workflows_are_begun_again_and_the_others_left(site: Site) -> None:
    """Each job is reported with what was found; a second call finds nothing to do."""
    running = await site.delivered("running")
    lost = await site.lost("lost")
    ended = await site.lost("ended")
    await site.fleet.record(ended, Stage.CANCELLED)
    terminated = await site.delivered("terminated")
    await site.client.get_workflow_handle(workflow_id("default", terminated)).terminate()
    found = await site.recover()
    assert {name: job.found for name, job in found.items()} == {
        "running": "running",
        "lost": "missing",
        "terminated": "closed",
    }
    assert (found["lost"].at, found["lost"].life) == ("queue", 2)
    assert await site.workflow(lost) == (WorkflowExecutionStatus.RUNNING, 2)
    assert await site.workflow(running) == (WorkflowExecutionStatus.RUNNING, 1)
    assert (await site.recover())["lost"].found == "running"


async def test_start_on_its_way_is_left_to_the_outbox(site: Site) -> None:
    """It is delivered by the same call, in its first life."""
    job_id = site.prefix + "new"
    await site.fleet.submit(job_id)
    assert (await site.recover())["new"].found == "starting"
    assert await site.workflow(job_id) == (WorkflowExecutionStatus.RUNNING, 1)


async def test_workflow_at_the_gate_begins_with_the_candidate(site: Site) -> None:
    """What Temporal's Web UI shows says so too."""
    await site.fleet.factory("f1")
    job_id = await site.lost("gate")
    await site.fleet.ledger.dispatch(site.fleet.now)
    await site.fleet.started(job_id, 1)
    answer = BuildResult(job_id=job_id, epoch=1, outcome="succeeded", candidate_sha=CANDIDATE, base_sha=BASE)
    await site.fleet.accept(job_id, 1, answer=answer)
    verdict = Verdict(job_id=job_id, epoch=1, candidate_sha=CANDIDATE, verify="passed").model_dump(mode="json")
    await site.fleet.record(job_id, Stage.TESTING, epoch=1, verdict=verdict, end_lease=True)
    await site.fleet.deliver()
    found = await site.recover()
    assert (found["gate"].at, found["gate"].stage, found["gate"].superseded) == ("gate", Stage.TESTING, 0)
    described = await site.client.get_workflow_handle(workflow_id("default", job_id)).describe()
    assert CANDIDATE in (await described.static_details() or "")


async def test_restored_ledger_replaces_what_ran_on(site: Site) -> None:
    """Workflows of before are ended and begun again; those of jobs that the ledger does not know are ended."""
    known = await site.delivered("known")
    stranger = await site.delivered("stranger")
    await site.fleet.record(stranger, Stage.CANCELLED)  # the ledger of the backup has no such unfinished job
    await site.fleet.ledger.raise_generation("ada", site.fleet.tick())
    found = await site.recover(replace=True)
    assert found["known"].found == "missing"
    assert await site.workflow(known) == (WorkflowExecutionStatus.RUNNING, GENERATION + 1)
    assert (await site.recover(replace=True))["known"].found == "running"
    while workflow_id("default", stranger) not in await site.jobs.end_unknown():
        pass  # visibility shows a new workflow a little late
    assert (await site.workflow(stranger))[0] == WorkflowExecutionStatus.TERMINATED
    assert (await site.workflow(known))[0] == WorkflowExecutionStatus.RUNNING
