"""A critical job and one seat, on a whole stack of real processes: the low job that has it makes way and goes on later.

Leases are long here, so that an engine which ends soon was asked to and lost nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Remote, running_stack, wait_for
from tests.e2e.test_kills import assert_shipped_once, building, let_go, slow_job, steps_of

pytestmark = pytest.mark.stack


def of_priority(priority: str, manifest: str) -> str:
    """Return the job with another priority than the usual one."""
    return manifest.replace("timeout: 5m", f"timeout: 5m\npriority: {priority}")


@pytest.mark.req("R6")
def test_low_job_makes_way_for_a_critical_one_and_goes_on_from_its_checkpoint(
    tmp_path: Path, temporal_binary: Path
) -> None:
    """Its engine is dead before the other one starts; its work is kept, no retry is counted, and the trail says why."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "settings.yaml").write_text("routing: {limits: {preemption: true}}\n")
    first, second = Remote.create(tmp_path / "low.git"), Remote.create(tmp_path / "urgent.git")
    ledger = tmp_path / "ledger"
    with running_stack(home, factories=1, lease_ttl_s=120, seats_per_factory=1) as stack:
        low = stack.submit(of_priority("low", slow_job(first, ledger)))
        building(stack, low, ledger)
        old = stack.attempt_processes(low)
        assert old
        urgent = stack.submit(of_priority("critical", slow_job(second, tmp_path / "other", steps=2, held=False)))

        wait_for("the critical job's engine", lambda: steps_of(tmp_path / "other"))
        assert not set(old) & set(stack.attempt_processes(low))
        let_go(ledger)
        assert_shipped_once(stack, second, urgent, steps=2)
        document = assert_shipped_once(stack, first, low)

        assert [attempt["outcome"] for attempt in document["attempts"]] == ["interrupted", "succeeded"]
        events = {event["type"]: event for event in stack.events(low)}
        assert events["job.preempted"]["data"]["for"] == urgent
        assert events["job.requeued"]["data"]["failures"] == 0
        assert events["job.requeued"]["data"]["reclaims"] == 0
    told = [line[1] for line in steps_of(ledger) if line[0] == "step"]
    assert told.count("1") == 1, f"the second attempt began from nothing: {told}"
