"""The reconciler's pass: every unfinished job of the ledger against its workflow. *Does I/O: ledger, Temporal.*

Asks with Describe, never through visibility, which lags behind and is bounded. Idempotent; run by a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from core.attempt import workflow_id
from core.errors import IllegalTransition
from core.job import FailureKind, Stage
from core.job_messages import RECORDS_PER_LIFE, JobOutcome, ReconcileReply
from core.lifecycle import Entry, Record
from store.ledger import Ledger
from store.views import UnfinishedJob

log = structlog.get_logger(__name__)

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
        reply = ReconcileReply()
        for job in await self._ledger.unfinished_jobs(now - YOUNG):
            if not job.start_pending:
                reply = await self._mend(job, reply, now)
            reply = reply.model_copy(update={"checked": reply.checked + 1})
            activity.heartbeat(reply.checked)
        corrections = await self._ledger.recount_seats(now)
        self._wake()
        return reply.model_copy(update={"freed_seats": len(corrections)})

    async def _mend(self, job: UnfinishedJob, reply: ReconcileReply, now: datetime) -> ReconcileReply:
        """Compare one job with its workflow; return the reply with what was done."""
        handle = self._client.get_workflow_handle(workflow_id(job.product_id, job.id), result_type=JobOutcome)
        status = await _status(handle)
        if status == WorkflowExecutionStatus.COMPLETED:
            outcome = await handle.result()
            await self._write(job, outcome.stage, "its workflow had ended already", now, outcome.commits)
            return reply
        if status is None:
            await self._ledger.enqueue_start(job.id, now)
            return reply.model_copy(update={"restarted": (*reply.restarted, job.id)})
        if status in DEAD:
            message = f"its workflow {DEAD[status]}; `gf requeue {job.id}` goes on from the last checkpoint"
            await self._write(job, Stage.FAILED, message, now)
            return reply.model_copy(update={"failed": (*reply.failed, job.id)})
        return reply

    async def _write(
        self, job: UnfinishedJob, stage: Stage, message: str, now: datetime, commits: tuple[str, ...] = ()
    ) -> None:
        """End the job where people see it, and free what it holds."""
        record = Record(
            path=(stage,),
            epoch=job.epoch,
            entries=(Entry(type="job.mended", message=message, data={"stage": stage}),),
            conditions=(),
            commits=commits or None,
            attempt_outcome=FailureKind.CRASH if stage == Stage.FAILED and job.epoch else None,
            attempt_message=message,
            end_lease=True,
            release_locks=True,
        )
        try:
            await self._ledger.record(job.id, job.life * RECORDS_PER_LIFE + MENDED_SEQ, record, now)
        except IllegalTransition as error:
            log.error("reconcile.illegal", job_id=job.id, error=error.message)  # noqa: TRY400 - expected, named


async def _status(handle: WorkflowHandle[Any, JobOutcome]) -> WorkflowExecutionStatus | None:
    """Return the state of the job's latest workflow; None when there is none."""
    try:
        return (await handle.describe()).status
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        raise
