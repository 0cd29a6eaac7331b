"""Limits of work in progress: how many jobs of a product, or on an engine, may run at once. Does I/O: SQL.

An operator's limit is a row here and goes before the one in the settings. The router plans by both; admission counts
again, so that several planners together never exceed a limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select

from core.errors import NotFound
from core.router_policy import RoutingPolicy
from core.router_snapshot import FleetSnapshot
from store import audit
from store.database import serialise
from store.tables import leases, limits
from store.views import LimitKind, LimitRow

Limits = Mapping[tuple[LimitKind, str], int]
"""Jobs at once, by kind and name."""

_COLUMN = {"product": leases.c.product_id, "engine": leases.c.engine}


def set_limit(connection: Connection, kind: LimitKind, name: str, jobs: int, *, actor: str, now: datetime) -> None:
    """Let at most `jobs` (1 or more) run at once; what runs beyond that already goes on. Then dispatch."""
    serialise(connection, "admission")
    connection.execute(delete(limits).where(_this(kind, name)))
    product_id = _product_of(kind, name)
    row = {"kind": kind, "name": name, "product_id": product_id, "jobs": jobs, "set_by": actor, "set_at": now}
    connection.execute(insert(limits), row)
    told = f"at most {jobs} jobs of {kind} {name} at once"
    data = {"kind": kind, "name": name, "jobs": jobs}
    audit.note(
        connection, "limit.set", told, actor=actor, subject=f"{kind} {name}", now=now, data=data, product_id=product_id
    )


def unset_limit(connection: Connection, kind: LimitKind, name: str, actor: str, now: datetime) -> None:
    """Forget an operator's limit, so that the settings decide again; dispatch afterwards.

    Raises:
        NotFound: no operator set one there.

    """
    if connection.execute(delete(limits).where(_this(kind, name))).rowcount == 0:
        raise NotFound(
            f"no operator has limited {kind} {name}",
            hint="`gf limits` shows all; one that comes from the settings is changed there",
        )
    told = f"{kind} {name} has no limit of an operator any more"
    audit.note(
        connection,
        "limit.unset",
        told,
        actor=actor,
        subject=f"{kind} {name}",
        now=now,
        product_id=_product_of(kind, name),
    )


def _this(kind: LimitKind, name: str) -> ColumnElement[bool]:
    return and_(limits.c.kind == kind, limits.c.name == name)


def _product_of(kind: LimitKind, name: str) -> str:
    return name if kind == "product" else audit.WHOLE_FLEET


# --- asked --------------------------------------------------------------------------------------------------------


def of_settings(policy: RoutingPolicy) -> Limits:
    """Return the limits that the settings name."""
    engines: Limits = {("engine", name): jobs for name, jobs in policy.limits.engines.items()}
    products: Limits = {("product", name): product.limit for name, product in policy.products.items() if product.limit}
    return {**engines, **products}


def planned(snapshot: FleetSnapshot) -> Limits:
    """Return the limits that a plan from `snapshot` was made with."""
    engines: Limits = {("engine", name): jobs for name, jobs in snapshot.limits.engines.items()}
    products: Limits = {("product", view.product_id): view.limit for view in snapshot.products if view.limit}
    return {**engines, **products}


def in_force(connection: Connection, default: Limits) -> Limits:
    """Return every limit: the defaults, with an operator's in their place."""
    rows = connection.execute(select(limits.c.kind, limits.c.name, limits.c.jobs))
    return {**default, **{(row.kind, row.name): row.jobs for row in rows}}


def rows(connection: Connection, default: Limits) -> tuple[LimitRow, ...]:
    """Return every limit with who set it and how many jobs run, by kind and name."""
    known = {(row.kind, row.name): row for row in connection.execute(select(limits))}
    running = _running(connection)
    found = []
    for key, jobs in sorted(in_force(connection, default).items()):
        row = known.get(key)
        by = {"set_by": row.set_by, "set_at": row.set_at} if row is not None else {}
        found.append(LimitRow(kind=key[0], name=key[1], jobs=jobs, running=running[key], **by))
    return tuple(found)


def _running(connection: Connection) -> Counter[tuple[LimitKind, str]]:
    """Return how many jobs hold a seat, by product and by engine."""
    held = connection.execute(
        select(leases.c.product_id, leases.c.engine, func.count().label("jobs"))
        .where(leases.c.holds_seat)
        .group_by(leases.c.product_id, leases.c.engine)
    )
    found: Counter[tuple[LimitKind, str]] = Counter()
    for row in held:
        found["product", row.product_id] += row.jobs
        found["engine", row.engine] += row.jobs
    return found


class Room:
    """How many more jobs admission may grant under each limit, as its own transaction sees it."""

    def __init__(self, connection: Connection, planned: Limits) -> None:
        """`planned` are the limits that the plan was made with; what an operator set since then goes before them."""
        limited = in_force(connection, planned)
        running = _running(connection) if limited else Counter()
        self._left = {key: jobs - running[key] for key, jobs in limited.items()}

    def has(self, product_id: str, engine: str) -> bool:
        """Return whether one more job of that product with that engine stays within its limits."""
        return all(self._left.get(key, 1) > 0 for key in _keys(product_id, engine))

    def take(self, product_id: str, engine: str) -> None:
        """Count one more job."""
        for key in _keys(product_id, engine):
            if key in self._left:
                self._left[key] -= 1


def _keys(product_id: str, engine: str) -> tuple[tuple[LimitKind, str], tuple[LimitKind, str]]:
    return ("product", product_id), ("engine", engine)
