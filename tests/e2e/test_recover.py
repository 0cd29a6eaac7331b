"""Temporal's data is gone: `gf recover` rebuilds every unfinished job from the ledger, and each ships exactly once.

The reconciler, which would do the same by itself, is as good as off here.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Remote, Stack, running_stack, until_told, wait_for

pytestmark = [pytest.mark.stack, pytest.mark.chaos]

NEVER_S = 100_000
PATIENT_LEASE_S = 90.0
"""Longer than Temporal needs to come back, its schema made anew, on a busy machine."""
STEPS = 6


@pytest.fixture
def lossy(tmp_path: Path, temporal_binary: Path) -> Iterator[Stack]:
    """Return a stack of the test's own, whose reconciler does not come."""
    with running_stack(tmp_path / "home", reconcile_s=NEVER_S, lease_ttl_s=PATIENT_LEASE_S) as running:
        yield running


def job(remote: Remote, told: Path, name: str, *fields: str, held: Path | None = None) -> str:
    """Return a job that makes a file step by step and tells the judge about each step.

    Until the file `held` is there it takes no step beyond the third.
    """
    hold = f"[ $i -le 3 ] || {until_told(held)}" if held else ":"
    head = "\n".join(["engine: shell", f"repo: {remote.path}", "base: main", "profile: solo", "ship: base", *fields])
    return f"""---
{head}
verify: test "$(ls {name}-* | wc -l)" -eq {STEPS}
---
# {name}

```sh
for i in $(seq 1 {STEPS}); do
  if [ ! -f {name}-$i ]; then
    {hold}
    echo "$i" > {name}-$i
    echo "{name} $i $GIGAFACTORY_ATTEMPT" >> {told}
  fi
done
```
"""


def steps_of(told: Path, name: str) -> list[str]:
    """Return the steps that a job's scripts told, in order."""
    lines = [line.split() for line in told.read_text().splitlines()] if told.exists() else []
    return [line[1] for line in lines if line[0] == name]


def is_saved(stack: Stack, remote: Remote, job_id: str) -> bool:
    """Return whether the ledger knows a checkpoint of all that the held job `slow` does before it is let go."""
    checkpoint = stack.job(job_id)["checkpoint_sha"]
    return bool(checkpoint) and {"slow-1", "slow-2", "slow-3"} <= remote.files(checkpoint)


def recover(stack: Stack) -> dict[str, dict[str, Any]]:
    """Run the command; return what it says of each job."""
    done = stack.gf("recover", "--json")
    report = json.loads(done.stdout)
    return {entry["id"]: entry for entry in report["jobs"]}


def test_recover_after_temporal_lost_everything(lossy: Stack, remote: Remote, tmp_path: Path) -> None:
    """Jobs at every point of their life go on from there after a restart with an empty Temporal, and ship once."""
    told = tmp_path / "told"
    shipped = lossy.submit(job(remote, told, "done"))
    lossy.ship(shipped)
    gate = lossy.submit(job(remote, told, "gate"))
    candidate = lossy.gate(gate)["candidate_sha"]
    child = lossy.submit(job(remote, told, "child", f"deps: [{gate}]"))
    paused = lossy.submit(job(remote, told, "paused", f"deps: [{gate}]"))
    wait_for("the block", lambda: lossy.job(paused)["conditions"])
    assert lossy.act(paused, "pause").status_code == 200
    slow = lossy.submit(job(remote, told, "slow", "lock: one", held=tmp_path / "on"))
    behind = lossy.submit(job(remote, told, "behind", "lock: one"))
    wait_for("a checkpoint", lambda: is_saved(lossy, remote, slow))
    lossy.stop()
    lossy.lose_temporal()
    lossy.start()
    found = recover(lossy)
    assert {found[each]["found"] for each in (gate, paused, slow, behind)} == {"missing"}
    assert not {shipped, child} & set(found), "one has ended, the other has no workflow until its parent ships"
    assert (found[gate]["at"], found[paused]["at"]) == ("gate", "queue")
    assert lossy.gate(gate)["candidate_sha"] == candidate
    lossy.ship(gate)
    lossy.ship(child)
    document = lossy.job(paused)
    assert (document["stage"], [condition["type"] for condition in document["conditions"]]) == ("queued", ["paused"])
    assert lossy.act(paused, "resume").status_code == 200
    lossy.ship(paused)
    (tmp_path / "on").touch()
    # a grant made before the workflows were back is taken back: then the other one has the lock, until it has shipped
    first = wait_for("a gate", lambda: next((one for one in (slow, behind) if lossy.job(one)["candidate_sha"]), None))
    lossy.ship(first)
    lossy.ship(behind if first == slow else slow)
    begun = [event for event in lossy.events(slow) if event["type"] == "attempt.started"]
    assert len(begun) == 2, "beside one before and one after, an epoch may have been granted to the missing workflow"
    assert steps_of(told, "slow").count("1") == 1, "the second attempt began from nothing"
    assert steps_of(told, "gate") == [str(step) for step in range(1, STEPS + 1)], "a finished job was built again"
    assert_each_landed_once(lossy, remote, {"done", "gate", "child", "paused", "slow", "behind"})


def test_recover_while_engines_run_supersedes_them(lossy: Stack, remote: Remote, tmp_path: Path) -> None:
    """Temporal alone dies and forgets; what ran on a machine that heard of nothing counts no more, its work does."""
    told = tmp_path / "told"
    slow = lossy.submit(job(remote, told, "slow", held=tmp_path / "on"))
    gate = lossy.submit(job(remote, told, "gate", "review-policy: manual"))
    candidate = lossy.gate(gate)["candidate_sha"]
    wait_for("a checkpoint", lambda: is_saved(lossy, remote, slow))
    old = lossy.attempt_processes(slow)
    agent = lossy.factory_pid(lossy.job(slow)["attempts"][-1]["factory"])
    steward = int(lossy.state()["steward"]["pid"])
    for frozen in (agent, steward):  # the one would fence itself, the other start a server with the old data
        os.kill(frozen, signal.SIGSTOP)
    try:
        pid = lossy.kill("temporal")
        wait_for("its end", lambda: not Path(f"/proc/{pid}/exe").exists())
        lossy.lose_temporal()
        os.kill(steward, signal.SIGCONT)
        lossy.renew_temporal()
        wait_for("a new server", lambda: lossy.part("temporal")["pid"] != pid)
        found = recover(lossy)
    finally:
        for frozen in (steward, agent):
            os.kill(frozen, signal.SIGCONT)
    assert (found[gate]["at"], found[slow]["at"], found[slow]["superseded"]) == ("gate", "queue", 1)
    assert {entry["found"] for entry in recover(lossy).values()} == {"running"}
    wait_for("the old engine's end", lambda: not set(old) & set(lossy.attempt_processes(slow)))
    (tmp_path / "on").touch()
    assert [attempt["outcome"] for attempt in lossy.ship(slow)["attempts"]] == ["lease_lost", "succeeded"]
    assert lossy.gate(gate)["candidate_sha"] == candidate
    lossy.ship(gate)
    assert steps_of(told, "slow").count("1") == 1
    assert_each_landed_once(lossy, remote, {"slow", "gate"})


def assert_each_landed_once(stack: Stack, remote: Remote, names: set[str]) -> None:
    """Each file of each job was added to the base once, and each job tells of one end."""
    added = Counter(remote.added("main"))
    assert added == Counter(["README.md", *(f"{name}-{step}" for name in names for step in range(1, STEPS + 1))])
    listed = stack.patiently("GET", "/fleet/jobs", params={"limit": 200}).json()["jobs"]
    for entry in listed:
        ends = [event["type"] for event in stack.events(entry["id"]) if event["type"] == "job.shipped"]
        assert len(ends) == 1, entry
