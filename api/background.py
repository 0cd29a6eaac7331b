"""What the API does beside answering: keep a connection to Temporal, hand out seats, bring messages to workflows.

*Does I/O: Temporal, the ledger.* The API answers reads while Temporal is away; what must reach a workflow waits in the
ledger's outbox meanwhile, and any process delivers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from temporalio.client import Client
from temporalio.service import RPCError

from core.errors import Unavailable
from core.settings import Settings
from store.ledger import Ledger
from workflows.connection import connect
from workflows.job_client import JobClient

log = structlog.get_logger(__name__)

CONNECT_PAUSE_S: Final = 0.5
HEALTH_TIMEOUT_S: Final = 2.0

Connector = Callable[[], Awaitable[Client]]


class TemporalLink:
    """The connection to Temporal: made in the background, however long that takes, then kept by the SDK."""

    def __init__(self, ledger: Ledger, settings: Settings, *, connector: Connector | None = None) -> None:
        self._ledger = ledger
        self._settings = settings
        self._connect = connector or self._connect_as_api
        self._client: Client | None = None
        self._jobs: JobClient | None = None
        self._connected = asyncio.Event()

    @property
    def jobs(self) -> JobClient:
        """Return the way to job workflows.

        Raises:
            Unavailable: there was no connection yet.

        """
        if self._jobs is None:
            raise Unavailable(
                f"Temporal at {self._settings.temporal_address or '(no address)'} does not answer",
                hint="look at `gf status`; the embedded server restarts by itself",
            )
        return self._jobs

    async def connected(self) -> JobClient:
        """Wait for the connection and return the way to job workflows."""
        await self._connected.wait()
        return self.jobs

    async def run(self) -> None:
        """Connect, trying for as long as it takes."""
        while self._client is None:
            try:
                self._client = await self._connect()
            except (RuntimeError, OSError) as error:
                log.warning("temporal.unreachable", address=self._settings.temporal_address, error=str(error))
                await asyncio.sleep(CONNECT_PAUSE_S)
        self._jobs = JobClient(self._client, self._ledger, self._settings)
        self._connected.set()
        log.info("temporal.connected", address=self._settings.temporal_address)

    async def health(self) -> str:
        """Return `ok`, or in a few words why not."""
        if self._client is None:
            return "not connected yet"
        try:
            await asyncio.wait_for(self._client.service_client.check_health(), HEALTH_TIMEOUT_S)
        except (RPCError, RuntimeError, TimeoutError) as error:
            return f"does not answer: {error}"[:200]
        return "ok"

    async def _connect_as_api(self) -> Client:
        address = self._settings.temporal_address
        if not address:
            raise RuntimeError("the setting temporal_address is empty")
        return await connect(self._settings, address=address, identity=f"api/{os.getpid()}")


class Dispatcher:
    """Turns new jobs and freed capacity into grants, and sees that messages get to their workflows.

    `wake` may be called by any request. Passes never overlap in this process, so that a burst of submits costs a few
    plans instead of one each; wakes during a pass lead to one more.
    """

    def __init__(self, ledger: Ledger, temporal: TemporalLink, settings: Settings) -> None:
        self._ledger = ledger
        self._temporal = temporal
        self._pause_s = settings.outbox_retry_s
        self._wanted = asyncio.Event()
        self._undelivered = asyncio.Event()

    def wake(self) -> None:
        """Ask for a pass."""
        self._wanted.set()

    async def dispatch_forever(self) -> None:
        """Hand out seats whenever woken; in quiet times, look for factories that fell silent."""
        while True:
            woken = await _set_within(self._wanted, self._pause_s)
            await self._careful(self._hand_out(woken), "dispatch.failed")
            self._undelivered.set()

    async def deliver_forever(self) -> None:
        """Deliver messages after each pass, once Temporal is there."""
        jobs = await self._temporal.connected()
        while True:
            await self._undelivered.wait()
            self._undelivered.clear()
            await self._careful(jobs.deliver_due(), "delivery.failed")

    async def _hand_out(self, woken: bool) -> None:
        now = datetime.now(UTC)
        if not woken:
            await self._ledger.sweep_factories(now)
        await self._ledger.dispatch(now)

    async def _careful(self, work: Awaitable[object], event: str) -> None:
        """Await `work`; an error is logged and tried again at the next pass, because this loop must never end."""
        try:
            await work
        except Exception:
            log.exception(event)
            await asyncio.sleep(self._pause_s)


async def _set_within(event: asyncio.Event, wait_s: float) -> bool:
    """Wait until `event` is set, `wait_s` seconds at most; clear it and return whether it was."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), wait_s)
    was_set = event.is_set()
    event.clear()
    return was_set
