"""The outbox: messages to workflows, written with the change that caused them, delivered by any process. Does I/O: SQL.

A row is deleted once it was delivered. While a process delivers it, its `due_at` lies in the future; when that process
dies, the row is due again. Rows of one job are handed out one at a time and in order.

The start of a job that waits for its first seat is due a while later, or as soon as there is something to tell: then
the workflow begins with the grant, instead of being started, put to sleep and signalled.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, exists, insert, select, update

from store.database import serialise
from store.tables import outbox
from store.views import OutboxRow

CLAIM_S = 30.0
"""How long a process may take to deliver what it claimed before another one tries."""
MAX_RETRY_S = 60.0
MAX_ERROR_CHARS = 500


class Starting(NamedTuple):
    """A life that is to begin."""

    job_id: str
    product_id: str
    life: int


def enqueue_start(connection: Connection, *, job_id: str, product_id: str, life: int, now: datetime) -> None:
    """Have the job's workflow started; what it starts with is read when the row is delivered."""
    enqueue_starts(connection, [Starting(job_id, product_id, life)], now)


def enqueue_starts(
    connection: Connection, lives: Sequence[Starting], now: datetime, *, wait: timedelta = timedelta(0)
) -> None:
    """Have the workflows of several jobs started, as `enqueue_start` does for one; after `wait`, or `hurry_start`."""
    if lives:
        common = {"kind": "start", "name": "start", "created_at": now, "due_at": now + wait}
        rows = [
            common | {"job_id": one.job_id, "product_id": one.product_id, "payload": {"life": one.life}}
            for one in lives
        ]
        connection.execute(insert(outbox), rows)


def enqueue_signal(
    connection: Connection, name: str, *, job_id: str, product_id: str, payload: dict[str, Any], now: datetime
) -> None:
    """Have the job's workflow signalled, unless it is still to be started: then its start, now, tells it everything."""
    if not hurry_start(connection, job_id, now):
        row = {"kind": "signal", "name": name, "job_id": job_id, "product_id": product_id, "payload": payload}
        connection.execute(insert(outbox), row | {"created_at": now, "due_at": now})


def hurry_start(connection: Connection, job_id: str, now: datetime) -> bool:
    """Have the job's workflow started now; return False when nobody waits with that any more."""
    untried = (outbox.c.job_id == job_id, outbox.c.kind == "start", outbox.c.attempts == 0)
    return connection.execute(update(outbox).where(*untried).values(due_at=now)).rowcount > 0


def start_pending(connection: Connection, job_id: str) -> bool:
    """Return whether the job's workflow is still to be started."""
    waiting = select(outbox.c.id).where(outbox.c.job_id == job_id, outbox.c.kind == "start")
    return connection.execute(waiting).first() is not None


def drop_signals(connection: Connection, job_id: str) -> None:
    """Forget signals to a workflow that is about to close."""
    connection.execute(delete(outbox).where(outbox.c.job_id == job_id, outbox.c.kind == "signal"))


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
