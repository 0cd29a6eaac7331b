"""Factories: who reports for work, whether they still do, what they offer. Does I/O: SQL.

One living agent for each name: a second one is refused while the first is heard of, unless it has proven the first
dead. A factory that is not heard of gets no new jobs; the leases that it holds are another matter and stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select, update

from core.errors import Conflict, NotFound
from store.database import AnyRow, insert_new
from store.messages import FactoryState, FactoryStatus, Registration, StationOffer
from store.tables import factories, stations
from store.views import FactoryRow, StationRow


def register(connection: Connection, offer: Registration, now: datetime, fresh: timedelta) -> FactoryRow:
    """Take a factory in, or take its new agent for the old one.

    `fresh` is how long after its last beat an agent still counts as living.

    Raises:
        Conflict: another living agent has that name.

    """
    values = _values(offer, now)
    if not insert_new(connection, factories, **values, state="online", registered_at=now):
        known = connection.execute(select(factories).where(factories.c.name == offer.name).with_for_update()).one()
        _refuse_second_agent(known, offer, now, fresh)
        state = "quarantined" if known.state == "quarantined" else "online"
        connection.execute(
            update(factories).where(factories.c.name == offer.name).values(**values, state=state, registered_at=now)
        )
    _replace_stations(connection, offer)
    return factory(connection, offer.name)


def _values(offer: Registration, now: datetime) -> dict[str, Any]:
    return {
        "name": offer.name,
        "product_id": offer.product_id,
        "host": offer.host,
        "pid": offer.pid,
        "instance": offer.instance,
        "version": offer.version,
        "capabilities": list(offer.capabilities),
        "seats": offer.seats,
        "status": offer.status.model_dump(mode="json", exclude_none=True),
        "details": offer.details,
        "last_beat_at": now,
    }


def _refuse_second_agent(known: AnyRow, offer: Registration, now: datetime, fresh: timedelta) -> None:
    same = known.instance == offer.instance or (known.host, known.pid) == (offer.host, offer.pid)
    silent = known.state == "offline" or now - known.last_beat_at > fresh
    proven_dead = offer.replaces_dead_pid and known.host == offer.host
    if same or silent or proven_dead:
        return
    seconds = (now - known.last_beat_at).total_seconds()
    raise Conflict(
        f"factory {offer.name} is alive already: process {known.pid} on {known.host}, heard of {seconds:.0f} s ago",
        hint="give this machine another factory name, or stop the other agent",
        name=offer.name,
        pid=known.pid,
        host=known.host,
    )


def _replace_stations(connection: Connection, offer: Registration) -> None:
    """Make the factory's stations those of `offer`; one that is gone but still has a busy seat stays, unusable."""
    known = set(connection.execute(select(stations.c.engine).where(stations.c.factory == offer.name)).scalars())
    offered = {station.engine: station for station in offer.stations}
    for engine, station in offered.items():
        if engine in known:
            this = and_(stations.c.factory == offer.name, stations.c.engine == engine)
            connection.execute(update(stations).where(this).values(_station_values(station)))
        else:
            key = {"factory": offer.name, "engine": engine, "product_id": offer.product_id}
            connection.execute(insert(stations), key | _station_values(station))
    gone = and_(stations.c.factory == offer.name, stations.c.engine.in_(known - offered.keys()))
    connection.execute(delete(stations).where(gone, stations.c.busy == 0))
    connection.execute(update(stations).where(gone).values(usable=False, seats=0))


def _station_values(station: StationOffer) -> dict[str, Any]:
    return {
        "seats": station.seats,
        "usable": station.usable,
        "version": station.version,
        "repair": station.repair,
    }


def heartbeat(connection: Connection, name: str, instance: str, status: FactoryStatus, now: datetime) -> bool:
    """Note that the agent lives; return whether the factory came back from offline.

    Raises:
        NotFound: the factory has to register first.
        Conflict: another agent has taken the name over.

    """
    row = connection.execute(
        select(factories.c.instance, factories.c.state, factories.c.status, factories.c.pid)
        .where(factories.c.name == name)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise no_such_factory(name)
    if row.instance != instance:
        raise Conflict(f"factory {name} is run by another agent now (process {row.pid}); this one must stop", name=name)
    returned: bool = row.state == "offline"
    before = "draining" if row.status.get("draining") else "online"
    connection.execute(
        update(factories)
        .where(factories.c.name == name)
        .values(
            last_beat_at=now,
            state=before if returned else row.state,
            status=row.status | status.model_dump(mode="json", exclude_none=True),
        )
    )
    return returned


def set_state(connection: Connection, name: str, state: FactoryState) -> None:
    """Set what the factory is ready for: `draining` and `quarantined` get no new jobs, `offline` is gone.

    Raises:
        NotFound: there is no such factory.

    """
    this = factories.c.name == name
    status = connection.execute(select(factories.c.status).where(this).with_for_update()).scalar_one_or_none()
    if status is None:
        raise no_such_factory(name)
    draining = {"draining": True} if state == "draining" else {}
    kept = {key: value for key, value in status.items() if key != "draining"}
    connection.execute(update(factories).where(this).values(state=state, status=kept | draining))


def sweep(connection: Connection, now: datetime, ttl: timedelta) -> tuple[str, ...]:
    """Mark as offline who was not heard of for `ttl`; return their names. Their leases are not touched."""
    rows = connection.execute(
        update(factories)
        .where(factories.c.state.in_(["online", "draining"]), factories.c.last_beat_at < now - ttl)
        .values(state="offline")
        .returning(factories.c.name)
    )
    return tuple(sorted(row.name for row in rows))


def all_factories(connection: Connection) -> tuple[FactoryRow, ...]:
    """Return every factory that ever registered, by name."""
    rows = connection.execute(select(factories).order_by(factories.c.name)).all()
    by_factory: dict[str, list[StationRow]] = {}
    for row in connection.execute(select(stations).order_by(stations.c.factory, stations.c.engine)):
        by_factory.setdefault(row.factory, []).append(StationRow.model_validate(row._asdict()))
    return tuple(_factory_row(row, by_factory.get(row.name, ())) for row in rows)


def factory(connection: Connection, name: str) -> FactoryRow:
    """Return one factory.

    Raises:
        NotFound: there is no such factory.

    """
    row = connection.execute(select(factories).where(factories.c.name == name)).one_or_none()
    if row is None:
        raise no_such_factory(name)
    at = connection.execute(select(stations).where(stations.c.factory == name).order_by(stations.c.engine))
    return _factory_row(row, [StationRow.model_validate(station._asdict()) for station in at])


def _factory_row(row: AnyRow, at: Sequence[StationRow]) -> FactoryRow:
    return FactoryRow.model_validate(row._asdict() | {"stations": tuple(at)})


def no_such_factory(name: str) -> NotFound:
    """Return the error for an unknown factory name."""
    return NotFound(f"there is no factory {name}", hint="`gf factories` lists them", name=name)
