"""The attempts that this factory runs now, so that one of them can be stopped by name. Holds state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Stoppable(Protocol):
    """An attempt, as whoever wants it stopped sees it."""

    def stop(self, reason: str) -> None:
        """Let the attempt end; the first reason counts."""


class RunningAttempts:
    """Knows each attempt from its first step to its last."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[str, int], Stoppable] = {}
        self.changed: Callable[[], None] = lambda: None
        """Called whenever an attempt begins or ends."""

    @contextmanager
    def present(self, job_id: str, epoch: int, attempt: Stoppable) -> Iterator[None]:
        """Know `attempt` for as long as the block lasts."""
        key = (job_id, epoch)
        self._attempts[key] = attempt
        self.changed()
        try:
            yield
        finally:
            del self._attempts[key]
            self.changed()

    def all(self) -> tuple[tuple[str, int], ...]:
        """Return job and epoch of each."""
        return tuple(self._attempts)

    def stop(self, job_id: str, epoch: int, reason: str) -> None:
        """Let one attempt end, if it still runs."""
        attempt = self._attempts.get((job_id, epoch))
        if attempt is not None:
            attempt.stop(reason)
