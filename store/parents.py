"""Parents and children of jobs: who waits for whom, and whether the wait is over. Does I/O: SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from core.job import Stage
from core.lifecycle import ENDED
from store.tables import edges, jobs
from store.views import DependencyView, ParentsState

MAX_NAMED = 20


def satisfied(stage: Stage, until: str) -> bool:
    """Return whether a parent in `stage` no longer holds up a child that waits `until` then."""
    return stage == Stage.SHIPPED or (until == "testing" and stage == Stage.TESTING)


def parents_of(connection: Connection, job_id: str) -> tuple[DependencyView, ...]:
    """Return the parents with their present stage."""
    return parents_by_child(connection, [job_id]).get(job_id, ())


def parents_by_child(connection: Connection, job_ids: Sequence[str]) -> dict[str, tuple[DependencyView, ...]]:
    """Return the parents of each of the jobs that has any, with their present stage."""
    rows = connection.execute(
        select(edges.c.child_id, edges.c.parent_id, edges.c.until, jobs.c.stage)
        .join(jobs, jobs.c.id == edges.c.parent_id)
        .where(edges.c.child_id.in_(job_ids))
        .order_by(edges.c.child_id, edges.c.parent_id)
    )
    found: dict[str, list[DependencyView]] = {}
    for row in rows:
        view = DependencyView(job_id=row.parent_id, until=row.until, stage=row.stage)
        found.setdefault(row.child_id, []).append(view)
    return {child: tuple(views) for child, views in found.items()}


def children_of(connection: Connection, job_id: str) -> tuple[str, ...]:
    """Return the ids of the jobs that name `job_id` among their parents."""
    rows = connection.execute(select(edges.c.child_id).where(edges.c.parent_id == job_id).order_by(edges.c.child_id))
    return tuple(row.child_id for row in rows)


def parents_state(connection: Connection, job_id: str) -> ParentsState:
    """Return whether the job may start; a failed parent is told before one that is only not done yet."""
    open_ = [p for p in parents_of(connection, job_id) if not satisfied(p.stage, p.until)]
    failed = tuple(p.job_id for p in open_ if p.stage in ENDED)
    waiting = tuple(p.job_id for p in open_ if p.stage not in ENDED)
    if failed:
        told = [f"{p.job_id} ({p.stage})" for p in open_ if p.stage in ENDED]
        message = f"parents ended without what it waits for: {_named(told)}"
        return ParentsState(outcome="failed", failed=failed, waiting=waiting, message=message)
    if waiting:
        told = [f"{p.job_id} ({p.stage}, until {p.until})" for p in open_]
        return ParentsState(outcome="waiting", waiting=waiting, message=f"waits for {_named(told)}")
    return ParentsState(outcome="ready", message="all parents are done")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
