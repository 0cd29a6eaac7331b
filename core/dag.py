"""What waits for what: when a wait is over, in which order jobs of one request are taken in, and cycles. *Pure.*

An edge says that one job waits for another: at its start (a dependency of its manifest: the other is a *parent*) or at
its ship gate (it was decomposed: the other is a *child job*). An edge is `open`, `done`, `failed` (the other job ended
without what is waited for) or `dropped` (an operator decided not to wait any more).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Literal

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


def parents_first(graph: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the jobs of `graph` (job → jobs that it waits for) so that each comes after all that it waits for.

    Raises:
        Cycle: there is no such order; it names jobs so that each waits for the one behind it.

    """
    try:
        return tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise Cycle(tuple(reversed(error.args[1]))) from None
