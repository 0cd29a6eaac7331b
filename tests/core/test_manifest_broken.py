"""Broken job files: each tells all of its mistakes, exactly. Cases: `fixtures/manifests/*.md` with `*.json` beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import InvalidManifest
from core.field_problems import render_problem
from core.manifest import parse_manifest

FIXTURES = sorted((Path(__file__).parent / "fixtures" / "manifests").glob("*.md"))


@pytest.mark.req("M5")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_broken_file_tells_all_its_mistakes_exactly(path: Path) -> None:
    """Path, line, value, what was expected and the nearest spelling, for every mistake and nothing else."""
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(path.read_text(), source=path.name)
    found = [problem.as_dict() for problem in caught.value.problems]
    assert found == json.loads(path.with_suffix(".json").read_text())


@pytest.mark.req("M5")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_error_of_broken_file_can_be_read_and_sent(path: Path) -> None:
    """The message names file and first mistake; the problem document carries all of them and no secret."""
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(path.read_text(), source=path.name)
    error = caught.value
    assert error.message.startswith(f"{path.name} is not valid: {render_problem(error.problems[0])}")
    document = json.dumps(error.as_problem())
    assert '"code": "invalid_manifest"' in document
    assert "hunter2" not in document


def test_there_are_enough_kinds_of_broken_files() -> None:
    """The fixtures cover many kinds of mistakes."""
    assert len(FIXTURES) >= 20
