"""The factories while a plan is made: what each grant takes is gone for the next one. *Pure.*

Factories of one `Kind` are alike in everything that may be held against them, so that reasons are worked out once for
each kind. A `Standing` is one factory at one moment; a grant replaces it by the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from core.job import Cooldown
from core.router_explain import RejectionCode
from core.router_policy import Limits
from core.router_snapshot import FactoryState, FactoryView, FleetSnapshot


class Station(NamedTuple):
    """One engine of a kind of factory."""

    engine: str
    seats: int
    usable: bool
    repair: str
    short: int
    """Jobs that have to end before a seat is free; more than 1 when more seats are taken than there are."""
    cooldown: Cooldown | None


class Shortage(NamedTuple):
    """Something of which a factory has less than it needs for a further job."""

    code: RejectionCode
    observed: str
    required: str


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What the members of one kind have in common; there is one object for each content (`Kinds`)."""

    state: FactoryState
    offers: tuple[str, ...]
    unattested: tuple[str, ...]
    stations: tuple[Station, ...]
    """By engine."""
    seats: int
    full: bool
    """All seats over all engines are taken."""
    low: tuple[Shortage, ...]

    @property
    def capacity(self) -> int:
        """Return how many jobs of any kind a member can have at once."""
        return min(self.seats, sum(station.seats for station in self.stations if station.usable))


class Merits(NamedTuple):
    """What a factory is worth to any job, in thousandths."""

    health: int
    cheapness: int


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One factory at one moment of a plan."""

    view: FactoryView
    kind: Kind
    free: int
    """Seats over all engines; below 0 when more are taken than there are."""
    free_at: tuple[int, ...]
    """Seats of each station of the kind."""
    load: int
    """Mean of free seats and idle processors, in thousandths."""
    merits: Merits

    @property
    def name(self) -> str:
        """Return the factory's name."""
        return self.view.name

    @property
    def room(self) -> int:
        """Return how many more jobs of any kind it can take; 0 when it takes none for a reason of its own."""
        kind = self.kind
        if kind.full or kind.low or kind.state != "online":
            return 0
        pairs = zip(self.free_at, kind.stations, strict=True)
        seats = sum(max(0, free) for free, at in pairs if at.usable and at.cooldown is None)
        return min(self.free, seats)


class Kinds:
    """All kinds that were seen, and the standing of each factory that has not changed since."""

    def __init__(self, limits: Limits) -> None:
        self.floors = limits.disk_floor_gb, limits.memory_floor_gb
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._standings: dict[str, Standing] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def standings(self, views: Iterable[FactoryView]) -> dict[str, Standing]:
        """Return how each factory stands, in the order of their names."""
        known, self._standings = self._standings, {}
        for view in views:
            before = known.get(view.name)
            now = before if before is not None and before.view is view else self._read(view)
            self._standings[view.name] = now
        return {name: self._standings[name] for name in sorted(self._standings)}

    def after(self, standing: Standing, engine: str, seats: int) -> Standing:
        """Return the factory with `seats` more seats free for that engine; negative takes them."""
        kind, free = standing.kind, standing.free + seats
        pairs = zip(standing.free_at, kind.stations, strict=True)
        free_at = tuple([at + seats * (station.engine == engine) for at, station in pairs])
        short = [max(0, 1 - at) for at in free_at]
        if (free <= 0) != kind.full or short != [station.short for station in kind.stations]:
            stations = tuple([at._replace(short=jobs) for at, jobs in zip(kind.stations, short, strict=True)])
            kind = self._kind(replace(kind, stations=stations, full=free <= 0))
        return Standing(standing.view, kind, free, free_at, _freedom(standing.view, free), standing.merits)

    def _read(self, view: FactoryView) -> Standing:
        disk_gb, memory_gb = self.floors
        low = (
            _shortage(RejectionCode.DISK, view.free_disk_gb, disk_gb),
            _shortage(RejectionCode.MEMORY, view.free_memory_gb, memory_gb),
        )
        by_engine = sorted(view.stations, key=lambda station: station.engine)
        free, free_at = view.seats - view.busy, tuple([at.seats - at.busy for at in by_engine])
        kind = Kind(
            state=view.state,
            offers=view.offers,
            unattested=tuple(sorted(view.unattested)),
            stations=tuple(
                [
                    Station(at.engine, at.seats, at.usable, at.repair, max(0, 1 + at.busy - at.seats), at.cooldown)
                    for at in by_engine
                ]
            ),
            seats=view.seats,
            full=free <= 0,
            low=tuple([shortage for shortage in low if shortage]),
        )
        merits = Merits(thousandths(view.health), 1000 * (DEAREST - min(view.cost_class, DEAREST)) // DEAREST)
        return Standing(view, self._kind(kind), free, free_at, _freedom(view, free), merits)

    def _kind(self, kind: Kind) -> Kind:
        """Return the one object for what `kind` says."""
        content = kind.state, kind.offers, kind.unattested, kind.stations, kind.seats, kind.full, kind.low
        return self._kinds.setdefault(content, kind)


def _shortage(code: RejectionCode, free_gb: Decimal | None, floor_gb: Decimal) -> Shortage | None:
    if free_gb is None or free_gb >= floor_gb:
        return None
    return Shortage(code, f"{free_gb} GB free", f"{floor_gb} GB free")


def _freedom(view: FactoryView, free: int) -> int:
    return (1000 * max(0, free) // max(1, view.seats) + 1000 - thousandths(view.load)) // 2


DEAREST = 9
"""Cost class from which on a factory is not cheap at all."""


def thousandths(share: Decimal) -> int:
    """Return a share, cut to 0 … 1, in thousandths."""
    return int(min(max(share, Decimal(0)), Decimal(1)) * 1000)


class Closed(NamedTuple):
    """An engine that has as many jobs as it may have, over the whole fleet."""

    engine: str
    running: int
    limit: int


class Seat(NamedTuple):
    """A seat that was taken."""

    before: Standing
    """Its factory, as it stood before."""
    now: Standing
    """The same with the seat taken."""
    closed: tuple[Closed, ...]
    """Engines that may have no further job from then on."""


class Fleet:
    """All factories of a snapshot, by name, while a plan takes their seats."""

    def __init__(self, snapshot: FleetSnapshot, kinds: Kinds) -> None:
        self._kinds = kinds
        self._limits = snapshot.limits.engines
        self.seed = snapshot.seed
        self.standings = kinds.standings(snapshot.factories)
        """By name."""
        self.first = tuple(self.standings.values())
        """All factories, as they stood at first."""
        self.open = [standing for standing in self.standings.values() if standing.room > 0]
        """Factories that had room at first, as they stood."""
        self.room = sum(standing.room for standing in self.open)
        self.taken: list[Seat] = []
        """The seats that were taken, in that order."""
        bound = snapshot.limits.factory_bound
        self.overdue = frozenset(name for name, times in snapshot.turns.passed_over.items() if times >= bound)
        """Factories that were passed over as often as they may be."""
        self._running = Counter[str]()
        for view in snapshot.factories if self._limits else ():
            self._running.update({station.engine: station.busy for station in view.stations})
        self.closed = self._closed(self._running)
        """Engines that may have no further job."""
        self.first_closed = self.closed
        """The same, before any seat was taken."""

    def take(self, name: str, engine: str) -> None:
        """Take one seat."""
        before = self.standings[name]
        now = self.standings[name] = self._kinds.after(before, engine, -1)
        self.room -= 1
        if engine in self._limits:
            self._running[engine] += 1
            self.closed = self._closed(self._running)
        self.taken.append(Seat(before, now, self.closed))

    def freed(self, standing: Standing, engine: str) -> Standing:
        """Return the factory as it would be with one more seat free for that engine."""
        return self._kinds.after(standing, engine, 1)

    def closed_without(self, engine: str) -> tuple[Closed, ...]:
        """Return the engines that would be closed if one job of `engine` ended."""
        return self._closed(self._running - Counter([engine])) if engine in self._limits else self.closed

    def _closed(self, running: Counter[str]) -> tuple[Closed, ...]:
        return tuple(
            Closed(engine, running[engine], limit)
            for engine, limit in sorted(self._limits.items())
            if running[engine] >= limit
        )
