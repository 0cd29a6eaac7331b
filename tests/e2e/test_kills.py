"""Pull the plug: kill -9 of each part in mid-build. No job is lost, none ships twice, nothing of it lives on."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Remote, Stack, until_told, wait_for
from workers.process_table import kill

pytestmark = pytest.mark.stack


HELD_AFTER = 3
"""The last step that a held job takes before it is let go."""


def slow_job(remote: Remote, ledger: Path, *, steps: int = 8, pause_s: float = 0.1, held: bool = True) -> str:
    """Return a job that writes one file per step and tells the judge about each; it goes on where files are missing.

    One that is `held` stays in mid-build until `let_go`, however long what the test does to it takes.
    """
    hold = f"[ $i -le {HELD_AFTER} ] || {until_told(_word(ledger))}" if held else ":"
    return f"""---
engine: shell
repo: {remote.path}
base: main
profile: solo
ship: base
verify: test "$(ls step-* | wc -l)" -eq {steps}
timeout: 5m
---
# Take some steps

```sh
sh -c 'sleep 987654' &
setsid sh -c 'sleep 987655' &
for i in $(seq 1 {steps}); do
  if [ ! -f step-$i ]; then
    {hold}
    echo "$i" > step-$i
    echo "step $i $GIGAFACTORY_ATTEMPT" >> {ledger}
    sleep {pause_s}
  fi
done
echo "done $GIGAFACTORY_ATTEMPT" >> {ledger}
```
"""


def let_go(ledger: Path) -> None:
    """Let every attempt of the held job go on."""
    _word(ledger).touch()


def _word(ledger: Path) -> Path:
    return ledger.with_suffix(".go-on")


def steps_of(ledger: Path) -> list[list[str]]:
    """Return what the job's own scripts told the judge."""
    return [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []


def building(stack: Stack, job_id: str, ledger: Path, step: int = HELD_AFTER) -> dict[str, Any]:
    """Wait until the job is in mid-build."""
    wait_for(f"step {step}", lambda: any(line[:2] == ["step", str(step)] for line in steps_of(ledger)))
    return stack.until(job_id, "building")


def assert_shipped_once(stack: Stack, remote: Remote, job_id: str, steps: int = 8) -> dict[str, Any]:
    """Ship the job and let the remote judge: exactly one commit, everything in it, one end in the event log."""
    before = remote.ref("main")
    document = stack.ship(job_id)
    assert remote.count("main") == 2
    assert remote.ref("main") != before
    assert document["commits"] == [remote.ref("main")]
    assert {f"step-{i}" for i in range(1, steps + 1)} <= remote.files("main")
    ends = Counter(event["type"] for event in stack.events(job_id))
    assert ends["job.shipped"] == 1
    return document


def test_agent_killed_in_mid_build_goes_on_at_the_other_factory(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """The other factory continues from the last checkpoint; no descendant of the old engine lives on."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger))
    document = building(stack, job_id, ledger)
    first = document["attempts"][-1]
    old = stack.attempt_processes(job_id)
    assert old
    os.kill(stack.factory_pid(first["factory"]), signal.SIGKILL)
    document = wait_for(
        "a second epoch that builds",
        lambda: (seen := stack.job(job_id))["attempts"][-1]["epoch"] == 2 and seen["stage"] == "building" and seen,
    )
    (lost,) = (event for event in stack.events(job_id) if event["type"] == "lease.lost")
    assert lost["data"]["certified"], "the takeover waited for the lease: there was no death certificate"
    assert document["attempts"][-1]["factory"] != first["factory"]
    wait_for("the old engine's end", lambda: not set(old) & set(stack.attempt_processes(job_id)))
    let_go(ledger)
    document = assert_shipped_once(stack, remote, job_id)
    told = [line[1] for line in steps_of(ledger) if line[0] == "step"]
    again = [step for step, times in Counter(told).items() if times > 1]
    assert "1" not in again, f"the second attempt began from nothing: {told}"
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["lease_lost", "succeeded"]


def test_agent_and_supervisor_killed_in_mid_build(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """When both die, the lease or the restarted agent decides; the orphaned engine is found and killed."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger))
    document = building(stack, job_id, ledger)
    agent = stack.factory_pid(document["attempts"][-1]["factory"])
    old = stack.attempt_processes(job_id)
    supervisors = [pid for pid in descendants_of(agent) if b"supervisor" in command_of(pid)]
    assert supervisors
    for pid in (agent, *supervisors):
        kill(pid, signal.SIGKILL)
    wait_for("a second epoch", lambda: stack.job(job_id)["attempts"][-1]["epoch"] >= 2)
    wait_for("the old engine's end", lambda: not set(old) & set(stack.attempt_processes(job_id)))
    let_go(ledger)
    assert_shipped_once(stack, remote, job_id)


def descendants_of(pid: int) -> list[int]:
    """Return everything below a process; supervisors are grandchildren of their agent."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


@pytest.mark.parametrize("part", ["api", "control", "temporal"])
def test_control_plane_part_killed_in_mid_build(stack: Stack, remote: Remote, tmp_path: Path, part: str) -> None:
    """The engine goes on working through the outage, or its work goes on elsewhere; the job ships once."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger))
    building(stack, job_id, ledger)
    pid = stack.kill(part)
    let_go(ledger)
    wait_for(f"{part} to be restarted", lambda: stack.part(part)["pid"] != pid)
    assert_shipped_once(stack, remote, job_id)


def test_everything_killed_at_the_gate_ships_once(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """A job that waits for a human survives the death of all parts; an answer given then ships it, once."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger, held=False))
    stack.until(job_id, "testing")
    kinds = {"api", "control", "temporal", "factory"}
    pids = {part["name"]: part["pid"] for part in stack.state()["parts"] if part["kind"] in kinds}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    wait_for("all parts to be restarted", lambda: all(stack.part(name)["pid"] != pid for name, pid in pids.items()))
    assert_shipped_once(stack, remote, job_id)


def test_agent_stopped_politely_hands_its_work_over(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """SIGTERM drains: the running attempt is checkpointed and goes on at the other factory, without a retry."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger))
    document = building(stack, job_id, ledger)
    os.kill(stack.factory_pid(document["attempts"][-1]["factory"]), signal.SIGTERM)
    wait_for("a second epoch", lambda: stack.job(job_id)["attempts"][-1]["epoch"] >= 2)
    let_go(ledger)
    assert_shipped_once(stack, remote, job_id)


def test_zombie_attempt_is_refused_on_every_write(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """An attempt stopped past its lease and then continued: its log, result and ship never count."""
    ledger = tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger))
    document = building(stack, job_id, ledger)
    first = document["attempts"][-1]["factory"]
    agent = stack.factory_pid(first)
    frozen = [agent, *descendants_of(agent), *stack.attempt_processes(job_id)]
    for pid in frozen:
        kill(pid, signal.SIGSTOP)
    try:
        document = wait_for(
            "a second epoch", lambda: (seen := stack.job(job_id))["attempts"][-1]["epoch"] == 2 and seen
        )
        assert document["attempts"][-1]["factory"] != first
        let_go(ledger)
        stack.until(job_id, "testing")
        fence = remote.ref(f"refs/gigafactory/job/{job_id}")
    finally:
        for pid in frozen:
            kill(pid, signal.SIGCONT)
    wait_for("the zombie's end", lambda: not stack.attempt_processes(job_id))
    assert remote.ref(f"refs/gigafactory/job/{job_id}") == fence
    document = assert_shipped_once(stack, remote, job_id)
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["lease_lost", "succeeded"]


def command_of(pid: int) -> bytes:
    """Return the command line of a process; empty for one that has ended: helpers of a checkpoint come and go."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
