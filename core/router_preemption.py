"""Which low jobs are paused so that critical ones can start. *Pure.*

Only a critical job that no free seat can take may have a low one paused, where it will score best; one whose product
has reached its limit, only a job of that product. The next plan then grants a critical job. Each factory gives up one
job in a plan, and where engines are limited over the fleet, one is paused in all. `docs/explanation/router.md` proves
that this ends, and that nobody is the victim for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from core.job import Priority
from core.router_pass import Pass
from core.router_queue import RANK
from core.router_snapshot import FleetSnapshot, ReadyJob, RunningJob
from core.router_table import Order

_CRITICAL = RANK[Priority.CRITICAL]


class Preemption(NamedTuple):
    """One running job to be paused, and the waiting one that it is paused for.

    Should another critical job be first at the seat, because it goes before that one by fair shares, so be it.
    """

    job_id: str
    victim: str
    factory: str
    """Where the waiting job would run."""
    engine: str


def preemptions(walk: Pass) -> tuple[Preemption, ...]:
    """Return what to pause after the grants of a plan; empty unless the limits allow it."""
    limits = walk.snapshot.limits
    if not limits.preemption or _CRITICAL not in walk.queue.ranks:
        return ()
    return tuple(_Search(walk).run())


class _Search:
    """Looks for a victim for each critical job that waits, in the order of the line."""

    def __init__(self, walk: Pass) -> None:
        self._walk = walk
        self._victims = _victims(walk)
        self._promised = {job.yields_to for job in walk.snapshot.running}
        self._claims = walk.claims_after(walk.granted)
        self._reserved = Counter[str]()
        """Jobs that each product will have more than now."""

    def run(self) -> Iterator[Preemption]:
        """Yield what to pause."""
        for job in self._walk.line():
            if job.priority != Priority.CRITICAL or not self._victims:
                return
            if job.job_id in self._promised or self._claims.blocks(job):
                continue
            best = min(self._places(job), default=None, key=lambda option: (option[0], _reluctance(option[1])))
            if best is not None:
                order, victim = best
                yield Preemption(job.job_id, victim.job_id, *order[-2:])
                self._promise(job, victim)
                if self._walk.snapshot.limits.engines:
                    return

    def _places(self, job: ReadyJob) -> Iterator[tuple[Order, RunningJob]]:
        """Yield the places that the job would find if one victim were paused, with the best victim for each."""
        walk, fleet = self._walk, self._walk.fleet
        scores, full = walk.table(job).scores, self._is_full(job, 0)
        if full and self._is_full(job, 1):
            return
        for factory, candidates in self._victims.items():
            able = [victim for victim in candidates if not full or victim.product_id == job.product_id]
            for victim in {victim.engine: victim for victim in reversed(able)}.values():
                closed = fleet.closed_without(victim.engine)
                answers = walk.answers(job.job_class.needs, closed)
                changed = {factory: fleet.freed(fleet.standings[factory], victim.engine)}
                everywhere = full or closed != fleet.closed
                for standing in (fleet.standings | changed if everywhere else changed).values():
                    for engine in answers.of(standing).open_engines:
                        yield scores.order(standing, engine), victim

    def _is_full(self, job: ReadyJob, fewer: int) -> bool:
        """Return whether the product's limit is in the way of the job, with so many jobs of the product fewer."""
        return bool(self._walk.shares.limit_reached(job.product_id, self._reserved[job.product_id] - fewer))

    def _promise(self, job: ReadyJob, victim: RunningJob) -> None:
        self._claims.take(job)
        self._reserved[job.product_id] += 1
        self._reserved[victim.product_id] -= 1
        del self._victims[victim.factory]


def potential(snapshot: FleetSnapshot) -> int:
    """Return a number that every grant makes smaller, and so do the pauses of a plan together with the next plan.

    A waiting job counts 1, a critical one as much more as there are factories, and 1. A plan pauses at most one job at
    each factory, which adds as many as there are factories; the next one grants at least one critical job.
    """
    critical = sum(job.priority == Priority.CRITICAL for job in snapshot.jobs)
    return len(snapshot.jobs) + critical * (len(snapshot.factories) + 1)


def _victims(walk: Pass) -> dict[str, list[RunningJob]]:
    """Return the jobs that may be paused by factory, the best first; a factory that gives one up already has none."""
    running, bound = walk.snapshot.running, walk.snapshot.limits.preemption_bound
    closed = {job.factory for job in running if job.yields_to}
    by_factory: dict[str, list[RunningJob]] = {}
    for job in sorted(running, key=_reluctance):
        if job.priority != Priority.LOW or job.preempted >= bound or job.factory in closed:
            continue
        if job.factory in walk.fleet.standings:
            by_factory.setdefault(job.factory, []).append(job)
    return by_factory


def _reluctance(job: RunningJob) -> tuple[int, float, str]:
    """Return what sorts the best victim first: seldom paused, then begun last, since it has least to lose."""
    return job.preempted, -job.granted_at.timestamp(), job.job_id
