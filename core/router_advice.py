"""The smallest change that would let a waiting job run. *Pure.*

For each engine on each factory the reasons against it are turned into steps, and the cheapest list of steps wins. A
step's price says how much it asks of people: waiting is cheap, an operator's act costs more, another job more still, a
further engine or a further machine most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core.capability import Requirement
from core.router_classes import Needs
from core.router_explain import Blocker, Change, FactoryReport, Rejection, RejectionCode, Step


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
    RejectionCode.NO_SEATS: _Remedy("add_seats", 6, "give {place} a free seat"),
    RejectionCode.NOT_ATTESTED: _Remedy("attest", 5, "attest {observed} for {factory}"),
    RejectionCode.ENGINE_UNUSABLE: _Remedy("repair_engine", 5, "repair {place}{repair}"),
    RejectionCode.DISK: _Remedy("free_disk", 4, "free disk on {factory}"),
    RejectionCode.MEMORY: _Remedy("free_memory", 4, "free memory on {factory}"),
    RejectionCode.QUARANTINED: _Remedy("lift_quarantine", 4, "release {factory} from quarantine"),
    RejectionCode.HALTED: _Remedy("end_halt", 4, "end the halt of {factory}"),
    RejectionCode.DRAINING: _Remedy("end_drain", 3, "end the drain of {factory}"),
    RejectionCode.OFFLINE: _Remedy("bring_online", 3, "bring {factory} back online"),
    RejectionCode.COOLDOWN: _Remedy("wait_cooldown", 2, "wait for {required}, when {place} may be asked again"),
    RejectionCode.ENGINE_LIMIT: _Remedy("free_engine", 1, "wait until {required} jobs run {engine}"),
    RejectionCode.STATION_FULL: _Remedy("free_seat", 1, "wait for a free {engine} seat on {factory}"),
    RejectionCode.FACTORY_FULL: _Remedy("free_seat", 1, "wait for a free seat on {factory}"),
}
"""In the order in which steps are named. `pinned` is missing: nothing brings a repository to another host."""

_ORDER = tuple(_REMEDIES)
_ONE_OF_A_KIND = ("os", "arch", "factory", "host")
"""Tags of which a factory has exactly one."""


class _Way(NamedTuple):
    """Steps that let the job run at one place, with their price."""

    price: int
    factories: tuple[str, ...]
    """The steps name the first one; the same would do at the others. Empty: a factory that there is not yet."""
    preference: int
    steps: tuple[Step, ...]

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Return what has to be done, apart from where."""
        return tuple((step.kind, step.subject) for step in self.steps)


class Advice(NamedTuple):
    """What to do for all jobs of one class; what other jobs hold comes on top for each job (`after_waits`)."""

    change: Change
    alternative: Change | None
    """For a class that can never run on this fleet: a new factory, unless that is the smallest change already."""


def advise(needs: Needs, reports: Sequence[FactoryReport], limits: Sequence[Rejection]) -> Advice:
    """Return the smallest change that places jobs with these needs.

    `reports` are what the factories say to them, `limits` the reasons against engines that may have no further job.
    """
    if not needs.engines:
        text = f"name an engine in the job; it has {needs.engine_label}, which leads to none"
        return Advice(Change(steps=(Step(kind="name_engine", text=text),)), None)
    enrol = _enrol(needs, limits)
    ways = sorted((way for report in reports for way in _ways(needs.engines, report, limits)), key=_dearness)
    best = min([*ways[:1], enrol], key=_dearness)
    alike = {name for way in ways if way.kinds == best.kinds for name in way.factories} - {*best.factories[:1]}
    smallest = Change(steps=best.steps, also=tuple(sorted(alike)))
    if best is enrol or any(report.possible for report in reports):
        return Advice(smallest, None)
    return Advice(smallest, Change(steps=enrol.steps))


def change_at(needs: Needs, report: FactoryReport, limits: Sequence[Rejection]) -> Change | None:
    """Return the smallest change that lets such jobs run at the first factory of a report; None: nothing would."""
    if not needs.engines:
        return None
    best = min(_ways(needs.engines, report, limits), key=_dearness, default=None)
    return Change(steps=best.steps) if best else None


def after_waits(change: Change, blockers: Sequence[Blocker]) -> Change:
    """Return the change with a wait for each thing that another job holds."""
    if not blockers:
        return change
    waits = {(blocker.kind, blocker.name, blocker.held_by): _wait(blocker) for blocker in blockers}
    return Change(steps=(*waits.values(), *change.steps), also=change.also)


def _wait(blocker: Blocker) -> Step:
    return Step(kind=f"wait_{blocker.kind}", text=f"wait for {blocker}", subject=blocker.name, held_by=blocker.held_by)


def _ways(engines: Sequence[str], report: FactoryReport, limits: Sequence[Rejection]) -> Iterator[_Way]:
    """Yield one way for each engine that the factories have for the job, or for a new one when they have none."""
    if any(rejection.code not in _REMEDIES for rejection in report.rejections):
        return
    against = report.rejections if report.engines else (*report.rejections, *limits)
    for engine in report.engines or (_new_engine(engines, limits),):
        reasons = _without_implied([reason for reason in against if reason.engine in ("", engine)])
        steps = tuple(dict.fromkeys(_remedy_step(report.factories[0], engine, reason) for reason in reasons))
        price = sum(_PRICES[step.kind] for step in steps)
        yield _Way(price, report.factories, engines.index(engine), steps)


def _new_engine(engines: Sequence[str], limits: Sequence[Rejection]) -> str:
    """Return the engine to add where the job has none: the most preferred one that may have a further job."""
    closed = {reason.engine for reason in limits}
    return next((engine for engine in engines if engine not in closed), engines[0])


def _dearness(way: _Way) -> tuple[int, str, int]:
    return way.price, way.factories[0] if way.factories else "", way.preference


_PRICES = {remedy.kind: remedy.price for remedy in _REMEDIES.values()}


def _remedy_step(factory: str, engine: str, rejection: Rejection) -> Step:
    remedy = _REMEDIES[rejection.code]
    text = remedy.text.format(
        factory=factory,
        engine=engine,
        place=f"{engine} on {factory}" if rejection.engine else factory,
        required=rejection.required,
        observed=rejection.observed,
        repair=f" ({rejection.repair})" if rejection.repair else "",
    )
    about_station = rejection.engine or rejection.code == RejectionCode.ENGINE
    subjects = {RejectionCode.CAPABILITY: rejection.required, RejectionCode.NOT_ATTESTED: rejection.observed}
    subject = subjects.get(RejectionCode(rejection.code), "")
    return Step(kind=remedy.kind, text=text, factory=factory, engine=engine if about_station else "", subject=subject)


def _without_implied(against: Sequence[Rejection]) -> list[Rejection]:
    """Return the reasons in the order of their remedies, with one wait where one job that ends is enough.

    A station's seat is also one of its factory, and its engine has one job less.
    """
    against = sorted(against, key=lambda reason: _ORDER.index(RejectionCode(reason.code)))
    for full in (reason for reason in against if reason.code == RejectionCode.STATION_FULL):
        return [
            reason
            for reason in against
            if reason.code != RejectionCode.FACTORY_FULL
            and not (reason.code == RejectionCode.ENGINE_LIMIT and reason.excess <= full.excess)
        ]
    return against


def _enrol(needs: Needs, limits: Sequence[Rejection]) -> _Way:
    """Return the way of a new factory; requirements that no factory can have must be dropped all the same."""
    engine = _new_engine(needs.engines, limits)
    hopeless = _hopeless(needs.requirements + needs.own_requirements)
    first = [Step(kind=_DROP.kind, subject=need.text, text=_DROP.text.format(required=need.text)) for need in hopeless]
    first += [_remedy_step("", engine, reason) for reason in limits if reason.engine == engine]
    wanted = [f"engine {engine}"]
    wanted += [f"host {needs.host}"] if needs.host else []
    wanted += [n.text for n in needs.requirements + needs.own_requirements if n not in hopeless and n.kind != "any"]
    enrol = Step(kind="enrol", engine=engine, text=f"enrol a factory with {', '.join(wanted)}")
    return _Way(_ENROL_PRICE + sum(_PRICES[step.kind] for step in first), (), 0, (*first, enrol))


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
