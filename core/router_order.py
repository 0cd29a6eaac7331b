"""In which order waiting jobs are served. *Pure.*

Priority first; within it the jobs past their starvation bound, oldest first; then fair shares: the product that uses
least in proportion to its share is next, with its oldest job. Ties end at the job id, so that a place in the line does
not jump about between two plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from heapq import heapify, heappop, heapreplace
from operator import attrgetter

from core.job import Priority
from core.router_snapshot import ProductView, ReadyJob

_RANK = {priority: priority.rank for priority in Priority}
_SHARE_SCALE = 1_000_000
"""Fixed scale of `running / share`, so that no float decides."""

_Age = tuple[datetime, str]
_age = attrgetter("submitted_at", "job_id")


class Usage:
    """Running jobs by product, counted on while a plan grants."""

    def __init__(self, products: Iterable[ProductView]) -> None:
        views = tuple(products)
        self._running = {view.product_id: view.running for view in views}
        self._share: Mapping[str, int] = {view.product_id: view.share for view in views}

    def add(self, product_id: str) -> None:
        """Count one more running job of the product."""
        self._running[product_id] = self._running.get(product_id, 0) + 1

    def level(self, product_id: str) -> int:
        """Return what the product uses in proportion to its share, in millionths."""
        return self._running.get(product_id, 0) * _SHARE_SCALE // self._share.get(product_id, 1)


def service_order(jobs: Iterable[ReadyJob], usage: Usage, starvation_bound: int) -> Iterator[ReadyJob]:
    """Yield the jobs in order of service; `usage` may be counted on between two of them.

    Only as much is sorted as is asked for: a lane that is not reached costs nothing but its listing.
    """
    lanes: dict[tuple[int, bool], list[ReadyJob]] = {}
    for job in jobs:
        lanes.setdefault((_RANK[job.priority], job.overtaken < starvation_bound), []).append(job)
    for key in sorted(lanes):
        _, fair = key
        yield from _fair_order(lanes[key], usage) if fair else sorted(lanes[key], key=_age)


def _fair_order(jobs: list[ReadyJob], usage: Usage) -> Iterator[ReadyJob]:
    by_product: dict[str, list[ReadyJob]] = {}
    for job in jobs:
        by_product.setdefault(job.product_id, []).append(job)
    lines = {product: iter(sorted(members, key=_age)) for product, members in by_product.items()}
    heap = [_entry(product, next(line), usage) for product, line in lines.items()]
    heapify(heap)
    while heap:
        _, _, product, job = heap[0]
        yield job
        following = next(lines[product], None)
        if following is None:
            heappop(heap)
        else:
            heapreplace(heap, _entry(product, following, usage))


def _entry(product: str, job: ReadyJob, usage: Usage) -> tuple[int, _Age, str, ReadyJob]:
    return usage.level(product), _age(job), product, job


def positions(jobs: Iterable[ReadyJob], usage: Usage, starvation_bound: int) -> dict[str, int]:
    """Return each job's place in the line, from 1, if every one before it were served in its turn."""
    places: dict[str, int] = {}
    for place, job in enumerate(service_order(jobs, usage, starvation_bound), start=1):
        places[job.job_id] = place
        usage.add(job.product_id)
    return places
