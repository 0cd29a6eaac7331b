"""Which low jobs are paused so that critical ones can start. *Pure.*

Only a critical job that no free seat can take may have a low one paused, where it will score best. The next plan then
grants it that place: so that it does, each factory gives up one job in a plan, and where engines are limited over the
fleet, only one job in all is paused. `docs/explanation/router.md` proves that this ends, and that nobody is the victim
for ever.
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
    """One running job to be paused, and the waiting one that it is paused for."""

    job_id: str
    victim: str
    factory: str
    """Where the waiting job will run."""
    engine: str


def preemptions(walk: Pass) -> tuple[Preemption, ...]:
    """Return what to pause after the grants of a plan; empty unless the limits allow it."""
    limits = walk.snapshot.limits
    if not limits.preemption or _CRITICAL not in walk.queue.ranks:
        return ()
    victims, found = _victims(walk), list[Preemption]()
    promised = {job.yields_to for job in walk.snapshot.running}
    claims, reserved = walk.claims_now(), Counter[str]()
    for job in walk.line():
        if job.priority != Priority.CRITICAL or not victims or (found and limits.engines):
            break
        full = walk.shares.limit_reached(job.product_id, reserved[job.product_id])
        if job.job_id in promised or full or claims.blocks(job):
            continue
        best = min(_places(walk, job, victims), default=None, key=lambda option: (option[0], _reluctance(option[1])))
        if best is not None:
            order, victim = best
            found.append(Preemption(job.job_id, victim.job_id, *order[-2:]))
            claims.take(job)
            reserved[job.product_id] += 1
            del victims[victim.factory]
    return tuple(found)


def potential(snapshot: FleetSnapshot) -> int:
    """Return a number that every grant and every preemption with its grant makes smaller.

    Waiting jobs count 1, critical ones 2: a grant takes at least 1 away, a preemption takes 2 and adds 1.
    """
    return sum(1 + (job.priority == Priority.CRITICAL) for job in snapshot.jobs)


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


def _places(walk: Pass, job: ReadyJob, victims: dict[str, list[RunningJob]]) -> Iterator[tuple[Order, RunningJob]]:
    """Yield the places that the job would find if one victim were paused, with the best victim for each."""
    scores, fleet = walk.table(job).scores, walk.fleet
    for factory, candidates in victims.items():
        for victim in {candidate.engine: candidate for candidate in reversed(candidates)}.values():
            closed = fleet.closed_without(victim.engine)
            answers = walk.answers(job.job_class.needs, closed)
            changed = {factory: fleet.freed(fleet.standings[factory], victim.engine)}
            for standing in (changed if closed == fleet.closed else fleet.standings | changed).values():
                for engine in answers.of(standing).open:
                    yield scores.order(standing, engine), victim
