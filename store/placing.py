"""Where a step after the build can run, and until when a job has no place at all. Does I/O: SQL, read only."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select

from core.router import FactoryView, ReadyJob
from core.router_match import unmet_needs
from core.router_rest import Rest, rest_of
from store.cooldowns import ready_job_of
from store.fleet_snapshot import FleetReader
from store.open_job import no_such_job
from store.tables import jobs, stations


def place_step(connection: Connection, fleet: FleetReader, job_id: str, avoid: str, now: datetime) -> str | None:
    """Return the best factory for a step of the job: the last one, then the least loaded; `avoid` only in need.

    Raises:
        NotFound: there is no such job.

    """
    row = connection.execute(select(jobs.c.routing, jobs.c.last_factory).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    snapshot = fleet.read(connection, now)
    assert snapshot is not None
    needs = ReadyJob.model_validate_json(row.routing).job_class.needs

    def can_take(factory: FactoryView) -> bool:
        at_home = needs.host is None or needs.host == factory.host
        return factory.state == "online" and at_home and not unmet_needs(needs, factory)

    def order(factory: FactoryView) -> tuple[object, ...]:
        return factory.name == avoid, factory.name != row.last_factory, factory.load, factory.name

    able = sorted(filter(can_take, snapshot.factories), key=order)
    return able[0].name if able else None


def rest(connection: Connection, fleet: FleetReader, job_id: str, now: datetime) -> Rest | None:
    """Return until when a queued job has to sleep, because all engines that could do it rest; None: it need not.

    The fleet is looked at only when one of those engines rests somewhere.
    """
    job = ready_job_of(connection, job_id)
    resting = select(stations.c.engine).where(
        stations.c.engine.in_(job.job_class.needs.engines), stations.c.cooldown_until > now
    )
    if connection.execute(resting.limit(1)).one_or_none() is None:
        return None
    snapshot = fleet.read(connection, now)
    assert snapshot is not None
    return rest_of(job, snapshot.factories, snapshot.limits)
