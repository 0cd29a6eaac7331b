"""Whose turn it is: what fair shares remember, shared by all who dispatch. Does I/O: SQL.

A row is what a product has had at one priority, or the level that got a seat of a factory by fair shares. A pass writes
the few rows that its grants change, in the transaction that grants; every row has a number of its own, which grows, so
that a process learns what others did by asking for what is newer. A plan counts only if nobody granted anything since
its snapshot was read: so all passes of all processes follow each other as if one process made them, and what is proven
of one plan after the other holds for the fleet.

How often a factory was passed over stands in its own row. Each process counts by itself and adds to it only now and
then, since one grant may pass a thousand idle factories over; a factory's next job sets it to 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count

from sqlalchemy import Connection, bindparam, func, select, update

from core.job import Priority
from core.router import Plan, Turns
from store import audit
from store.database import AnyRow, upsert
from store.tables import factories, turns

PASSED_OVER_PARTS = 10
"""A process adds to a factory's count when its own has grown by this part of `factory_bound`."""


class TurnBook:
    """What one process knows of the turns."""

    def __init__(self) -> None:
        self._known = Turns()
        self._uncounted: Mapping[str, int] = {}
        """How often each factory was passed over by plans of this process, and is not yet told in the ledger."""

    def read(self, connection: Connection, passed_over: Mapping[str, int]) -> Turns:
        """Return the present turns; `passed_over` are the counts of the ledger, by factory."""
        known = self._known
        rows = connection.execute(select(turns).where(turns.c.number > known.number).order_by(turns.c.number)).all()
        if rows:
            known = self._known = _with(known, rows)
        uncounted = self._uncounted
        counts = {name: times + uncounted.get(name, 0) for name, times in passed_over.items()}
        return known.model_copy(update={"passed_over": {name: times for name, times in counts.items() if times}})

    def passed(self, plan: Plan, admitted: Collection[str]) -> None:
        """Count the factories that were passed over by the grants that came true."""
        before, after = plan.snapshot.turns.passed_over, plan.turns_after(admitted).passed_over
        served = {grant.factory for grant in plan.grants if grant.job_id in admitted}
        grown = {name: self._uncounted.get(name, 0) + times - before.get(name, 0) for name, times in after.items()}
        self._uncounted = {name: times for name, times in grown.items() if times and name not in served}

    def take_grown(self, factory_bound: int) -> dict[str, int]:
        """Return the counts that have grown enough to be told in the ledger, and forget them here."""
        least = max(1, factory_bound // PASSED_OVER_PARTS)
        grown = {name: times for name, times in self._uncounted.items() if times >= least}
        self._uncounted = {name: times for name, times in self._uncounted.items() if name not in grown}
        return grown


def _with(known: Turns, rows: Sequence[AnyRow]) -> Turns:
    """Return the turns with newer rows, in the order of their numbers."""
    levels = {priority: dict(products) for priority, products in known.levels.items()}
    latest = {priority: dict(reversed(places)) for priority, places in known.latest.items()}
    for row in rows:
        priority = Priority(row.priority)
        if row.kind == "product":
            levels.setdefault(priority, {})[row.name] = row.level
        else:
            places = latest.setdefault(priority, {})
            places.pop(row.name, None)
            places[row.name] = row.level
    return Turns(
        levels=levels,
        latest={priority: tuple(reversed(places.items())) for priority, places in latest.items()},
        number=rows[-1].number,
    )


def are_current(connection: Connection, plan: Plan) -> bool:
    """Return whether nobody has granted anything since the plan's snapshot was read; ask within admission only."""
    newest = connection.execute(select(func.max(turns.c.number))).scalar_one()
    return (newest or 0) == plan.snapshot.turns.number


def keep(connection: Connection, plan: Plan, admitted: Collection[str]) -> None:
    """Write what the grants that came true change."""
    before, after = plan.snapshot.turns, plan.turns_after(admitted)
    priorities = {job.job_id: job.priority for job in plan.snapshot.jobs if job.job_id in admitted}
    fair = {(priorities[g.job_id], g.factory) for g in plan.grants if g.fair and g.job_id in admitted}
    changed = [
        ("product", priority, product, level)
        for priority, levels in after.levels.items()
        for product, level in levels.items()
        if before.levels.get(priority, {}).get(product) != level
    ]
    changed += [
        ("factory", priority, factory, level)
        for priority, places in after.latest.items()
        for factory, level in reversed(places)
        if (priority, factory) in fair
    ]
    numbers = count(before.number + 1)
    rows = [
        {
            "kind": kind,
            "priority": str(priority),
            "name": name,
            "product_id": name if kind == "product" else audit.WHOLE_FLEET,
            "level": level,
            "number": next(numbers),
        }
        for kind, priority, name, level in changed
    ]
    if rows:
        upsert(connection, turns, rows)


def tell_passed_over(connection: Connection, counts: Mapping[str, int]) -> None:
    """Add to the counts of factories, those passed over by this process."""
    connection.execute(
        update(factories)
        .where(factories.c.name == bindparam("factory"))
        .values(passed_over=factories.c.passed_over + bindparam("times")),
        [{"factory": name, "times": times} for name, times in sorted(counts.items())],
    )
