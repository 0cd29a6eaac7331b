"""Which engines there are: built in, described in a directory of YAML files, installed as plugins.

Does I/O: reads the directory and the entry points of group `gigafactory.engines`. An entry point names a class (or a
function) that makes an engine when called without arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from core.errors import FieldProblem, InvalidInput, NotFound
from core.field_types import nearest
from engines.base import Engine
from engines.claude import Claude
from engines.codex import Codex
from engines.generic import read_engine
from engines.replay import Replay
from engines.shell import Shell

GROUP = "gigafactory.engines"
BUILTIN: tuple[type[Engine], ...] = (Claude, Codex, Shell, Replay)
NEEDED = ("name", "env_allow", "abilities", "probe_command", "parse_version", "command", "parser")
"""What a plugin's engine must have to be one."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All engines, and what was wrong with those that are missing."""

    engines: dict[str, Engine]
    problems: tuple[FieldProblem, ...]
    """Paths begin with the file, or with `plugin NAME`."""


def read_catalogue(engines_dir: Path | None = None) -> Catalogue:
    """Return every engine that can be had; a broken description or plugin is a problem and stops nobody else.

    The first owner of a name keeps it: built in, then files in the order of their names, then plugins.
    """
    engines: dict[str, Engine] = {cls().name: cls() for cls in BUILTIN}
    origin = dict.fromkeys(engines, "built in")
    problems: list[FieldProblem] = []
    for source, found in (*_from_files(engines_dir), *_from_plugins()):
        if isinstance(found, InvalidInput):
            problems += _problems_of(source, found)
        elif found.name in engines:
            problems.append(FieldProblem(source, f"the name `{found.name}` is taken ({origin[found.name]})"))
        else:
            engines[found.name] = found
            origin[found.name] = source
    return Catalogue(engines, tuple(problems))


def catalogue(engines_dir: Path | None = None) -> dict[str, Engine]:
    """Return every engine that can be had, by name; `read_catalogue` also tells what was wrong with the others."""
    return read_catalogue(engines_dir).engines


def load(name: str, engines_dir: Path | None = None) -> Engine:
    """Return one engine; mistakes in the descriptions of others do not matter.

    Raises:
        NotFound: there is none of that name.
        InvalidInput: its own description, in the file of that name, is broken.

    """
    found = read_catalogue(engines_dir)
    if name in found.engines:
        return found.engines[name]
    own = tuple(problem for problem in found.problems if problem.path.startswith((f"{name}.y", f"plugin {name}")))
    if own:
        raise InvalidInput(f"the description of engine {name} has {len(own)} mistake(s)", own)
    near = nearest(name, found.engines)
    raise NotFound(
        f"there is no engine {name!r}", hint=f"did you mean {near}?" if near else "see docs/reference/engines.md"
    )


def _problems_of(source: str, error: InvalidInput) -> Iterator[FieldProblem]:
    if not error.problems:
        yield FieldProblem(source, error.message)
    for problem in error.problems:
        path = f"{source}: {problem.path}"
        yield FieldProblem(path, problem.message, problem.value, problem.expected, problem.suggestion, problem.line)


def _from_files(engines_dir: Path | None) -> Iterator[tuple[str, Engine | InvalidInput]]:
    if engines_dir is None or not engines_dir.is_dir():
        return
    for path in sorted(engines_dir.iterdir()):
        if path.suffix not in {".yaml", ".yml"}:
            continue
        try:
            yield path.name, read_engine(path.read_text(encoding="utf-8"), path.name)
        except InvalidInput as error:
            yield path.name, error
        except (OSError, UnicodeDecodeError) as error:
            yield path.name, InvalidInput(f"{path.name} cannot be read: {error}")


def _from_plugins() -> Iterator[tuple[str, Engine | InvalidInput]]:
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        yield f"plugin {point.name}", _load_plugin(point)


def _load_plugin(point: EntryPoint) -> Engine | InvalidInput:
    try:
        engine: Engine = point.load()()
    except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises must not stop the factory
        return InvalidInput(f"cannot be loaded from {point.value}: {type(error).__name__}: {error}")
    missing = [name for name in NEEDED if not hasattr(engine, name)]
    if missing:
        return InvalidInput(f"{point.value} is no engine: it has no {', '.join(missing)}")
    return engine
