"""One answer for all who ask the same at the same time. Does I/O: what the call does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCalls(Generic[T]):
    """Makes a call at most once at a time for each key; whoever asks meanwhile shares the one call after it.

    So every answer is younger than its question, as if each had a call of its own, while a burst of equal questions
    costs a few calls instead of hundreds.
    """

    def __init__(self, call: Callable[[str], Awaitable[T]]) -> None:
        self._call = call
        self._running: dict[str, asyncio.Task[T]] = {}
        self._next: dict[str, asyncio.Task[T]] = {}

    async def ask(self, key: str) -> T:
        """Return the answer of a call that begins after now; a caller that is cancelled does not stop it."""
        if key not in self._next:
            self._next[key] = asyncio.create_task(self._after_the_running(key))
        return await asyncio.shield(self._next[key])

    async def _after_the_running(self, key: str) -> T:
        if key in self._running:
            await asyncio.wait([self._running[key]])
        mine = self._running[key] = self._next.pop(key)
        try:
            return await self._call(key)
        finally:
            if self._running[key] is mine:
                del self._running[key]
