"""The catalogue: built in, described, installed."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import engines
from core.engine_classes import ENGINES
from core.errors import InvalidInput, NotFound
from engines import registry
from engines.base import BaseEngine, body_problems
from tests.engines.clis import PINNED

GOOD = "name: {name}\nprobe: {{command: [{name}]}}\nargv: [{name}, '{{prompt}}']\nprompt: arg\n"


@pytest.fixture
def engines_dir(tmp_path: Path) -> Path:
    """Return a directory with one good description."""
    (tmp_path / "alpha.yaml").write_text(GOOD.format(name="alpha"))
    (tmp_path / "README.md").write_text("not an engine")
    return tmp_path


class PluginEngine(BaseEngine):
    name = "plugged"
    title = "Plugged in"

    def probe_command(self) -> list[str]:
        return ["plugged", "--version"]

    def command(self, run: Any) -> Any:
        raise NotImplementedError

    def parser(self, run: Any, clock: Any = None) -> Any:
        raise NotImplementedError


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that packages with these entry points are installed."""
    found = tuple(EntryPoint(name=name, value=value, group=registry.GROUP) for name, value in points.items())
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.GROUP else ())


def test_built_in_engines_are_those_that_the_control_plane_knows() -> None:
    """`core.engine_classes` promises an adapter for exactly these, in these classes and with these hints."""
    found = engines.catalogue()
    promised = {info.name: info for info in ENGINES if info.adapter}
    assert set(found) == set(promised)
    for name, engine in found.items():
        assert (engine.title, engine.engine_class) == (promised[name].title, promised[name].engine_class)
        honours = (("model", engine.abilities.model), ("allowed-tools", engine.abilities.allowed_tools))
        assert tuple(hint for hint, able in honours if able) == promised[name].honours


def test_adapters_are_tested_with_the_pinned_versions() -> None:
    """The capability matrix names the versions that the tests install."""
    assert {found.abilities.tested_with for found in engines.catalogue().values()} - {""} == set(PINNED.values())


def test_description_is_found_by_name(engines_dir: Path) -> None:
    """A YAML file is an engine like any other."""
    assert engines.load("alpha", engines_dir).probe_command() == ["alpha"]
    assert set(engines.catalogue(engines_dir)) == {"claude", "codex", "shell", "replay", "alpha"}
    assert set(engines.catalogue(engines_dir / "missing")) == {"claude", "codex", "shell", "replay"}


def test_broken_description_harms_nobody_else(engines_dir: Path) -> None:
    """One broken file: the other engines load, and the error names file and field."""
    (engines_dir / "beta.yaml").write_text("name: beta\nargv: nothing\n")
    (engines_dir / "gamma.yml").write_bytes(b"\xff\xfe")
    assert engines.load("alpha", engines_dir).name == "alpha"
    found = engines.read_catalogue(engines_dir)
    assert "alpha" in found.engines
    assert {problem.path.split(":")[0] for problem in found.problems} == {"beta.yaml", "gamma.yml"}
    with pytest.raises(InvalidInput) as refused:
        engines.load("beta", engines_dir)
    assert {problem.path for problem in refused.value.problems} >= {"beta.yaml: argv", "beta.yaml: probe"}
    assert set(engines.catalogue(engines_dir)) == set(found.engines)


def test_name_that_is_taken_stays_with_its_first_owner(engines_dir: Path) -> None:
    """Nobody replaces a built-in engine by a file of the same name."""
    (engines_dir / "other.yaml").write_text(GOOD.format(name="claude"))
    (engines_dir / "zeta.yaml").write_text(GOOD.format(name="alpha"))
    found = engines.read_catalogue(engines_dir)
    assert found.engines["claude"].title == "Claude Code"
    assert [(problem.path, problem.message) for problem in found.problems] == [
        ("other.yaml", "the name `claude` is taken (built in)"),
        ("zeta.yaml", "the name `alpha` is taken (alpha.yaml)"),
    ]


def test_unknown_engine_is_not_found_with_a_suggestion() -> None:
    """A misspelt name gets the nearest one."""
    with pytest.raises(NotFound) as missing:
        engines.load("cluade")
    assert missing.value.hint == "did you mean claude?"


def test_installed_plugin_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the entry point adds an engine without a change here; what it leaves out has defaults."""
    install(monkeypatch, plugged=f"{__name__}:PluginEngine")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(PluginEngine=PluginEngine))
    engine = engines.load("plugged")
    assert (engine.title, engine.supports_resume, engine.parse_version("plugged 1.2.3")) == (
        "Plugged in",
        False,
        "1.2.3",
    )
    assert [problem.path for problem in body_problems(engine, "  ")] == ["body"]


@pytest.mark.parametrize("value", ["no_such_module:Engine", "json:NoSuchName", "builtins:dict", "builtins:range"])
def test_broken_plugin_harms_nobody_else(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Whatever a plugin does while it loads, the other engines are there and the reason is told."""
    install(monkeypatch, bad=value)
    found = engines.read_catalogue()
    assert set(found.engines) == {"claude", "codex", "shell", "replay"}
    (problem,) = found.problems
    assert problem.path == "plugin bad"
    with pytest.raises(InvalidInput):
        engines.load("bad")
