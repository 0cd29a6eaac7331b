"""Seats and locks while a plan is made: what each grant takes is gone for the next one. *Pure.*"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache

from core.router_explain import Blocker
from core.router_snapshot import FactoryView, FleetSnapshot, ReadyJob
from core.scope import overlaps

_overlaps = lru_cache(maxsize=65_536)(overlaps)

class Seats:
    """Free seats of factories and stations; they only become fewer."""

    def __init__(self, factories: Iterable[FactoryView]) -> None:
        self._factory: dict[str, int] = {}
        self._station: dict[tuple[str, str], int] = {}
        for factory in factories:
            self._factory[factory.name] = max(0, factory.seats - factory.busy)
            for station in factory.stations:
                self._station[factory.name, station.engine] = max(0, station.seats - station.busy)

    def at_factory(self, factory: str) -> int:
        """Return the factory's free seats over all engines."""
        return self._factory[factory]

    def at_station(self, factory: str, engine: str) -> int:
        """Return the free seats that the factory has for that engine; 0 when it does not offer it."""
        return self._station.get((factory, engine), 0)

    def take(self, factory: str, engine: str) -> None:
        """Take one seat."""
        self._factory[factory] -= 1
        self._station[factory, engine] -= 1


def disk_is_low(factory: FactoryView, floor_gb: Decimal) -> bool:
    """Return whether the factory is known to have less free disk than the floor."""
    return factory.free_disk_gb is not None and factory.free_disk_gb < floor_gb


def open_seats(factory: FactoryView, seats: Seats, disk_floor_gb: Decimal) -> int:
    """Return how many more jobs of any kind the factory can take; 0 when it takes none for a reason of its own."""
    if factory.state != "online" or disk_is_low(factory, disk_floor_gb):
        return 0
    stations = sum(seats.at_station(factory.name, s.engine) for s in factory.stations if s.usable)
    return min(seats.at_factory(factory.name), stations)


class Claims:
    """Named locks and scope claims that granted jobs hold; they only become more."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._locks: dict[str, list[str]] = {}
        self._scopes: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for view in snapshot.locks:
            if view.lock:
                self._locks.setdefault(view.lock, []).append(view.job_id)
            self._claim(view.job_id, view.repository_url, view.allowed_scope)

    def take(self, job: ReadyJob) -> None:
        """Take all locks of a job that is granted."""
        for name in job.locks:
            self._locks.setdefault(name, []).append(job.job_id)
        self._claim(job.job_id, job.repository_url, job.allowed_scope)

    def _claim(self, job_id: str, repository_url: str, scope: tuple[str, ...]) -> None:
        if repository_url and scope:
            self._scopes.setdefault(repository_url, []).append((job_id, scope))

    def blocks(self, job: ReadyJob) -> bool:
        """Return whether another job holds what this one needs."""
        return any(True for _ in self._blockers(job))

    def blockers(self, job: ReadyJob) -> tuple[Blocker, ...]:
        """Return everything that other jobs hold and this one needs; what it holds itself does not block it."""
        found = {(b.kind, b.name, b.held_by): b for b in self._blockers(job)}
        return tuple(found[key] for key in sorted(found))

    def _blockers(self, job: ReadyJob) -> Iterable[Blocker]:
        for name in job.locks:
            for holder in self._locks.get(name, ()):
                if holder != job.job_id:
                    yield Blocker(kind="lock", name=name, held_by=holder)
        if not job.allowed_scope:
            return
        for holder, scope in self._scopes.get(job.repository_url, ()):
            if holder != job.job_id and _overlaps(job.allowed_scope, scope):
                yield Blocker(
                    kind="scope",
                    name=job.repository_url,
                    held_by=holder,
                    detail=f"{' '.join(job.allowed_scope)} overlaps {' '.join(scope)}",
                )
