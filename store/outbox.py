"""The outbox: messages to workflows, written with the change that caused them, delivered by any process. Does I/O: SQL.

A row is deleted once it was delivered. While a process delivers it, its `due_at` lies in the future; when that process
dies, the row is due again. Rows of one job are handed out one at a time and in order.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select, update

from store.database import serialise
from store.open_job import OpenJob
from store.tables import edges, jobs, outbox
from store.views import OutboxRow

CLAIM_S = 30.0
"""How long a process may take to deliver what it claimed before another one tries."""
MAX_RETRY_S = 60.0
MAX_ERROR_CHARS = 500


def enqueue_start(connection: Connection, *, job_id: str, product_id: str, life: int, now: datetime) -> None:
    """Have the job's workflow started; what it starts with is read when the row is delivered."""
    _enqueue(connection, "start", "start", job_id=job_id, product_id=product_id, payload={"life": life}, now=now)


def enqueue_signal(
    connection: Connection, name: str, *, job_id: str, product_id: str, payload: dict[str, Any], now: datetime
) -> None:
    """Have the job's workflow signalled, unless it is still to be started: then its start tells it everything."""
    starting = connection.execute(
        select(outbox.c.id)
        .where(outbox.c.job_id == job_id, outbox.c.kind == "start", outbox.c.attempts == 0)
        .with_for_update()
    ).first()
    if starting is None:
        _enqueue(connection, "signal", name, job_id=job_id, product_id=product_id, payload=payload, now=now)


def start_pending(connection: Connection, job_id: str) -> bool:
    """Return whether the job's workflow is still to be started."""
    waiting = select(outbox.c.id).where(outbox.c.job_id == job_id, outbox.c.kind == "start")
    return connection.execute(waiting).first() is not None


def signal_children(job: OpenJob, *, only_until: str | None = None) -> int:
    """Tell the workflows of all jobs that wait for `job` that it changed; return how many there are."""
    condition = edges.c.parent_id == job.id
    if only_until is not None:
        condition &= edges.c.until == only_until
    children = job.connection.execute(
        select(jobs.c.id, jobs.c.product_id)
        .join(edges, edges.c.child_id == jobs.c.id)
        .where(condition, jobs.c.ended_at.is_(None))
        .order_by(jobs.c.id)
    ).all()
    payload = {"parent": job.id, "stage": str(job.stage)}
    for child in children:
        enqueue_signal(
            job.connection,
            "parents_changed",
            job_id=child.id,
            product_id=child.product_id,
            payload=payload,
            now=job.now,
        )
    return len(children)


def drop_signals(connection: Connection, job_id: str) -> None:
    """Forget signals to a workflow that is about to close."""
    connection.execute(delete(outbox).where(outbox.c.job_id == job_id, outbox.c.kind == "signal"))


def _enqueue(
    connection: Connection,
    kind: str,
    name: str,
    *,
    job_id: str,
    product_id: str,
    payload: dict[str, Any],
    now: datetime,
) -> None:
    connection.execute(
        insert(outbox),
        {"kind": kind, "name": name, "job_id": job_id, "product_id": product_id, "payload": payload}
        | {"created_at": now, "due_at": now},
    )


def anything_due(connection: Connection, now: datetime) -> bool:
    """Return whether a claim would find anything."""
    return connection.execute(select(outbox.c.id).where(outbox.c.due_at <= now).limit(1)).first() is not None


def claim(connection: Connection, now: datetime, limit: int) -> tuple[OutboxRow, ...]:
    """Hand out due rows, at most one for each job, and keep them from others for `CLAIM_S`."""
    serialise(connection, "outbox")
    earlier = outbox.alias()
    first_of_its_job = ~exists().where(earlier.c.job_id == outbox.c.job_id, earlier.c.id < outbox.c.id)
    rows = connection.execute(
        select(outbox)
        .where(outbox.c.due_at <= now, first_of_its_job)
        .order_by(outbox.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if rows:
        connection.execute(
            update(outbox)
            .where(outbox.c.id.in_([row.id for row in rows]))
            .values(due_at=now + timedelta(seconds=CLAIM_S), attempts=outbox.c.attempts + 1)
        )
    return tuple(_row(row, attempts=row.attempts + 1) for row in rows)


def delivered(connection: Connection, row_id: int) -> None:
    """Forget a row that reached its workflow."""
    connection.execute(delete(outbox).where(outbox.c.id == row_id))


def failed(connection: Connection, row_id: int, error: str, now: datetime, retry_s: float) -> None:
    """Keep a row for another try, later with each failure."""
    attempts = connection.execute(
        select(outbox.c.attempts).where(outbox.c.id == row_id).with_for_update()
    ).scalar_one_or_none()
    if attempts is None:
        return
    wait_s = min(MAX_RETRY_S, retry_s * 2 ** min(max(attempts, 1) - 1, 10))
    connection.execute(
        update(outbox)
        .where(outbox.c.id == row_id)
        .values(due_at=now + timedelta(seconds=wait_s), error=error[:MAX_ERROR_CHARS])
    )


def stale(connection: Connection, before: datetime, limit: int) -> tuple[OutboxRow, ...]:
    """Return undelivered rows that were written before a time, oldest first."""
    rows = connection.execute(select(outbox).where(outbox.c.created_at < before).order_by(outbox.c.id).limit(limit))
    return tuple(_row(row, attempts=row.attempts) for row in rows)


def _row(row: Any, *, attempts: int) -> OutboxRow:
    values = row._asdict() | {"attempts": attempts}
    return OutboxRow.model_validate(values)
