"""Seats: taken and given back by conditional updates, counted anew from the leases. Does I/O: SQL.

A lease says whether it holds a seat; `busy` of its station and of its factory count such leases. Both are changed in
one transaction, always the factory before the station.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, select, update

from store.cooldowns import may_be_asked
from store.database import AnyRow, serialise
from store.tables import factories, jobs, leases, stations
from store.views import LeaseState, SeatCorrection


def take_seat(connection: Connection, factory: str, engine: str, now: datetime) -> str | None:
    """Take a seat and return the factory's host; None when there is no free one, the factory takes no jobs, or the
    engine rests there.

    The caller undoes the transaction (or savepoint) on None: the factory's seat may have been taken by then.
    """
    host: str | None = connection.execute(
        update(factories)
        .where(factories.c.name == factory, factories.c.state == "online", factories.c.busy < factories.c.seats)
        .values(busy=factories.c.busy + 1, passed_over=0)
        .returning(factories.c.host)
    ).scalar_one_or_none()
    if host is None:
        return None
    taken = connection.execute(
        update(stations)
        .where(
            stations.c.factory == factory,
            stations.c.engine == engine,
            stations.c.usable,
            stations.c.busy < stations.c.seats,
            may_be_asked(now),
        )
        .values(busy=stations.c.busy + 1)
    )
    return host if taken.rowcount == 1 else None


def end_lease(connection: Connection, lease: AnyRow, state: LeaseState, now: datetime, reason: str = "") -> bool:
    """Bring a lease to its end and give its seat back; return whether it held one."""
    connection.execute(
        update(leases)
        .where(leases.c.job_id == lease.job_id, leases.c.epoch == lease.epoch)
        .values(state=state, holds_seat=False, ended_at=now, reason=reason)
    )
    if not lease.holds_seat:
        return False
    connection.execute(
        update(factories)
        .where(factories.c.name == lease.factory, factories.c.busy > 0)
        .values(busy=factories.c.busy - 1)
    )
    connection.execute(
        update(stations)
        .where(stations.c.factory == lease.factory, stations.c.engine == lease.engine, stations.c.busy > 0)
        .values(busy=stations.c.busy - 1)
    )
    return True


def recount_seats(connection: Connection, now: datetime) -> tuple[SeatCorrection, ...]:
    """End leases whose job rests, set every `busy` to what the leases say, and return what was wrong."""
    serialise(connection, "admission")
    resting = select(jobs.c.id).where(jobs.c.stage.in_(["queued", "shipped", "failed", "dead_letter", "cancelled"]))
    connection.execute(
        update(leases)
        .where(leases.c.holds_seat, leases.c.job_id.in_(resting))
        .values(state="ended", holds_seat=False, ended_at=now, reason="its job rests")
    )
    houses = connection.execute(select(factories.c.name, factories.c.busy).with_for_update()).all()
    rows = connection.execute(select(stations.c.factory, stations.c.engine, stations.c.busy).with_for_update()).all()
    held = {
        (row.factory, row.engine): row.seats
        for row in connection.execute(
            select(leases.c.factory, leases.c.engine, func.count().label("seats"))
            .where(leases.c.holds_seat)
            .group_by(leases.c.factory, leases.c.engine)
        )
    }
    by_factory: dict[str, int] = {}
    for (factory, _engine), seats in held.items():
        by_factory[factory] = by_factory.get(factory, 0) + seats
    found = [("", row.name, row.busy, by_factory.get(row.name, 0)) for row in houses]
    found += [(row.engine, row.factory, row.busy, held.get((row.factory, row.engine), 0)) for row in rows]
    corrections = tuple(
        SeatCorrection(factory=factory, engine=engine, was=was, now=right)
        for engine, factory, was, right in found
        if was != right
    )
    for correction in corrections:
        _correct(connection, correction)
    return corrections


def _correct(connection: Connection, correction: SeatCorrection) -> None:
    if not correction.engine:
        connection.execute(update(factories).where(factories.c.name == correction.factory).values(busy=correction.now))
        return
    connection.execute(
        update(stations)
        .where(stations.c.factory == correction.factory, stations.c.engine == correction.engine)
        .values(busy=correction.now)
    )
