"""The jobs that wait, filed by all that decides when and where they run. *Pure.*

Jobs that differ in nothing but age form a *line*: what keeps its first job waiting keeps all of them waiting, so a pass
looks at lines, not at jobs. The queue is kept from one plan to the next, and only jobs that changed are filed anew.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from core.job import Priority
from core.router_classes import Needs
from core.router_snapshot import ReadyJob

PRIORITIES = tuple(Priority)
"""By rank; rank 0 is served first."""
RANK = {priority: rank for rank, priority in enumerate(PRIORITIES)}

Named = TypeVar("Named")

Entry = tuple[datetime, str, ReadyJob]
"""Sorts by age; ties end at the job id, so that a place in the line does not jump about between two plans."""


class LineKey(NamedTuple):
    """What the jobs of a line have in common, beside their priority."""

    product: str
    needs: Needs
    locks: tuple[str, ...]
    repository: str
    claim: tuple[str, ...]


class Line(NamedTuple):
    """Waiting jobs that differ in nothing but age."""

    key: LineKey
    entries: list[Entry]
    """The oldest first."""


class Lines:
    """All lines of one priority."""

    def __init__(self) -> None:
        self.by_needs: dict[Needs, dict[LineKey, Line]] = {}
        self.by_product: dict[str, dict[LineKey, Line]] = {}

    def oldest(self, product: str) -> ReadyJob:
        """Return the oldest job of a product that has one."""
        return min(line.entries[0] for line in self.by_product[product].values())[2]


class Queue:
    """The waiting jobs of a snapshot."""

    def __init__(self) -> None:
        self.jobs: dict[str, ReadyJob] = {}
        self.ranks: dict[int, Lines] = {}
        self.overtaken: dict[str, ReadyJob] = {}
        """Those that were overtaken at all."""
        self.version = 0
        """Grows with every update."""
        self._by_identity: dict[int, ReadyJob] = {}
        """The same jobs: of thousands only those are looked at that are not the objects of the last update."""

    def update(self, jobs: Sequence[ReadyJob]) -> None:
        """Make the queue hold exactly these jobs; those that it holds already cost next to nothing."""
        self.version += 1
        known, now = self._by_identity, dict(zip(map(id, jobs), jobs, strict=True))
        gone, new = known.keys() - now.keys(), now.keys() - known.keys()
        self._by_identity = now
        for job in [known[identity] for identity in gone]:
            self._take_out(job)
        for job in [now[identity] for identity in new]:
            self._file(job)

    def _file(self, job: ReadyJob) -> None:
        key = _line_key(job)
        lines = self.ranks.setdefault(RANK[job.priority], Lines())
        same_needs = lines.by_needs.setdefault(key.needs, {})
        line = same_needs.get(key)
        if line is None:
            line = same_needs[key] = lines.by_product.setdefault(key.product, {})[key] = Line(key, [])
        insort(line.entries, (job.submitted_at, job.job_id, job))
        self.jobs[job.job_id] = job
        if job.overtaken:
            self.overtaken[job.job_id] = job

    def _take_out(self, job: ReadyJob) -> None:
        key, rank = _line_key(job), RANK[job.priority]
        lines = self.ranks[rank]
        entries = lines.by_needs[key.needs][key].entries
        del entries[bisect_left(entries, (job.submitted_at, job.job_id))]
        del self.jobs[job.job_id]
        self.overtaken.pop(job.job_id, None)
        if entries:
            return
        _forget(lines.by_needs, key.needs, key)
        _forget(lines.by_product, key.product, key)
        if not lines.by_product:
            del self.ranks[rank]


def _line_key(job: ReadyJob) -> LineKey:
    claim = job.claim
    return LineKey(job.product_id, job.job_class.needs, job.locks, job.repository_url if claim else "", claim)


def _forget(index: dict[Named, dict[LineKey, Line]], under: Named, key: LineKey) -> None:
    del index[under][key]
    if not index[under]:
        del index[under]
