"""Where a job would go if it were submitted now. *Does I/O: reads the ledger.*"""

from __future__ import annotations

from datetime import datetime

from core.job import JobSpec, RepositoryKind
from core.router import plan
from core.router_explain import Explanation
from core.router_snapshot import ReadyJob
from store.ledger import Ledger

NAMELESS = "this job"
"""Stands for the id that the job does not have yet; no real id has a space."""


async def preview(ledger: Ledger, spec: JobSpec, *, now: datetime) -> Explanation:
    """Return the router's answer for a job that does not exist, among the jobs that wait and run now."""
    snapshot = await ledger.snapshot(now)
    planned = plan(snapshot.model_copy(update={"jobs": (*snapshot.jobs, _ready_job(spec, now))}))
    return planned.explain(NAMELESS)


def _ready_job(spec: JobSpec, now: datetime) -> ReadyJob:
    in_place = spec.repository.kind == RepositoryKind.DIRECTORY
    return ReadyJob(
        job_id=NAMELESS,
        product_id=spec.product_id,
        priority=spec.priority,
        submitted_at=now,
        capabilities=spec.capabilities,
        prefers=spec.prefers,
        engine=spec.engine,
        engine_class=spec.engine_class,
        engine_preference=spec.engine_preference,
        lock=spec.lock,
        implied_locks=(f"directory {spec.repository.host or ''}:{spec.repository.url}",) if in_place else (),
        allowed_scope=spec.allowed_scope,
        repository_url=spec.repository.url,
        host=spec.repository.host,
    )
