"""Which waiting jobs were overtaken by the grants of a plan. *Pure.*

A job is overtaken when a later one gets a seat that it could have used: its engine, its capabilities, its host, and no
lock in its way. The router's bound on waiting counts these.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.router import FactoryView, FleetSnapshot, PlannedGrant, ReadyJob
from core.router_capacity import Claims
from core.router_match import Matcher


def overtaken_by(snapshot: FleetSnapshot, grants: Sequence[PlannedGrant]) -> dict[str, int]:
    """Return for each waiting job by how many of the grants it was overtaken; jobs with none are left out."""
    jobs = {job.job_id: job for job in snapshot.jobs}
    granted = [(jobs[grant.job_id], grant) for grant in grants]
    if not granted:
        return {}
    names = {job.job_id for job, _ in granted}
    youngest = max(_age(job) for job, _ in granted)
    passed = [job for job in snapshot.jobs if job.job_id not in names and _age(job) < youngest]
    if not passed:
        return {}
    factories = {factory.name: factory for factory in snapshot.factories}
    matcher, claims = Matcher(snapshot), Claims(snapshot)
    for job, _ in granted:
        claims.take(job)
    times = {
        job.job_id: sum(
            _age(job) < _age(other) and _fits(job, factories[grant.factory], grant.engine, matcher)
            for other, grant in granted
        )
        for job in passed
        if not claims.blocks(job)
    }
    return {job_id: count for job_id, count in times.items() if count}


def _age(job: ReadyJob) -> tuple[float, str]:
    return job.submitted_at.timestamp(), job.job_id


def _fits(job: ReadyJob, factory: FactoryView, engine: str, matcher: Matcher) -> bool:
    needs = job.job_class
    at_home = needs.host is None or needs.host == factory.host
    return at_home and engine in needs.engines and not matcher.unmet(needs, factory)
