"""Engines that are left alone at a place for a while: what every job's limits teach the router. Does I/O: SQL.

A place is an engine on a factory. What one attempt found out there (a usage limit, an engine that cannot work) holds
for all jobs until the time that was told, so that no other one runs into the same wall.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, or_, select, update

from core.job import Cooldown
from core.router_snapshot import ReadyJob
from store.database import AnyRow
from store.open_job import OpenJob, no_such_job
from store.tables import jobs, runs, stations


def may_be_asked(now: datetime | ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return the condition that the engine of a station does not rest."""
    return or_(stations.c.cooldown_until.is_(None), stations.c.cooldown_until <= now)


def begin(job: OpenJob, epoch: int, cooldown: Cooldown) -> None:
    """Leave the engine of an attempt alone where it ran; a later end that is known already stays."""
    this_run = runs.c.job_id == job.id, runs.c.epoch == epoch
    place = job.connection.execute(
        update(runs).where(*this_run).values(cooldown_until=cooldown.until).returning(runs.c.factory, runs.c.engine)
    ).one_or_none()
    if place is None:
        return
    sooner = or_(stations.c.cooldown_until.is_(None), stations.c.cooldown_until < cooldown.until)
    job.connection.execute(
        update(stations)
        .where(stations.c.factory == place.factory, stations.c.engine == place.engine, sooner)
        .values(cooldown_until=cooldown.until, cooldown_reason=cooldown.reason)
    )


def end_for(job: OpenJob) -> None:
    """Let every engine that may do the job be asked again, on all factories."""
    _end(job.connection, stations.c.engine.in_(ready_job_of(job.connection, job.id).job_class.needs.engines))


def end_at(connection: Connection, factory: str, now: datetime) -> bool:
    """Let every engine of a factory be asked again; return whether one was not to be."""
    return _end(connection, stations.c.factory == factory, stations.c.cooldown_until > now)


def _end(connection: Connection, *which: ColumnElement[bool]) -> bool:
    done = connection.execute(update(stations).where(*which).values(cooldown_until=None, cooldown_reason=""))
    return done.rowcount > 0


def in_force(station: AnyRow, now: datetime) -> Cooldown | None:
    """Return the cooldown of a station's row; None when its engine may be asked."""
    until = station.cooldown_until
    return Cooldown(until=until, reason=station.cooldown_reason) if until is not None and until > now else None


def ready_job_of(connection: Connection, job_id: str) -> ReadyJob:
    """Return what never changes about where a job can run.

    Raises:
        NotFound: there is no such job.

    """
    routing = connection.execute(select(jobs.c.routing).where(jobs.c.id == job_id)).scalar_one_or_none()
    if routing is None:
        raise no_such_job(job_id)
    return ReadyJob.model_validate_json(routing)
