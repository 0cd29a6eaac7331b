"""Attempts that are to stop although nobody told their workflow's activity yet. Does I/O: SQL.

A wish to stop is noted with the lease: of an operator who cancels, or of the router, which needs the seat. Whoever
speaks to the factory asks here which of the attempts that it runs have to stop: those with such a note, and those whose
lease is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, and_, func, or_, select, tuple_, update

from core.link import StopReason
from core.router import Preemption
from store import switch
from store.database import batches
from store.open_job import OpenJob
from store.outbox import enqueue_signal
from store.tables import jobs, leases

PAUSABLE = and_(leases.c.holds_seat, leases.c.state == "living", leases.c.stop_requested_at.is_(None))
"""A lease whose attempt may be asked to make way: it has delivered nothing yet, and nobody stops it already."""


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


def make_way(job: OpenJob, urgent: Preemption) -> bool:
    """Have the job's attempt paused for a more urgent job; return False when that attempt is not there any more.

    The engine ends, its work is kept as a checkpoint, and the workflow queues the job again, which counts as no retry.
    """
    lease = leases.c
    noted = job.connection.execute(
        update(leases)
        .where(lease.job_id == job.id, lease.epoch == job.row.epoch, lease.factory == urgent.factory, PAUSABLE)
        .values(yields_to=urgent.job_id, stop_requested_at=job.now)
    )
    if noted.rowcount != 1:
        return False
    reason = f"paused for {urgent.job_id}, which is critical and needs {urgent.engine} on {urgent.factory}"
    data = {"for": urgent.job_id, "factory": urgent.factory, "engine": urgent.engine}
    job.event("job.preempted", reason, data, epoch=job.row.epoch)
    job.set(preempted=job.row.preempted + 1)
    job.save()
    payload = {"epoch": job.row.epoch, "reason": reason}
    enqueue_signal(job.connection, "interrupt", job_id=job.id, product_id=job.product_id, payload=payload, now=job.now)
    return True


def link_news(connection: Connection, running: Sequence[tuple[str, int]]) -> LinkNews:
    """Return what the agents that run these attempts have to hear."""
    stops: dict[tuple[str, int], StopReason] = {}
    lease = leases.c
    cancelled = and_(lease.state == "living", lease.stop_requested_at.is_not(None))
    concerned = select(lease.job_id, lease.epoch, lease.state, lease.yields_to).where(
        or_(lease.state == "lost", cancelled)  # nearly none; all of them would be fetched several times a second
    )
    for some in batches(running):
        for row in connection.execute(concerned.where(tuple_(lease.job_id, lease.epoch).in_(some))):
            if row.state == "lost":
                stops[row.job_id, row.epoch] = "fenced"
            else:
                stops[row.job_id, row.epoch] = "preempted" if row.yields_to else "cancelled"
    return LinkNews(stops, switch.kill_epoch(connection))
