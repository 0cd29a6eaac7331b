"""How our long-running processes run: on uvloop where there is one (not on Windows), and rarely stopped by Python."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

SWITCH_S: Final = 0.001
"""Time for which one thread may keep the others from the interpreter; Python's own is 5 ms. A unit of work of the
ledger lets go of it with each statement, and beside a busy event loop it waits that long to get it back."""
COLLECT: Final = (10_000, 20, 20)
"""Thresholds of Python's cycle collector. One read of 10,000 waiting jobs makes objects for its own 700, 10, 10 to
collect everything there is, which took 300 ms at a thousand links, in the midst of a transaction when it came so.
"""
ResultT = TypeVar("ResultT")


def collect_rarely() -> None:
    """Look for garbage less often, and never among what a process has imported by now."""
    gc.freeze()
    gc.set_threshold(*COLLECT)


def run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a process's main coroutine to its end and return its result."""
    sys.setswitchinterval(SWITCH_S)
    collect_rarely()
    try:
        factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
