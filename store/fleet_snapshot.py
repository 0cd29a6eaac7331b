"""What the router plans from, read out of the ledger. Does I/O: SQL.

The unchanging part of a job is parsed once for each process: a pass over thousands of waiting jobs reads a few columns
of each and builds nothing anew that did not change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
)

from core.job import Cooldown, Priority
from core.router import (
    FactoryView,
    FleetSnapshot,
    LockView,
    ProductPolicy,
    ProductView,
    ReadyJob,
    RoutingPolicy,
    RunningJob,
    StationView,
)
from core.switch import without_halted
from core.trust import Claims, count_claims
from store import limits, switch
from store.attestations import attested_by_factory
from store.column_types import Unread, UtcDateTime, as_utc
from store.cooldowns import in_force, may_be_asked
from store.database import AnyRow, batches
from store.stops import PAUSABLE
from store.tables import factories, jobs, leases, locks, stations
from store.turns import TurnBook

FORGET_BEYOND = 1_000
"""Parsed jobs that may be kept although they wait no more, beside as many as do wait."""

_READY = and_(jobs.c.stage == literal_column("'queued'"), jobs.c.held.is_(None))  # as `ix_jobs_ready` says it
_CHANGING = (
    jobs.c.id,
    type_coerce(jobs.c.queued_at, Unread).label("queued_at"),
    type_coerce(jobs.c.excluded_factories, Unread).label("excluded_factories"),
    jobs.c.overtaken,
    jobs.c.last_factory,
)
"""What may change about a waiting job; times and documents stay as the driver gives them until they did change."""
_FREE_SEAT = exists().where(
    stations.c.usable,
    stations.c.busy < stations.c.seats,
    may_be_asked(bindparam("now", type_=UtcDateTime)),
    factories.c.name == stations.c.factory,
    factories.c.state == "online",
    factories.c.busy < factories.c.seats,
)
_GRANTABLE = and_(exists().where(_READY), _FREE_SEAT)
_URGENT = exists().where(_READY, jobs.c.priority == Priority.CRITICAL)
_STATIONS = select(stations).order_by(stations.c.factory, stations.c.engine)
_FACTORIES = select(
    factories.c.name,
    factories.c.host,
    factories.c.state,
    factories.c.capabilities,
    factories.c.declared,
    factories.c.seats,
    factories.c.busy,
    factories.c.status,
    factories.c.details,
    factories.c.passed_over,
).order_by(factories.c.name)
"""All that a view says, and nothing that changes with each beat; the last column belongs to no view."""


class FleetReader:
    """Reads snapshots; keeps parsed jobs from one to the next."""

    def __init__(self, sensitive: tuple[str, ...], policy: RoutingPolicy) -> None:
        """`sensitive` capabilities count only where they were attested; `policy` is that of the settings."""
        self.turns = TurnBook()
        self._sensitive = sensitive
        self._policy = policy
        self._parsed: dict[str, tuple[tuple[Any, ...], ReadyJob]] = {}
        self._views: dict[str, tuple[tuple[Any, ...], FactoryView]] = {}

    def read(
        self, connection: Connection, now: datetime, *, only_if_grantable: bool = False, including: str | None = None
    ) -> FleetSnapshot | None:
        """Return the present snapshot.

        With `only_if_grantable` None when no job is ready or no seat is free, nor may one be made free for a critical
        job; that answer costs one small query.
        `including` adds a queued job that is held back, as if it were ready.
        """
        if only_if_grantable and not self._anything_to_do(connection, now):
            return None
        limited = limits.in_force(connection, limits.of_settings(self._policy))
        engines = {name: jobs for (kind, name), jobs in limited.items() if kind == "engine"}
        views, passed_over = self._factories(connection, now)
        snapshot = FleetSnapshot(
            jobs=self._jobs(connection, including),
            factories=views,
            locks=read_locks(connection),
            running=_running(connection) if self._policy.limits.preemption else (),
            products=_products(connection, self._policy, limited),
            weights=self._policy.weights,
            limits=self._policy.limits.model_copy(update={"engines": engines}),
            turns=self.turns.read(connection, passed_over),
            now=now,
            seed=int(now.timestamp()),
        )
        return without_halted(snapshot, switch.in_force(connection))

    def _anything_to_do(self, connection: Connection, now: datetime) -> bool:
        wanted = or_(_GRANTABLE, _URGENT) if self._policy.limits.preemption else _GRANTABLE
        return bool(connection.execute(select(wanted), {"now": now}).scalar_one())

    def _jobs(self, connection: Connection, including: str | None) -> tuple[ReadyJob, ...]:
        wanted: ColumnElement[bool] = _READY
        if including is not None:
            wanted = _READY | and_(jobs.c.id == including, jobs.c.stage == "queued")
        rows = connection.execute(select(*_CHANGING).where(wanted)).all()
        parsed = self._parsed
        _learn(connection, parsed, [row[0] for row in rows if row[0] not in parsed])
        found: list[ReadyJob] = []
        for row in rows:
            known, job = parsed[row[0]]
            if known != row[1:]:
                job = _changed(job, row)
                parsed[row[0]] = row[1:], job
            found.append(job)
        if len(parsed) > 2 * len(rows) + FORGET_BEYOND:
            self._parsed = {row[0]: parsed[row[0]] for row in rows}  # not in place: other threads read as well
        return tuple(found)

    def _factories(self, connection: Connection, now: datetime) -> tuple[tuple[FactoryView, ...], dict[str, int]]:
        """Return the factories, and how often each was passed over.

        One of which nothing changed is the same object as before, which spares the plan.
        """
        by_factory: dict[str, list[tuple[AnyRow, Cooldown | None]]] = {}
        for station in connection.execute(_STATIONS):
            by_factory.setdefault(station.factory, []).append((station, in_force(station, now)))
        attested = attested_by_factory(connection)
        rows = connection.execute(_FACTORIES).all()
        known, views = self._views, dict[str, tuple[tuple[Any, ...], FactoryView]]()
        for row in rows:
            at, proven = by_factory.get(row.name, []), attested.get(row.name, ())
            content = (row[:-1], at, proven)
            before = known.get(row.name)
            unchanged = before if before is not None and before[0] == content else None
            views[row.name] = unchanged or (content, self._factory(row, at, proven))
        self._views = views  # at once: reads of several threads overtake each other
        return tuple(view for _, view in views.values()), {row.name: row.passed_over for row in rows}

    def _factory(
        self, row: AnyRow, at: Sequence[tuple[AnyRow, Cooldown | None]], attested: tuple[str, ...]
    ) -> FactoryView:
        claims = count_claims(tuple(row.capabilities), tuple(row.declared), attested, self._sensitive)
        return _factory(row, tuple(_station(*one) for one in at), claims)


def _learn(connection: Connection, parsed: dict[str, tuple[tuple[Any, ...], ReadyJob]], job_ids: Sequence[str]) -> None:
    """Parse what never changes about jobs that were not known yet."""
    for some in batches(job_ids):
        for row in connection.execute(select(jobs.c.id, jobs.c.routing).where(jobs.c.id.in_(some))):
            parsed[row.id] = (), ReadyJob.model_validate_json(row.routing)


def _changed(job: ReadyJob, row: AnyRow) -> ReadyJob:
    return job.model_copy(
        update={
            "queued_at": as_utc(row.queued_at),
            "excluded_factories": tuple(json.loads(row.excluded_factories)),
            "overtaken": row.overtaken,
            "last_factory": row.last_factory,
        }
    )


def _running(connection: Connection) -> tuple[RunningJob, ...]:
    """Return the jobs that may be asked to make way, and those that were."""
    rows = connection.execute(
        select(leases, jobs.c.priority, jobs.c.preempted)
        .join(jobs, jobs.c.id == leases.c.job_id)
        .where(or_(and_(PAUSABLE, jobs.c.stage == "building"), and_(leases.c.holds_seat, leases.c.yields_to != "")))
    )
    return tuple(RunningJob.model_validate(row._asdict()) for row in rows)


def read_locks(connection: Connection) -> tuple[LockView, ...]:
    """Return everything that jobs in flight hold."""
    rows = connection.execute(
        select(locks.c.kind, locks.c.name, locks.c.job_id, locks.c.scope).order_by(locks.c.name, locks.c.job_id)
    )
    return tuple(_lock(row) for row in rows)


def _lock(row: AnyRow) -> LockView:
    if row.kind == "lock":
        return LockView(job_id=row.job_id, lock=row.name)
    return LockView(job_id=row.job_id, repository_url=row.name, allowed_scope=tuple(row.scope))


def _products(connection: Connection, policy: RoutingPolicy, limited: limits.Limits) -> tuple[ProductView, ...]:
    """Return every product that runs something, or that settings or an operator say something about."""
    rows = connection.execute(
        select(leases.c.product_id, func.count().label("running"))
        .where(leases.c.holds_seat)
        .group_by(leases.c.product_id)
        .order_by(leases.c.product_id)
    )
    running = {row.product_id: row.running for row in rows}
    names = {*running, *policy.products, *(name for kind, name in limited if kind == "product")}
    return tuple(_product(name, running.get(name, 0), policy, limited) for name in sorted(names))


def _product(name: str, running: int, policy: RoutingPolicy, limited: limits.Limits) -> ProductView:
    own = policy.products.get(name, ProductPolicy())
    limit = limited.get(("product", name))
    weights = own.weights.model_dump(exclude_unset=True) if own.weights else {}
    return ProductView(product_id=name, running=running, share=own.share, limit=limit, weights=weights)


def _station(row: AnyRow, cooldown: Cooldown | None) -> StationView:
    return StationView(
        engine=row.engine,
        seats=row.seats,
        busy=row.busy,
        usable=row.usable,
        version=row.version,
        repair=row.repair,
        cooldown=cooldown,
    )


def _factory(row: AnyRow, at: Sequence[StationView], claims: Claims) -> FactoryView:
    status = {name: value for name, value in row.status.items() if value is not None}
    return FactoryView(
        name=row.name,
        host=row.host,
        state=row.state,
        capabilities=claims.counted,
        unattested=claims.unattested,
        stations=tuple(at),
        seats=row.seats,
        busy=row.busy,
        cost_class=row.details.get("cost_class", 0),
        **status,
    )
