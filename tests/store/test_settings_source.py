"""Settings: which source wins, what is refused, and that the reference page tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from core.errors import InvalidInput
from core.settings import Settings
from core.version import VERSION
from store.settings_source import ROOT, default_home, read_settings

PAGE = ROOT / "docs" / "reference" / "settings.md"
ROW = re.compile(r"^\| `(?P<name>[a-z_]+)` \| `(?P<default>.*?)` \| (?P<meaning>.+) \| (?P<why>.+) \|$", re.MULTILINE)


def documented() -> dict[str, re.Match[str]]:
    """Return the rows of the page's tables by the setting that they describe."""
    return {row["name"]: row for row in ROW.finditer(PAGE.read_text())}


def test_reference_lists_exactly_the_settings() -> None:
    """Every setting stands in docs/reference/settings.md, and nothing else does."""
    assert sorted(documented()) == sorted(Settings.model_fields)


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"home"}))
def test_reference_tells_the_true_default(name: str) -> None:
    """The default on the page, read as in settings.yaml, is the one in the code; meaning and reason are there."""
    row = documented()[name]
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    default = default.model_dump(exclude_defaults=True) if isinstance(default, BaseModel) else default
    assert yaml.safe_load(row["default"]) == (list(default) if isinstance(default, tuple) else default)
    assert len(row["meaning"]) > 10
    assert len(row["why"]) > 5


def test_later_source_wins(tmp_path: Path) -> None:
    """Default, then file, then environment."""
    (tmp_path / "settings.yaml").write_text("factories: 2\nlease-ttl-s: 9\nengine_env: [A, B]\n")
    settings = read_settings(tmp_path, {"GIGAFACTORY_LEASE_TTL_S": "4.5", "GIGAFACTORY_HOME": "/nowhere"})
    assert (settings.factories, settings.lease_ttl_s, settings.beat_s) == (2, 4.5, 5.0)
    assert settings.engine_env == ("A", "B")
    assert settings.home == tmp_path


def test_lists_in_the_environment_are_words(tmp_path: Path) -> None:
    """`GIGAFACTORY_ENGINE_ENV` takes words separated by spaces."""
    assert read_settings(tmp_path, {"GIGAFACTORY_ENGINE_ENV": "A  B"}).engine_env == ("A", "B")


def test_bad_settings_are_refused_all_at_once(tmp_path: Path) -> None:
    """Unknown names and wrong values of both sources come in one error."""
    (tmp_path / "settings.yaml").write_text("facteries: 2\nbeat_s: -1\n")
    with pytest.raises(InvalidInput) as caught:
        read_settings(tmp_path, {"GIGAFACTORY_FACTORIES": "many"})
    assert {problem.path for problem in caught.value.problems} == {"facteries", "beat_s", "factories"}


@pytest.mark.parametrize("text", ["factories: [", "just words"])
def test_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    """A file that is no YAML mapping is an error of the caller, not a bug."""
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=r"settings\.yaml"):
        read_settings(tmp_path, {})


def test_home_comes_from_the_environment(tmp_path: Path) -> None:
    """`GIGAFACTORY_HOME` names the home; without it, it is `~/.gigafactory`."""
    assert default_home({"GIGAFACTORY_HOME": str(tmp_path)}) == tmp_path
    assert default_home({}).name == ".gigafactory"


def test_version_is_the_same_everywhere() -> None:
    """pyproject.toml and core.version say the same."""
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text()
