"""Where the stack of this user lies and how to reach its API. *Does I/O: reads files and the environment.*

Only the quick standard library is used here: every command that asks something comes through this module.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple


class Endpoint(NamedTuple):
    """Where the API is and the token that opens it."""

    url: str
    token: str


def home_dir() -> Path:
    """Return `$GIGAFACTORY_HOME`, or `~/.gigafactory`."""
    return Path(os.environ.get("GIGAFACTORY_HOME") or "~/.gigafactory").expanduser().absolute()


def stack_document(home: Path) -> dict[str, Any]:
    """Return what `<home>/run/stack.json` says; empty when there is no readable one."""
    try:
        document = json.loads((home / "run" / "stack.json").read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def endpoint(home: Path) -> Endpoint | None:
    """Return where the API is: the environment's word, else the stack's; None when neither says."""
    url = os.environ.get("GIGAFACTORY_API_URL") or stack_document(home).get("urls", {}).get("api")
    return Endpoint(str(url), _token(home)) if url else None


def _token(home: Path) -> str:
    given = os.environ.get("GIGAFACTORY_TOKEN")
    if given:
        return given.strip()
    try:
        return (home / "token").read_text().strip()
    except OSError:
        return ""
