"""Factories: who reports for work, whether they still do, what they offer. Does I/O: SQL.

One living agent for each name: a second one is refused while the first is heard of, unless it has proven the first
dead. Proof is what only the same machine can say: the boot that it runs in, and the instance of the agent before it. A
clone has either booted by itself or does not know the instance. A factory that is not heard of gets no new jobs; the
leases that it holds are another matter and stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, and_, delete, insert, select, update

from core.errors import Conflict, NotFound
from core.router_policy import Limits
from core.trust import count_claims
from store import attestations, audit, switch, tokens
from store.database import AnyRow, insert_new
from store.factory_activity import Activities
from store.messages import FactoryState, FactoryStatus, Registration, StationOffer
from store.tables import factories, leases, stations
from store.views import BeatAnswer, DrainOrder, FactoryRow, StationRow


def register(
    connection: Connection,
    offer: Registration,
    now: datetime,
    *,
    fresh: timedelta,
    rules: FactoryRules,
    token_id: str | None,
) -> FactoryRow:
    """Take a factory in, or take its new agent for the old one.

    `fresh` is how long after its last beat an agent still counts as living. The
    token `token_id`, if named, must open now, so that a factory that is being retired cannot come back.

    Raises:
        Conflict: another living agent has that name.
        Unauthenticated: the token opens nothing any more.

    """
    switch.follow_sentinel(connection, offer.name, offer.status.sentinel, now)  # before any lock, as in `heartbeat`
    if token_id is not None:
        tokens.check_opens(connection, token_id, now)
    values = _values(offer, now)
    if not insert_new(connection, factories, **values, state="online", registered_at=now):
        known = connection.execute(select(factories).where(factories.c.name == offer.name).with_for_update()).one()
        _refuse_second_agent(known, offer, now, fresh)
        state = standing_state(known.drain, known.quarantine)
        connection.execute(
            update(factories).where(factories.c.name == offer.name).values(**values, state=state, registered_at=now)
        )
    _replace_stations(connection, offer)
    return factory(connection, offer.name, rules)


def _values(offer: Registration, now: datetime) -> dict[str, Any]:
    return {
        "name": offer.name,
        "product_id": offer.product_id,
        "host": offer.host,
        "pid": offer.pid,
        "instance": offer.instance,
        "version": offer.version,
        "capabilities": list(offer.capabilities),
        "declared": list(offer.declared),
        "boot": offer.boot,
        "seats": offer.seats,
        "status": _told(offer.status),
        "details": offer.details,
        "last_beat_at": now,
    }


def _refuse_second_agent(known: AnyRow, offer: Registration, now: datetime, fresh: timedelta) -> None:
    silent = known.state == "offline" or now - known.last_beat_at > fresh
    same_machine = bool(offer.boot) and (known.host, known.boot) == (offer.host, offer.boot)
    proven_dead = same_machine and offer.replaces == known.instance
    if known.instance == offer.instance or silent or proven_dead:
        return
    seconds = (now - known.last_beat_at).total_seconds()
    raise Conflict(
        f"factory {offer.name} is alive already: process {known.pid} on {known.host}, heard of {seconds:.0f} s ago",
        hint="a clone needs a name of its own (`gf enroll`); otherwise stop the other agent: the name is free "
        f"{fresh.total_seconds():g} s after its last beat",
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


def heartbeat(connection: Connection, name: str, instance: str, status: FactoryStatus, now: datetime) -> BeatAnswer:
    """Note that the agent lives, and what halts it; return what it has to know.

    Raises:
        NotFound: the factory has to register first.
        Conflict: another agent has taken the name over.

    """
    # before any lock: a pull waits for admissions, which take factories
    switch_state = switch.follow_sentinel(connection, name, status.sentinel, now)
    row = connection.execute(
        select(
            factories.c.instance,
            factories.c.state,
            factories.c.status,
            factories.c.pid,
            factories.c.drain,
            factories.c.quarantine,
        )
        .where(factories.c.name == name)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise no_such_factory(name)
    if row.instance != instance:
        raise Conflict(f"factory {name} is run by another agent now (process {row.pid}); this one must stop", name=name)
    returned: bool = row.state == "offline"
    state = standing_state(row.drain, row.quarantine, row.status) if returned else row.state
    told = _told(status)
    if status.absences:
        said = "; ".join(str(absence) for absence in status.absences)
        told["absence"] = {"message": said, "at": now.isoformat()}
        data = {"absences": [absence.model_dump() for absence in status.absences]}
        audit.note(connection, "factory.absent", said, actor="", subject=name, now=now, data=data)
    connection.execute(
        update(factories)
        .where(factories.c.name == name)
        .values(last_beat_at=now, state=state, status=row.status | told)
    )
    return BeatAnswer(
        state=state,
        returned=returned,
        hand_over=_hand_over_is_due(row.drain, now),
        switch=switch_state.concerning(name),
    )


def _told(status: FactoryStatus) -> dict[str, Any]:
    """Return what is kept of a status as it is."""
    return status.model_dump(mode="json", exclude_none=True, exclude={"sentinel", "absences"})


def standing_state(drain: object, quarantine: object, status: Mapping[str, Any] | None = None) -> FactoryState:
    """Return the state of a factory whose agent lives: as operators ordered, else as the agent itself said."""
    if quarantine is not None:
        return "quarantined"
    return "draining" if drain is not None or (status or {}).get("draining") else "online"


def _hand_over_is_due(drain: Mapping[str, Any] | None, now: datetime) -> bool:
    due = DrainOrder.model_validate(drain).hand_over_at if drain is not None else None
    return due is not None and now >= due


def set_state(connection: Connection, name: str, word: Literal["draining", "offline"]) -> None:
    """Note an agent's own word: it takes no further jobs (`draining`), it is gone (`offline`).

    Raises:
        NotFound: there is no such factory.

    """
    row = _locked(connection, name)
    draining = {"draining": True} if word == "draining" else {}
    kept = {key: value for key, value in row.status.items() if key != "draining"}
    state = "offline" if word == "offline" else standing_state(row.drain, row.quarantine, draining)
    connection.execute(update(factories).where(factories.c.name == name).values(state=state, status=kept | draining))


def silence(connection: Connection, name: str) -> None:
    """Give a factory nothing more until its agent, or the next one, is heard of: this one was proven dead."""
    connection.execute(update(factories).where(factories.c.name == name).values(state="offline"))


def drain(connection: Connection, name: str, order: DrainOrder, now: datetime) -> FactoryState:
    """Let a factory take no further jobs, also after a restart, until `undrain`; return its state.

    Another order takes the place of the first.

    Raises:
        NotFound: there is no such factory.

    """
    row = _locked(connection, name)
    state: FactoryState = "draining" if row.state == "online" else row.state
    connection.execute(
        update(factories).where(factories.c.name == name).values(state=state, drain=order.model_dump(mode="json"))
    )
    until = f"; what runs is handed over at {order.hand_over_at:%H:%M:%S} UTC" if order.hand_over_at else ""
    why = f": {order.reason}" if order.reason else ""
    data = order.model_dump(mode="json", exclude={"by"})
    told = f"factory {name}{until}{why}"
    audit.note(connection, "factory.drained", told, actor=order.by, subject=name, now=now, data=data)
    return state


def undrain(connection: Connection, name: str, actor: str, now: datetime) -> FactoryState:
    """Let a drained factory take jobs again, and return its state; dispatch afterwards.

    Raises:
        NotFound: there is no such factory.
        Conflict: no operator has drained it.

    """
    row = _locked(connection, name)
    if row.drain is None:
        raise Conflict(f"no operator has drained factory {name}; it is {row.state}", name=name, state=row.state)
    state: FactoryState = row.state if row.state == "offline" else standing_state(None, row.quarantine, row.status)
    connection.execute(update(factories).where(factories.c.name == name).values(state=state, drain=None))
    audit.note(connection, "factory.undrained", f"factory {name}", actor=actor, subject=name, now=now)
    return state


def _locked(connection: Connection, name: str) -> AnyRow:
    """Return a factory's row, locked.

    Raises:
        NotFound: there is no such factory.

    """
    row = connection.execute(select(factories).where(factories.c.name == name).with_for_update()).one_or_none()
    if row is None:
        raise no_such_factory(name)
    return row


def sweep(connection: Connection, now: datetime, ttl: timedelta) -> tuple[str, ...]:
    """Mark as offline who was not heard of for `ttl`; return their names. Their leases are not touched."""
    rows = connection.execute(
        update(factories)
        .where(factories.c.state != "offline", factories.c.last_beat_at < now - ttl)
        .values(state="offline")
        .returning(factories.c.name)
    )
    return tuple(sorted(row.name for row in rows))


def retire(connection: Connection, name: str, actor: str, now: datetime) -> bool:
    """Take a factory away for good: its tokens, stations and attestations; return False while it holds a lease.

    Whatever ran there stays on record under its name.

    Raises:
        NotFound: there is no such factory, and no token for one.

    """
    row = connection.execute(select(factories.c.busy).where(factories.c.name == name).with_for_update()).one_or_none()
    if row is not None and row.busy:
        return False
    revoked = tokens.revoke_of_factory(connection, name, "its factory was retired", actor, now)
    if row is None and not revoked:
        raise no_such_factory(name)
    switch.forget_factory(connection, name, actor, now)
    attestations.forget(connection, name)
    connection.execute(delete(stations).where(stations.c.factory == name))
    connection.execute(delete(factories).where(factories.c.name == name))
    audit.note(connection, "factory.retired", f"factory {name}", actor=actor, subject=name, now=now)
    return True


def attempts_on(connection: Connection, name: str) -> tuple[tuple[str, int], ...]:
    """Return (job, epoch) of every lease that holds a seat on the factory."""
    held = select(leases.c.job_id, leases.c.epoch).where(leases.c.factory == name, leases.c.holds_seat)
    return tuple((row.job_id, row.epoch) for row in connection.execute(held.order_by(leases.c.job_id)))


class FactoryRules(NamedTuple):
    """What settings say about all factories."""

    sensitive: tuple[str, ...]
    """Capabilities that count only when attested."""
    limits: Limits
    """Below how much free disk and memory a factory takes no job."""


def all_factories(connection: Connection, rules: FactoryRules) -> tuple[FactoryRow, ...]:
    """Return every factory that ever registered, by name."""
    rows = connection.execute(select(factories).order_by(factories.c.name)).all()
    by_factory: dict[str, list[StationRow]] = {}
    for row in connection.execute(select(stations).order_by(stations.c.factory, stations.c.engine)):
        by_factory.setdefault(row.factory, []).append(StationRow.model_validate(row._asdict()))
    attested, activities = attestations.attested_by_factory(connection), Activities(connection, rules.limits)
    return tuple(
        _factory_row(row, by_factory.get(row.name, ()), attested.get(row.name, ()), rules.sensitive, activities)
        for row in rows
    )


def factory(connection: Connection, name: str, rules: FactoryRules) -> FactoryRow:
    """Return one factory.

    Raises:
        NotFound: there is no such factory.

    """
    row = connection.execute(select(factories).where(factories.c.name == name)).one_or_none()
    if row is None:
        raise no_such_factory(name)
    at = connection.execute(select(stations).where(stations.c.factory == name).order_by(stations.c.engine))
    attested = attestations.of_factory(connection, name)
    return _factory_row(
        row,
        [StationRow.model_validate(station._asdict()) for station in at],
        attested,
        rules.sensitive,
        Activities(connection, rules.limits),
    )


def _factory_row(
    row: AnyRow,
    at: Sequence[StationRow],
    attested: tuple[str, ...],
    sensitive: tuple[str, ...],
    activities: Activities,
) -> FactoryRow:
    claims = count_claims(tuple(row.capabilities), tuple(row.declared), attested, sensitive)
    return FactoryRow.model_validate(
        row._asdict()
        | {
            "stations": tuple(at),
            "attested": attested,
            "unattested": claims.unattested,
            "activity": activities.of(row, at),
        }
    )


def no_such_factory(name: str) -> NotFound:
    """Return the error for an unknown factory name."""
    return NotFound(f"there is no factory {name}", hint="`gf factories` lists them", name=name)
