"""The reconciler's pass: every unfinished job of the ledger against its workflow. *Does I/O: ledger, Temporal.*

Asks with Describe, never through visibility, which lags behind and is bounded. Idempotent; run by a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from core.attempt import workflow_id
from core.job import Stage
from core.job_messages import ReconcileReply
from core.lifecycle import Entry, Record
from store.ledger import Ledger
from store.views import UnfinishedJob

YOUNG: Final = timedelta(seconds=15)
"""A job this fresh may still be on its way through the outbox or through its last record."""
MENDED_SEQ: Final = 900_000
"""Records of the reconciler are numbered from here within a life, far above what a workflow writes."""
DEAD = {
    WorkflowExecutionStatus.TERMINATED: "was terminated",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.TIMED_OUT: "timed out",
    WorkflowExecutionStatus.CANCELED: "was cancelled",
}


class Reconciler:
    """Compares and mends; `wake` tells the dispatcher that seats or messages are waiting."""

    def __init__(self, ledger: Ledger, client: Client, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._client = client
        self._wake = wake

    @activity.defn
    async def reconcile(self) -> ReconcileReply:
        """Run one pass over all unfinished jobs."""
        now = datetime.now(UTC)
        restarted: list[str] = []
        failed: list[str] = []
        jobs = await self._ledger.unfinished_jobs(updated_before=now - YOUNG)
        for job in jobs:
            status = await self._status(job)
            if status is None or status == WorkflowExecutionStatus.COMPLETED:
                if await self._ledger.enqueue_start(job.id, now=now):
                    restarted.append(job.id)
            elif status in DEAD:
                await self._give_up(job, DEAD[status], now)
                failed.append(job.id)
        freed = await self._ledger.recount_seats(now=now)
        self._wake()
        return ReconcileReply(checked=len(jobs), restarted=tuple(restarted), failed=tuple(failed), freed_seats=freed)

    async def _status(self, job: UnfinishedJob) -> WorkflowExecutionStatus | None:
        """Return the state of the job's latest workflow; None when there is none."""
        handle = self._client.get_workflow_handle(workflow_id(job.product_id, job.id))
        try:
            return (await handle.describe()).status
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def _give_up(self, job: UnfinishedJob, how: str, now: datetime) -> None:
        """The workflow ended behind the ledger's back: end the job where people see it, and free what it holds."""
        message = f"the job's workflow {how}; nothing is lost: `gf requeue {job.id}` goes on from the last checkpoint"
        record = Record(
            path=(Stage.FAILED,),
            epoch=job.epoch,
            entries=(Entry(type="job.failed", message=message, data={"failure": "workflow_gone"}),),
            conditions=(),
            attempt_outcome="crash",
            attempt_message=message,
            end_lease=True,
            release_locks=True,
        )
        await self._ledger.record(job.id, job.life * 1_000_000 + MENDED_SEQ, record, now=now)
