"""The reconciler's pass: every unfinished job of the ledger against its workflow. *Does I/O: ledger, Temporal.*

Asks with Describe, never through visibility, which lags behind and is bounded. Idempotent; run by a schedule.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import structlog
from temporalio import activity
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from core.attempt import workflow_id
from core.job import FailureKind, Stage
from core.job_messages import LIFE_MEMO, WORKER_GONE, JobOutcome, ReconcileReply
from core.lifecycle import Entry, Record
from store.ledger import Ledger
from store.views import UnfinishedJob

log = structlog.get_logger(__name__)

Mended = Literal["restarted", "failed", "regranted", "lost"]
"""What was done about a job: the member of `ReconcileReply` that lists it."""

PAGE: Final = 500
OVERDUE: Final = timedelta(seconds=15)
"""Beyond its timeout, a heartbeat is so late that Temporal has lost the timer that should have told."""
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
        """Run one pass over all unfinished jobs; one that cannot be mended does not keep the others from it."""
        now = datetime.now(UTC)
        mended: dict[Mended, list[str]] = {"restarted": [], "failed": [], "regranted": [], "lost": []}
        checked = 0
        async for job in self._unfinished(now):
            done = await self._mend_safely(job, now)
            if done is not None:
                mended[done].append(job.id)
            checked += 1
            activity.heartbeat(checked)
        corrections = await self._ledger.recount_seats(now)
        self._wake()
        return ReconcileReply.model_validate({"checked": checked, "freed_seats": len(corrections), **mended})

    async def _unfinished(self, now: datetime) -> AsyncIterator[UnfinishedJob]:
        """Yield the jobs whose workflow should be alive; a start on its way is the outbox's business."""
        last: UnfinishedJob | None = None
        while page := await self._ledger.unfinished_jobs(now, PAGE, after=last):
            for job in page:
                if not job.start_pending:
                    yield job
            last = page[-1]

    async def _mend_safely(self, job: UnfinishedJob, now: datetime) -> Mended | None:
        """Mend one job; what is wrong with it alone is logged."""
        try:
            return await self._mend(job, now)
        except RPCError:
            raise  # Temporal is away: so it is for all others
        except Exception:
            log.exception("reconcile.job_not_mended", job_id=job.id)
            return None

    async def _mend(self, job: UnfinishedJob, now: datetime) -> Mended | None:
        """Compare one job with its workflow; return what was done about it."""
        found = await self._describe(job)
        if found is None:
            return "restarted" if await self._ledger.enqueue_start(job.id, now, life=job.life) else None
        if found.status == WorkflowExecutionStatus.COMPLETED:
            handle = self._client.get_workflow_handle(found.id, run_id=found.run_id, result_type=JobOutcome)
            outcome = await handle.result()
            await self._end(job, outcome.stage, "its workflow had ended already", now, outcome.commits)
        elif found.status in DEAD:
            message = f"its workflow {DEAD[found.status]}; `gf requeue {job.id}` goes on from the last checkpoint"
            return "failed" if await self._end(job, Stage.FAILED, message, now) else None
        elif job.stage == Stage.ASSIGNED and await self._ledger.resend_grant(job.id, now):
            return "regranted"
        elif await self._give_up_overdue(found):
            return "lost"
        return None

    async def _give_up_overdue(self, found: WorkflowExecutionDescription) -> bool:
        """Fail the activities whose heartbeat should have ended them long ago; return whether there were any.

        Temporal can lose a timer (its issue 11869): then nobody would ever be told that a machine vanished. The
        workflow asks the ledger, as after every loss, whether the attempt handed in or lives on. All times here are of
        Temporal's clock, which may differ from ours by more than a lease.
        """
        now = activity.info().started_time
        given_up = False
        for pending in found.raw_description.pending_activities:
            patience = pending.activity_options.heartbeat_timeout.ToTimedelta()
            if pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED or not patience:
                continue
            began = pending.last_started_time.ToDatetime(tzinfo=UTC)
            heard = max(began, pending.last_heartbeat_time.ToDatetime(tzinfo=UTC))  # 1970 before the first beat
            if now > heard + patience + OVERDUE:
                given_up |= await self._give_up(found, pending.activity_id, heard)
        return given_up

    async def _give_up(self, found: WorkflowExecutionDescription, activity_id: str, heard: datetime) -> bool:
        """Tell the workflow that one activity's worker is gone; False: the activity ended meanwhile."""
        handle = self._client.get_async_activity_handle(
            workflow_id=found.id, run_id=found.run_id, activity_id=activity_id
        )
        message = f"nothing was heard of it since {heard:%H:%M:%S} UTC, and Temporal did not notice"
        try:
            await handle.fail(ApplicationError(message, type=WORKER_GONE))
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True

    async def _describe(self, job: UnfinishedJob) -> WorkflowExecutionDescription | None:
        """Return the workflow of the job's present life; None when there is none, or only one of an earlier life."""
        try:
            found = await self._client.get_workflow_handle(workflow_id(job.product_id, job.id)).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise
        life: int = await found.memo_value(LIFE_MEMO, job.life)
        return found if life >= job.life else None

    async def _end(
        self, job: UnfinishedJob, stage: Stage, message: str, now: datetime, commits: tuple[str, ...] = ()
    ) -> bool:
        """End the job where people see it, and free what it holds; return whether it had not ended meanwhile."""
        failed = stage == Stage.FAILED
        record = Record(
            path=(stage,),
            epoch=job.epoch,
            entries=(Entry(type=f"job.{stage}", message=message, data={"mended": True}),),
            conditions=(),
            commits=commits or None,
            attempt_outcome=FailureKind.CRASH if failed and job.epoch else None,
            attempt_message=message,
            end_lease=True,
            release_locks=True,
        )
        return await self._ledger.end_life(job.id, job.life, record, now)
