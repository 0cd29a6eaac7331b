"""The control worker: runs job workflows, their ledger steps, the dispatcher and the reconciler. *A process.*

Any number of these may run side by side; none keeps state of its own. Start: `python -P -m workers.control`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
)
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.ledger_steps import LedgerSteps
from activities.reconcile import Reconciler
from core.job_messages import CONTROL_QUEUE, IO_QUEUE
from core.settings import Settings
from store import event_loop, open_ledger
from store.ledger import Ledger
from store.logging_setup import configure_logging
from store.settings_source import read_settings
from workers.stack_state import announce_ready
from workflows.connection import connect
from workflows.job import JobWorkflow
from workflows.job_client import JobClient
from workflows.reconcile import ReconcileWorkflow

log = structlog.get_logger(__name__)

CONNECT_PAUSE_S: Final = 0.2
DRAIN_S: Final = 5
SCHEDULE_ID: Final = "gf-reconcile"
CACHED_WORKFLOWS: Final = 2000
"""Parked jobs beyond this are evicted and replayed when something happens to them."""


class Dispatcher:
    """Turns freed capacity into grants and brings waiting messages to their workflows.

    `wake` may be called from anywhere; passes never overlap in one process, and wakes during a pass lead to one more.
    """

    def __init__(self, ledger: Ledger, jobs: JobClient, settings: Settings) -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._pause_s = settings.outbox_retry_s
        self._factory_silence = timedelta(seconds=max(3 * settings.factory_beat_s, 1.0))
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Ask for a pass."""
        self._wanted.set()

    async def run(self) -> None:
        """Pass whenever woken, and once in a while for messages that another process could not deliver."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self._pause_s)
            woken = self._wanted.is_set()
            self._wanted.clear()
            try:
                await self._pass(woken)
            except Exception:
                log.exception("dispatch.pass_failed")
                await asyncio.sleep(self._pause_s)

    async def _pass(self, woken: bool) -> None:
        now = datetime.now(UTC)
        if not woken:
            await self._ledger.sweep_factories(now, self._factory_silence)
        await self._ledger.dispatch(now)
        await self._jobs.deliver_due()


async def ensure_schedule(client: Client, interval_s: float) -> None:
    """Make the reconciler's schedule, once per namespace."""
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            "ReconcileWorkflow", id="gf-reconcile", task_queue=CONTROL_QUEUE, static_summary="reconcile"
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=interval_s))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=10)),
    )
    with contextlib.suppress(ScheduleAlreadyRunningError):
        await client.create_schedule(SCHEDULE_ID, schedule)


@contextlib.asynccontextmanager
async def control_workers(client: Client, ledger: Ledger, settings: Settings) -> AsyncIterator[Dispatcher]:
    """Run workflow worker, io worker and dispatcher while the context is open."""
    jobs = JobClient(client, ledger, settings)
    dispatcher = Dispatcher(ledger, jobs, settings)
    steps = LedgerSteps(ledger, dispatcher.wake)
    reconciler = Reconciler(ledger, client, dispatcher.wake)
    workflows = Worker(
        client,
        task_queue=CONTROL_QUEUE,
        workflows=[JobWorkflow, ReconcileWorkflow],
        activities=steps.local,
        no_remote_activities=True,
        workflow_runner=UnsandboxedWorkflowRunner(),  # see docs/adr/0005: the sandbox guards in the tests
        max_cached_workflows=CACHED_WORKFLOWS,
        graceful_shutdown_timeout=timedelta(seconds=DRAIN_S),
    )
    io = Worker(
        client,
        task_queue=IO_QUEUE,
        activities=[*steps.remote, reconciler.reconcile],
        max_concurrent_activity_task_polls=2,
        max_concurrent_activities=20,
        graceful_shutdown_timeout=timedelta(seconds=DRAIN_S),
    )
    loop = asyncio.create_task(dispatcher.run())
    try:
        async with workflows, io:
            yield dispatcher
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


async def connect_patiently(settings: Settings, stop: asyncio.Event) -> Client | None:
    """Connect to Temporal, for as long as it takes; None when `stop` came first."""
    while not stop.is_set():
        try:
            return await connect(settings, address=settings.temporal_address, identity=f"control/{os.getpid()}")
        except RuntimeError as error:
            log.warning("temporal.unreachable", address=settings.temporal_address, error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), CONNECT_PAUSE_S)
    return None


async def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    configure_logging("control")
    settings = read_settings()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ledger = open_ledger(settings)
    client = await connect_patiently(settings, stop)
    if client is not None:
        await ensure_schedule(client, settings.reconcile_s)
        async with control_workers(client, ledger, settings):
            log.info("control.ready", pid=os.getpid())
            announce_ready()
            await stop.wait()
    await ledger.close()
    return 0


if __name__ == "__main__":
    code = event_loop.run(main())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
