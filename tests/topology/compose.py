"""Reads docker-compose.yml as far as the tests run it: commands, environments, mounts, order. *Does no I/O itself.*"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<word>[^}]*))?\}")


@dataclass(frozen=True)
class Service:
    """One service: what its container runs, and after which others."""

    name: str
    document: Mapping[str, Any]
    command: tuple[str, ...]
    """Entrypoint and command."""
    environment: Mapping[str, str]
    mounts: Mapping[str, Path]
    """Bind mounts: path in the container, path in the checkout."""
    once: bool
    """It runs to its end and is not started again."""
    after: tuple[str, ...]
    """Services that must have ended well before it starts."""


def read_services(text: str, variables: Mapping[str, str]) -> dict[str, Service]:
    """Return the services of a compose file, its variables replaced.

    Raises:
        KeyError: a variable that must be given (`${NAME:?…}`) is not.

    """
    document = yaml.safe_load(interpolate(text, variables))
    return {name: _service(name, body) for name, body in document["services"].items()}


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Replace `${NAME}`, `${NAME:-default}` and `${NAME:?message}` as Compose does."""

    def value(match: re.Match[str]) -> str:
        given = variables.get(match["name"], "")
        if not given and match["operator"] == ":?":
            raise KeyError(f"{match['name']}: {match['word']}")
        return given or (match["word"] if match["operator"] == ":-" else "")

    return _VARIABLE.sub(value, text)


def variables_of(text: str) -> set[str]:
    """Return the names of the variables that the file takes."""
    return {match["name"] for match in _VARIABLE.finditer(text)}


def _service(name: str, body: Mapping[str, Any]) -> Service:
    binds = [volume.split(":") for volume in body.get("volumes", ()) if volume.startswith(".")]
    mounts = {target: ROOT / source for source, target, *_ in binds}
    ended = "service_completed_successfully"
    return Service(
        name=name,
        document=body,
        command=(*body.get("entrypoint", ()), *body.get("command", ())),
        environment={key: str(value) for key, value in body.get("environment", {}).items()},
        mounts=mounts,
        once=body.get("restart") == "no",
        after=tuple(other for other, how in body.get("depends_on", {}).items() if how["condition"] == ended),
    )
