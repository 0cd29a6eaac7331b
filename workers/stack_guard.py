"""Ends a stack whose steward was killed. Does I/O: signals, /proc.

A process of its own, started by the steward, holding the read end of a pipe. When the steward ends in its own way, it
says so on the pipe; when the pipe closes without a word, the steward was SIGKILLed, and its parts, in sessions of
their own, would stay for ever. A guard rather than a parent-death signal in each part: it works on every POSIX system,
keeps the order in which parts end, and does not stop at SIGTERM when a part is stuck.

Run as `python -P -m workers.stack_guard --home HOME`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Final

from workers.stack_home import steward_lock
from workers.stack_stop import clear_leftovers

FAREWELL: Final = b"done"
LOCK_TRIES: Final = 50
LOCK_PAUSE_S: Final = 0.02


def wait_for_end(descriptor: int) -> bool:
    """Block until the steward is gone; return whether it said that it cleaned up after itself."""
    heard = b""
    while chunk := os.read(descriptor, 64):
        heard += chunk
    return FAREWELL in heard


def clear_when_free(home: Path) -> bool:
    """Clear the leftovers, unless a new steward holds the lock (it clears them itself); return whether it did."""
    for _ in range(LOCK_TRIES):
        with steward_lock(home) as free:
            if free:
                clear_leftovers(home)
                return True
        time.sleep(LOCK_PAUSE_S)
    return False


def main() -> int:
    """Guard the stack of the home named on the command line."""
    parser = argparse.ArgumentParser(prog="workers.stack_guard")
    parser.add_argument("--home", type=Path, required=True)
    home: Path = parser.parse_args().home
    if not wait_for_end(sys.stdin.fileno()):
        clear_when_free(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
