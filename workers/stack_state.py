"""The record of a running stack, `run/stack.json`, and what makes a process the same process. Does I/O: files, /proc.

Standard library only: the guard and the command line read it, and both must be light. Layout of the file:

    {"version", "home", "state", "started_at", "ready_at", "ready_s", "steward": {"pid", "birth"},
     "urls": {"api", "temporal", "temporal_ui"}, "ports": {…}, "factories_wanted": int,
     "failure": null | {"part", "message", "mend"},
     "parts": [{"name", "kind", "pid", "birth", "state", "since", "restarts", "url", "log", "rank", "grace_s"}]}

A pid alone names nobody for long: a process is its pid together with its `birth` (start time). Whoever signals a
recorded process compares both first.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self

from workers.process_table import birth_of

READY_FD: Final = "GIGAFACTORY_READY_FD"
"""Number of the pipe that a part writes to once it is ready; unset outside the stack."""

MARKER: Final = "GIGAFACTORY_STACK"
"""Set to the home in every process of a stack, and in nobody's shell: how strays are told from strangers."""

StackPhase = Literal["starting", "ready", "failed", "stopping"]
PartPhase = Literal["waiting", "starting", "ready", "restarting", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of this machine, now and after its pid was given to another."""

    pid: int
    birth: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of the living process `pid`, or None."""
        birth = birth_of(pid)
        return None if birth is None else cls(pid, birth)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return birth_of(self.pid) == self.birth

    def signal(self, number: int) -> bool:
        """Send a signal to this very process; False when it is gone, or not ours to signal."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One part as the record shows it; `rank` and `grace_s` say when and how patiently it is stopped."""

    name: str
    kind: str
    pid: int = 0
    birth: str = ""
    state: PartPhase = "waiting"
    since: str = ""
    restarts: int = 0
    url: str = ""
    log: str = ""
    rank: int = 0
    grace_s: float = 5.0

    @property
    def process(self) -> ProcessId:
        """The part's present process; a part that has none gives an identity that is never alive."""
        return ProcessId(self.pid, self.birth)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the stack could not be started: the part, what was seen, what mends it."""

    part: str
    message: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class StackState:
    """The whole record; `steward` is the process that writes it."""

    version: str
    home: str
    state: StackPhase
    started_at: str
    steward: ProcessId
    ready_at: str = ""
    ready_s: float | None = None
    urls: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    factories_wanted: int = 0
    failure: Failure | None = None
    parts: tuple[PartRecord, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether the steward that wrote this still runs."""
        return self.steward.alive


def state_path(home: Path) -> Path:
    """Return where the record of the stack in `home` lies."""
    return home / "run" / "stack.json"


def read_state(home: Path) -> StackState | None:
    """Read the record; None when there is none (or none that can be read: it then names nobody)."""
    try:
        document = json.loads(state_path(home).read_text(encoding="utf-8"))
        return _parse(document)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_state(home: Path, state: StackState) -> None:
    """Replace the record in one step: a reader sees the old one or the new one, never half of one."""
    write_atomically(state_path(home), json.dumps(asdict(state), indent=1) + "\n")


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write `text` to a new file beside `path` and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def announce_ready() -> None:
    """Tell the stack that this process does its work now; does nothing outside a stack or the second time."""
    number = os.environ.pop(READY_FD, "")
    if number.isdigit():
        with contextlib.suppress(OSError):  # the steward is gone: nobody waits any more
            os.write(int(number), b"ready\n")
            os.close(int(number))


def _parse(document: dict[str, Any]) -> StackState:
    known = _only_known(StackState, document)
    known["steward"] = ProcessId(**_only_known(ProcessId, document["steward"]))
    known["parts"] = tuple(PartRecord(**_only_known(PartRecord, part)) for part in document.get("parts", ()))
    if document.get("failure"):
        known["failure"] = Failure(**_only_known(Failure, document["failure"]))
    return StackState(**known)


def _only_known(model: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out members that a newer version wrote."""
    names = {item.name for item in fields(model)}
    return {key: value for key, value in document.items() if key in names}
