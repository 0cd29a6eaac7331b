"""The pages about engines say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from engines import catalogue
from engines.base import Engine
from engines.environment import PROXY_AND_TRUST
from engines.generic import PLACEHOLDERS, EngineSpec, EnvSpec, FailurePattern, OutputSpec, ProbeSpec, read_engine
from engines.prices import AS_OF, PRICES, SOURCE
from engines.replay import validate_body

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "reference" / "engines.md").read_text()
HOW_TO = (DOCS / "how-to" / "add-an-engine.md").read_text()
ENGINES = list(catalogue().values())


def yes(able: bool) -> str:
    """Return how the matrix says it."""
    return "yes" if able else "no"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_matrix_has_the_abilities_of_each_engine(engine: Engine) -> None:
    """Every cell of an engine's row is true."""
    row = next(line for line in REFERENCE.splitlines() if line.startswith(f"| [`{engine.name}`]"))
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    able = engine.abilities
    assert cells == [
        *(engine.engine_class, yes(able.headless), yes(able.resume), yes(able.tokens), able.cost, yes(able.sandbox)),
        *(yes(able.model), yes(able.allowed_tools), able.tested_with or "–"),
    ]
    assert not engine.abilities.tested_with or f"real CLI {engine.abilities.tested_with}" in REFERENCE


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_every_variable_that_passes_is_named(engine: Engine) -> None:
    """Nobody has to read code to know what reaches an engine."""
    assert [name for name in engine.env_allow if f"`{name}`" not in REFERENCE] == []
    assert [name for name in PROXY_AND_TRUST if name.isupper() and f"`{name}`" not in REFERENCE] == []


def test_price_table_is_the_one_that_is_used() -> None:
    """Prices, date and source on the page are those in the code."""
    rows = re.findall(r"^\| `(gpt[^`]+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", REFERENCE, re.MULTILINE)
    assert {row[0]: tuple(map(float, row[1:])) for row in rows} == {
        model: tuple(map(float, (price.input, price.cached_input, price.cache_write, price.output)))
        for model, price in PRICES.items()
    }
    assert AS_OF in REFERENCE
    assert SOURCE.split()[0] in REFERENCE


def test_replay_example_is_valid() -> None:
    """The block on the page can be copied."""
    (block,) = re.findall(r"^```replay\n.*?^```$", REFERENCE, re.MULTILINE | re.DOTALL)
    assert validate_body(block) == ()


def test_every_field_of_a_description_is_explained() -> None:
    """The how-to names each field and each placeholder of the format."""
    sections: dict[str, type[BaseModel]] = {"probe": ProbeSpec, "env": EnvSpec, "output": OutputSpec}
    names = [info.alias or name for name, info in EngineSpec.model_fields.items() if name not in sections]
    names += [f"{section}.{name}" for section, model in sections.items() for name in model.model_fields]
    names += [*FailurePattern.model_fields, *(f"{{{name}}}" for name in PLACEHOLDERS)]
    assert [name for name in names if f"`{name}`" not in HOW_TO] == []


def test_descriptions_in_the_how_to_are_valid() -> None:
    """Both YAML blocks can be copied; the second is only an `argv`."""
    whole, only_argv = re.findall(r"^```yaml\n(.*?)^```$", HOW_TO, re.MULTILINE | re.DOTALL)
    assert read_engine(whole, "whole").name == "my-agent"
    combined = {**yaml.safe_load(whole), **yaml.safe_load(only_argv)}
    assert read_engine(yaml.safe_dump(combined), "combined").abilities.model
