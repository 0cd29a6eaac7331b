"""Profile files in a directory. Does I/O: reads files."""

from __future__ import annotations

from pathlib import Path

from core.errors import FieldProblem, InvalidInput
from core.field_problems import render_problem
from core.profile import Profile, read_profile

BUILT_IN = Path(__file__).resolve().parent.parent / "profiles"
"""The profiles that come with Gigafactory."""


def load_profiles(*directories: Path) -> dict[str, Profile]:
    """Return all profiles of `directories` by name, sorted; without arguments the built-in ones.

    A later directory's profile takes the place of an earlier one's of the same name. A directory that does not exist
    holds none; files that begin with `_` or `.` and `README.md` are no profiles.

    Raises:
        InvalidInput: every mistake of every file, each path beginning with the file's name.

    """
    profiles: dict[str, Profile] = {}
    problems: list[FieldProblem] = []
    for path in _files(directories or (BUILT_IN,)):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            problems.append(FieldProblem(f"{path.name}:file", "is not UTF-8", expected=f"text; {error.reason}"))
            continue
        profile, found = read_profile(text, str(path))
        problems += [_in_file(path, problem) for problem in found]
        if profile is not None:
            profiles[profile.name] = profile
    if problems:
        raise InvalidInput(f"{len(problems)} mistake(s) in profiles: {render_problem(problems[0])}", tuple(problems))
    return dict(sorted(profiles.items()))


def _files(directories: tuple[Path, ...]) -> list[Path]:
    return [
        path
        for directory in directories
        if directory.is_dir()
        for path in sorted(directory.glob("*.md"))
        if path.is_file() and not path.name.startswith(("_", ".")) and path.name != "README.md"
    ]


def _in_file(path: Path, problem: FieldProblem) -> FieldProblem:
    return FieldProblem(
        f"{path.name}:{problem.path}",
        problem.message,
        problem.value,
        problem.expected,
        problem.suggestion,
        problem.line,
    )
