"""Attempts that are to stop although nobody told their workflow's activity yet. Does I/O: SQL.

A wish to stop is noted with the lease. Whoever speaks to the factory asks here which of the attempts that it runs have
to stop: those with such a note, and those whose lease is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select, tuple_, update

from core.link import StopReason
from store import switch
from store.database import batches
from store.tables import jobs, leases


class LinkNews(NamedTuple):
    """What agents have to hear: attempts (job, epoch) that have to stop, and how far the kill switch has come."""

    stops: dict[tuple[str, int], StopReason]
    switch_epoch: int


def request_stop(connection: Connection, job_id: str, now: datetime) -> int:
    """Note that the attempt that the job has running is to stop; return its epoch, 0 when none runs."""
    newest = select(jobs.c.epoch).where(jobs.c.id == job_id).scalar_subquery()
    epoch: int | None = connection.execute(
        update(leases)
        .where(leases.c.job_id == job_id, leases.c.epoch == newest, leases.c.state == "living")
        .values(stop_requested_at=func.coalesce(leases.c.stop_requested_at, now))
        .returning(leases.c.epoch)
    ).scalar_one_or_none()
    return epoch or 0


def link_news(connection: Connection, running: Sequence[tuple[str, int]]) -> LinkNews:
    """Return what the agents that run these attempts have to hear."""
    stops: dict[tuple[str, int], StopReason] = {}
    for some in batches(running):
        found = connection.execute(
            select(leases.c.job_id, leases.c.epoch, leases.c.state, leases.c.stop_requested_at).where(
                tuple_(leases.c.job_id, leases.c.epoch).in_(some)
            )
        )
        for row in found:
            if row.state == "lost":
                stops[row.job_id, row.epoch] = "fenced"
            elif row.state == "living" and row.stop_requested_at is not None:
                stops[row.job_id, row.epoch] = "cancelled"
    return LinkNews(stops, switch.kill_epoch(connection))
