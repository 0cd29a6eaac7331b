"""A home that becomes a factory's: what is refused, what is written, what `gf up` starts there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import Conflict
from core.settings import Settings
from store.settings_source import read_settings
from workers.enrolled_home import check_bare, settle
from workers.stack_home import factory_names
from workers.stack_parts import plan_enrolled
from workers.stack_start import launch_steward

DIRECT = {"address": "temporal.example:7233", "namespace": "fleet", "gateway_url": ""}
GATEWAY = {"address": "127.0.0.1:4420", "namespace": "default", "gateway_url": "https://gate.example:4440"}
API = "https://fleet.example"


def settled(home: Path, temporal: dict[str, str] | None = None) -> Settings:
    """Make `home` the factory mac-1 of a fleet."""
    return settle(home, api_url=API, factory="mac-1", secret="gff_" + "s" * 43, temporal=temporal or DIRECT)


@pytest.mark.req("F3", "H4")
def test_enrolled_home_knows_its_fleet_and_keeps_its_token_to_itself(home: Path) -> None:
    """Address, name and way to Temporal are settings; the token lies where the agent looks, for its owner alone."""
    settings = settled(home)
    assert (settings.api_url, settings.enrolled_as) == (API, "mac-1")
    assert (settings.temporal_address, settings.temporal_namespace) == ("temporal.example:7233", "fleet")
    token = home / "factories" / "mac-1" / "token"
    assert token.read_text() == "gff_" + "s" * 43 + "\n"
    for file in (token, home / "settings.yaml"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert "gff_" not in (home / "settings.yaml").read_text()


def test_gateway_takes_the_place_of_temporals_address(home: Path) -> None:
    """A machine that is sent to a gateway is told nothing of what lies behind it."""
    settings = settled(home, GATEWAY)
    assert (settings.gateway_url, settings.temporal_address) == ("https://gate.example:4440", "")


def test_settings_that_are_there_stay_word_for_word(home: Path) -> None:
    """Comments and values of the owner are kept; what they say otherwise is told, with what to write."""
    before = "# mine\nseats-per-factory: 5   # a big machine\napi-url: https://fleet.example\n"
    (home / "settings.yaml").write_text(before)
    settings = settled(home)
    text = (home / "settings.yaml").read_text()
    assert text.startswith(before)
    assert (settings.seats_per_factory, settings.enrolled_as) == (5, "mac-1")
    assert list(yaml.safe_load(text)).count("api_url") == 0

    other = home.parent / "other"
    other.mkdir()
    (other / "settings.yaml").write_text("temporal_address: elsewhere:7233\n")
    with pytest.raises(Conflict, match="other values for temporal_address") as caught:
        settled(other)
    assert "temporal_address: temporal.example:7233" in caught.value.hint


@pytest.mark.parametrize("what", ["a factory", "a ledger", "a database"])
def test_home_that_is_taken_is_refused(home: Path, what: str) -> None:
    """A stack's home and a factory's home are not enrolled; a bare one is."""
    check_bare(home)
    if what == "a factory":
        settled(home)
    elif what == "a ledger":
        (home / "ledger.db").touch()
    else:
        (home / "settings.yaml").write_text("database_url: postgresql://x@y/z\n")
    with pytest.raises(Conflict, match=r"already|of its own"):
        check_bare(home)


@pytest.mark.req("F3")
def test_enrolled_home_starts_its_factory_and_nothing_else(home: Path) -> None:
    """No Temporal, no API, no ledger; the one factory, under the name that it was enrolled as."""
    settings = settled(home)
    plan = plan_enrolled(settings)
    assert [part.kind for part in plan.parts] == ["guard"]
    assert factory_names(home, plan.factories) == ["mac-1"]
    spec = plan.factory("mac-1")
    assert spec.argv[-2:] == ("--name", "mac-1")
    assert spec.announces
    assert dict(plan.urls) == {"api": API, "temporal": "temporal.example:7233"}


def test_enrolled_home_is_one_factory_and_not_several(home: Path) -> None:
    """`gf up --factories 2` there is refused before anything starts."""
    settled(home)
    said: list[Any] = []
    with pytest.raises(Conflict, match="home of one factory, mac-1"):
        launch_steward(home, said.append, 2, False)
    assert not (home / "run" / "stack.json").exists()
    assert read_settings(home).enrolled_as == "mac-1"
