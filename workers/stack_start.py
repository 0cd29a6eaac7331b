"""Brings the stack of a home up: starts its steward, follows what that writes. Does I/O: processes, files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core.errors import Conflict, Unavailable
from core.version import VERSION
from workers.stack_home import open_log, prepare, tail, wanted_path
from workers.stack_state import MARKER, READY_FD, PartRecord, StackState, read_state, write_atomically
from workers.stack_stop import patience_s, wait_gone

if TYPE_CHECKING:
    from core.settings import Settings

Progress = Callable[[str], None]
Launch = Callable[[Path, Progress, int | None, bool], "subprocess.Popen[bytes]"]
"""Starts a steward, given home, progress, number of factories, and whether it ends with this process."""

ROOT: Final = Path(__file__).resolve().parent.parent
POLL_S: Final = 0.03
TAKEOVER_S: Final = 1.0
"""For another steward, between its start and its first record."""

FOLLOW_S: Final = 90.0
"""Longer than the steward's own patience: it knows better what went wrong."""

LOG_LINES: Final = 12

_launched: list[subprocess.Popen[bytes]] = []
"""Stewards that this process started: they outlive it, so nobody waits for them."""


class StackFailed(Unavailable):
    """The stack could not be started; `part` names the culprit, `log` its last lines."""

    code = "stack_failed"


@dataclass(frozen=True)
class StackInfo:
    """A stack that is ready; `started` tells whether this call brought it up."""

    home: Path
    api_url: str
    temporal_address: str
    temporal_ui_url: str
    version: str
    factories: tuple[str, ...]
    started: bool
    ready_s: float | None


def ensure_up(
    home: Path,
    progress: Progress,
    *,
    factories: int | None = None,
    foreground: bool = False,
    launch: Launch | None = None,
    follow_s: float = FOLLOW_S,
) -> StackInfo:
    """Return the stack of `home` once it is ready, starting it if it does not run.

    `factories` (0 to 64) is how many local factories it shall have; None keeps what it has, or the setting.
    `foreground` ties a stack that is started now to this process: it ends when this process does.
    `launch` starts the steward; tests give one with other parts. `follow_s` is how many seconds the start may take.

    Raises:
        StackFailed: a part does not come up.
        Conflict: a stack of another version runs.
        InvalidInput: bad settings. TemporalMissing: no Temporal server, and none could be obtained.

    """
    home = home.expanduser().resolve()
    state = _settled(home, progress)
    if state is None:
        steward = (launch or launch_steward)(home, progress, factories, foreground)
        return _follow(home, progress, steward, follow_s=follow_s)
    check_version(state)
    if factories is not None and factories != state.factories_wanted:
        progress(f"changing the number of local factories from {state.factories_wanted} to {factories}")
        write_atomically(wanted_path(home), f"{factories}\n")
        state.steward.signal(signal.SIGHUP)
    return _follow(home, progress, None, factories=factories, follow_s=follow_s)


def check_version(state: StackState) -> None:
    """Refuse to work with a stack of another version.

    Raises:
        Conflict: it is one.

    """
    if state.version != VERSION:
        raise Conflict(
            f"the stack in {state.home} runs version {state.version}, this command line is version {VERSION}",
            hint="`gf down`, then `gf up` with the version that you want (an older one cannot read a newer ledger)",
            stack_version=state.version,
            cli_version=VERSION,
        )


def _settled(home: Path, progress: Progress) -> StackState | None:
    """Return the record of a stack that runs or starts; wait for one that is just ending."""
    state = read_state(home)
    if state is None or not state.alive:
        return None
    if state.state in {"stopping", "failed"}:
        progress("waiting for the last stack to end")
        wait_gone([state.steward], patience_s(state))
        return None
    return state


def launch_steward(home: Path, progress: Progress, factories: int | None, foreground: bool) -> subprocess.Popen[bytes]:
    """Start the steward of `home` in a session of its own."""
    from store.settings_source import read_settings  # noqa: PLC0415 - only a start needs it, and it takes a while

    settings = read_settings(home)
    if settings.enrolled_as and factories is not None:
        raise Conflict(
            f"{home} is the home of one factory, {settings.enrolled_as}",
            hint="several factories belong to a stack: use a home of its own (GIGAFACTORY_HOME)",
        )
    prepare(home)
    command = [sys.executable, "-P", "-m", "workers.stack", "--home", str(home)]
    if factories is not None:
        command += ["--factories", str(factories)]
    if not (settings.temporal_address or settings.enrolled_as):
        command += ["--temporal-binary", str(_temporal_binary(settings, progress))]
    if foreground:
        command += ["--foreground"]
    return spawn_steward(home, command, foreground=foreground)


def spawn_steward(home: Path, command: Sequence[str], *, foreground: bool) -> subprocess.Popen[bytes]:
    """Start a steward's command: detached, logging to its file, and with a life line if it is to end with us."""
    environ = {key: value for key, value in os.environ.items() if key not in {MARKER, READY_FD, "PYTHONHOME"}}
    environ |= {"PYTHONPATH": str(ROOT), "GIGAFACTORY_HOME": str(home)}
    log = open_log(home / "logs" / "steward.log")
    try:
        steward = subprocess.Popen(
            command,
            env=environ,
            cwd=home,
            stdin=subprocess.PIPE if foreground else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    _launched.append(steward)
    return steward


def _temporal_binary(settings: Settings, progress: Progress) -> Path:
    """Return the Temporal server to run: the one found last time while nothing about it changed, else search."""
    note = settings.home / "run" / "temporal-binary.json"
    on_path = shutil.which("temporal")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["on_path"] == on_path and known["fingerprint"] == _fingerprint(Path(known["binary"])):
            return Path(known["binary"])
    from workers.temporal_server import locate_server  # noqa: PLC0415 - takes half a second, needed once a home

    source = asyncio.run(locate_server("", environ=os.environ, tell=progress))
    assert source.binary is not None
    if not source.sound:
        progress(f"{source.binary} may have to be started anew when a worker is killed; see `gf doctor`")
    found = {"binary": str(source.binary), "on_path": on_path, "fingerprint": _fingerprint(source.binary)}
    write_atomically(note, json.dumps(found) + "\n")
    return source.binary


def _fingerprint(path: Path) -> list[int]:
    seen = path.stat()
    return [seen.st_size, seen.st_mtime_ns]


# --- following a start -----------------------------------------------------------------------------------------------


class Narrator:
    """Tells each change of the record once, in words."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seen: dict[str, tuple[str, int]] = {}
        self._began = time.monotonic()

    def look(self, state: StackState) -> None:
        """Tell what is new in the record since the last look."""
        if not self._seen and state.state == "starting":
            self._progress("starting " + ", ".join(part.name for part in state.parts if part.kind != "guard"))
        for part in state.parts:
            before = self._seen.get(part.name)
            self._seen[part.name] = (part.state, part.restarts)
            if before is not None and before != self._seen[part.name]:
                self._tell(part)

    def _tell(self, part: PartRecord) -> None:
        took = f"{time.monotonic() - self._began:5.1f} s"
        if part.state in {"ready", "done"} and part.kind != "guard":
            self._progress(f"  {took}  {part.name} {part.state}" + (f"  {part.url}" if part.url else ""))
        elif part.state == "restarting":
            self._progress(f"  {took}  {part.name} died and is started again; its log: {part.log}")


def _follow(
    home: Path,
    progress: Progress,
    steward: subprocess.Popen[bytes] | None,
    *,
    factories: int | None = None,
    follow_s: float,
) -> StackInfo:
    """Wait until the stack is ready, telling its steps; `steward` is the process that was started for it, if any."""
    narrator = Narrator(progress)
    deadline = time.monotonic() + follow_s
    vanished_at: float | None = None
    while True:
        exited = steward is not None and steward.poll() is not None
        state = read_state(home)
        if state is not None and state.alive:
            vanished_at = None
            narrator.look(state)
            if _is_ready(state, factories):
                started = steward is not None and state.steward.pid == steward.pid
                return _info(home, state, started=started)
        elif exited or steward is None:
            if state is not None and state.failure is not None:
                raise _failure(home, state)
            # Another steward may be between its start and its first record: have a little patience.
            vanished_at = vanished_at or time.monotonic()
            if time.monotonic() - vanished_at > TAKEOVER_S or (steward is not None and steward.returncode):
                raise _crash(home)
        if time.monotonic() > deadline:
            raise _late(home, state, follow_s)
        time.sleep(POLL_S)


def _is_ready(state: StackState, factories: int | None) -> bool:
    """Return whether everything runs that was asked for; a stack that was ready once counts part by part."""
    if state.state != "ready" or factories not in {None, state.factories_wanted}:
        return False
    present = [part for part in state.parts if part.kind == "factory"]
    return len(present) == state.factories_wanted and all(part.state in {"ready", "done"} for part in state.parts)


def _failure(home: Path, state: StackState) -> StackFailed:
    assert state.failure is not None
    failure = state.failure
    log = next((part.log for part in state.parts if part.name == failure.part), "") or str(
        home / "logs" / "steward.log"
    )
    lines = list(tail(Path(log), LOG_LINES))
    said = next((line.removeprefix("gf: ") for line in reversed(lines) if line.startswith("gf: ")), "")
    return StackFailed(
        f"{failure.part} did not come up: {said or failure.message}",
        hint=f"{failure.mend}; log: {log}" if failure.mend else f"log: {log}",
        part=failure.part,
        log=lines,
    )


def _late(home: Path, state: StackState | None, follow_s: float) -> StackFailed:
    late = [part for part in state.parts if part.state not in {"ready", "done"}] if state is not None else []
    names = ", ".join(f"{part.name} ({part.state})" for part in late) or "the steward"
    log = late[0].log if late else str(home / "logs" / "steward.log")
    lines = list(tail(Path(log), LOG_LINES))
    hint = f"log: {log}; `gf down` and `gf up` start everything afresh"
    return StackFailed(f"not ready after {follow_s:g} s: {names}", hint=hint, part=names, log=lines)


def _crash(home: Path) -> StackFailed:
    log = home / "logs" / "steward.log"
    lines = list(tail(log, LOG_LINES))
    return StackFailed("the steward of the stack ended unexpectedly", hint=f"log: {log}", part="steward", log=lines)


def _info(home: Path, state: StackState, *, started: bool) -> StackInfo:
    return StackInfo(
        home=home,
        api_url=state.urls.get("api", ""),
        temporal_address=state.urls.get("temporal", ""),
        temporal_ui_url=state.urls.get("temporal_ui", ""),
        version=state.version,
        factories=tuple(part.name for part in state.parts if part.kind == "factory"),
        started=started,
        ready_s=state.ready_s,
    )
