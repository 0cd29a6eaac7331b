"""The heartbeat of an activity, which is its lease. Does I/O: Temporal.

Each beat goes through the asynchronous handle, because that one is acknowledged (and carries the news of a cancel); a
plain `activity.heartbeat()` says nothing. It is called as well, only to keep the SDK's own timer quiet: without it the
SDK cancels the activity five seconds after its heartbeat timeout, whatever the server was told (measured).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal

from temporalio import activity
from temporalio.client import AsyncActivityCancelledError
from temporalio.service import RPCError, RPCStatusCode

StopReason = Literal["cancelled", "paused", "lost"]


async def keep_beating(
    beat_s: float,
    *,
    details: Callable[[], Mapping[str, Any]] = dict,
    acknowledged: Callable[[], None] = lambda: None,
) -> StopReason:
    """Beat until the activity has to stop, and return why.

    Args:
        beat_s: Seconds between beats; a failed one is repeated sooner.
        details: Gives what the server keeps of a beat; under 1 KB.
        acknowledged: Called after each beat that the server took.

    Returns:
        `cancelled`, `paused` (by an operator of Temporal), or `lost`: the server does not know the activity any more.

    """
    handle = activity.client().get_async_activity_handle(task_token=activity.info().task_token)
    pause = beat_s
    while True:
        await asyncio.sleep(pause)
        try:
            await handle.heartbeat(dict(details()), rpc_timeout=timedelta(seconds=max(beat_s, 1.0)))
        except AsyncActivityCancelledError as error:
            return "paused" if error.details and error.details.paused else "cancelled"
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return "lost"
            pause = min(beat_s, 0.5)
        else:
            activity.heartbeat()
            acknowledged()
            pause = beat_s
