"""A fleet that is without Temporal for longer than the lease: what still lives is adopted, and its work counts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.client import Client

from core.attempt import workflow_id
from tests.e2e.conftest import BEAT_S, LEASE_S, Remote, Stack, wait_for
from tests.e2e.test_gates import job

pytestmark = pytest.mark.stack

OUTAGES = 24
"""A server that is back may hear a late heartbeat before its timer rings, about every other time: then nothing is
lost, and it is killed again."""


def patient(stack: Stack, remote: Remote, stop: Path) -> str:
    """Return a job whose engine works until the file is there."""
    script = f"echo begun > begun.txt; while [ ! -e {stop} ]; do sleep 0.1; done; echo work > work.txt"
    job_id = stack.submit(job(remote, script, "verify: test -f work.txt", "profile: solo", "ship: base"))
    wait_for("its engine", lambda: stack.attempt_processes(job_id))
    stack.until(job_id, "building")
    wait_for("a checkpoint", lambda: "attempt.checkpoint" in events_of(stack, job_id))
    return job_id


def events_of(stack: Stack, job_id: str) -> set[str]:
    """Return the types of what happened to the job."""
    return {event["type"] for event in stack.events(job_id)}


def outage(stack: Stack) -> datetime:
    """Leave the fleet without Temporal's server for longer than the lease; return when that began."""
    steward = stack.state()["steward"]["pid"]
    os.kill(steward, signal.SIGSTOP)  # it would bring the server back at once
    try:
        killed = stack.kill("temporal")
        began = datetime.now(UTC)
        time.sleep(LEASE_S + BEAT_S)
    finally:
        os.kill(steward, signal.SIGCONT)
    wait_for("another server", lambda: stack.part("temporal")["pid"] != killed)
    return began


def timed_out(stack: Stack, job_id: str, since: datetime) -> bool:
    """Return what became of the job's activity: it timed out, or the server has heard its heartbeat again."""

    async def look() -> str:
        client = await Client.connect(stack.state()["urls"]["temporal"])
        described = await client.get_workflow_handle(workflow_id("default", job_id)).describe()
        pending = [
            one for one in described.raw_description.pending_activities if one.activity_type.name == "run_engine"
        ]
        if not pending:
            return "timed out"
        return "heard" if pending[0].last_heartbeat_time.ToDatetime(UTC) > since else ""

    return wait_for(f"news of {job_id}", lambda: asyncio.run(look())) == "timed out"


def adopted_in_an_outage(stack: Stack, *jobs: str) -> bool:
    """Cause an outage; return whether the activities of all jobs have timed out by now. Whose has, is adopted."""
    since = outage(stack)
    unheard = [job_id for job_id in jobs if timed_out(stack, job_id, since)]
    for job_id in unheard:
        wait_for(f"the adoption of {job_id}", lambda job_id=job_id: "attempt.adopted" in events_of(stack, job_id))  # type: ignore[misc]
    return len(unheard) == len(jobs)


@pytest.mark.req("F6")
def test_engines_outlive_an_outage_of_temporal_longer_than_their_lease(
    stack: Stack, remote: Remote, tmp_path: Path
) -> None:
    """The same attempts, the same processes: no second epoch is granted. One ships, once; the other hears of a cancel.

    Temporal has nothing to cancel any more: the ledger's word ends it, and its work is kept.
    """
    shipped, cancelled = (patient(stack, remote, tmp_path / name) for name in ("stop", "never"))
    engines = {job_id: stack.attempt_processes(job_id)[0] for job_id in (shipped, cancelled)}
    assert any(adopted_in_an_outage(stack, *engines) for _ in range(OUTAGES)), "no outage timed the activities out"
    for job_id, engine in engines.items():
        assert engine in stack.attempt_processes(job_id), "the engine was stopped"

    (tmp_path / "stop").touch()
    document = stack.ship(shipped)
    assert [(attempt["epoch"], attempt["outcome"]) for attempt in document["attempts"]] == [(1, "succeeded")]
    assert (remote.count("main"), remote.show("main:work.txt")) == (2, "work")

    assert stack.act(cancelled, "cancel").status_code == 200
    stack.until(cancelled, "cancelled")
    wait_for("the engine's end", lambda: not stack.attempt_processes(cancelled))
    assert "begun.txt" in remote.files(f"refs/gigafactory/wip/{cancelled}/1")
