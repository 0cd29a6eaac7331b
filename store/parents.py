"""What jobs wait for: other jobs, at their start and at their ship gate, and whether that is over. Does I/O: SQL.

`jobs.held` is `WAITING` for a queued job that waits for its parents and has no workflow yet: it is a row, and costs
nothing. `store.edges` starts it when its parents are done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, Select, bindparam, case, exists, func, select

from core.dag import EdgeState, Gate, Until, outcome_of
from core.job import Stage
from store.database import AnyRow, batches
from store.tables import edges, jobs
from store.views import DependencyView, WaitState

WAITING: Final = "parents"
"""Value of `jobs.held`."""
MAX_NAMED: Final = 20
"""Jobs that a message names."""
MAX_SHOWN: Final = 100
"""Jobs that a document lists."""

_UNDONE: Final = ("failed", "open")


def _undone_edges() -> Select[tuple[object, ...]]:
    """Select the first edges of `children` at `gate` that are not done, each with how many there are of its kind."""
    kind = (edges.c.child_id, edges.c.state)
    ranked = (
        select(
            edges.c.child_id,
            edges.c.parent_id,
            edges.c.until,
            edges.c.state,
            func.row_number().over(partition_by=kind, order_by=edges.c.parent_id).label("rank"),
            func.count().over(partition_by=kind).label("total"),
        )
        .where(
            edges.c.child_id.in_(bindparam("children", expanding=True)),
            edges.c.gate == bindparam("gate"),
            edges.c.state.in_(_UNDONE),
        )
        .subquery()
    )
    return (
        select(ranked, jobs.c.stage)
        .join(jobs, jobs.c.id == ranked.c.parent_id)
        .where(ranked.c.rank <= MAX_NAMED)
        .order_by(ranked.c.child_id, ranked.c.parent_id)
    )


_UNDONE_EDGES: Final = _undone_edges()
"""Made once: putting it together takes longer than running it."""


class Awaited(NamedTuple):
    """A job that another one waits for, and what became of that."""

    job_id: str
    stage: Stage
    until: Until
    state: EdgeState


class Waits(NamedTuple):
    """The jobs that one job waits for, those that hold it back first, and how many there are in all."""

    deps: tuple[DependencyView, ...] = ()
    deps_total: int = 0
    children: tuple[DependencyView, ...] = ()
    children_total: int = 0


def has_parents(connection: Connection, job_id: str) -> bool:
    """Return whether the job waits, or waited, for any other to start."""
    named = exists().where(edges.c.child_id == job_id, edges.c.gate == "start")
    return bool(connection.execute(select(named)).scalar_one())


def wait_state(connection: Connection, job_id: str, gate: Gate = "start") -> WaitState:
    """Return whether what the job waits for at `gate` is over."""
    return wait_states(connection, [job_id], gate)[job_id]


def wait_states(connection: Connection, job_ids: Sequence[str], gate: Gate) -> dict[str, WaitState]:
    """Return for each job whether what it waits for at `gate` is over; its edges say so, not the jobs behind them."""
    found: dict[str, list[AnyRow]] = {job_id: [] for job_id in job_ids}
    for some in batches(job_ids):
        for row in connection.execute(_UNDONE_EDGES, {"children": some, "gate": gate}):
            found[row.child_id].append(row)
    return {job_id: _wait_state_of_rows(rows, gate) for job_id, rows in found.items()}


def wait_state_of(awaited: Sequence[Awaited], gate: Gate) -> WaitState:
    """Return whether a wait for these jobs is over, as `wait_state` would say it of their edges."""
    ordered = sorted(awaited)
    totals = Counter(one.state for one in ordered)
    return _wait_state([one for one in ordered if one.state in _UNDONE], totals, gate)


def _wait_state_of_rows(rows: Sequence[AnyRow], gate: Gate) -> WaitState:
    undone = [Awaited(row.parent_id, row.stage, row.until, row.state) for row in rows]
    return _wait_state(undone, {row.state: row.total for row in rows}, gate)


def _wait_state(undone: Sequence[Awaited], totals: Mapping[EdgeState, int], gate: Gate) -> WaitState:
    """Return the answer for the first jobs that are not done, `totals` being how many there are of each state."""
    failed = [one for one in undone if one.state == "failed"][:MAX_NAMED]
    open_ = [one for one in undone if one.state == "open"][:MAX_NAMED]
    outcome = outcome_of(any_open=bool(open_), any_failed=bool(failed))
    if outcome == "failed":
        told = _named([f"{one.job_id} ({one.stage})" for one in failed], totals["failed"])
        whom = "parents ended without what it waits for" if gate == "start" else "child jobs ended without shipping"
        message = f"{whom}: {told}"
    elif outcome == "waiting":
        told = _named([f"{one.job_id} ({one.stage}{_until(one, gate)})" for one in open_], totals["open"])
        message = f"waits for its parents: {told}" if gate == "start" else f"waits for its child jobs: {told}"
    else:
        message = "all parents are done" if gate == "start" else "all child jobs are done"
    return WaitState(
        outcome=outcome,
        message=message,
        waiting=tuple(one.job_id for one in open_),
        failed=tuple(one.job_id for one in failed),
    )


def _until(one: Awaited, gate: Gate) -> str:
    return f", until {one.until}" if gate == "start" else ""


def _named(names: Sequence[str], total: int) -> str:
    more = f" and {total - len(names)} more" if total > len(names) else ""
    return ", ".join(names) + more


# --- for documents ------------------------------------------------------------------------------------------------


def waits_of(connection: Connection, job_ids: Sequence[str]) -> dict[str, Waits]:
    """Return what each of the jobs that waits, or waited, for any other waits for; `MAX_SHOWN` at each gate."""
    hold_back_first = case({"failed": 0, "open": 1, "done": 2}, value=edges.c.state, else_=3)
    gates = (edges.c.child_id, edges.c.gate)
    ranked = (
        select(
            *(edges.c.child_id, edges.c.parent_id, edges.c.until, edges.c.gate, edges.c.state),
            func.row_number().over(partition_by=gates, order_by=(hold_back_first, edges.c.parent_id)).label("rank"),
            func.count().over(partition_by=gates).label("total"),
        )
        .where(edges.c.child_id.in_(job_ids))
        .subquery()
    )
    rows = connection.execute(
        select(ranked, jobs.c.stage)
        .join(jobs, jobs.c.id == ranked.c.parent_id)
        .where(ranked.c.rank <= MAX_SHOWN)
        .order_by(ranked.c.child_id, ranked.c.rank)
    )
    found: dict[str, list[AnyRow]] = {}
    for row in rows:
        found.setdefault(row.child_id, []).append(row)
    return {job_id: _waits(rows_of_job) for job_id, rows_of_job in found.items()}


def _waits(rows: Iterable[AnyRow]) -> Waits:
    by_gate: dict[str, list[AnyRow]] = {"start": [], "ship": []}
    for row in rows:
        by_gate[row.gate].append(row)
    parents, children = by_gate["start"], by_gate["ship"]
    return Waits(_views(parents), _total(parents), _views(children), _total(children))


def _views(rows: Iterable[AnyRow]) -> tuple[DependencyView, ...]:
    return tuple(
        DependencyView(job_id=row.parent_id, until=row.until, stage=row.stage, state=row.state) for row in rows
    )


def _total(rows: Sequence[AnyRow]) -> int:
    return int(rows[0].total) if rows else 0


def dependants(connection: Connection, job_id: str) -> tuple[str, ...]:
    """Return the ids of the jobs that name `job_id` among their parents."""
    rows = connection.execute(
        select(edges.c.child_id).where(edges.c.parent_id == job_id, edges.c.gate == "start").order_by(edges.c.child_id)
    )
    return tuple(row.child_id for row in rows)
