"""The smallest change that would let a waiting job run. *Pure.*

For each engine on each factory the reasons against it are turned into steps, and the cheapest list of steps wins. A
step's price says how much it asks of people: waiting is cheap, an operator's act costs more, another job more still, a
further engine or a further machine most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core.capability import Requirement
from core.router_explain import Blocker, Change, FactoryReport, Rejection, RejectionCode, Step
from core.router_match import stations_for
from core.router_snapshot import FactoryView, JobClass


class _Remedy(NamedTuple):
    """What to do about one kind of rejection, and what that asks."""

    kind: str
    price: int
    text: str


_DROP = _Remedy("drop_capability", 10, "drop {required}")
_ENROL_PRICE = 30
_REMEDIES: dict[str, _Remedy] = {
    RejectionCode.CAPABILITY: _DROP,
    RejectionCode.ENGINE: _Remedy("add_engine", 15, "add engine {engine} to {factory}"),
    RejectionCode.NO_SEATS: _Remedy("add_seats", 6, "give {place} a seat"),
    RejectionCode.ENGINE_UNUSABLE: _Remedy("repair_engine", 5, "repair {place}{repair}"),
    RejectionCode.DISK: _Remedy("free_disk", 4, "free disk on {factory}"),
    RejectionCode.QUARANTINED: _Remedy("lift_quarantine", 4, "release {factory} from quarantine"),
    RejectionCode.DRAINING: _Remedy("end_drain", 3, "end the drain of {factory}"),
    RejectionCode.OFFLINE: _Remedy("bring_online", 3, "bring {factory} back online"),
    RejectionCode.STATION_FULL: _Remedy("free_seat", 1, "wait for a free {engine} seat on {factory}"),
    RejectionCode.FACTORY_FULL: _Remedy("free_seat", 1, "wait for a free seat on {factory}"),
}
"""In the order in which steps are named. `pinned` is missing: nothing brings a repository to another host."""

_ORDER = tuple(_REMEDIES)
_ONE_OF_A_KIND = ("os", "arch", "factory", "host")
"""Tags of which a factory has exactly one."""


class _Way(NamedTuple):
    """Steps that let the job run at one place, with their price; cheaper ways sort first."""

    price: int
    factory: str
    preference: int
    steps: tuple[Step, ...]


class Advice(NamedTuple):
    """What to do for all jobs of one class; what other jobs hold comes on top for each job (`after_waits`)."""

    change: Change
    alternative: Change | None
    """For a class that can never run on this fleet: a new factory, unless that is the smallest change already."""


def advise(job: JobClass, factories: Sequence[FactoryView], reports: Sequence[FactoryReport]) -> Advice:
    """Return the smallest change that places jobs of that class; `reports` belong to `factories` one by one."""
    if not job.engines:
        text = f"name an engine in the job; it has {job.engine_label}, which leads to none"
        return Advice(Change(steps=(Step(kind="name_engine", text=text),)), None)
    enrol = _enrol(job)
    ways = sorted(way for pair in zip(factories, reports, strict=True) for way in _ways(job, *pair))
    best = min([*ways[:1], enrol])
    alike = [way.factory for way in ways if _kinds(way) == _kinds(best) and way.factory != best.factory]
    smallest = Change(steps=best.steps, also=tuple(dict.fromkeys(alike)))
    if best is enrol or any(report.possible for report in reports):
        return Advice(smallest, None)
    return Advice(smallest, Change(steps=enrol.steps))


def after_waits(change: Change, blockers: Sequence[Blocker]) -> Change:
    """Return the change with a wait for each thing that another job holds."""
    if not blockers:
        return change
    waits = {(blocker.kind, blocker.name, blocker.held_by): _wait(blocker) for blocker in blockers}
    return Change(steps=(*waits.values(), *change.steps), also=change.also)


def _kinds(way: _Way) -> tuple[tuple[str, str], ...]:
    return tuple((step.kind, step.subject) for step in way.steps)


def _wait(blocker: Blocker) -> Step:
    kind = "wait_lock" if blocker.kind == "lock" else "wait_scope"
    return Step(kind=kind, text=f"wait for {blocker}", subject=blocker.name, held_by=blocker.held_by)


def _ways(job: JobClass, factory: FactoryView, report: FactoryReport) -> Iterator[_Way]:
    """Yield one way for each engine that the factory has for the job, or for the preferred one when it has none."""
    if any(rejection.code not in _REMEDIES for rejection in report.rejections):
        return
    offered = tuple(station.engine for station in stations_for(job, factory))
    for engine in offered or job.engines[:1]:
        against = [r for r in report.rejections if r.engine in ("", engine)]
        against.sort(key=lambda rejection: _ORDER.index(RejectionCode(rejection.code)))
        steps = _merge_seats([_remedy_step(factory.name, engine, rejection) for rejection in against])
        price = sum(_PRICES[step.kind] for step in steps)
        yield _Way(price, factory.name, job.engines.index(engine), tuple(steps))


_PRICES = {remedy.kind: remedy.price for remedy in _REMEDIES.values()}


def _remedy_step(factory: str, engine: str, rejection: Rejection) -> Step:
    remedy = _REMEDIES[rejection.code]
    text = remedy.text.format(
        factory=factory,
        engine=engine,
        place=f"{engine} on {factory}" if rejection.engine else factory,
        required=rejection.required,
        repair=f" ({rejection.repair})" if rejection.repair else "",
    )
    about_station = rejection.engine or rejection.code == RejectionCode.ENGINE
    subject = rejection.required if rejection.code == RejectionCode.CAPABILITY else ""
    return Step(kind=remedy.kind, text=text, factory=factory, engine=engine if about_station else "", subject=subject)


def _merge_seats(steps: list[Step]) -> list[Step]:
    """Leave one wait for a seat: the seat of a station frees a seat of its factory with it."""
    seats = [step for step in steps if step.kind == "free_seat"]
    return [step for step in steps if step.kind != "free_seat"] + seats[:1]


def _enrol(job: JobClass) -> _Way:
    """Return the way of a new factory; requirements that no factory can have must be dropped all the same."""
    hopeless = _hopeless(job.requirements + job.own_requirements)
    drops = tuple(
        Step(kind=_DROP.kind, subject=need.text, text=_DROP.text.format(required=need.text)) for need in hopeless
    )
    wanted = [f"engine {job.engines[0]}"]
    wanted += [f"host {job.host}"] if job.host else []
    wanted += [n.text for n in job.requirements + job.own_requirements if n not in hopeless and n.kind != "any"]
    step = Step(kind="enrol", engine=job.engines[0], text=f"enrol a factory with {', '.join(wanted)}")
    return _Way(_ENROL_PRICE + _DROP.price * len(drops), "", 0, (*drops, step))


def _hopeless(requirements: Sequence[Requirement]) -> tuple[Requirement, ...]:
    """Return the requirements that cannot be met together with those before them, or not at all."""
    taken: set[str] = set()
    hopeless: list[Requirement] = []
    for need in requirements:
        if need.kind == "unreadable" or (need.kind == "tag" and need.name in taken):
            hopeless.append(need)
        elif need.kind == "tag" and need.name in _ONE_OF_A_KIND:
            taken.add(need.name)
    return tuple(hopeless)
