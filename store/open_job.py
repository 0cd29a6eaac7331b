"""A job that is being changed: its locked row, its new values and its new events, written together. Does I/O: SQL.

Every write about a job goes through `open_job` … `save`. That makes each event part of the transaction of the change
it describes, gives the hash chain one writer at a time, and lets no update be lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, insert, select, update

from core.errors import NotFound
from core.job import Stage
from core.lifecycle import check_transition
from store.chain import GENESIS, event_hash, without_log_text
from store.column_types import canonical_json, clean_text
from store.database import AnyRow
from store.tables import events, jobs

MAX_MESSAGE_CHARS = 4_000

_WIDE = ("spec", "documents", "routing", "verdict", "decided")
_NARROW = [column for column in jobs.c if column.name not in _WIDE]


class OpenJob:
    """A job's row, locked until the transaction ends, with what is to be written about it."""

    def __init__(self, connection: Connection, row: AnyRow, now: datetime) -> None:
        self.connection = connection
        self.row = row
        self.now = now
        self.id: str = row.id
        self.product_id: str = row.product_id
        self.stage = Stage(row.stage)
        self._values: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []
        self._last_hash: str = row.event_hash or GENESIS

    def set(self, **values: Any) -> None:
        """Note new values for columns of the job's row."""
        self._values |= values

    def event(
        self,
        kind: str,
        message: str = "",
        data: dict[str, Any] | None = None,
        *,
        epoch: int = 0,
        attempt_seq: int | None = None,
        at: datetime | None = None,
    ) -> None:
        """Note one event; log text in `data` becomes a digest."""
        entry = {
            "job_id": self.id,
            "product_id": self.product_id,
            "seq": self.row.event_seq + len(self._events) + 1,
            "at": at or self.now,
            "type": clean_text(kind),
            "epoch": epoch,
            "attempt_seq": attempt_seq,
            "message": clean_text(message[:MAX_MESSAGE_CHARS]),
            "data": json.loads(canonical_json(without_log_text(data or {}))),
        }
        hash_ = event_hash(self._last_hash, entry)
        self._events.append(entry | {"prev_hash": self._last_hash, "hash": hash_})
        self._last_hash = hash_

    def move(self, stage: Stage, *, epoch: int = 0) -> None:
        """Change the stage, as far as the lifecycle has that change, and note the event."""
        check_transition(self.stage, stage)
        data = {"from": str(self.stage), "to": str(stage)}
        self.event("stage.changed", f"{self.stage} → {stage}", data, epoch=epoch)
        self.stage = stage
        self.set(stage=str(stage))

    @property
    def changed(self) -> bool:
        """Return whether there is anything to save."""
        return bool(self._events or self._values)

    @property
    def noted_events(self) -> Sequence[dict[str, Any]]:
        """Return the rows of the events that were noted."""
        return self._events

    @property
    def noted_values(self) -> dict[str, Any]:
        """Return the new values of the job's row, those that every change brings included."""
        last = {"event_seq": self.row.event_seq + len(self._events), "event_hash": self._last_hash}
        return {"updated_at": self.now, **last, **self._values}

    def save(self) -> None:
        """Write everything that was noted; to be called once, at the end."""
        if self._events:
            self.connection.execute(insert(events), self._events)
        values = self.noted_values
        done = self.connection.execute(
            update(jobs).where(jobs.c.id == self.id, jobs.c.event_seq == self.row.event_seq).values(values)
        )
        if done.rowcount != 1:
            raise RuntimeError(f"lost update of job {self.id}: somebody wrote event {values['event_seq']} meanwhile")


def save_all(opened: Sequence[OpenJob]) -> None:
    """Write everything that was noted about several jobs that set the same columns, in two statements."""
    if not opened:
        return
    connection = opened[0].connection
    connection.execute(insert(events), [event for job in opened for event in job.noted_events])
    rows = [{f"new_{name}": value for name, value in job.noted_values.items()} | {"job": job.id} for job in opened]
    columns: dict[str, Any] = {name.removeprefix("new_"): bindparam(name) for name in rows[0] if name != "job"}
    connection.execute(update(jobs).where(jobs.c.id == bindparam("job")).values(columns), rows)


def open_job(connection: Connection, job_id: str, now: datetime) -> OpenJob:
    """Lock the job's row and return it.

    Raises:
        NotFound: there is no such job.

    """
    found = open_jobs(connection, jobs.c.id == job_id, now)
    if not found:
        raise no_such_job(job_id)
    return found[0]


def open_jobs(connection: Connection, which: ColumnElement[bool], now: datetime) -> tuple[OpenJob, ...]:
    """Lock the rows of the jobs that fit, in the order of their ids, and return them."""
    rows = connection.execute(select(*_NARROW).where(which).order_by(jobs.c.id).with_for_update(key_share=True))
    return tuple(OpenJob(connection, row, now) for row in rows.all())


def last_event(connection: Connection, job_id: str, *types: str) -> AnyRow | None:
    """Return type and data of the job's last event of one of some types."""
    return connection.execute(
        select(events.c.type, events.c.data)
        .where(events.c.job_id == job_id, events.c.type.in_(types))
        .order_by(events.c.seq.desc())
        .limit(1)
    ).one_or_none()


def no_such_job(job_id: str) -> NotFound:
    """Return the error for an unknown job id."""
    return NotFound(f"there is no job {job_id}", hint="`gf jobs` lists the jobs", job_id=job_id)
