"""`gf doctor`: what it finds in good and in damaged homes, and what it tells to do about it."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cli import doctor as doctor_module
from cli.doctor import CHECKS, Finding, Patient, doctor, examine, file_system_of
from core.settings import Settings
from store.schema import HEAD
from workers.stack_home import prepare
from workers.stack_state import MARKER, ProcessId, StackState, read_state, write_state

Look = Callable[[str], list[Finding]]


@pytest.fixture
def look(home: Path) -> Look:
    """Return a function that runs one check by its name, on the test's home."""

    def run(name: str) -> list[Finding]:
        check = getattr(doctor_module, f"check_{name}")
        return list(check(Patient(home, Settings(home=home), read_state(home))))

    return run


def program(folder: Path, name: str, says: str) -> None:
    """Make a program that says one thing."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def test_sound_machine_passes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine with all that is needed nothing fails, and every check has a word to say."""
    prepare(home)
    home.chmod(0o700)
    assert doctor(as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert {"settings", "python", "git", "sqlite", "disk", "memory", "clock", "home", "ledger", "stack"} <= {
        row["name"] for row in document["checks"]
    }
    assert all(set(row) == {"name", "status", "seen", "mend"} for row in document["checks"])


def test_failure_decides_the_exit_code_and_tells_the_mend(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People see the finding, the way to mend it under it, and a summary."""
    home.chmod(0o777)
    assert doctor(as_json=False) == 1
    shown = capsys.readouterr().out
    assert f"others may write to {home}" in shown
    assert f"→ chmod 700 {home}" in shown
    assert "1 failed" in shown


def test_every_bad_finding_has_a_mend(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong, something can be done."""
    monkeypatch.setenv("PATH", str(home))
    (home / "settings.yaml").write_text("nonsense: 1\n")
    bad = [finding for finding in examine(home) if finding.status != "ok"]
    assert {finding.name for finding in bad} >= {"settings", "git"}
    assert all(finding.mend for finding in bad)


def test_bad_settings_are_named(home: Path) -> None:
    """The other checks run all the same, with defaults."""
    (home / "settings.yaml").write_text("facteries: 2\n")
    findings = examine(home)
    assert findings[0].status == "fail"
    assert "facteries" in findings[0].seen
    assert len(findings) > len(CHECKS) / 2


@pytest.mark.parametrize(
    ("says", "status"),
    [
        ("git version 2.37.9", "fail"),
        ("git version 2.38.0", "ok"),
        ("git version 3.1 (Apple)", "ok"),
        ("what?", "fail"),
    ],
)
def test_git_must_know_merge_tree(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, status: str
) -> None:
    """Git before 2.38 cannot tell whether a merge would conflict."""
    program(tmp_path / "bin", "git", says)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert look("git")[0].status == status


def test_missing_home_will_be_made(tmp_path: Path) -> None:
    """A first run is no failure."""
    patient = Patient(tmp_path / "new" / "home", Settings(home=tmp_path / "new" / "home"), None)
    assert [finding.status for finding in doctor_module.check_home(patient)] == ["ok"]


def test_readable_token_is_a_failure(look: Look, home: Path) -> None:
    """A token that others could read is told, with the commands that make a new one."""
    prepare(home)
    home.chmod(0o700)
    (home / "token").chmod(0o640)
    bad = [finding for finding in look("home") if finding.status != "ok"]
    assert [finding.name for finding in bad] == ["tokens"]
    assert f"rm {home / 'token'}" in bad[0].mend


def test_taken_port_is_a_warning(home: Path) -> None:
    """A taken default port is no failure: the stack takes the next one."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        settings = Settings(home=home, api_port=port)
        finding = next(doctor_module.check_ports(Patient(home, settings, None)))
    assert finding.status == "warn"
    assert f"api {port}" in finding.seen


def test_temporal_address_that_does_not_answer_is_a_failure(home: Path) -> None:
    """A configured server must be there."""
    with closing(silent_socket()) as taken:
        port = taken.getsockname()[1]
        patient = Patient(home, Settings(home=home, temporal_address=f"127.0.0.1:{port}"), None)
        assert next(doctor_module.check_temporal(patient)).status == "fail"


def silent_socket() -> socket.socket:
    """Return a socket that has a port to itself and listens to nobody there."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken


def test_missing_temporal_is_a_warning(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gf up` obtains it."""
    for name in ("PATH", "HOME", "GIGAFACTORY_CACHE", "GOBIN", "GOPATH"):
        monkeypatch.setenv(name, str(tmp_path))
    assert look("temporal")[0].status == "warn"


@pytest.mark.parametrize(("driver", "status"), [("1.34.1", "warn"), ("1.61.1", "ok")])
def test_temporal_that_a_killed_worker_can_break_is_a_warning(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, status: str
) -> None:
    """It is used all the same."""
    program = tmp_path / "temporal"
    said = "--db-filename --sqlite-pragma --search-attribute"
    program.write_text(f"#!/bin/sh\necho {said}\n# dep\tmodernc.org/sqlite\tv{driver}\n")
    program.chmod(0o755)
    for name in ("PATH", "HOME", "GIGAFACTORY_CACHE", "GOBIN", "GOPATH"):
        monkeypatch.setenv(name, str(tmp_path))
    (finding,) = look("temporal")
    assert finding.status == status
    assert str(program) in finding.seen


@pytest.mark.parametrize(("revision", "status"), [(HEAD, "ok"), ("9999", "fail")])
def test_ledger_of_a_newer_version_is_a_failure(look: Look, home: Path, revision: str, status: str) -> None:
    """A ledger that a newer version migrated is left alone and named."""
    with closing(sqlite3.connect(home / "ledger.db")) as ledger:
        ledger.execute("create table alembic_version (version_num text)")
        ledger.execute("insert into alembic_version values (?)", (revision,))
        ledger.commit()
    finding = look("ledger")[0]
    assert finding.status == status
    assert revision in finding.seen


def test_ledger_that_is_not_made_yet_is_fine(look: Look) -> None:
    """`gf up` makes it."""
    assert look("ledger")[0].status == "ok"


def test_processes_without_a_stack_are_a_failure(look: Look, home: Path) -> None:
    """What a killed stack left behind is found, and `gf down` is told."""
    environ = os.environ | {MARKER: str(home)}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environ) as stray:
        try:
            finding = look("stack")[0]
        finally:
            stray.kill()
    assert finding.status == "fail"
    assert str(stray.pid) in finding.seen
    assert finding.mend == "gf down"


def test_stack_that_does_not_answer_is_a_failure(look: Look, home: Path) -> None:
    """A living steward is not enough: the API must answer, and the versions must agree."""
    me = ProcessId.of(os.getpid())
    assert me is not None
    with closing(silent_socket()) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        write_state(home, StackState("0.0.9", str(home), "ready", "", me, urls={"api": url}))
        version, answer = look("stack")
    assert version.status == answer.status == "fail"
    assert "version 0.0.9 runs" in version.seen
    assert "no answer" in answer.seen


def test_clock_behind_the_home_is_a_warning(look: Look, home: Path) -> None:
    """Files from the future mean that the clock went back: leases and times would lie."""
    assert look("clock")[0].status == "ok"
    prepare(home)
    future = 4_000_000_000
    os.utime(home / "run", (future, future))
    assert look("clock")[0].status == "warn"


@pytest.mark.parametrize(
    ("probe", "alone", "status", "words"),
    [
        (("2.1.0", "", ()), False, "ok", "2.1.0"),
        (("2.1.0", "", ("OPENAI_API_KEY", "X")), False, "warn", "set OPENAI_API_KEY or X before `gf up`"),
        (("", "codex is not on PATH; npm install it", ()), True, "warn", "npm install it"),
        (("", "codex is not on PATH; npm install it", ()), False, "ok", "codex is not on PATH"),
        (("", "`codex --version` ended with exit code 1: boom", ()), False, "warn", "exit code 1"),
    ],
)
def test_engine_is_judged(probe: tuple[str, str, tuple[str, ...]], alone: bool, status: str, words: str) -> None:
    """An engine that is missing only matters when there is no other; one without a login is told how to get it."""
    finding = doctor_module.judge_engine("codex", *probe, alone=alone)
    assert finding.status == status
    assert words in finding.seen + finding.mend


def test_engines_of_this_machine_are_found(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real program on PATH is asked for its version, and its login is looked for by the variable's presence."""
    program(tmp_path / "bin", "claude", "2.1.7 (Claude Code)")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    without = next(finding for finding in look("engines") if finding.name == "engine claude")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "made-up")
    with_key = next(finding for finding in look("engines") if finding.name == "engine claude")
    assert (without.status, with_key.status) == ("warn", "ok")
    assert "2.1.7" in with_key.seen
    assert "made-up" not in f"{without}{with_key}"


def test_broken_engine_description_is_a_failure(look: Look, home: Path) -> None:
    """A YAML file that describes no engine is named with its mistakes."""
    (home / "engines").mkdir()
    (home / "engines" / "mine.yaml").write_text("nonsense: 1\n")
    findings = [finding for finding in look("engines") if finding.name == "engines"]
    assert {finding.status for finding in findings} == {"fail"}
    assert "mine.yaml" in findings[0].seen


def test_broken_profile_is_a_failure(look: Look, home: Path) -> None:
    """A profile file is named with each of its mistakes; mended, all profiles are counted."""
    (home / "profiles").mkdir()
    (home / "profiles" / "mine.md").write_text("---\nname: mine\nnonsense: 1\nversion: x\n---\nBe kind.\n")
    findings = look("profiles")
    assert {finding.status for finding in findings} == {"fail"}
    assert any("mine.md" in finding.seen and "nonsense" in finding.seen for finding in findings)
    assert len(findings) > 1
    (home / "profiles" / "mine.md").unlink()
    (finding,) = look("profiles")
    assert (finding.status, finding.seen) == ("ok", "9 profiles")


def test_codec_that_cannot_be_loaded_is_a_failure(look: Look, home: Path) -> None:
    """The setting is held against what is there before `gf up` fails over it; without one there is nothing to say."""
    assert look("codec") == []
    for named, status in ((str(home / "no.py:Codec"), "fail"), ("tests.sealing:SealingCodec", "ok")):
        patient = Patient(home, Settings(home=home, payload_codec=named), None)
        (finding,) = doctor_module.check_codec(patient)
        assert (finding.status, named in finding.seen) == (status, True)


def test_file_system_is_told() -> None:
    """The type of the file system is that of the nearest mount."""
    if sys.platform.startswith("linux"):
        assert file_system_of(Path("/proc/self")) == "proc"
