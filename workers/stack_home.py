"""What a stack keeps in its home before any part runs: lock, token, factory names, ports, log files. Does I/O: files.

Standard library only, because it lies on the way to a quick start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from core.factory_names import memorable_name
from store.token_files import ensure_person_token
from workers.stack_state import write_atomically

LOOPBACK: Final = "127.0.0.1"
SHARED_FACTORY_TOKEN: Final = "factory-token"  # noqa: S105 - a file name
"""File of the first version, whose factories shared one token."""

LOG_LIMIT_BYTES: Final = 10_000_000
LOGS_KEPT: Final = 3
PORTS_TRIED: Final = 500


# --- the one steward of a home -------------------------------------------------------------------------------------


@contextmanager
def steward_lock(home: Path) -> Iterator[bool]:
    """Try to become the one process that may start or clear the stack of `home`; yields whether it worked.

    The system frees the lock when its holder ends, however it ends.
    """
    path = home / "run" / "steward.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def prepare(home: Path) -> None:
    """Make the home with its directories and the person's token; what exists is kept."""
    make_directories(home)
    ensure_person_token(home)
    (home / SHARED_FACTORY_TOKEN).unlink(missing_ok=True)  # opens nothing any more: each factory has its own


def make_directories(home: Path) -> None:
    """Make the home, private to its owner, and the directories in it."""
    home.mkdir(parents=True, mode=0o700, exist_ok=True)
    for name in ("run", "logs", "factories", "scratch", "artifacts", "engines"):
        (home / name).mkdir(exist_ok=True)


# --- factories -----------------------------------------------------------------------------------------------------


def factory_names(home: Path, count: int) -> list[str]:
    """Return the names of the first `count` local factories; new ones are made up once and kept for good."""
    path = home / "factories" / "names.json"
    names = _read_names(path)
    if len(names) >= count:
        return names[:count]
    while len(names) < count:
        name = memorable_name(secrets.token_hex(16))
        if name not in names:
            names.append(name)
    write_names(home, names)
    return names


def write_names(home: Path, names: Sequence[str]) -> None:
    """Note the names of the local factories, in the order in which they are started."""
    write_atomically(home / "factories" / "names.json", json.dumps(list(names)) + "\n")


def _read_names(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def wanted_path(home: Path) -> Path:
    """Return the file in which `gf up --factories N` leaves N for a steward that runs already."""
    return home / "run" / "factories-wanted"


def read_wanted(home: Path) -> int | None:
    """Return the number of factories that was asked for last, or None."""
    try:
        return int(wanted_path(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# --- ports ---------------------------------------------------------------------------------------------------------


class PortReservation:
    """Ports taken for a stack before its parts bind them, so that stacks starting at once never pick the same.

    Each port is a locked file in a directory shared by the user's stacks; the locks go with the process.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or Path(tempfile.gettempdir()) / f"gigafactory-ports-{os.getuid()}"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held: list[IO[str]] = []

    def take(self, first: int, host: str = LOOPBACK) -> int:
        """Return the first port from `first` upwards that nobody listens on or has reserved; it is held from now on.

        Raises:
            OSError: none of the next PORTS_TRIED ports is free.

        """
        for port in range(first, min(first + PORTS_TRIED, 65536)):
            if port_is_free(port, host) and self._lock(port):
                return port
        raise OSError(f"no free port from {first} to {first + PORTS_TRIED - 1} on {host}")

    def release(self) -> None:
        """Give the ports back."""
        while self._held:
            self._held.pop().close()

    def _lock(self, port: int) -> bool:
        file = (self._directory / f"{port}.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._held.append(file)
        return True


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Return whether a server could listen on `port` now; one in TIME_WAIT from the last run counts as free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False


# --- logs ----------------------------------------------------------------------------------------------------------


def open_log(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> int:
    """Open a part's log for appending, as a file descriptor; one that has grown beyond the limit is set aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > limit_bytes:
            _set_aside(path)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _set_aside(path: Path) -> None:
    for number in range(LOGS_KEPT - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.name}.{number}").rename(path.with_name(f"{path.name}.{number + 1}"))
    path.rename(path.with_name(f"{path.name}.1"))


def tail(path: Path, lines: int = 12, *, window_bytes: int = 32_768) -> Sequence[str]:
    """Return the last lines of a log; none when there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - window_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
