"""Running a workspace step so that a lost lease, a cancel or a drain ends it. Does I/O: Temporal heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from temporalio.exceptions import ApplicationError

from activities.heartbeat import keep_beating
from activities.temporal_errors import raise_activity_error
from core.errors import GigafactoryError, StaleEpoch
from core.job_messages import WORKER_GONE

ResultT = TypeVar("ResultT")


async def under_heartbeat(
    work: Coroutine[Any, Any, ResultT], *, beat_s: float, draining: asyncio.Event | None = None
) -> ResultT:
    """Return what `work` returns; it is cancelled when the activity has to stop.

    With `draining` the step is also given up when the factory is told to go, so that another one does it.

    Raises:
        ApplicationError: an expected error of the work, `stale_epoch` when the server has given the activity up, or
            `WORKER_GONE` when the factory drains.
        CancelledError: the activity was cancelled.

    """
    working = asyncio.create_task(work)
    beating = asyncio.create_task(keep_beating(beat_s))
    leaving = asyncio.create_task(draining.wait() if draining else asyncio.Event().wait())
    tasks: tuple[asyncio.Task[Any], ...] = (working, beating, leaving)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if beating.done():
            if beating.result() == "lost":
                raise StaleEpoch("Temporal has given this step up; it runs elsewhere or not at all")
            raise asyncio.CancelledError
        raise ApplicationError("factory drained", type=WORKER_GONE)
    except GigafactoryError as error:
        raise_activity_error(error)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
