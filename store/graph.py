"""The graph of what waits for what: around one job, or of everything that waits. Does I/O: SQL, read only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, or_, select

from store.database import batches
from store.edges import UNDONE
from store.open_job import no_such_job
from store.tables import edges, jobs
from store.views import DagEdgeView, DagJobView, DagView

MAX_JOBS: Final = 2_000
"""Jobs of one answer."""

_EDGE = (edges.c.child_id, edges.c.parent_id, edges.c.gate, edges.c.until, edges.c.state)


def around(connection: Connection, job_id: str, limit: int = MAX_JOBS) -> DagView:
    """Return every job that is connected with one by waits, those nearest to it first.

    Raises:
        NotFound: there is no such job.

    """
    if connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).one_or_none() is None:
        raise no_such_job(job_id)
    seen, level, found = {job_id: None}, [job_id], dict[tuple[str, str], Any]()
    while level and len(seen) < limit:
        rows = _touching(connection, level, limit)
        found |= {(row.child_id, row.parent_id): row for row in rows}
        level = list(dict.fromkeys(one for row in rows for one in (row.child_id, row.parent_id) if one not in seen))
        seen |= dict.fromkeys(level)
    return _view(connection, list(seen), list(found.values()), limit)


def _touching(connection: Connection, job_ids: Sequence[str], limit: int) -> list[Any]:
    """Return edges of some jobs in both directions; a fan of ten thousand is cut off, not read."""
    return [
        row
        for some in batches(job_ids, MAX_JOBS)
        for row in connection.execute(
            select(*_EDGE)
            .where(or_(edges.c.child_id.in_(some), edges.c.parent_id.in_(some)))
            .order_by(edges.c.child_id, edges.c.parent_id)
            .limit(4 * limit)
        )
    ]


def waiting(connection: Connection, products: Sequence[str] | None, limit: int = MAX_JOBS) -> DagView:
    """Return all jobs that wait for others now, and those; of some products, or of all (None)."""
    reached = () if products is None else (edges.c.product_id.in_(products),)
    unfinished = select(jobs.c.id).where(jobs.c.ended_at.is_(None), jobs.c.id == edges.c.child_id).exists()
    rows = connection.execute(
        select(*_EDGE)
        .where(edges.c.state.in_(UNDONE), unfinished, *reached)
        .order_by(edges.c.child_id, edges.c.parent_id)
        .limit(4 * limit)
    ).all()
    return _view(
        connection, list(dict.fromkeys(one for row in rows for one in (row.child_id, row.parent_id))), rows, limit
    )


def _view(connection: Connection, job_ids: Sequence[str], rows: Iterable[Any], limit: int) -> DagView:
    shown = job_ids[:limit]
    wanted = select(jobs.c.id, jobs.c.title, jobs.c.stage).where(jobs.c.id.in_(shown))
    known = {row.id: row for row in connection.execute(wanted)}
    kept = [row for row in rows if row.child_id in known and row.parent_id in known]
    return DagView(
        jobs=tuple(DagJobView.model_validate(known[job_id]._asdict()) for job_id in shown if job_id in known),
        edges=tuple(
            DagEdgeView(job_id=row.child_id, waits_for=row.parent_id, gate=row.gate, until=row.until, state=row.state)
            for row in kept
        ),
        truncated=len(job_ids) >= limit,
    )
