"""Who was passed over by the grants of a plan: waiting jobs by later ones, and factories by others. *Pure.*

A job is overtaken when a later one of its priority gets a seat of a factory that could have taken it, while nothing but
seats was in its way. Only the first of each line is counted: those behind it wait for it, not for the later job. The
router keeps these counts within a bound; `docs/explanation/router.md` has the proof.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from core.router_classes import Needs
from core.router_pass import Pass, PlannedGrant
from core.router_queue import RANK, Line
from core.router_snapshot import ReadyJob

_Age = tuple[datetime, str]


def overtaken_by(walk: Pass, grants: Sequence[PlannedGrant], admitted: Collection[str]) -> dict[str, int]:
    """Return for each waiting job by how many of the admitted grants it was overtaken; jobs with none are left out."""
    times: dict[str, int] = {}
    blocked = _blocked_after(walk, admitted)
    for (rank, needs), ages in _grants_in_reach(walk, grants, admitted).items():
        ages.sort()
        for line in walk.queue.ranks[rank].by_needs[needs].values():
            job = _first_that_could(line, ages[-1], admitted, blocked)
            if job is not None:
                times[job.job_id] = len(ages) - bisect_right(ages, (job.submitted_at, job.job_id))
    return times


def _blocked_after(walk: Pass, admitted: Collection[str]) -> Callable[[ReadyJob], bool]:
    """Return what tells whether something other than seats is in the way of a job, when only some grants were let in.

    A lock that only a refused grant would have held is nobody's excuse.
    """
    if len(admitted) == len(walk.granted):
        return walk.is_blocked
    claims = walk.claims_after(admitted)
    refused = Counter(job.product_id for job_id, job in walk.granted.items() if job_id not in admitted)
    reached = walk.shares.limit_reached
    return lambda job: claims.blocks(job) or bool(reached(job.product_id, -refused[job.product_id]))


def _grants_in_reach(
    walk: Pass, grants: Sequence[PlannedGrant], admitted: Collection[str]
) -> dict[tuple[int, Needs], list[_Age]]:
    """Return, for the jobs of each priority and needs, the ages of those that got a seat which was open to them."""
    reach: dict[tuple[int, Needs], list[_Age]] = {}
    for grant, seat in zip(grants, walk.fleet.taken, strict=True):
        if grant.job_id not in admitted:
            continue
        job = walk.granted[grant.job_id]
        rank = RANK[job.priority]
        for needs in walk.queue.ranks[rank].by_needs:
            if walk.answers(needs).of(seat.before).open_engines:
                reach.setdefault((rank, needs), []).append((job.submitted_at, job.job_id))
    return reach


def _first_that_could(
    line: Line, before: _Age, admitted: Collection[str], blocked: Callable[[ReadyJob], bool]
) -> ReadyJob | None:
    """Return the first job of a line that waits with nothing but seats in its way, if it is older than `before`."""
    for *age, job in line.entries:
        if tuple(age) > before:
            return None
        if job.job_id not in admitted and not blocked(job):
            return job
    return None


def passed_over(walk: Pass, grants: Sequence[PlannedGrant], admitted: Collection[str]) -> dict[str, int]:
    """Return how many jobs each factory could have had since its last one; those that miss none are left out."""
    wanted = Counter(walk.granted[grant.job_id].job_class.needs for grant in grants if grant.job_id in admitted)
    served = {grant.factory for grant in grants if grant.job_id in admitted}
    before = walk.snapshot.turns.passed_over
    times = {name: count for name, count in before.items() if name not in served}
    for name in (standing.view.name for standing in walk.fleet.open):
        standing = walk.fleet.standings[name]
        missed = sum(count for needs, count in wanted.items() if walk.answers(needs).of(standing).open_engines)
        if missed and name not in served:
            times[name] = times.get(name, 0) + missed
    return times
