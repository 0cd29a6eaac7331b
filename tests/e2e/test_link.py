"""The factory link on a whole stack: what it makes quick, and that everything works without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TOPOLOGY
from tests.e2e.conftest import Remote, Stack, running_stack, wait_for
from tests.e2e.test_gates import job

pytestmark = pytest.mark.stack

LONG_BEAT_S = 60
"""Longer than any wait of these tests: what happens before a beat was told over the link."""
FAMILY = "echo work > work.txt; setsid sh -c 'sleep 987656' & sh -c 'sleep 987657' & sleep 987658"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a stack whose beats are too far apart to tell anybody anything."""
    with running_stack(
        tmp_path_factory.mktemp("link") / "home",
        factories=1,
        topology=TOPOLOGY,
        beat_s=LONG_BEAT_S,
        lease_ttl_s=4 * LONG_BEAT_S,
        factory_beat_s=LONG_BEAT_S,
    ) as running:
        yield running


def family_of(stack: Stack, remote: Remote) -> str:
    """Return a job whose engine has descendants, some of them in sessions of their own."""
    job_id = stack.submit(job(remote, FAMILY))
    wait_for("the whole family", lambda: len(stack.attempt_processes(job_id)) >= 4)
    return job_id


@pytest.mark.req("F9", "H1")
def test_cancel_reaches_the_engine_between_two_beats(slow: Stack, remote: Remote) -> None:
    """No heartbeat brings it: the link does. The work is kept as always."""
    job_id = family_of(slow, remote)
    assert slow.act(job_id, "cancel").status_code == 200
    wait_for("the family's end", lambda: not slow.attempt_processes(job_id), patience_s=LONG_BEAT_S / 2)
    document = slow.until(job_id, "cancelled")
    assert remote.show(f"refs/gigafactory/wip/{job_id}/{document['attempts'][-1]['epoch']}:work.txt") == "work"


@pytest.mark.req("F9", "H1")
def test_halt_reaches_the_engine_between_two_beats(slow: Stack, remote: Remote) -> None:
    """The agent is asked for a beat, hears of the halt and stops what it covers; released, the job goes on."""
    job_id = family_of(slow, remote)
    halt = {"scope": "fleet", "name": "", "stop_running": True, "reason": "stop"}
    assert slow.patiently("POST", "/fleet/halts", json=halt).is_success
    wait_for("the family's end", lambda: not slow.attempt_processes(job_id), patience_s=LONG_BEAT_S / 2)
    assert slow.patiently("POST", "/fleet/halts/release", json={"scope": "fleet", "name": ""}).is_success
    wait_for("the next attempt", lambda: len(slow.attempt_processes(job_id)) >= 4, patience_s=LONG_BEAT_S / 2)
    assert slow.act(job_id, "cancel").status_code == 200
    slow.until(job_id, "cancelled")


@pytest.mark.req("H1")
def test_everything_works_without_a_link(tmp_path: Path, remote: Remote) -> None:
    """Reports and beats go by request, a cancel comes with a heartbeat."""
    with running_stack(tmp_path / "home", factories=1, factory_link=False) as stack:
        job_id = stack.submit(job(remote, "echo hi > hi.txt", "verify: test -f hi.txt"))
        assert stack.ship(job_id)["stage"] == "shipped"
        cancelled = family_of(stack, remote)
        assert stack.act(cancelled, "cancel").status_code == 200
        stack.until(cancelled, "cancelled")
        wait_for("the family's end", lambda: not stack.attempt_processes(cancelled))  # later, if it lost its lease
