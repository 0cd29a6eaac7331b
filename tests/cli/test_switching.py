"""Halts, limits, drains and releases from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import switching
from core.switch import SENTINEL
from tests.cli.conftest import Gf, only_document


@pytest.mark.req("F9")
def test_halt_is_shown_and_released(gf: Gf) -> None:
    """Who halted what and why is in the list; a second release says that there is nothing."""
    done = gf("halt", "--engine", "codex", "-m", "bad prompt")
    assert (done.returncode, "engine codex is halted" in done.stdout) == (0, True), done.stderr
    listed = gf("halts").stdout
    assert "engine codex" in listed
    assert "bad prompt" in listed
    assert gf("unhalt", "--engine", "codex").returncode == 0
    again = gf("unhalt", "--engine", "codex")
    assert (again.returncode, "engine codex is not halted" in again.stderr) == (2, True)
    assert "nothing is halted" in gf("halts").stderr
    assert "released" in gf("halts", "--released").stdout


def test_halt_of_two_things_at_once_is_refused(gf: Gf) -> None:
    """The command would not know which was meant."""
    done = gf("halt", "--engine", "codex", "--product", "shop")
    assert (done.returncode, "cannot stand together" in done.stderr) == (2, True)
    assert only_document(gf("halts", "--json"))["halts"] == []


@pytest.mark.req("F9")
def test_local_halt_is_a_file_and_needs_no_stack(gf: Gf, tmp_path: Path) -> None:
    """The name of the file is the one that agents look for."""
    assert switching.SENTINEL == SENTINEL
    home = tmp_path / "elsewhere"
    done = gf("halt", "--local", "-m", "smoke", GIGAFACTORY_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert (home / SENTINEL).read_text() == "smoke\n"
    assert gf("unhalt", "--local", GIGAFACTORY_HOME=str(home)).returncode == 0
    assert not (home / SENTINEL).exists()
    assert gf("unhalt", "--local", GIGAFACTORY_HOME=str(home)).returncode == 2
    gf("halt", "--local", "--factory", "otter", GIGAFACTORY_HOME=str(home))
    assert (home / "factories" / "otter" / SENTINEL).exists()
    assert gf("halt", "--local", "--engine", "codex", GIGAFACTORY_HOME=str(home)).returncode == 2


@pytest.mark.req("R2")
def test_limit_is_set_shown_and_forgotten(gf: Gf) -> None:
    """The list says who set it."""
    assert gf("limit", "2", "--engine", "codex").returncode == 0
    (limit,) = only_document(gf("limits", "--json"))["limits"]
    assert (limit["kind"], limit["name"], limit["jobs"], limit["running"]) == ("engine", "codex", 2, 0)
    assert "codex" in gf("limits").stdout
    assert "no limits" in gf("limit", "--engine", "codex").stderr
    assert gf("limit", "2").returncode == 2


@pytest.mark.req("F8", "F10")
def test_drained_factory_says_why_it_is_blocked(gf: Gf) -> None:
    """`gf factories` shows state and reason; `undrain` ends it; a release wants a quarantine."""
    name = gf.factory("switching")

    def line() -> str:
        (found,) = [line for line in gf("factories").stdout.splitlines() if name in line]
        return found

    assert "idle" in line()
    drained = gf("drain", name, "--hand-over", "10m", "-m", "new disk")
    assert (drained.returncode, "goes on elsewhere in 10 min" in drained.stdout) == (0, True), drained.stderr
    assert "blocked" in line()
    assert f"{name} takes no further job: drained by" in gf("factories").stderr
    assert "online" in gf("undrain", name).stdout
    assert gf("undrain", name).returncode == 5
    assert gf("release", name).returncode == 5
