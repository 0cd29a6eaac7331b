"""A job that kills whoever runs it, and machines that are too busy to be quick."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Remote, running_stack, wait_for
from tests.e2e.test_kills import assert_shipped_once, building, slow_job, steps_of

pytestmark = pytest.mark.stack

MURDER = """
pid=$$
until tr '\\0' ' ' < /proc/$pid/cmdline | grep -q workers.factory_agent; do
  pid=$(sed 's/.*) //' /proc/$pid/stat | cut -d' ' -f2)
done
echo "killed $pid $GIGAFACTORY_ATTEMPT" >> {ledger}
kill -9 $pid
sleep 600
"""


@pytest.mark.req("F6", "F11")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the job finds its agent in /proc")
def test_job_that_kills_its_agents_ends_in_the_dead_letter(tmp_path: Path, remote: Remote) -> None:
    """After the bound nobody runs it again; the letter names each loss; no factory is blamed, others work on."""
    ledger = tmp_path / "ledger"
    poison = f"""---
engine: shell
repo: {remote.path}
base: main
---
# Kill the agent
{MURDER.format(ledger=ledger)}
"""
    with running_stack(tmp_path / "home", reclaim_limit=2, quarantine_failures=1) as stack:
        job_id = stack.submit(poison)
        document = stack.until(job_id, "dead_letter")  # a grant to an agent that was dead already is no blow
        assert {attempt["outcome"] for attempt in document["attempts"]} == {"lease_lost"}
        killed = [line.split()[2] for line in ledger.read_text().splitlines()]
        assert len(killed) == 3
        (letter,) = [event for event in stack.events(job_id) if event["type"] == "job.dead_letter"]
        history = letter["data"]["history"]
        blows = [line.split(" on ")[0] for line in history if "did not take the work" not in line]
        assert [f"{job_id}.{blow.removeprefix('epoch ')}" for blow in blows] == killed
        assert not stack.attempt_processes(job_id)
        wait_for(
            "both factories to be back",
            lambda: {f["state"] for f in stack.http.get("/fleet/factories").json()["factories"]} == {"online"},
        )
        quiet = stack.submit(slow_job(remote, tmp_path / "other", held=False))
        assert_shipped_once(stack, remote, quiet)


@contextmanager
def saturated() -> Iterator[None]:
    """Keep every core busy, twice over, until the block ends."""
    count = 2 * (os.cpu_count() or 1)
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@pytest.mark.req("F4")
def test_nothing_is_taken_over_from_a_machine_that_is_only_busy(tmp_path: Path, remote: Remote) -> None:
    """Every core is taken for two leases: three attempts at once keep their leases, and nobody is blamed."""
    lease_s, pause_s = 6.0, 0.5
    with running_stack(tmp_path / "home", factories=1, lease_ttl_s=lease_s, beat_s=lease_s / 6) as stack:
        ledgers = [tmp_path / f"ledger-{number}" for number in range(3)]
        steps = round(2 * lease_s / pause_s) + 1
        jobs = [stack.submit(slow_job(remote, ledger, steps=steps, pause_s=pause_s, held=False)) for ledger in ledgers]
        for job_id, ledger in zip(jobs, ledgers, strict=True):
            building(stack, job_id, ledger, step=1)
        with saturated():
            for ledger in ledgers:
                wait_for("the last step", lambda ledger=ledger: steps_of(ledger)[-1][0] == "done", 240)  # type: ignore[misc]
        for job_id in jobs:
            document = stack.gate(job_id)
            assert [attempt["epoch"] for attempt in document["attempts"]] == [1]
            kinds = {event["type"] for event in stack.events(job_id)}
            assert not kinds & {"lease.lost", "write.refused", "attempt.adopted"}
