"""How our long-running processes run: on uvloop where there is one (not on Windows), with a patient collector."""

from __future__ import annotations

import asyncio
import gc
import importlib
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

ResultT = TypeVar("ResultT")


COLLECT_EVERY: Final = 10_000
"""New objects after which garbage is looked for; Python's 700 is for small programs, one request makes thousands."""


def collect_rarely() -> None:
    """Look for garbage less often, and never among what a process has imported by now."""
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, *gc.get_threshold()[1:])


def run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a process's main coroutine to its end and return its result."""
    collect_rarely()
    try:
        factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
