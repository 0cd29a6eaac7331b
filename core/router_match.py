"""Which factories can take a job, and why the others cannot. *Pure.*

There is one list of reasons (`factory_reasons`, `station_reasons`): a place is feasible when the list is empty, and the
explanation prints the same list. What depends only on the class of the job and the offers of the factory is computed
once for each pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace
from itertools import chain
from typing import NamedTuple

from core.capability import Requirement, Unmet, unmet
from core.router_capacity import Seats, disk_is_low
from core.router_explain import FactoryReport, Option, Rejection, RejectionCode, Score
from core.router_score import score, tie_break
from core.router_snapshot import FactoryView, FleetSnapshot, JobClass, StationView

_STATE_REASONS = {
    "offline": (RejectionCode.OFFLINE, "start its agent, or wait until it is back"),
    "draining": (RejectionCode.DRAINING, "it takes jobs again once it registers anew"),
    "quarantined": (RejectionCode.QUARANTINED, "an operator can release it"),
}


class Matcher:
    """Feasibility and scores of one snapshot; results are kept by content for the life of one plan."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._weights = snapshot.weights
        self._floor = snapshot.limits.disk_floor_gb
        self._seed = snapshot.seed
        self._unmet: dict[tuple[tuple[Requirement, ...], tuple[str, ...]], tuple[Unmet, ...]] = {}

    def unmet(self, job: JobClass, factory: FactoryView) -> tuple[Unmet, ...]:
        """Return the requirements of the job that the factory does not satisfy."""
        pair = job.requirements, factory.offers
        if pair not in self._unmet:
            self._unmet[pair] = tuple(found for need in job.requirements if (found := unmet(need, factory.offers)))
        own = tuple(found for need in job.own_requirements if (found := unmet(need, factory.identity)))
        return self._unmet[pair] + own

    def factory_reasons(self, job: JobClass, factory: FactoryView, seats: Seats) -> Iterator[Rejection]:
        """Yield every reason against the factory as a whole, the cheapest to find first."""
        if factory.state != "online":
            code, repair = _STATE_REASONS[factory.state]
            yield Rejection(code=code, observed=factory.state, required="an online factory", repair=repair)
        if job.host is not None and job.host != factory.host:
            where = f"host {factory.host or 'unknown'}"
            needed = f"host {job.host}, where the repository is"
            yield Rejection(code=RejectionCode.PINNED, observed=where, required=needed)
        yield from _seat_reasons(factory, seats)
        if disk_is_low(factory, self._floor):
            room = f"{factory.free_disk_gb} GB free"
            repair = f"free disk on {factory.name}"
            yield Rejection(code=RejectionCode.DISK, observed=room, required=f"{self._floor} GB free", repair=repair)
        if not stations_for(job, factory):
            yield _no_engine(job, factory)
        for missing in self.unmet(job, factory):
            yield Rejection(code=RejectionCode.CAPABILITY, observed=missing.observed, required=missing.required)

    def report(self, job: JobClass, factory: FactoryView, seats: Seats) -> FactoryReport:
        """Return every reason against the factory, and the scores of the engines that could run the job there."""
        against = tuple(self.factory_reasons(job, factory, seats))
        stations = {s.engine: tuple(station_reasons(factory, s, seats)) for s in stations_for(job, factory)}
        free = [self.place(job, factory, e, seats) for e, reasons in stations.items() if not (against or reasons)]
        possible = [e for e, reasons in stations.items() if not any(r.permanent for r in (*against, *reasons))]
        return FactoryReport(
            factory=factory.name,
            possible=bool(possible),
            rejections=tuple(chain(against, *stations.values())),
            options=tuple(Option(engine=p.engine, score=p.score) for p in sorted(free, key=lambda p: p.order)),
            avoided=factory.name in job.excluded,
        )

    def place(self, job: JobClass, factory: FactoryView, engine: str, seats: Seats) -> Place:
        """Return that engine on that factory as a place for the job, scored with the seats that are free now."""
        points = score(job, factory, engine, seats, self._weights)
        tie = tie_break(self._seed, factory.name, engine)
        order = (factory.name in job.excluded, -points.total, tie, factory.name, engine)
        return Place(order, factory, engine, points)

    def places(self, job: JobClass, factories: Iterable[FactoryView], seats: Seats) -> Places:
        """Return all places that could take a job of that class now."""
        found = [
            self.place(job, factory, station.engine, seats)
            for factory in factories
            if not any(True for _ in self.factory_reasons(job, factory, seats))
            for station in stations_for(job, factory)
            if not any(True for _ in station_reasons(factory, station, seats))
        ]
        return Places(self, job, found)


class Place(NamedTuple):
    """One engine on one factory; `order` sorts the best first: not avoided, highest score, seeded tie, names."""

    order: tuple[bool, int, int, str, str]
    factory: FactoryView
    engine: str
    score: Score


class Places:
    """The places of one job class, best first, while seats are being taken.

    A score only falls while a plan is made, so the heap holds upper bounds: when the top's score is still true, it is
    the best of all; else it sinks to where it belongs now.
    """

    def __init__(self, matcher: Matcher, job: JobClass, places: list[Place]) -> None:
        self._matcher = matcher
        self._job = job
        self._heap = places
        heapify(self._heap)
        self.at_first = len(places)
        """Places that were free when the class was looked at first."""
        self._looked_after = -1

    def best(self, seats: Seats) -> Place | None:
        """Return the best place that has a free seat, or None; it is not taken by asking."""
        if self._looked_after != seats.taken:
            self._settle(seats)
            self._looked_after = seats.taken
        return self._heap[0] if self._heap else None

    def _settle(self, seats: Seats) -> None:
        """Bring the best place to the top of the heap, with its present score."""
        while self._heap:
            top = self._heap[0]
            if not has_seat(top.factory.name, top.engine, seats):
                heappop(self._heap)
                continue
            current = self._matcher.place(self._job, top.factory, top.engine, seats)
            if current.order == top.order:
                return
            heapreplace(self._heap, current)


def has_seat(factory: str, engine: str, seats: Seats) -> bool:
    """Return whether the factory and its station both have a free seat."""
    return seats.at_factory(factory) > 0 and seats.at_station(factory, engine) > 0


def stations_for(job: JobClass, factory: FactoryView) -> tuple[StationView, ...]:
    """Return the factory's stations whose engine may do the job, in the job's order of preference."""
    by_engine = {station.engine: station for station in factory.stations}
    return tuple([by_engine[engine] for engine in job.engines if engine in by_engine])


def station_reasons(factory: FactoryView, station: StationView, seats: Seats) -> Iterator[Rejection]:
    """Yield every reason against that station."""
    engine = station.engine
    if station.seats <= 0:
        yield Rejection(
            code=RejectionCode.NO_SEATS, engine=engine, observed="0 seats", required="a seat", repair=_RAISE_SEATS
        )
    elif seats.at_station(factory.name, engine) <= 0:
        busy = f"{station.seats} of {station.seats} seats taken"
        yield Rejection(code=RejectionCode.STATION_FULL, engine=engine, observed=busy, required="a free seat")
    if not station.usable:
        yield Rejection(
            code=RejectionCode.ENGINE_UNUSABLE,
            engine=engine,
            observed=f"{engine} does not work",
            required=f"a working {engine}",
            repair=station.repair,
        )


_RAISE_SEATS = "give it seats in the settings"


def _seat_reasons(factory: FactoryView, seats: Seats) -> Iterator[Rejection]:
    if factory.seats <= 0:
        yield Rejection(code=RejectionCode.NO_SEATS, observed="0 seats", required="a seat", repair=_RAISE_SEATS)
    elif seats.at_factory(factory.name) <= 0:
        busy = f"{factory.seats} of {factory.seats} seats taken"
        yield Rejection(code=RejectionCode.FACTORY_FULL, observed=busy, required="a free seat")


def _no_engine(job: JobClass, factory: FactoryView) -> Rejection:
    offered = f"offers {', '.join(sorted(station.engine for station in factory.stations)) or 'no engine'}"
    wanted = " or ".join(job.engines) or f"an engine to be named by the job, which has {job.engine_label}"
    return Rejection(code=RejectionCode.ENGINE, observed=offered, required=wanted)
