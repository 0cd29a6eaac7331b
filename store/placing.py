"""Where a step after the build can run when the factory of the build does not answer. Does I/O: SQL, read only."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select

from core.router import FactoryView, ReadyJob
from core.router_match import unmet_needs
from store.fleet_snapshot import FleetReader
from store.open_job import no_such_job
from store.tables import jobs


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
