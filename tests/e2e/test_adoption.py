"""An outage of Temporal longer than the lease: what still lives is adopted, and its work counts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import LEASE_S, Remote, Stack, wait_for
from tests.e2e.test_kills import assert_shipped_once, building, slow_job, steps_of

pytestmark = pytest.mark.serial


@pytest.mark.req("F6")
def test_engine_outlives_an_outage_of_temporal_longer_than_its_lease(
    stack: Stack, remote: Remote, tmp_path: Path
) -> None:
    """The same attempt, the same process: no second epoch is granted, nothing is done twice, and it ships."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger, steps=30, pause_s=0.5))
    building(stack, job_id, ledger)
    engine = set(stack.attempt_processes(job_id))
    assert engine
    temporal = stack.part("temporal")["pid"]
    os.kill(temporal, signal.SIGSTOP)
    try:
        time.sleep(2.5 * LEASE_S)
    finally:
        os.kill(temporal, signal.SIGCONT)
    wait_for("the adoption", lambda: [e for e in stack.events(job_id) if e["type"] == "attempt.adopted"])
    assert engine & set(stack.attempt_processes(job_id)), "the engine was stopped"
    document = assert_shipped_once(stack, remote, job_id, steps=30)
    assert [(attempt["epoch"], attempt["outcome"]) for attempt in document["attempts"]] == [(1, "succeeded")]
    told = [line[1] for line in steps_of(ledger) if line[0] == "step"]
    assert told == [str(step) for step in range(1, 31)]


@pytest.mark.req("F6")
def test_cancel_reaches_an_adopted_engine(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """Temporal has nothing to cancel any more; the ledger's word ends it, and its work is kept."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger, steps=400, pause_s=0.5))
    building(stack, job_id, ledger)
    temporal = stack.part("temporal")["pid"]
    os.kill(temporal, signal.SIGSTOP)
    try:
        time.sleep(2 * LEASE_S)
    finally:
        os.kill(temporal, signal.SIGCONT)
    wait_for("the adoption", lambda: [e for e in stack.events(job_id) if e["type"] == "attempt.adopted"])
    assert stack.act(job_id, "cancel").status_code == 200
    stack.until(job_id, "cancelled")
    wait_for("the engine's end", lambda: not stack.attempt_processes(job_id))
    assert "step-1" in remote.files(f"refs/gigafactory/wip/{job_id}/1")
