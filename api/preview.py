"""Where a job would go if it were submitted now. *Does I/O: reads the ledger.*"""

from __future__ import annotations

from datetime import datetime

from core.job import JobSpec
from core.router import plan
from core.router_explain import Explanation
from core.router_snapshot import ready_job
from store.ledger import Ledger

NAMELESS = "this job"
"""Stands for the id that the job does not have yet; no real id has a space."""


async def preview(ledger: Ledger, spec: JobSpec, *, now: datetime) -> Explanation:
    """Return the router's answer for a job that does not exist, among the jobs that wait and run now."""
    snapshot = await ledger.snapshot(now)
    planned = plan(snapshot.model_copy(update={"jobs": (*snapshot.jobs, ready_job(NAMELESS, spec, now))}))
    return planned.explain(NAMELESS)
