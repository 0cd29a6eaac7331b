"""The real parts under the real steward, as `gf up` starts them: ready, mended, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.settings_source import ROOT
from tests.e2e.conftest import wait_for
from workers.stack_state import StackState, read_state
from workers.stack_stop import strays_of

pytestmark = [pytest.mark.chaos, pytest.mark.stack]

JOB = """---
engine: shell
repo: {remote}
profile: solo
timeout: 5m
---
# Start what does not end by itself

```sh
sh -c 'sleep 987001' &
setsid sh -c 'sleep 987002' &
sleep 987003
```
"""
FACTORIES = 2


def gf(home: Path, *arguments: str) -> Any:
    """Run a command of the command line with `--json` and return its document."""
    command = [sys.executable, "-P", "-m", "cli", *arguments, "--json"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "GIGAFACTORY_HOME": str(home)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, temporal_binary: Path) -> Iterator[tuple[Path, Any]]:
    """Return the home of a running stack and what `gf up` said; the home was used before, as on all days but one."""
    home = tmp_path_factory.mktemp("whole") / "home"
    gf(home, "up", "--detach", "--factories", "0")
    gf(home, "down")
    try:
        yield home, gf(home, "up", "--detach", "--factories", str(FACTORIES))
    finally:
        gf(home, "down")
        assert strays_of(home) == []
        assert processes_of(home) == []


def test_stack_that_ends_in_mid_build_leaves_no_engine(tmp_path: Path, temporal_binary: Path) -> None:
    """Stopped, or its steward killed: agents, supervisors, engines and what these started are all gone.

    The job goes on when the stack is back.
    """
    home, job = tmp_path / "home", tmp_path / "job.md"
    job.write_text(JOB.format(remote=bare_remote(tmp_path)))
    try:
        gf(home, "up", "--detach")
        job_id = gf(home, "submit", str(job))["jobs"][0]["id"]
        await_attempt(home, job_id, 1)
        gf(home, "down")
        assert processes_of(home) == []
        gf(home, "up", "--detach")
        await_attempt(home, job_id, 2)
        state_of(home).steward.signal(signal.SIGKILL)
        wait_for("the end of all processes", lambda: processes_of(home) == [])
        gf(home, "up", "--detach")
        await_attempt(home, job_id, 3)
    finally:
        gf(home, "down")
    assert processes_of(home) == []


def bare_remote(folder: Path) -> Path:
    """Make a bare repository with one commit on main."""
    git = ["git", "-c", "user.name=Tess", "-c", "user.email=tess@example.org", "-c", "init.defaultBranch=main"]
    for arguments in (["init", "-q", "seed"], ["-C", "seed", "commit", "-q", "--allow-empty", "-m", "seed"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    subprocess.run([*git, "clone", "-q", "--bare", "seed", "remote.git"], cwd=folder, check=True)
    return folder / "remote.git"


def await_attempt(home: Path, job_id: str, epoch: int) -> None:
    """Wait until an attempt of the job, not older than `epoch`, has started its engine and what that starts."""
    engine = [f"sleep 98700{number}" for number in (1, 2, 3)]
    wait_for("its engine", lambda: all(any(one in line for line in processes_of(home)) for one in engine))
    wait_for(f"epoch {epoch}", lambda: gf(home, "job", job_id)["attempts"][-1]["epoch"] >= epoch)


def processes_of(home: Path) -> list[str]:
    """Return the command line of every process that names the home anywhere: an independent judge."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if str(home).encode() in command + (entry / "environ").read_bytes():
                found.append(command.decode(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found


def state_of(home: Path) -> StackState:
    """Return the record."""
    state = read_state(home)
    assert state is not None
    return state


def test_up_makes_every_part_ready_and_says_how_long_it_took(whole: tuple[Path, Any]) -> None:
    """Temporal, API, control worker and two factories; how fast is the business of `gf bench up`."""
    home, said = whole
    state = state_of(home)
    assert said["started"] is True
    assert Counter(part.kind for part in state.parts if part.state == "ready") >= Counter(
        {"temporal": 1, "api": 1, "control": 1, "factory": FACTORIES}
    )
    assert sorted(said["factories"]) == sorted(part.name for part in state.parts if part.kind == "factory")
    assert state.ready_s is not None
    assert 0 < state.ready_s <= said["took_s"]


def test_status_and_doctor_find_it_well(whole: tuple[Path, Any]) -> None:
    """Every part is ready and weighed; nothing fails in `doctor`."""
    home, _ = whole
    status = gf(home, "status")
    assert {row["state"] for row in status["parts"]} == {"ready"}
    assert status["memory"]["rss_bytes"] > 100_000_000
    assert gf(home, "doctor")["ok"] is True


def test_histories_are_kept_for_thirty_days(whole: tuple[Path, Any]) -> None:
    """The embedded server's namespace has our retention, not its own default of a day."""
    home, _ = whole
    port = state_of(home).ports["temporal_http"]
    url = f"http://127.0.0.1:{port}/api/v1/namespaces/default"
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert json.load(answer)["config"]["workflowExecutionRetentionTtl"] == "2592000s"


@pytest.mark.parametrize("kind", ["temporal", "api", "control", "factory"])
def test_killed_part_does_its_work_again(whole: tuple[Path, Any], kind: str) -> None:
    """After a SIGKILL the part is back at the same address, and the stack is whole again."""
    home, said = whole
    before = next(part for part in state_of(home).parts if part.kind == kind)
    before.process.signal(signal.SIGKILL)
    wait_for(f"another {before.name}", lambda: is_mended(home, before.name, before.pid))
    again = gf(home, "up", "--detach")
    assert again["started"] is False
    assert again["urls"] == said["urls"]


@pytest.mark.skipif(sys.platform != "linux", reason="there is a fork server on Linux only")
def test_part_is_started_afresh_when_the_fork_server_is_gone(whole: tuple[Path, Any]) -> None:
    """Nothing else depends on it."""
    home, _ = whole
    state = state_of(home)
    children = Path(f"/proc/{state.steward.pid}/task/{state.steward.pid}/children")
    forks = [pid for pid in children.read_text().split() if b"workers.fork_server" in command_of(pid)]
    assert len(forks) == 1
    os.kill(int(forks[0]), signal.SIGKILL)
    before = next(part for part in state.parts if part.kind == "control")
    before.process.signal(signal.SIGKILL)
    wait_for(f"another {before.name}", lambda: is_mended(home, before.name, before.pid))
    after = next(part for part in state_of(home).parts if part.kind == "control")
    assert str(after.pid) in children.read_text().split()


def command_of(pid: str) -> bytes:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def is_mended(home: Path, name: str, old_pid: int) -> bool:
    """Return whether another process does the part's work, all others do theirs, and the API finds the rest well."""
    state = state_of(home)
    if not any(part.name == name and part.pid != old_pid for part in state.parts):
        return False
    return all(part.state in {"ready", "done"} for part in state.parts) and health_of(state.urls["api"]) == "ok"


def health_of(api: str) -> str:
    """Return the API's word on itself, the ledger and Temporal, to which it connects anew when that was away."""
    with urllib.request.urlopen(f"{api}/fleet/health", timeout=30) as answer:  # noqa: S310 - a URL of our own
        return str(json.load(answer)["status"])
