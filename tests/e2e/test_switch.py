"""The kill switch, the sentinel file and drains on a whole stack of real processes.

Leases are long here, so that an engine which ends soon was stopped by the switch and by nothing else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Remote, Stack, running_stack, wait_for
from tests.e2e.test_kills import assert_shipped_once, building, let_go, slow_job

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, temporal_binary: Path) -> Iterator[Stack]:
    """Return a stack whose leases outlast these tests."""
    with running_stack(tmp_path_factory.mktemp("patient") / "home", lease_ttl_s=120) as running:
        yield running


def outcomes(stack: Stack, job_id: str) -> list[str]:
    """Return how the job's attempts ended."""
    return [attempt["outcome"] for attempt in stack.job(job_id)["attempts"]]


@pytest.mark.req("F9")
def test_halt_stops_all_work_and_holds_over_a_restart(patient: Stack, remote: Remote, tmp_path: Path) -> None:
    """Every descendant is dead, nothing starts, also after `gf down` and `gf up`; a release lets the work go on."""
    ledger = tmp_path / "ledger"
    job_id = patient.submit(slow_job(remote, ledger))
    building(patient, job_id, ledger)
    assert patient.attempt_processes(job_id)
    patient.gf("halt", "--stop-running", "-m", "fire drill")
    wait_for("the end of the engine and its children", lambda: not patient.attempt_processes(job_id))
    patient.until(job_id, "queued")
    assert outcomes(patient, job_id) == ["interrupted"]

    patient.stop()
    patient.start()
    assert "the fleet was halted" in (told := patient.gf("why", job_id).stdout)
    assert "fire drill" in told
    assert outcomes(patient, job_id) == ["interrupted"]

    let_go(ledger)
    patient.gf("unhalt")
    assert_shipped_once(patient, remote, job_id)
    assert outcomes(patient, job_id) == ["interrupted", "succeeded"]


@pytest.mark.req("F9")
def test_sentinel_file_works_while_api_and_temporal_are_down(patient: Stack, remote: Remote, tmp_path: Path) -> None:
    """The machine stops by itself; once the others are back they know, and removing the file is all it takes."""
    ledger = tmp_path / "ledger"
    job_id = patient.submit(slow_job(remote, ledger))
    building(patient, job_id, ledger)
    frozen = [int(patient.part(kind)["pid"]) for kind in ("api", "temporal")]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        patient.gf("halt", "--local", "-m", "smoke")
        wait_for("the end of the engine and its children", lambda: not patient.attempt_processes(job_id), 20)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    patient.until(job_id, "queued")
    wait_for("the fleet to know", lambda: len(patient.http.get("/fleet/halts").json()["halts"]) == 2)
    assert "KILL" in patient.gf("factories").stderr

    let_go(ledger)
    patient.gf("unhalt", "--local")
    assert_shipped_once(patient, remote, job_id)
    *halted, last = outcomes(patient, job_id)
    assert last == "succeeded"
    # the one that built; and whatever was granted before both factories could tell of their file
    assert set(halted) == {"interrupted"}


@pytest.mark.req("F8")
def test_drain_with_hand_over_moves_the_work_at_once(patient: Stack, remote: Remote, tmp_path: Path) -> None:
    """The other factory goes on from the checkpoint; the drained one stays out until it is undrained."""
    ledger = tmp_path / "ledger"
    job_id = patient.submit(slow_job(remote, ledger))
    first = building(patient, job_id, ledger)["attempts"][-1]["factory"]
    patient.gf("drain", first, "--hand-over", "0s", "-m", "new disk")
    wait_for("a second epoch", lambda: patient.job(job_id)["attempts"][-1]["epoch"] >= 2)
    let_go(ledger)
    assert_shipped_once(patient, remote, job_id)
    assert outcomes(patient, job_id) == ["interrupted", "succeeded"]
    assert patient.job(job_id)["attempts"][-1]["factory"] != first
    assert "new disk" in patient.gf("factories").stderr
    patient.gf("undrain", first)
    factories = {one["name"]: one for one in patient.http.get("/fleet/factories").json()["factories"]}
    assert (factories[first]["state"], factories[first]["activity"]["doing"]) == ("online", "idle")
