"""The workflow around a pass of the reconciler, on a real server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from core.job_messages import ReconcileReply
from tests.waiting import PATIENCE_S
from workflows import reconcile
from workflows.reconcile import ReconcileWorkflow


async def test_pass_that_died_with_its_worker_does_not_keep_the_next_away(
    temporal_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that says nothing is given up long before its time is over, and run again."""
    queue = f"reconcile-{uuid4().hex[:8]}"
    monkeypatch.setattr(reconcile, "IO_QUEUE", queue)
    monkeypatch.setattr(reconcile, "IO_SILENCE", timedelta(seconds=0.5))
    passes = 0

    @activity.defn(name="reconcile")
    async def silent_at_first() -> ReconcileReply:
        nonlocal passes
        passes += 1
        if passes == 1:
            await asyncio.Event().wait()
        return ReconcileReply(checked=passes)

    runner = UnsandboxedWorkflowRunner()
    async with Worker(
        temporal_client,
        task_queue=queue,
        workflows=[ReconcileWorkflow],
        activities=[silent_at_first],
        workflow_runner=runner,
    ):
        handle = await temporal_client.start_workflow("ReconcileWorkflow", id=queue, task_queue=queue)
        async with asyncio.timeout(PATIENCE_S):
            reply = await handle.result()
    assert reply["checked"] > 1
