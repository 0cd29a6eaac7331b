"""Who comes through the gateway, and to which task queues. *Pure.*

What is not named here or in `gateway_service` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import grpc

from core.attempt import factory_queue, station_queue

SHARED_QUEUES: Final = "gf.caps."
"""Prefix of the queues that several factories serve: those that an operator attested the capabilities of."""

_ENGINE: Final = re.compile(r"[A-Za-z0-9_-]+")
"""Without a dot: the names of factories have dots, and `gf.station.a.b.codex` belongs to `a.b`, not to `a`."""


@dataclass(frozen=True, slots=True)
class FactoryIdentity:
    """The factory that a token speaks for."""

    name: str
    attested_queues: frozenset[str] = frozenset()
    """Full names of the shared queues (`gf.caps.…`) that its attested capabilities let it poll."""

    def may_poll(self, queue: str) -> bool:
        """Return whether a task queue is this factory's."""
        if queue.startswith(SHARED_QUEUES):
            return queue in self.attested_queues
        own = station_queue(self.name, "")
        return queue == factory_queue(self.name) or (
            queue.startswith(own) and _ENGINE.fullmatch(queue.removeprefix(own)) is not None
        )


Authenticate = Callable[[str], Awaitable[FactoryIdentity | None]]
"""Returns whom a token speaks for, now; None for a token that is unknown, expired, revoked, or no factory's."""


class Refused(Exception):
    """A call that does not pass; the message goes to the caller, and so names nothing that is not the caller's."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def denied(message: str) -> Refused:
    """Return the refusal of what the caller may not do."""
    return Refused(grpc.StatusCode.PERMISSION_DENIED, message)
