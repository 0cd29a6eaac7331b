"""One walk through the waiting jobs in order of service, as long as there are free seats. *Pure.*

Priority first; within it the jobs past their starvation bound, oldest first; then fair shares, and within a product by
age. A job that must wait holds up nobody: later ones may use the seats that it cannot. What keeps one job of a line
waiting keeps all of them waiting, and seats, locks and limits only become tighter on the way, so each line is given up
at most once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from functools import partial
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from core.router_cache import RouterCache
from core.router_claims import Claims
from core.router_classes import JobClass, Needs
from core.router_explain import Blocker
from core.router_fleet import Closed, Fleet
from core.router_match import Answers
from core.router_queue import PRIORITIES, RANK, Line
from core.router_score import Score
from core.router_shares import Shares
from core.router_snapshot import FleetSnapshot, ReadyJob
from core.router_table import Scores, Table

_Head = tuple[datetime, str, int, Line]
"""Age of a line's next job, its number in the line, and the line."""


class PlannedGrant(NamedTuple):
    """One job that may start, and where."""

    job_id: str
    factory: str
    engine: str
    score: Score
    fair: bool
    """Its turn came by fair shares, not by the starvation bound."""


class Pass:
    """The walk, and the state in which it leaves fleet, locks and shares."""

    def __init__(self, snapshot: FleetSnapshot, cache: RouterCache, limit: int | None) -> None:
        self.snapshot = snapshot
        self.queue = cache.queue_of(snapshot.jobs)
        self.fleet = Fleet(snapshot, cache.kinds_for(snapshot.limits))
        self._closed_at_first = self.fleet.closed
        self.claims = Claims(snapshot.locks)
        self.shares = Shares(snapshot, self._entry_level)
        self.granted: dict[str, ReadyJob] = {}
        self._cache = cache
        self._version = self.queue.version
        self._left = self.fleet.room if limit is None else limit
        self._holders = self.claims.holders & self.queue.jobs.keys()
        self._tables: dict[tuple[JobClass, tuple[tuple[str, int], ...]], Table] = {}
        self._seats: dict[Needs, int] = {}
        self._entry: dict[tuple[int, Needs], int] = {}

    def run(self) -> Iterator[PlannedGrant]:
        """Yield the grants, in order of service."""
        for rank in sorted(self.queue.ranks):
            if self._done:
                return
            for job in self.starved(rank):
                if grant := self._try(rank, job, fair=False):
                    yield grant
            yield from self._fair(rank)

    @property
    def is_current(self) -> bool:
        """Return whether the queue still holds the jobs of this walk."""
        return self.queue.version == self._version

    @property
    def _done(self) -> bool:
        return self._left <= 0 or self.fleet.room <= 0

    # --- order --------------------------------------------------------------------------------------------------------

    def starved(self, rank: int) -> list[ReadyJob]:
        """Return the jobs of a rank that one more turn of all their seats could bring past the bound, by age."""
        bound = self.snapshot.limits.starvation_bound
        jobs = [
            job
            for job in self.queue.overtaken.values()
            if RANK[job.priority] == rank
            and job.overtaken >= bound
            and job.overtaken > (bound - 1) * self.eligible_seats(job.job_class.needs)
        ]
        return sorted(jobs, key=lambda job: (job.submitted_at, job.job_id))

    def _fair(self, rank: int) -> Iterator[PlannedGrant]:
        lanes = self._lanes(rank)
        heap = [(self.shares.level(rank, product), *lane[0][:2], product) for product, lane in lanes.items()]
        heapify(heap)
        while heap and not self._done:
            product = heap[0][-1]
            lane = lanes[product]
            if grant := self._serve(rank, lane):
                yield grant
            if lane and not self.shares.limit_reached(product):
                heapreplace(heap, (self.shares.level(rank, product), *lane[0][:2], product))
            else:
                heappop(heap)

    def _lanes(self, rank: int) -> dict[str, list[_Head]]:
        """Return for each product the heads of its lines that some open factory could take, as a heap by age."""
        lanes: dict[str, list[_Head]] = {}
        for needs, lines in self.queue.ranks[rank].by_needs.items():
            if self._has_place(needs):
                for key, line in lines.items():
                    lanes.setdefault(key.product, []).append((*line.entries[0][:2], 0, line))
        for product in [product for product in lanes if self.shares.limit_reached(product)]:
            del lanes[product]
        for lane in lanes.values():
            heapify(lane)
        return lanes

    def _serve(self, rank: int, lane: list[_Head]) -> PlannedGrant | None:
        """Try the lane's next job, and move its line on to the next one that may have a chance."""
        _, job_id, number, line = lane[0]
        job = line.entries[number][2]
        grant, following = None, number + 1
        if job_id not in self.granted:
            grant = self._try(rank, job, fair=True)
            if grant is None:
                following = self._next_holder(line, following) if self.claims.blocks(job) else len(line.entries)
        if following < len(line.entries):
            heapreplace(lane, (*line.entries[following][:2], following, line))
        else:
            heappop(lane)
        return grant

    def _next_holder(self, line: Line, start: int) -> int:
        """Return the next job of a blocked line that holds something itself: it may hold what blocks the others."""
        if not self._holders:
            return len(line.entries)
        numbers = range(start, len(line.entries))
        return next((n for n in numbers if line.entries[n][1] in self._holders), len(line.entries))

    def _try(self, rank: int, job: ReadyJob, *, fair: bool) -> PlannedGrant | None:
        """Grant the job its best place, if it has any and nothing is in its way."""
        if self._done or self.is_blocked(job):
            return None
        table = self.table(job)
        place = table.best()
        if place is None:
            return None
        factory, engine = place.order[-2:]
        self.fleet.take(factory, engine)
        self.claims.take(job)
        self.shares.add(rank, job.product_id)
        self.granted[job.job_id] = job
        self._left -= 1
        return PlannedGrant(job.job_id, factory, engine, place.score, fair)

    # --- what the state says about a job ------------------------------------------------------------------------------

    def is_blocked(self, job: ReadyJob) -> bool:
        """Return whether something other than seats is in the way of the job everywhere: a lock, a claim, a limit."""
        return self.claims.blocks(job) or bool(self.shares.limit_reached(job.product_id))

    def blockers(self, job: ReadyJob) -> tuple[Blocker, ...]:
        """Return everything that is in the way of the job everywhere."""
        blockers = self.claims.blockers(job)
        reached = self.shares.limit_reached(job.product_id)
        return (*blockers, Blocker(kind="product", name=job.product_id, detail=reached)) if reached else blockers

    def claims_after(self, admitted: Collection[str]) -> Claims:
        """Return what is held after some of the grants; taking more from it changes nothing here."""
        claims = Claims(self.snapshot.locks)
        for job_id in admitted:
            claims.take(self.granted[job_id])
        return claims

    def answers(self, needs: Needs, closed: tuple[Closed, ...] | None = None) -> Answers:
        """Return what the factories say to such jobs, while these engines are closed: by default those that are now."""
        return self._cache.answers(needs, self.fleet.closed if closed is None else closed)

    def table(self, job: ReadyJob) -> Table:
        """Return what jobs of that class find in the fleet."""
        key = job.job_class, self.shares.weights(job.product_id)
        table = self._tables.get(key)
        if table is None:
            scores = Scores(*key, self.snapshot.weights, self.fleet)
            table = self._tables[key] = Table(scores, self.fleet, partial(self.answers, job.job_class.needs))
        return table

    def eligible_seats(self, needs: Needs) -> int:
        """Return the seats, free or not, of all factories that could take such jobs when the walk began; at least 1."""
        if needs not in self._seats:
            answers = self.answers(needs, self._closed_at_first)
            able = (standing.kind.capacity for standing in self.fleet.standings.values() if answers.of(standing).able)
            self._seats[needs] = max(1, sum(able))
        return self._seats[needs]

    def _has_place(self, needs: Needs) -> bool:
        answers, standings = self.answers(needs), self.fleet.standings
        return any(answers.of(standings[at.view.name]).open_engines for at in self.fleet.open)

    def _entry_level(self, rank: int, product: str) -> int:
        """Return the level at which a seat that the product's oldest job could use was last given away."""
        needs = self.queue.ranks[rank].oldest(product).job_class.needs
        if (rank, needs) not in self._entry:
            self._entry[rank, needs] = self._latest_level(rank, needs)
        return self._entry[rank, needs]

    def _latest_level(self, rank: int, needs: Needs) -> int:
        answers = self.answers(needs, self._closed_at_first)
        for factory, level in self.snapshot.turns.latest.get(PRIORITIES[rank], ()):
            standing = self.fleet.standings.get(factory)
            if standing is not None and answers.of(standing).able:
                return level
        return 0

    # --- the line -----------------------------------------------------------------------------------------------------

    def line(self) -> Iterator[ReadyJob]:
        """Yield the jobs that still wait, in the order in which they would be served if seats came one by one."""
        for rank in sorted(self.queue.ranks):
            first = [job for job in self.starved(rank) if job.job_id not in self.granted]
            yield from first
            served = self.granted.keys() | {job.job_id for job in first}
            turns: list[tuple[int, datetime, str, ReadyJob]] = []
            for product, lines in self.queue.ranks[rank].by_product.items():
                entries = (entry for line in lines.values() for entry in line.entries if entry[1] not in served)
                level, step = self.shares.level(rank, product), self.shares.step(product)
                turns += [(level + step * number, *entry) for number, entry in enumerate(sorted(entries))]
            yield from (job for *_, job in sorted(turns))
