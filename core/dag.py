"""What waits for what: when a wait is over, and jobs that would wait for each other for ever. *Pure.*

An edge says that one job waits for another: at its start (a dependency of its manifest: the other is a *parent*) or at
its ship gate (it was decomposed: the other is a *child job*). An edge is `open`, `done`, `failed` (the other job ended
without what is waited for) or `dropped` (an operator decided not to wait any more).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Literal, NamedTuple

from core.job import Message, Stage

Gate = Literal["start", "ship"]
Until = Literal["shipped", "testing"]
EdgeState = Literal["open", "done", "failed", "dropped"]
Outcome = Literal["ready", "waiting", "failed"]

_FAILED = (Stage.FAILED, Stage.DEAD_LETTER, Stage.CANCELLED)


class Wait(Message):
    """What all the jobs that a job waits for at one gate are at, as one answer with its reason."""

    outcome: Outcome
    message: str = ""


class WaitsFor(NamedTuple):
    """An edge: a gate of one job opens when another one has come to a stage."""

    job_id: str
    waits_for: str
    until: Until = "shipped"
    gate: Gate = "start"


class Cycle(Exception):
    """Jobs wait for each other; `jobs` is the way round, its first job again at its end."""

    def __init__(self, jobs: Sequence[str]) -> None:
        super().__init__(" → ".join(jobs))
        self.jobs = tuple(jobs)


def edge_state(stage: Stage, until: Until) -> EdgeState | None:
    """Return what becomes of an edge to a job that has come to `stage`; None: it stays as it is.

    `review` leaves it alone: a candidate whose verify passed goes back there when it cannot land.
    """
    if stage == Stage.SHIPPED or (until == "testing" and stage == Stage.TESTING):
        return "done"
    if stage in _FAILED:
        return "failed"
    return None if stage == Stage.REVIEW else "open"


def outcome_of(*, any_open: bool, any_failed: bool) -> Outcome:
    """Return what edges together come to; a failed one is told before one that is only not done yet."""
    if any_failed:
        return "failed"
    return "waiting" if any_open else "ready"


def refuse_cycle(waits: Iterable[WaitsFor]) -> None:
    """Find jobs that would wait for each other for ever.

    What is ordered is not jobs but what becomes of them: a child job may wait until the job that it is a part of is in
    `testing`, because only the ship of that one waits for the child.

    Raises:
        Cycle: it names jobs so that each waits for the one behind it.

    """
    order: TopologicalSorter[tuple[str, Until]] = TopologicalSorter()
    for one in waits:
        order.add((one.job_id, "testing" if one.gate == "start" else "shipped"), (one.waits_for, one.until))
        order.add((one.job_id, "shipped"), (one.job_id, "testing"))
        order.add((one.waits_for, "shipped"), (one.waits_for, "testing"))
    try:
        order.prepare()
    except CycleError as error:
        way: list[tuple[str, Until]] = list(reversed(error.args[1]))
        waits_of_jobs = [after for before, after in pairwise(way) if (before, after) != _own_step(before[0])]
        raise Cycle([way[0][0], *(job_id for job_id, _ in waits_of_jobs)]) from None


def _own_step(job_id: str) -> tuple[tuple[str, Until], tuple[str, Until]]:
    """Return what every job waits for within itself: it ships after it was tested."""
    return (job_id, "shipped"), (job_id, "testing")
