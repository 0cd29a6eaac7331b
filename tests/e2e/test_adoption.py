"""An outage of Temporal longer than the lease: what still lives is adopted, and its work counts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import LEASE_S, Remote, Stack, wait_for
from tests.e2e.test_gates import job

pytestmark = pytest.mark.stack

OUTAGES = 12
"""A server that is back may hear a late heartbeat before its timer rings, about every other time: then nothing is
lost, and it is killed again."""


def patient(stack: Stack, remote: Remote, stop: Path) -> str:
    """Return a job whose engine works until the file is there."""
    script = f"echo begun > begun.txt; while [ ! -e {stop} ]; do sleep 0.1; done; echo work > work.txt"
    job_id = stack.submit(job(remote, script, "verify: test -f work.txt", "profile: solo", "ship: base"))
    wait_for("its engine", lambda: stack.attempt_processes(job_id))
    stack.until(job_id, "building")
    time.sleep(1.0)  # a checkpoint is taken every 0.3 s
    return job_id


def adopted_in_an_outage(stack: Stack, job_id: str) -> bool:
    """Leave the fleet without Temporal's server for longer than the lease; return whether the activity timed out."""
    steward = stack.state()["steward"]["pid"]
    os.kill(steward, signal.SIGSTOP)  # it would bring the server back at once
    try:
        stack.kill("temporal")
        time.sleep(2 * LEASE_S)
    finally:
        os.kill(steward, signal.SIGCONT)
    stack.part("temporal")
    deadline = time.monotonic() + 2 * LEASE_S
    while time.monotonic() < deadline:
        if any(event["type"] == "attempt.adopted" for event in stack.events(job_id)):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.req("F6")
def test_engine_outlives_an_outage_of_temporal_longer_than_its_lease(
    stack: Stack, remote: Remote, tmp_path: Path
) -> None:
    """The same attempt, the same process: no second epoch is granted, and it ships, once."""
    stop = tmp_path / "stop"
    job_id = patient(stack, remote, stop)
    (engine, *_) = stack.attempt_processes(job_id)
    assert any(adopted_in_an_outage(stack, job_id) for _ in range(OUTAGES)), "no outage timed the activity out"
    assert engine in stack.attempt_processes(job_id), "the engine was stopped"
    stop.touch()
    document = stack.ship(job_id)
    assert [(attempt["epoch"], attempt["outcome"]) for attempt in document["attempts"]] == [(1, "succeeded")]
    assert (remote.count("main"), remote.show("main:work.txt")) == (2, "work")


@pytest.mark.req("F6")
def test_cancel_reaches_an_adopted_engine(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """Temporal has nothing to cancel any more; the ledger's word ends it, and its work is kept."""
    job_id = patient(stack, remote, tmp_path / "stop")
    assert any(adopted_in_an_outage(stack, job_id) for _ in range(OUTAGES)), "no outage timed the activity out"
    assert stack.act(job_id, "cancel").status_code == 200
    stack.until(job_id, "cancelled")
    wait_for("the engine's end", lambda: not stack.attempt_processes(job_id))
    assert "begun.txt" in remote.files(f"refs/gigafactory/wip/{job_id}/1")
