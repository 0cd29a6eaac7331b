"""`gf up`, `down`, `status` as a person and a script see them; the stack behind them is real, its parts are fakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.up import down, ensure_up, status, up
from core.version import VERSION
from tests.waiting import PATIENCE_S
from workers import stack_start
from workers.stack_home import factory_names, prepare
from workers.stack_state import read_state, write_atomically, write_state
from workers.stack_stop import stop_stack, strays_of, wait_gone

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "workers" / "fake_stack.py"
IN_FOREGROUND = """
import sys
from pathlib import Path
from cli import up
from workers import stack_start
def launch(home, progress, factories, foreground):
    stack_start.prepare(home)
    command = [sys.executable, "-P", sys.argv[2], "steward", "--home", str(home)] + ["--foreground"] * foreground
    return stack_start.spawn_steward(home, command, foreground=foreground)
stack_start.launch_steward = launch
sys.exit(up.up(detach=False, factories=None, as_json="--json" in sys.argv, home=Path(sys.argv[1])))
"""


@pytest.fixture
def fakes(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a home whose stack consists of fakes; nothing of it is left afterwards."""

    def launch(
        place: Path, _progress: stack_start.Progress, factories: int | None, foreground: bool
    ) -> subprocess.Popen[bytes]:
        prepare(place)
        command = [sys.executable, "-P", str(FAKE), "steward", "--home", str(place)]
        command += ["--factories", str(1 if factories is None else factories)]
        return stack_start.spawn_steward(place, command, foreground=foreground)

    monkeypatch.setattr(stack_start, "launch_steward", launch)
    yield home
    stop_stack(home)
    assert strays_of(home) == []


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[Any, str]]:
    """Return a function that gives the JSON document of the last command and its standard error."""

    def read() -> tuple[Any, str]:
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    return read


def test_up_with_json_prints_one_document(fakes: Path, shown: Callable[[], tuple[Any, str]]) -> None:
    """Standard output holds one document; the steps are told on standard error."""
    assert up(detach=True, factories=2, as_json=True) == 0
    document, told = shown()
    assert document["started"] is True
    assert document["urls"]["api"].startswith("http://127.0.0.1:")
    assert document["factories"] == factory_names(fakes, 2)
    assert document["version"] == VERSION
    assert 0 < document["ready_s"] <= document["took_s"]
    assert "api ready" in told


def test_up_twice_says_already_up(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second `up` is quick, changes nothing and says so."""
    assert up(detach=True, factories=None, as_json=False) == 0
    assert "ready in" in capsys.readouterr().out
    assert up(detach=False, factories=None, as_json=False) == 0
    assert "already up" in capsys.readouterr().out


def test_ensure_up_returns_where_the_stack_is(fakes: Path) -> None:
    """What `gf run` uses: addresses of a stack that is ready, whoever started it."""
    told: list[str] = []
    first = ensure_up(fakes, told.append)
    steps = len(told)
    second = ensure_up(fakes, told.append)
    assert told[steps:] == []
    assert (first.started, second.started) == (True, False)
    assert first.api_url == second.api_url


def test_failed_up_shows_the_log_and_the_mend(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason, the last log lines of the part that failed and the next step; exit code 6."""
    write_atomically(fakes / "behave" / "api", "exit-at-once")
    assert up(detach=True, factories=None, as_json=False) == 6
    told = capsys.readouterr().err
    assert "    api begins" in told
    assert "error: api did not come up: api has no legs to stand on" in told
    assert "hint: give it a port; log: " in told


def test_failed_up_with_json_prints_the_problem(fakes: Path, shown: Callable[[], tuple[Any, str]]) -> None:
    """A script gets the same problem as a document."""
    write_atomically(fakes / "behave" / "migration", "exit-at-once")
    assert up(detach=True, factories=None, as_json=True) == 6
    problem = shown()[0]["error"]
    assert problem["code"] == "stack_failed"
    assert problem["part"] == "migration"
    assert "call the smith" in problem["hint"]


def test_up_beside_another_version_is_refused(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 5 and both versions named."""
    ensure_up(fakes, lambda _line: None)
    state = read_state(fakes)
    assert state is not None
    os.kill(state.steward.pid, signal.SIGSTOP)  # so that it does not write its own version again
    write_state(fakes, replace(state, version="0.0.9"))
    assert up(detach=True, factories=None, as_json=False) == 5
    assert "runs version 0.0.9" in capsys.readouterr().err


def test_status_shows_each_part_with_its_memory(fakes: Path, shown: Callable[[], tuple[Any, str]]) -> None:
    """State, pid, uptime, restarts and resident memory of every process, and their sum."""
    ensure_up(fakes, lambda _line: None)
    assert status(as_json=True) == 0
    document, _ = shown()
    assert document["up"] is True
    assert document["same_version"] is True
    rows = {row["kind"]: row for row in document["parts"]}
    assert set(rows) == {"steward", "guard", "api", "control", "factory"}
    assert all(row["state"] == "ready" and row["rss_bytes"] > 1e6 and row["pid"] > 1 for row in rows.values())
    assert document["memory"]["rss_bytes"] == sum(row["rss_bytes"] for row in rows.values())
    assert 0 <= rows["api"]["uptime_s"] <= document["uptime_s"] + 0.1


def test_status_for_people_is_a_table(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a part."""
    ensure_up(fakes, lambda _line: None)
    assert status(as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": ready")
    assert [line.split()[0] for line in lines[1:]] == [
        "part",
        "steward",
        "guard",
        "api",
        "control",
        *factory_names(fakes, 1),
    ]


def test_status_without_a_stack(home: Path, shown: Callable[[], tuple[Any, str]]) -> None:
    """Exit code 6, and a document all the same."""
    assert status(as_json=True) == 6
    assert shown()[0] | {"home": ""} == {
        "up": False,
        "state": "down",
        "home": "",
        "cli_version": VERSION,
        "leftovers": [],
        "failure": None,
        "parts": [],
    }


def test_status_after_the_steward_was_killed_names_what_is_left(
    fakes: Path, shown: Callable[[], tuple[Any, str]]
) -> None:
    """Parts without a steward are no running stack; the way to end them is told."""
    ensure_up(fakes, lambda _line: None)
    state = read_state(fakes)
    assert state is not None
    guard = next(part for part in state.parts if part.kind == "guard")
    os.kill(state.steward.pid, signal.SIGSTOP)
    guard.process.signal(signal.SIGKILL)
    state.steward.signal(signal.SIGKILL)
    assert wait_gone([state.steward], PATIENCE_S) == []
    assert status(as_json=True) == 6
    document, _ = shown()
    assert document["state"] == "broken"
    assert {"api", "control"} <= set(document["leftovers"])


def test_down_says_whether_anything_ran(fakes: Path, shown: Callable[[], tuple[Any, str]]) -> None:
    """The first `down` stops the stack, the second finds none; both are a success."""
    ensure_up(fakes, lambda _line: None)
    assert down(as_json=True) == 0
    assert shown()[0]["stopped"] is True
    assert down(as_json=True) == 0
    assert shown()[0]["stopped"] is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_stack_in_the_foreground_ends_with_its_command(home: Path, number: signal.Signals) -> None:
    """Ctrl-C, a closed terminal and even SIGKILL of `gf up` end the stack that it started."""
    command = [sys.executable, "-P", "-c", IN_FOREGROUND, str(home), str(FAKE)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shell:
        assert shell.stderr is not None
        while "Ctrl-C stops the stack" not in (line := shell.stderr.readline()):
            assert line, "ended early"
        state = read_state(home)
        assert state is not None
        shell.send_signal(number)
        shell.communicate(timeout=PATIENCE_S)
    assert shell.returncode == (-number if number == signal.SIGKILL else 0)
    deadline = time.monotonic() + PATIENCE_S
    while (state.alive or strays_of(home)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not state.alive
    assert strays_of(home) == []
