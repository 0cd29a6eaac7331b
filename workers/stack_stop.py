"""Ends the processes of a stack: in order, patiently, then for certain. Does I/O: signals, /proc.

Standard library only (psutil where there is no /proc). Nothing is ever looked up by name: parts are found by the pid
and birth in the record; strays, processes that a part started and left behind, by the marker in their environment.
Used by `gf down` when the steward is dead, by the guard, and by a steward that finds the leftovers of another one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from core.errors import Unavailable
from workers.stack_home import steward_lock
from workers.stack_state import MARKER, PartRecord, ProcessId, StackState, read_state, state_path

POLL_S: Final = 0.02
KILL_WAIT_S: Final = 5.0
"""For the system to collect what was SIGKILLed: a process in an uninterruptible read ends when that read does."""

LOCK_WAIT_S: Final = 30.0
STRAY_GRACE_S: Final = 8.0
"""For supervisors whose agent is gone: they end their engine, commit what it left, and report."""

Tell = Callable[[str], None]


def _say_nothing(_line: str) -> None:
    """Tell nobody."""


# --- a whole stack ---------------------------------------------------------------------------------------------------


def stop_stack(home: Path, tell: Tell = _say_nothing) -> bool:
    """End the stack of `home`, also one whose steward is dead; return whether anything had to be ended.

    Raises:
        Unavailable: something could not be ended.

    """
    home = home.expanduser().resolve()
    if not (home / "run").exists():
        return False
    state = read_state(home)
    found = state is not None and state.alive
    if state is not None and found:
        tell("stopping factories, control worker, API, Temporal")
        _end_steward(state, tell)
    return _clear(home, tell) or found


def _end_steward(state: StackState, tell: Tell) -> None:
    """Ask the steward to end its stack, then press, then kill it; what it leaves then is cleared by the caller."""
    for number, wait_s in (
        (signal.SIGTERM, patience_s(state)),
        (signal.SIGTERM, 2 * KILL_WAIT_S),  # the second one means: at once
        (signal.SIGKILL, KILL_WAIT_S),
    ):
        state.steward.signal(number)
        state.steward.signal(signal.SIGCONT)
        if not wait_gone([state.steward], wait_s):
            return
        tell("the stack does not end in time; pressing on")


def patience_s(state: StackState) -> float:
    """Return how long an orderly end may take: the graces of all ranks, and a margin."""
    graces: dict[int, float] = {}
    for part in state.parts:
        graces[part.rank] = max(graces.get(part.rank, 0.0), part.grace_s + KILL_WAIT_S)
    return sum(graces.values()) + STRAY_GRACE_S + 5.0


def _clear(home: Path, tell: Tell) -> bool:
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        with steward_lock(home) as free:
            if free:
                return clear_leftovers(home, tell)
        time.sleep(POLL_S)
    raise Unavailable(
        f"another process holds {home / 'run' / 'steward.lock'}",
        hint="a stack is being started there at this moment; try again",
    )


def clear_leftovers(home: Path, tell: Tell = _say_nothing) -> bool:
    """End everything that a stack of `home` without a steward left behind; return whether anything was.

    The caller holds the steward's lock: no new stack can appear in the middle of it.
    """
    state = read_state(home)
    parts = state.parts if state is not None else ()
    leftovers = [part for part in parts if part.process.alive and part.pid != os.getpid()]  # the guard comes here too
    if leftovers:
        engines_first = min(part.rank for part in leftovers)
        end_parts((part for part in leftovers if part.rank == engines_first), tell)
        end_strays(home, spared=_pids(state))
        end_parts(leftovers, tell)
    strays = end_strays(home, spared=_pids(state))
    state_path(home).unlink(missing_ok=True)
    return bool(leftovers or strays)


def _pids(state: StackState | None) -> list[int]:
    """Return the pids of parts that still live: they are ended as parts, not as strays."""
    return [part.pid for part in state.parts if part.process.alive] if state else []


# --- processes --------------------------------------------------------------------------------------------------------


def wait_gone(processes: Iterable[ProcessId], timeout_s: float) -> list[ProcessId]:
    """Wait until the processes are gone; return those that still live after `timeout_s` seconds."""
    left = list(processes)
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in left if process.alive]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def end(processes: Iterable[ProcessId], grace_s: float) -> list[ProcessId]:
    """SIGTERM, wait at most `grace_s`, SIGKILL; return what had to be killed."""
    processes = list(processes)
    for process in processes:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)  # a stopped process would sleep through its grace
    stubborn = wait_gone(processes, grace_s)
    for process in stubborn:
        process.signal(signal.SIGKILL)
    wait_gone(stubborn, KILL_WAIT_S)
    return stubborn


def strays_of(home: Path, spared: Iterable[int] = ()) -> list[ProcessId]:
    """Return the living processes that carry this home's marker, or run in the folders of its factories' attempts.

    Engines have a clean environment without the marker; their HOME and run folder tell where they belong. Left out:
    the caller, its ancestors (`gf down` may be typed inside an engine), and the pids in `spared`.
    """
    excluded = {*spared, *_lineage(os.getpid())}
    exact = f"{MARKER}={home}".encode()
    folder = f"{home / 'factories'}{os.sep}"
    prefixes = tuple(f"{name}={folder}".encode() for name in ("HOME", "GIGAFACTORY_RUN_DIR"))
    found = []
    for pid, environ in _environments():
        if pid in excluded:
            continue
        if any(entry == exact or entry.startswith(prefixes) for entry in environ):
            process = ProcessId.of(pid)
            if process is not None:
                found.append(process)
    return found


def end_strays(home: Path, grace_s: float = STRAY_GRACE_S, spared: Iterable[int] = ()) -> list[ProcessId]:
    """Give strays `grace_s` to finish by themselves, then kill them, and what they started meanwhile."""
    spared = tuple(spared)
    deadline = time.monotonic() + grace_s
    while (strays := strays_of(home, spared)) and time.monotonic() < deadline:
        time.sleep(5 * POLL_S)
    killed = []
    deadline = time.monotonic() + KILL_WAIT_S
    while strays and time.monotonic() < deadline:
        killed += [stray for stray in strays if stray.signal(signal.SIGKILL)]
        wait_gone(strays, 10 * POLL_S)
        strays = strays_of(home, spared)
    return killed


def end_parts(parts: Iterable[PartRecord], tell: Tell = _say_nothing) -> None:
    """End recorded parts in the order of their rank, those of one rank together."""
    living = sorted((part for part in parts if part.process.alive), key=lambda part: part.rank)
    for _, group in groupby(living, key=lambda part: part.rank):
        members = list(group)
        tell("stopping " + ", ".join(part.name for part in members))
        end((part.process for part in members), max(part.grace_s for part in members))


def _lineage(pid: int) -> Iterator[int]:
    """Yield `pid` and its ancestors."""
    while pid > 0:
        yield pid
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            pid = int(stat.rpartition(")")[2].split()[1])
        except OSError:
            return


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Yield pid and environment of every process whose environment we may read: our own user's."""
    if not Path("/proc/self/environ").exists():
        yield from _environments_by_psutil()
        return
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                yield int(entry.name), Path(entry.path, "environ").read_bytes().split(b"\0")
            except OSError:
                continue


def _environments_by_psutil() -> Iterator[tuple[int, list[bytes]]]:
    import psutil  # noqa: PLC0415 - only where there is no /proc

    for process in psutil.process_iter(["environ"]):
        environ = process.info["environ"] or {}
        yield process.pid, [f"{key}={value}".encode() for key, value in environ.items()]
