"""The real parts under the real steward, as `gf up` starts them: ready in time, mended, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.settings_source import ROOT
from workers.stack_state import StackState, read_state
from workers.stack_stop import strays_of

pytestmark = [pytest.mark.chaos, pytest.mark.serial]

READY_LIMIT_S = 8.0
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


def processes_of(home: Path) -> list[str]:
    """Return the command line of every process that names the home anywhere: an independent judge."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if str(home).encode() in command + (entry / "environ").read_bytes():
                found.append(command.decode(errors="replace"))
        except OSError:
            continue
    return found


def state_of(home: Path) -> StackState:
    """Return the record."""
    state = read_state(home)
    assert state is not None
    return state


def test_up_is_ready_in_time(whole: tuple[Path, Any]) -> None:
    """Temporal, API, control worker and two factories within eight seconds."""
    _, said = whole
    assert said["took_s"] < READY_LIMIT_S
    assert len(said["factories"]) == FACTORIES


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
    deadline = time.monotonic() + 30
    while not is_mended(home, before.name, before.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = gf(home, "up", "--detach")
    assert again["started"] is False
    assert again["urls"] == said["urls"]


def is_mended(home: Path, name: str, old_pid: int) -> bool:
    """Return whether another process does the part's work, and all others do theirs."""
    parts = state_of(home).parts
    return all(part.state in {"ready", "done"} for part in parts) and any(
        part.name == name and part.pid != old_pid for part in parts
    )
