"""Who runs on this machine: descendants, start times, marked processes. Does I/O: /proc, or `ps` where there is none.

Everything that differs between Linux and other systems about processes lies here. Standard library only, and light:
the supervisor imports it before each engine starts.

A pid names nobody for long; a process is its pid together with its *birth* (start time).
"""

from __future__ import annotations

import os
import sys
from functools import cache
from signal import SIGKILL
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

LINUX = sys.platform.startswith("linux")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ENDED = "ZX"
"""Letters of /proc/PID/stat for a process that has ended and only waits to be collected."""


def become_subreaper() -> bool:
    """Let orphaned descendants of this process become its children; False where the system cannot do that."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Let the system kill this process when the one that forked it dies; False where it cannot do that."""
    return _prctl(_PR_SET_PDEATHSIG, SIGKILL)


def _prctl(option: int, value: int) -> bool:
    return LINUX and bool(c_library().prctl(option, value, 0, 0, 0) == 0)


@cache
def c_library() -> ctypes.CDLL:
    """Return the C library; loading it takes longer than all else here, so a process that forks calls this first."""
    import ctypes  # noqa: PLC0415 - not needed on other systems

    return ctypes.CDLL(None, use_errno=True)


# --- one process ------------------------------------------------------------------------------------------------------


def birth_of(pid: int) -> str | None:
    """Return the start time of a living process as an opaque text; None when it is gone or has ended (a zombie)."""
    if not LINUX:
        return _ps_table().get(pid, (0, None))[1]
    fields = _stat(pid)
    return None if fields is None or fields[0] in _ENDED else fields[19]


def is_alive(pid: int, birth: str) -> bool:
    """Return whether that very process still runs."""
    return pid > 0 and birth_of(pid) == birth


def boot_id() -> str:
    """Return a text that is the same only for processes that can tell of each other whether they are dead.

    That takes one boot of one machine, and on Linux one pid namespace: in another container the same pid is another
    process.
    """
    if not LINUX:
        import subprocess  # noqa: PLC0415 - only where there is no /proc

        shown = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)
        return shown.stdout.strip()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def kill(pid: int, number: int = SIGKILL) -> None:
    """Send a signal; a process that is gone already is no error."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state letter on; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


# --- many processes ---------------------------------------------------------------------------------------------------


def living_descendants(root: int) -> dict[int, str]:
    """Return pid → birth of everything below `root` that has not ended; `root` itself is not among them."""
    if not LINUX:
        return _below(root, _ps_table())
    found: dict[int, str] = {}
    seen: set[int] = set()
    todo = _children(root)
    while todo:
        pid = todo.pop()
        if pid in seen:
            continue
        seen.add(pid)
        todo += _children(pid)
        birth = birth_of(pid)
        if birth is not None:
            found[pid] = birth
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with open(f"/proc/{pid}/task/{thread}/children", encoding="utf-8") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    except ProcessLookupError:
        return found
    except FileNotFoundError:
        if not os.path.exists("/proc/thread-self/children") and os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
            return _children_by_scan(pid)
    return found


def _children_by_scan(parent: int) -> list[int]:
    """Look through the whole process table: for kernels without `children` files."""
    found = []
    for pid in _all_pids():
        fields = _stat(pid)
        if fields is not None and fields[1] == str(parent):
            found.append(pid)
    return found


def marked_processes(marker: str) -> dict[int, str]:
    """Return pid → birth of the living processes of this user that were started with `marker` (`NAME=value`) set."""
    if not LINUX:
        return _marked_by_ps(marker)
    wanted = b"\0" + marker.encode() + b"\0"
    found = {}
    for pid in _all_pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                environ = file.read()
        except OSError:
            continue
        if wanted in b"\0" + environ + b"\0":
            birth = birth_of(pid)
            if birth is not None and pid != os.getpid():
                found[pid] = birth
    return found


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


# --- systems without /proc --------------------------------------------------------------------------------------------


def _ps(*options: str) -> list[str]:
    import subprocess  # noqa: PLC0415 - only where there is no /proc

    return subprocess.run(["ps", *options], capture_output=True, text=True, check=False).stdout.splitlines()


def _ps_table() -> dict[int, tuple[int, str]]:
    """Return pid → (parent, birth) of every living process."""
    table = {}
    for line in _ps("-axo", "pid=,ppid=,state=,lstart="):
        pid, parent, state, birth = line.split(maxsplit=3)
        if state[0] not in _ENDED:
            table[int(pid)] = (int(parent), birth.strip())
    return table


def _below(root: int, table: dict[int, tuple[int, str]]) -> dict[int, str]:
    found: dict[int, str] = {}
    grown = True
    while grown:
        grown = False
        for pid, (parent, birth) in table.items():
            if pid not in found and (parent == root or parent in found):
                found[pid] = birth
                grown = True
    return found


def _marked_by_ps(marker: str) -> dict[int, str]:
    """Read environments with `ps -E`, which shows them behind the command line for processes of the same user."""
    table = _ps_table()
    found = {}
    for line in _ps("-axEwwo", "pid=,command="):
        pid, _, rest = line.strip().partition(" ")
        if marker in rest.split(" ") and int(pid) in table and int(pid) != os.getpid():
            found[int(pid)] = table[int(pid)][1]
    return found
