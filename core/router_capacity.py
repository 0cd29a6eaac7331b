"""Seats and locks while a plan is made: what each grant takes is gone for the next one. *Pure.*"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from core.router_explain import Blocker
from core.router_snapshot import FactoryView, FleetSnapshot, ReadyJob
from core.scope import overlaps


class Seats:
    """Free seats of factories and stations; they only become fewer."""

    def __init__(self, factories: Iterable[FactoryView]) -> None:
        self._factory: dict[str, int] = {}
        self._station: dict[tuple[str, str], int] = {}
        self.taken = 0
        """Seats taken since the snapshot; as long as it stands still, no score changes."""
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
        self.taken += 1
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


class _Claim(NamedTuple):
    """Paths of one repository that a granted job may change."""

    job_id: str
    scope: tuple[str, ...]


class Claims:
    """Named locks and scope claims that granted jobs hold; they only become more."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._holders: set[str] = set()
        self._locks: dict[str, list[str]] = {}
        self._scopes: dict[str, list[_Claim]] = {}
        self._clear_of: dict[tuple[str, tuple[str, ...]], int] = {}
        for view in snapshot.locks:
            self._hold(view.job_id, (view.lock,) if view.lock else ())
            self._claim(view.job_id, view.repository_url, view.allowed_scope)

    def take(self, job: ReadyJob) -> None:
        """Take all locks of a job that is granted."""
        self._hold(job.job_id, job.locks)
        self._claim(job.job_id, job.repository_url, job.allowed_scope)

    def _hold(self, job_id: str, names: tuple[str, ...]) -> None:
        self._holders.add(job_id)
        for name in names:
            self._locks.setdefault(name, []).append(job_id)

    def _claim(self, job_id: str, repository_url: str, scope: tuple[str, ...]) -> None:
        if repository_url and scope:
            self._scopes.setdefault(repository_url, []).append(_Claim(job_id, scope))

    def blocks(self, job: ReadyJob) -> bool:
        """Return whether another job holds what this one needs; what it holds itself does not block it."""
        if job.job_id in self._holders:
            return bool(self.blockers(job))
        if any(name in self._locks for name in job.locks):
            return True
        return bool(job.allowed_scope) and self._scope_is_claimed(job.repository_url, job.allowed_scope)

    def _scope_is_claimed(self, repository_url: str, scope: tuple[str, ...]) -> bool:
        """Compare `scope` with the claims on that repository, with each of them only once."""
        claims = self._scopes.get(repository_url, [])
        clear_of = self._clear_of.get((repository_url, scope), 0)
        while clear_of < len(claims) and not overlaps(scope, claims[clear_of].scope):
            clear_of += 1
        self._clear_of[repository_url, scope] = clear_of
        return clear_of < len(claims)

    def blockers(self, job: ReadyJob) -> tuple[Blocker, ...]:
        """Return everything that other jobs hold and this one needs, in one order."""
        locks = [
            Blocker(kind="lock", name=name, held_by=holder)
            for name in job.locks
            for holder in sorted(set(self._locks.get(name, ())))
            if holder != job.job_id
        ]
        claims = sorted(set(self._scopes.get(job.repository_url, ())))
        scopes = [
            Blocker(
                kind="scope",
                name=job.repository_url,
                held_by=claim.job_id,
                detail=f"{' '.join(job.allowed_scope)} overlaps {' '.join(claim.scope)}",
            )
            for claim in claims
            if claim.job_id != job.job_id and overlaps(job.allowed_scope, claim.scope)
        ]
        return (*locks, *scopes)
