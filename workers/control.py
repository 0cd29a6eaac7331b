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
from dataclasses import replace
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
    ScheduleUpdate,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.ledger_steps import LedgerSteps
from activities.reconcile import Reconciler
from core.job_messages import CONTROL_QUEUE, IO_QUEUE
from core.settings import Settings
from store import event_loop, open_ledger
from store.ledger import Ledger
from store.logging_setup import configure_logging
from store.settings_source import read_settings
from workers.health import control_identity
from workers.stack_state import announce_ready
from workflows.connection import connect
from workflows.job import JobWorkflow
from workflows.job_client import JobClient
from workflows.reconcile import ReconcileWorkflow

log = structlog.get_logger(__name__)

CONNECT_PAUSE_S: Final = 0.2
DRAIN_S: Final = 5
SCHEDULE_ID: Final = "gf-reconcile"
SCHEDULE_CHECK_S: Final = 30.0
CACHED_WORKFLOWS: Final = 2000
"""Parked jobs beyond this are evicted and replayed when something happens to them."""
STICKY_LIMIT: Final = timedelta(seconds=2)
"""How long a task waits for the worker that has its workflow in memory: a killed one must not hold its jobs up."""


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
    """Make the reconciler's schedule, once per namespace; one that is there gets the present interval."""
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            "ReconcileWorkflow", id="gf-reconcile", task_queue=CONTROL_QUEUE, static_summary="reconcile"
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=interval_s))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=10)),
    )
    try:
        await client.create_schedule(SCHEDULE_ID, schedule)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(SCHEDULE_ID).update(
            lambda known: ScheduleUpdate(replace(schedule, state=known.description.schedule.state))  # paused stays so
        )


async def keep_schedule(client: Client, interval_s: float) -> None:
    """See that the reconciler's schedule is there, also after Temporal lost its data."""
    while True:
        await asyncio.sleep(SCHEDULE_CHECK_S)
        try:
            await client.get_schedule_handle(SCHEDULE_ID).describe()
        except RPCError as error:
            log.warning("schedule.not_found", error=str(error))
            if error.status == RPCStatusCode.NOT_FOUND:
                with contextlib.suppress(RPCError):  # the next check comes
                    await ensure_schedule(client, interval_s)


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
        sticky_queue_schedule_to_start_timeout=STICKY_LIMIT,
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
    loops = [
        asyncio.create_task(dispatcher.run()),
        asyncio.create_task(keep_schedule(client, settings.reconcile_s)),
    ]
    try:
        async with workflows, io:
            yield dispatcher
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def connect_patiently(settings: Settings, stop: asyncio.Event) -> Client | None:
    """Connect to Temporal's namespace, and see that it has our schedule, for as long as it takes.

    Returns None when `stop` came first.
    """
    identity = f"{control_identity()}{os.getpid()}"
    while not stop.is_set():
        try:
            client = await connect(settings, address=settings.temporal_address, identity=identity)
            await ensure_schedule(client, settings.reconcile_s)
        except (RuntimeError, RPCError) as error:
            log.warning("temporal.unreachable", address=settings.temporal_address, error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), CONNECT_PAUSE_S)
        else:
            return client
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
