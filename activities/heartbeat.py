"""The heartbeat of an activity, which is its lease. Does I/O: Temporal.

Each beat goes through the asynchronous handle, because that one is acknowledged (and carries the news of a cancel); a
plain `activity.heartbeat()` says nothing. It is called as well, only to keep the SDK's own timer quiet: without it the
SDK cancels the activity five seconds after its heartbeat timeout, whatever the server was told (measured).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final, Literal

from temporalio import activity
from temporalio.client import AsyncActivityCancelledError
from temporalio.service import RPCError, RPCStatusCode

from activities.clock import boot_time

StopReason = Literal["cancelled", "paused", "lost"]

LEASE_MARGIN: Final = 0.2
"""Part of the lease's life, three seconds at the most, by which a run ends before the lease does."""
LOOK_S: Final = 0.5
"""Longest time until an end of the lease is noticed that came while the machine was suspended."""


class Lease:
    """How long an attempt may go on without hearing from anybody, as it sees it itself."""

    def __init__(self, ttl_s: float, *, clock: Callable[[], float] = boot_time) -> None:
        self._life_s = ttl_s - min(3.0, ttl_s * LEASE_MARGIN)
        self._clock = clock
        self.until = clock() + self._life_s
        """When it ends, on the boot-time clock."""

    @property
    def left_s(self) -> float:
        """Return how long it still lasts; nothing, or less, when it is over."""
        return self.until - self._clock()

    def asked(self) -> float:
        """Return the time to give to `renew` once the question that is asked now was answered."""
        return self._clock()

    def renew(self, asked_at: float) -> None:
        """Count from when the answered question was asked: the answer may have lain about for any time."""
        self.until = max(self.until, asked_at + self._life_s)

    async def over(self) -> None:
        """Wait until it has ended."""
        while (left := self.left_s) > 0:  # noqa: ASYNC110 - no event tells that a machine was suspended
            await asyncio.sleep(min(left, LOOK_S))


async def keep_beating(
    beat_s: float,
    *,
    details: Callable[[], Mapping[str, Any]] = dict,
    lease: Lease | None = None,
    renewed: Callable[[], None] = lambda: None,
    unheard: Callable[[], Awaitable[object]] | None = None,
) -> StopReason:
    """Beat until the activity has to stop, and return why.

    Args:
        beat_s: Seconds between beats; a failed one is repeated sooner.
        details: Gives what the server keeps of a beat; under 1 KB.
        lease: Renewed by each beat that the server took; `renewed` is called then.
        renewed: See `lease`.
        unheard: Called after each beat that did not reach the server.

    Returns:
        `cancelled`, `paused` (by an operator of Temporal), or `lost`: the server does not know the activity any more.

    """
    handle = activity.client().get_async_activity_handle(task_token=activity.info().task_token)
    patience_s = max(beat_s, 1.0)
    pause = beat_s
    while True:
        await asyncio.sleep(pause)
        asked_at = lease.asked() if lease else 0.0
        try:
            async with asyncio.timeout(patience_s):  # a connection that is refused the SDK tries again for ten seconds
                await handle.heartbeat(dict(details()), rpc_timeout=timedelta(seconds=patience_s))
        except AsyncActivityCancelledError as error:
            return "paused" if error.details and error.details.paused else "cancelled"
        except (RPCError, TimeoutError) as error:
            if isinstance(error, RPCError) and error.status == RPCStatusCode.NOT_FOUND:
                return "lost"
            pause = min(beat_s, 0.5)
            if unheard is not None:
                await unheard()
        else:
            activity.heartbeat()
            if lease is not None:
                lease.renew(asked_at)
                renewed()
            pause = beat_s
