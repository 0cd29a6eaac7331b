"""How much of the gateway one factory may use, and how much it may make us log. *Pure* but for the log.

Nothing is shared between factories here: one that floods the gateway slows itself down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import grpc
import structlog

from workers.gateway_policy import Refused

log = structlog.get_logger(__name__)

BURST_S: Final = 2.0
"""Seconds of its rate that a factory may use at once."""
OTHER_CALLS: Final = 32
"""Calls under way at once, beyond the polls; they take milliseconds."""
SILENCE_S: Final = 10.0
"""Between two log lines about the same factory and the same kind of refusal."""


@dataclass
class Allowance:
    """What one factory has left: a bucket of calls that refills, and places for calls under way."""

    calls_per_s: float
    polls: int
    now: float
    """Seconds of a monotonic clock."""

    def __post_init__(self) -> None:
        self._left = self.calls_per_s * BURST_S
        self._open_calls = 0
        self._open_polls = 0

    def spend(self, now: float) -> None:
        """Take one call out of the bucket.

        Raises:
            Refused: it is empty.

        """
        self._left = min(self.calls_per_s * BURST_S, self._left + (now - self.now) * self.calls_per_s)
        self.now = now
        if self._left < 1:
            raise _exhausted(f"more than {self.calls_per_s:g} calls per second")
        self._left -= 1

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold a place for a call under way."""
        most = self.polls + OTHER_CALLS
        if self._open_calls >= most:
            raise _exhausted(f"more than {most} calls at once")
        self._open_calls += 1
        try:
            yield
        finally:
            self._open_calls -= 1

    @contextmanager
    def poll(self) -> Iterator[None]:
        """Hold a place for an open poll."""
        if self._open_polls >= self.polls:
            raise _exhausted(f"more than {self.polls} polls at once")
        self._open_polls += 1
        try:
            yield
        finally:
            self._open_polls -= 1


def _exhausted(what: str) -> Refused:
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{what} by this factory")


class Complaints:
    """Logs refused calls, one line per factory and kind in a while: a stranger must not be able to fill the disk."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[tuple[str, grpc.StatusCode], float] = {}
        self._unsaid: dict[tuple[str, grpc.StatusCode], int] = {}

    def tell(self, factory: str, method: str, refused: Refused) -> None:
        """Log that a call of `factory` ("" for a stranger's) was refused."""
        kind, now = (factory, refused.code), self._clock()
        if now - self._told.get(kind, -SILENCE_S) < SILENCE_S:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
            return
        self._told[kind] = now
        log.warning(
            "gateway.refused",
            factory=factory,
            method=method[:100],
            code=refused.code.name,
            reason=refused.message,
            unsaid=self._unsaid.pop(kind, 0),
        )
