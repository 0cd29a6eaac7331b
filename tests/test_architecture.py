"""The house rules that a reader relies on: which room may use which, that core is pure, that names say something.

Everything is read from the syntax tree; nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "core": (),
    "engines": ("core",),
    "store": ("core",),
    "activities": ("core", "engines", "store"),
    "workflows": ("core", "activities"),
    "workers": ("core", "engines", "store", "activities", "workflows"),
    "api": ("core", "engines", "store", "workflows", "activities.repository"),
    "cli": ("core",),
    "tui": ("core", "cli"),
}
"""Each room and the others that it may import: a package, or one module of it."""

EXCEPTIONS: dict[str, tuple[str, ...]] = {
    # Only these commands start or look into processes; all others are clients of the API.
    "cli/up.py": ("workers",),
    "cli/doctor.py": ("workers", "store.settings_source", "store.token_files"),
    "cli/bench*.py": ("workers",),
    "cli/run_tests.py": ("workers",),
    # What a machine has to know to be a factory, and tokens whose file lies here, are written by the command itself.
    "cli/fleet.py": ("workers", "store.token_files"),
    "cli/tokens.py": ("store.token_files",),
    # `gf explain` works without a stack: it reads the same files that intake reads.
    "cli/explaining.py": ("store.profile_files", "store.settings_source"),
    # What the outbox holds is brought to workflows here, for the API and the control worker alike.
    "workflows/job_client.py": ("store",),
}

PURE_MODULES = frozenset(
    {
        *("__future__", "abc", "array", "base64", "binascii", "bisect", "collections", "contextlib", "copy"),
        *("dataclasses", "datetime", "decimal", "difflib", "enum", "fnmatch", "fractions", "functools"),
        *("graphlib", "hashlib", "heapq", "hmac", "html", "ipaddress", "itertools", "json", "keyword"),
        *("math", "numbers", "operator", "pathlib", "posixpath", "re", "shlex", "statistics", "string"),
        *("struct", "textwrap", "types", "typing", "typing_extensions", "unicodedata", "urllib.parse"),
        "zlib",
        # third-party libraries that compute and do nothing else
        *("annotated_types", "numpy", "packaging", "pathspec", "pydantic", "pydantic_core", "yaml"),
    }
)
"""What core may import. Clock, randomness, environment, logging, processes, sockets and threads are not among it."""

IMPURE_BUILTINS = frozenset({"__import__", "breakpoint", "eval", "exec", "input", "open", "print"})
IMPURE_METHODS = frozenset(
    {
        # the clock
        *("now", "utcnow", "today"),
        # the file system, which pathlib would let in
        *("cwd", "expanduser", "home", "iterdir", "mkdir", "read_bytes", "read_text", "rglob", "stat", "unlink"),
        *("write_bytes", "write_text"),
    }
)
SERVICE_ROOMS = ("core", "engines", "store", "activities", "workflows", "workers", "api")
EMPTY_NAMES = ("util", "utils", "helper", "helpers", "misc", "manager", "managers", "common")


# --- reading -----------------------------------------------------------------------------------------


def modules_of(*rooms: str) -> list[Path]:
    """List the Python files of some rooms, relative to the root, in a stable order."""
    return sorted(path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py"))


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every absolute import anywhere in a module, those inside functions too.

    `from a.b import c` yields `a.b.c`, since `c` may be a module. Relative imports cannot leave their room.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def covered(name: str, allowed: tuple[str, ...] | frozenset[str]) -> bool:
    """Tell whether `name` is one of the allowed modules or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in allowed)


# --- rules -------------------------------------------------------------------------------------------


def direction_breaches(path: Path, source: str) -> list[str]:
    """List the imports of the module at `path` (relative to the root) that its room may not make."""
    room = path.parts[0]
    extra = tuple(name for pattern, names in EXCEPTIONS.items() if fnmatch(path.as_posix(), pattern) for name in names)
    allowed = (room, *MAY_IMPORT[room], *extra)
    return [
        f"{path}:{line}: {room} may not import {name}"
        for line, name in imports_of(ast.parse(source))
        if covered(name, tuple(MAY_IMPORT)) and not covered(name, allowed)
    ]


def purity_breaches(path: Path, source: str) -> list[str]:
    """List what makes a module of core impure: imports that are not allow-listed, and calls that do I/O."""
    tree = ast.parse(source)
    breaches = [
        f"{path}:{line}: core imports {name}"
        for line, name in imports_of(tree)
        if not covered(name, PURE_MODULES | {"core"})
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in IMPURE_BUILTINS:
            breaches.append(f"{path}:{node.lineno}: core uses {node.id}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_METHODS:
            breaches.append(f"{path}:{node.lineno}: core calls .{node.func.attr}()")
    return breaches


def print_calls(path: Path, source: str) -> list[str]:
    """List the calls of `print` in a module."""
    return [
        f"{path}:{node.lineno}: print"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


# --- the tree as it stands ---------------------------------------------------------------------------


def test_rooms_import_only_what_they_may() -> None:
    """The import direction of the architecture holds in every module."""
    breaches = [
        line for path in modules_of(*MAY_IMPORT) for line in direction_breaches(path, (ROOT / path).read_text())
    ]
    assert not breaches, "\n".join(breaches)


def test_core_is_pure() -> None:
    """Core does no I/O and knows no clock, randomness, environment or log: what it needs of them are arguments."""
    breaches = [line for path in modules_of("core") for line in purity_breaches(path, (ROOT / path).read_text())]
    assert not breaches, "\n".join(breaches)


def test_service_code_does_not_print() -> None:
    """Services log; only the command line writes to a terminal."""
    breaches = [line for path in modules_of(*SERVICE_ROOMS) for line in print_calls(path, (ROOT / path).read_text())]
    assert not breaches, "\n".join(breaches)


def test_module_names_say_what_is_inside() -> None:
    """No module or folder is called utils, helpers, misc or manager."""
    paths = [*modules_of(*MAY_IMPORT), *modules_of("tests")]
    nameless = [str(path) for path in paths if {*path.parent.parts, path.stem} & set(EMPTY_NAMES)]
    assert nameless == []


def test_profiles_hold_no_code() -> None:
    """Profiles are data: Markdown files."""
    assert modules_of("profiles") == []


# --- the rules themselves ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/job.py", "import store"),
        ("core/job.py", "from engines.claude import Claude"),
        ("engines/claude.py", "def f():\n    from store import ledger"),
        ("engines/claude.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import activities.git"),
        ("workflows/job.py", "from store.ledger import Ledger"),
        ("api/app.py", "from activities import tracker"),
        ("api/app.py", "import workers.link"),
        ("store/rows.py", "import engines"),
        ("cli/status.py", "from workers.stack import up"),
        ("cli/up.py", "import store"),
        ("workers/agent.py", "import api.app"),
    ],
)
def test_wrong_direction_is_seen(path: str, source: str) -> None:
    """A forbidden import is found wherever it stands."""
    assert len(direction_breaches(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/job.py", "import json, core.budget\nfrom corelib import x"),
        ("workflows/job.py", "from activities.git import Seal\nfrom core import job"),
        ("api/app.py", "from activities.repository import diff\nfrom activities import repository"),
        ("workers/agent.py", "import workflows.job, store.ledger, engines"),
        ("cli/up.py", "from workers.stack import up"),
        ("cli/bench_routing.py", "import workers.stack"),
        ("store/rows.py", "from . import tables\nfrom .tables import Job"),
    ],
)
def test_right_direction_is_let_through(path: str, source: str) -> None:
    """What the table allows is no breach."""
    assert direction_breaches(Path(path), source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import random",
        "import uuid",
        "import os",
        "from os import environ",
        "import logging",
        "import subprocess",
        "import socket",
        "import asyncio",
        "import urllib.request",
        "import threading",
        "from datetime import datetime\ndatetime.now()",
        "import datetime as dt\ndt.datetime.utcnow()",
        "from datetime import date\ndate.today()",
        "open('x')",
        "print('x')",
        "f = open",
        "from pathlib import Path\nPath('x').read_text()",
    ],
)
def test_impurity_is_seen(source: str) -> None:
    """Every door to the outside that core could use is closed."""
    assert len(purity_breaches(Path("core/job.py"), source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from urllib.parse import urlsplit",
        "from collections.abc import Mapping\nimport pydantic, yaml, numpy as np",
        "def decide(state, event, now):\n    return state.now, event.open",
        "from datetime import datetime, UTC\ndatetime.fromtimestamp(0, UTC)",
        "import core.errors\nfrom . import errors",
    ],
)
def test_pure_code_is_let_through(source: str) -> None:
    """Arguments named like impure things are no breach."""
    assert purity_breaches(Path("core/job.py"), source) == []
