"""Profile files in directories: which are read, which win, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import InvalidInput
from store.profile_files import BUILT_IN, load_profiles


def write(directory: Path, name: str, front: str = "", persona: str = "You are careful.") -> None:
    """Write one profile file."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.md").write_text(f"---\nname: {name}\ndescription: x\n{front}---\n{persona}\n")


def test_profiles_come_by_name_and_sorted(tmp_path: Path) -> None:
    """Every Markdown file of the directory is a profile, except notes and the README."""
    for name in ("b", "a"):
        write(tmp_path, name)
    for other in ("README.md", "_draft.md", ".hidden.md", "notes.txt"):
        (tmp_path / other).write_text("no profile")
    assert list(load_profiles(tmp_path)) == ["a", "b"]


def test_later_directory_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    """Own profiles add to the built-in ones and may replace them."""
    write(tmp_path, "qa", persona="You are ours.")
    profiles = load_profiles(BUILT_IN, tmp_path)
    assert profiles["qa"].persona == "You are ours."
    assert "solo" in profiles


def test_missing_directory_holds_no_profiles(tmp_path: Path) -> None:
    """Nothing there is no mistake."""
    assert load_profiles(tmp_path / "nowhere") == {}


def test_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    """Each problem names its file."""
    write(tmp_path, "a", "risk: none\n")
    write(tmp_path, "b", "colour: blue\n")
    (tmp_path / "c.md").write_bytes(b"---\nname: c\xff\n---\n")
    with pytest.raises(InvalidInput) as caught:
        load_profiles(tmp_path)
    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        ("a.md:risk", 4),
        ("b.md:colour", 4),
        ("c.md:file", None),
    ]
