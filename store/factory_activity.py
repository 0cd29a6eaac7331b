"""What each factory is doing, and what keeps it from taking more: read from leases, orders and halts. Does I/O: SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from sqlalchemy import Connection, and_, func, select

from core.factory_state import FactoryActivity, FactoryFacts, doing
from core.router_policy import Limits
from core.switch import Halt
from store import switch
from store.database import AnyRow
from store.tables import leases, runs
from store.views import DrainOrder, Quarantine, StationRow


class Activities:
    """What the factories do, as one transaction sees it."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        """`limits` say below how much free disk and memory a factory takes no job."""
        self._limits = limits
        self._halts = switch.in_force(connection)
        counted = (
            select(leases.c.factory, func.count().label("held"), func.count(runs.c.started_at).label("started"))
            .join(runs, and_(runs.c.job_id == leases.c.job_id, runs.c.epoch == leases.c.epoch))
            .where(leases.c.holds_seat)
            .group_by(leases.c.factory)
        )
        self._seats = {row.factory: (row.held, row.started) for row in connection.execute(counted)}

    def of(self, row: AnyRow, stations: Sequence[StationRow]) -> FactoryActivity:
        """Return what the factory of a row does."""
        held, started = self._seats.get(row.name, (0, 0))
        obstacles = tuple(_obstacles(row, stations, self._halts, self._limits))
        return doing(
            FactoryFacts(online=row.state != "offline", granted=held - started, started=started, obstacles=obstacles)
        )


def _obstacles(row: AnyRow, stations: Sequence[StationRow], halts: Sequence[Halt], limits: Limits) -> list[str]:
    """Return everything that keeps a factory from taking any further job."""
    found = [str(halt) for halt in halts if halt.scope == "fleet" or (halt.scope, halt.name) == ("factory", row.name)]
    if row.quarantine is not None:
        found.append(f"quarantined: {Quarantine.model_validate(row.quarantine).evidence}")
    if row.drain is not None:
        found.append(_drained(DrainOrder.model_validate(row.drain)))
    elif row.state == "draining":
        found.append("its agent is leaving")
    found += _shortages(row.status, limits)
    if not row.seats:
        found.append("it has no seats")
    elif not any(station.usable and station.seats for station in stations):
        found.append("no engine works")
    return found


def _drained(order: DrainOrder) -> str:
    by = f" by {order.by}" if order.by else ""
    return f"drained{by}: {order.reason}" if order.reason else f"drained{by}"


def _shortages(status: Mapping[str, object], limits: Limits) -> list[str]:
    floors = {"disk": limits.disk_floor_gb, "memory": limits.memory_floor_gb}
    return [
        f"{free} GB of {kind} free, below the floor of {floor} GB"
        for kind, floor in floors.items()
        if (free := status.get(f"free_{kind}_gb")) is not None and Decimal(str(free)) < floor
    ]
