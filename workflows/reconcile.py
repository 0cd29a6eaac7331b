"""The scheduled repair: compares the ledger with Temporal and mends what differs.

Purpose: finds jobs whose workflow is missing or was terminated (its `finally` never ran), messages that nobody
delivered, seats that nobody holds. Started by a Temporal Schedule; one pass is one activity. No messages; lives for
seconds.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from core.job_messages import IO_QUEUE, IO_SILENCE, ReconcileReply

PASS_LIMIT = timedelta(minutes=5)
"""One pass over all unfinished jobs."""
PASS_RETRY = RetryPolicy(maximum_attempts=2)
"""The next scheduled pass is the real retry."""


@workflow.defn(name="ReconcileWorkflow")
class ReconcileWorkflow:
    """One pass of the reconciler."""

    @workflow.run
    async def run(self) -> ReconcileReply:
        """Run the pass and return what it mended."""
        reply: ReconcileReply = await workflow.execute_activity(
            "reconcile",
            task_queue=IO_QUEUE,
            result_type=ReconcileReply,
            start_to_close_timeout=PASS_LIMIT,
            heartbeat_timeout=IO_SILENCE,  # a dead pass keeps the next ones away: overlaps are skipped
            retry_policy=PASS_RETRY,
            summary="compare ledger and Temporal",
        )
        return reply
