"""Small random fleets in which everything collides with everything, and what may be done with them.

All of it is written anew from the rules and shares nothing with the router but its models, `unmet` and `overlaps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, TypeVar

from pydantic import BaseModel

from core.capability import read_requirement, unmet
from core.engine_classes import ENGINE_CLASSES
from core.job import Cooldown, Priority
from core.router import (
    Change,
    FactoryView,
    FleetSnapshot,
    Limits,
    LockView,
    PlannedGrant,
    ProductView,
    ReadyJob,
    StationView,
    Step,
    Turns,
)
from core.router_shares import SCALE
from core.scope import overlaps

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = ("os:linux", "os:macos", "node=18.2", "node=20.1", "has:docker", "gpu", "mem_gb=8", "mem_gb=32")
NEEDS = (
    *("os:any", "os:linux", "os:macos", "node>=19", "node<20", "has:docker", "gpu", "mem-gb>=16", "factory:f-1"),
    *("network:lab", "network"),
)
CLAIMS = ("network:lab", "network:vpn")
"""Sensitive facts that a factory may claim without anybody having attested them."""
COOLDOWNS = tuple(Cooldown(until=NOW + timedelta(minutes=m), reason="rate_limited: come back") for m in (5, 60))
COMPLETE = ("os:linux", "node=20.1", "has:docker", "gpu", "mem_gb=32")
ENGINES = ("claude", "codex", "shell")
NAMES = ("f-1", "f-2", "f-3", "f-4")
HOSTS = ("h-1", "h-2", "")
PRODUCTS = ("p", "q", "r")
SCOPES = ((), ("src/",), ("docs/",), ("**/*.md",), ("src/a/**", "docs/x.md"))
JOBS = tuple(f"j-{number}" for number in range(8))
OWN_WEIGHTS = {"engine": 0, "load": 80, "cost": 70, "starvation": 0}
Model = TypeVar("Model", bound=BaseModel)


class Dice(Random):
    """Random choices for one fleet. Hypothesis draws only the seed: its own draws are too uneven to fill a fleet."""

    def some(self, values: tuple[Any, ...], most: int) -> tuple[Any, ...]:
        """Return up to `most` distinct members of `values`."""
        return tuple(self.sample(values, self.randint(0, most)))

    def mostly(self, usual: Any, *rare: Any, percent: int = 70) -> Any:
        """Return `usual` in that many percent of all cases: where everything is broken, nothing is shown."""
        return usual if self.randrange(100) < percent else self.choice(rare)


# --- making one -------------------------------------------------------------------------------------------------------


def any_factory(dice: Dice, name: str) -> FactoryView:
    """Return a factory in some state."""
    seats = dice.mostly(dice.choice((1, 1, 2, 3, 5)), 0, percent=90)
    stations = dice.mostly(3, 0, 1, 2, percent=75)
    return FactoryView(
        name=name,
        host=dice.choice(HOSTS),
        state=dice.mostly("online", "offline", "draining", "quarantined", "halted", percent=80),
        capabilities=dice.mostly(COMPLETE, (), dice.some((*FACTS, *CLAIMS), 6), percent=65),
        unattested=dice.some(CLAIMS, 2),
        stations=tuple(any_station(dice, engine) for engine in dice.sample(ENGINES, stations)),
        seats=seats,
        busy=dice.mostly(0, dice.randint(0, seats + 1)),
        warm_repositories=dice.some(("r", "s"), 2),
        load=dice.choice((Decimal(0), Decimal("0.33"), Decimal(2))),
        cost_class=dice.randint(0, 12),
        health=dice.choice((Decimal(1), Decimal("0.7"), Decimal(0))),
        free_disk_gb=dice.mostly(None, Decimal("0.5"), Decimal(1), Decimal(50)),
        free_memory_gb=dice.mostly(None, Decimal("0.2"), Decimal("0.5"), Decimal(8), percent=92),
    )


def any_station(dice: Dice, engine: str) -> StationView:
    """Return a station in some state."""
    seats = dice.mostly(dice.randint(1, 3), 0, percent=90)
    busy = dice.mostly(0, dice.randint(0, seats + 1), percent=60)
    usable = dice.mostly(True, False, percent=80)
    return StationView(engine=engine, seats=seats, busy=busy, usable=usable, version=dice.choice(("", "1.2.3")))


def some_resting(dice: Dice, factory: FactoryView) -> FactoryView:
    """Return the factory with a few of its engines resting."""
    stations = (changed(at, cooldown=dice.mostly(None, *COOLDOWNS, percent=96)) for at in factory.stations)
    return changed(factory, stations=tuple(stations))


def any_job(dice: Dice, job_id: str) -> ReadyJob:
    """Return a job that wants something."""
    return ReadyJob(
        job_id=job_id,
        product_id=dice.choice(PRODUCTS),
        priority=dice.mostly(Priority.MEDIUM, *Priority, percent=50),
        submitted_at=NOW + timedelta(seconds=dice.randint(0, 3)),
        capabilities=dice.mostly((), dice.some(NEEDS, 3), percent=50),
        prefers=dice.some(NEEDS, 2),
        engine=dice.mostly(None, "claude", "shell", "codex", "nowhere", percent=80),
        engine_class=dice.mostly("agentic-coder", "script", "demo", None, percent=85),
        engine_preference=dice.some(ENGINES, 2),
        lock=dice.mostly(None, "l", "m"),
        implied_locks=dice.mostly((), ("l",), ("d",), ("d", "m"), percent=85),
        allowed_scope=dice.mostly((), *SCOPES, percent=50),
        shares_scope=dice.mostly(False, True, percent=80),
        repository_url=dice.choice(("r", "s", "")),
        host=dice.mostly(None, "h-1", "h-9", percent=85),
        excluded_factories=dice.mostly((), dice.some(NAMES, 2)),
        overtaken=dice.mostly(0, dice.randint(1, 9), dice.randint(10, 60), percent=50),
        last_factory=dice.choice((None, *NAMES)),
        weights=dice.mostly({}, {"health": 0, "cost": 300}, {"load": 0}, percent=80),
    )


def any_lock(dice: Dice) -> LockView:
    """Return what some job holds, a waiting one included."""
    return LockView(
        job_id=dice.choice((*JOBS[:2], "x-1", "x-2")),
        lock=dice.choice((None, "l", "m")),
        repository_url=dice.choice(("r", "s")),
        allowed_scope=dice.choice(SCOPES),
    )


def any_product(dice: Dice, name: str) -> ProductView:
    """Return what a product uses and may use."""
    return ProductView(
        product_id=name,
        running=dice.randint(0, 3),
        share=dice.randint(1, 4),
        limit=dice.mostly(None, dice.randint(1, 4), percent=75),
        weights=dice.mostly({}, OWN_WEIGHTS),
    )


def any_turns(dice: Dice) -> Turns:
    """Return what may have happened before."""
    priorities = dice.some(tuple(Priority), 4)
    return Turns(
        levels={p: {name: dice.randint(0, 6) * SCALE // 2 for name in dice.some(PRODUCTS, 3)} for p in priorities},
        latest={
            p: tuple((name, dice.randint(0, 6) * SCALE // 2) for name in dice.some((*NAMES, "f-gone"), 3))
            for p in priorities
        },
        passed_over={name: dice.choice((1, 99, 100, 101)) for name in dice.some(NAMES, 2)},
    )


def any_fleet(seed: int, most_jobs: int = len(JOBS)) -> FleetSnapshot:
    """Return a fleet."""
    dice = Dice(seed)
    size = dice.mostly(dice.randint(2, 4), 0, 1, percent=85)
    fleet = FleetSnapshot(
        jobs=tuple(any_job(dice, job_id) for job_id in dice.sample(JOBS, dice.randint(1, most_jobs))),
        factories=tuple(any_factory(dice, name) for name in dice.sample(NAMES, size)),
        locks=tuple(any_lock(dice) for _ in range(dice.mostly(0, 1, 2, 3, percent=40))),
        products=tuple(any_product(dice, name) for name in dice.mostly((), dice.some(PRODUCTS, 3), percent=50)),
        limits=Limits(
            starvation_bound=dice.choice((1, 3, 20)),
            engines=dice.mostly({}, {"claude": dice.randint(1, 4)}, {"claude": 2, "codex": 1}, percent=85),
        ),
        turns=dice.mostly(Turns(), any_turns(dice), percent=60),
        now=NOW,
        seed=dice.randint(0, 3),
    )
    return changed(fleet, factories=tuple(some_resting(dice, factory) for factory in fleet.factories))


def any_crowd(seed: int) -> FleetSnapshot:
    """Return a fleet whose jobs all want the same seats, so that somebody must be passed over."""
    snapshot = any_fleet(seed)
    plain = {"capabilities": (), "engine": None, "engine_class": "agentic-coder", "host": None, "lock": None}
    factories = tuple(changed(idle(factory), seats=1, capabilities=COMPLETE) for factory in snapshot.factories)
    jobs = tuple(changed(job, **plain, priority=Priority.MEDIUM) for job in snapshot.jobs)
    return changed(snapshot, jobs=jobs, factories=factories, limits=Limits())


# --- the rules, written anew ------------------------------------------------------------------------------------------


def engines_of(job: ReadyJob) -> tuple[str, ...]:
    """Return the engines that may do the job."""
    if job.engine:
        return (job.engine,)
    return job.engine_preference + ENGINE_CLASSES.get(job.engine_class or "", ())


def missing(job: ReadyJob, factory: FactoryView) -> list[str]:
    """Return the requirements that the factory does not satisfy."""
    offers = (*factory.capabilities, f"factory:{factory.name}", f"host:{factory.host}")
    return [text for text in job.capabilities if unmet(read_requirement(text), offers)]


def claimed(need: str, factory: FactoryView) -> bool:
    """Return whether one of the factory's claims that nobody attested would satisfy the requirement."""
    return any(unmet(read_requirement(need), (claim,)) is None for claim in factory.unattested)


def closed_engines(snapshot: FleetSnapshot) -> set[str]:
    """Return the engines that have as many jobs in the fleet as they may have."""
    running = Counter[str]()
    for factory in snapshot.factories:
        running.update({station.engine: station.busy for station in factory.stations})
    return {engine for engine, limit in snapshot.limits.engines.items() if running[engine] >= limit}


def expected_codes(job: ReadyJob, factory: FactoryView, closed: Iterable[str] = ()) -> Counter[str]:
    """Return how often each reason must appear for that factory, while these engines are closed."""
    wanted = [station for station in factory.stations if station.engine in engines_of(job)]
    reasons = {
        factory.state: factory.state != "online",
        "pinned": job.host is not None and job.host != factory.host,
        "engine": not wanted,
        "disk": factory.free_disk_gb is not None and factory.free_disk_gb < 1,
        "memory": factory.free_memory_gb is not None and factory.free_memory_gb < Decimal("0.5"),
        "factory_full": 0 < factory.seats <= factory.busy,
    }
    counts = Counter(code for code, applies in reasons.items() if applies)
    unmet_needs = Counter(claimed(need, factory) for need in missing(job, factory))
    counts["capability"] += unmet_needs[False]
    counts["not_attested"] += unmet_needs[True]
    counts["no_seats"] += (factory.seats == 0) + sum(station.seats == 0 for station in wanted)
    counts["engine_unusable"] += sum(not station.usable for station in wanted)
    counts["cooldown"] += sum(station.cooldown is not None for station in wanted)
    counts["engine_limit"] += sum(station.engine in closed for station in wanted)
    counts["station_full"] += sum(0 < station.seats <= station.busy for station in wanted)
    return +counts


def could_run(job: ReadyJob, factory: FactoryView, closed: Iterable[str] = ()) -> bool:
    """Return whether some engine of the factory could take the job as the factory stands."""
    return any(
        not expected_codes(job, changed(factory, stations=(station,)), closed)
        for station in factory.stations
        if station.engine in engines_of(job)
    )


def able(job: ReadyJob, factory: FactoryView, closed: Iterable[str] = ()) -> bool:
    """Return whether nothing but seats keeps the factory from taking the job."""
    roomy = tuple(changed(station, busy=0) for station in factory.stations)
    return could_run(job, changed(factory, busy=0, stations=roomy), closed)


def seats_of(factory: FactoryView) -> int:
    """Return how many jobs of any kind the factory can have at once."""
    return min(factory.seats, sum(station.seats for station in factory.stations if station.usable))


def eligible_seats(job: ReadyJob, snapshot: FleetSnapshot) -> int:
    """Return the seats, free or not, of the factories that can take the job; at least 1."""
    closed = closed_engines(snapshot)
    return max(1, sum(seats_of(factory) for factory in snapshot.factories if able(job, factory, closed)))


def holders(job: ReadyJob, held: Iterable[LockView]) -> set[str]:
    """Return the other jobs that hold what this one needs."""
    names = {*job.implied_locks, job.lock} - {None}
    scope = () if job.shares_scope else job.allowed_scope
    return {
        view.job_id
        for view in held
        if view.job_id != job.job_id
        and (
            view.lock in names
            or (view.repository_url == job.repository_url != "" and overlaps(view.allowed_scope, scope))
        )
    }


def at_limit(snapshot: FleetSnapshot, product_id: str) -> bool:
    """Return whether the product runs as many jobs as it may."""
    views = [view for view in snapshot.products if view.product_id == product_id]
    return any(view.limit is not None and view.running >= view.limit for view in views)


# --- what happens to one ----------------------------------------------------------------------------------------------


def changed(value: Model, **members: object) -> Model:
    """Return a copy with other members."""
    return value.model_copy(update=members)


def occupied(factory: FactoryView, engine: str, seats: int) -> FactoryView:
    """Return the factory with that many more seats of the engine taken; negative frees them."""
    taken = tuple(
        changed(station, busy=station.busy + seats) if station.engine == engine else station
        for station in factory.stations
    )
    return changed(factory, busy=factory.busy + seats, stations=taken)


def after(snapshot: FleetSnapshot, grants: Iterable[PlannedGrant]) -> FleetSnapshot:
    """Return the fleet with some grants carried out, one by one, and the jobs that still wait."""
    fleet = {factory.name: factory for factory in snapshot.factories}
    products = {view.product_id: view for view in snapshot.products}
    held = list(snapshot.locks)
    waiting = {job.job_id: job for job in snapshot.jobs}
    for grant in grants:
        job = waiting.pop(grant.job_id)
        fleet[grant.factory] = occupied(fleet[grant.factory], grant.engine, 1)
        held += [LockView(job_id=job.job_id, lock=name) for name in {*job.implied_locks, job.lock} - {None}]
        if not job.shares_scope:
            held.append(LockView(job_id=job.job_id, repository_url=job.repository_url, allowed_scope=job.allowed_scope))
        if job.product_id in products:
            view = products[job.product_id]
            products[job.product_id] = changed(view, running=view.running + 1)
    return changed(
        snapshot,
        jobs=tuple(waiting.values()),
        factories=tuple(fleet.values()),
        locks=tuple(held),
        products=tuple(products.values()),
    )


def idle(factory: FactoryView) -> FactoryView:
    """Return the factory online, repaired, attested, roomy and without work."""
    repaired = tuple(changed(station, busy=0, usable=True, cooldown=None) for station in factory.stations)
    vouched = attested(factory, factory.unattested)
    return changed(vouched, state="online", busy=0, free_disk_gb=None, free_memory_gb=None, stations=repaired)


def rested(snapshot: FleetSnapshot) -> FleetSnapshot:
    """Return the fleet with every factory idle, nothing held and nothing running."""
    return changed(
        snapshot,
        factories=tuple(idle(factory) for factory in snapshot.factories),
        products=tuple(changed(view, running=0) for view in snapshot.products),
        locks=(),
    )


def attested(factory: FactoryView, claims: tuple[str, ...]) -> FactoryView:
    """Return the factory after somebody vouched for some of its claims."""
    rest = tuple(claim for claim in factory.unattested if claim not in claims)
    return changed(factory, capabilities=(*factory.capabilities, *claims), unattested=rest)


# --- following advice -------------------------------------------------------------------------------------------------


def carry_out(fleet: FleetSnapshot, change: Change) -> FleetSnapshot:
    """Return the fleet with one waiting job after the steps of a change were done by hand."""
    for step in change.steps:
        fleet = do(fleet, step)
    return fleet


def do(fleet: FleetSnapshot, step: Step) -> FleetSnapshot:
    """Return the fleet after one step."""
    if step.kind == "drop_capability":
        (job,) = fleet.jobs
        kept = tuple(text for text in job.capabilities if read_requirement(text).text != step.subject)
        return changed(fleet, jobs=(changed(job, capabilities=kept),))
    if step.kind in {"wait_lock", "wait_scope"}:
        return changed(fleet, locks=tuple(let_go(view, step) for view in fleet.locks))
    if step.kind == "wait_product":
        views = (view if view.product_id != step.subject else below_limit(view) for view in fleet.products)
        return changed(fleet, products=tuple(views))
    if step.kind == "free_engine":
        return with_fewer_jobs_of(fleet, step.engine)
    if step.kind == "enrol":
        new = enrolled(fleet.jobs[0], step)
        others = tuple(retired(factory) if factory.name == new.name else factory for factory in fleet.factories)
        return changed(fleet, factories=(*others, new))
    assert step.factory, f"{step.kind} is about a factory"
    mended = (mend(factory, step) if factory.name == step.factory else factory for factory in fleet.factories)
    return changed(fleet, factories=tuple(mended))


def retired(factory: FactoryView) -> FactoryView:
    """Return a factory whose name another one has now: what it runs goes on, and counts."""
    return changed(factory, name=f"{factory.name}-before", state="offline")


def let_go(view: LockView, step: Step) -> LockView:
    """Return what the job of a wait still holds after it."""
    if view.job_id != step.held_by:
        return view
    if step.kind == "wait_lock":
        return changed(view, lock=None) if view.lock == step.subject else view
    return changed(view, allowed_scope=()) if view.repository_url == step.subject else view


def below_limit(view: ProductView) -> ProductView:
    """Return the product after enough of its jobs ended."""
    assert view.limit is not None
    return changed(view, running=min(view.running, view.limit - 1))


def with_fewer_jobs_of(fleet: FleetSnapshot, engine: str) -> FleetSnapshot:
    """Return the fleet once the engine may have a further job, although no seat of a factory here became free."""
    running = sum(at.busy for factory in fleet.factories for at in factory.stations if at.engine == engine)
    return changed(fleet, limits=changed(fleet.limits, engines=fleet.limits.engines | {engine: running + 1}))


_MENDED: dict[str, dict[str, Any]] = {"repair_engine": {"usable": True}, "wait_cooldown": {"cooldown": None}}
"""What becomes of a station."""


def mend(factory: FactoryView, step: Step) -> FactoryView:
    """Return the factory after a step that is about it."""
    if step.kind == "attest":
        return attested(factory, (step.subject,))
    if step.kind == "free_seat":
        return with_free_seat(factory, step.engine)
    if step.kind == "add_engine":
        return changed(factory, stations=(*factory.stations, StationView(engine=step.engine)))
    if step.kind in _MENDED:
        return with_station(factory, step.engine, **_MENDED[step.kind])
    if step.kind == "add_seats" and step.engine:
        return with_station(factory, step.engine, seats=1 + busy_at(factory, step.engine))
    members: dict[str, dict[str, object]] = {
        "bring_online": {"state": "online"},
        "end_drain": {"state": "online"},
        "end_halt": {"state": "online"},
        "lift_quarantine": {"state": "online"},
        "free_disk": {"free_disk_gb": Decimal(100)},
        "free_memory": {"free_memory_gb": Decimal(100)},
        "add_seats": {"seats": factory.busy + 1},
    }
    return changed(factory, **members[step.kind])


def with_free_seat(factory: FactoryView, engine: str) -> FactoryView:
    """Return the factory after one of its jobs ended; one of that engine, where an engine is named."""
    room = changed(factory, busy=min(factory.busy, factory.seats - 1))
    for station in room.stations:
        if station.engine == engine:
            return with_station(room, engine, busy=min(station.busy, station.seats - 1))
    return room


def busy_at(factory: FactoryView, engine: str) -> int:
    """Return how many jobs run at one station."""
    return next(station.busy for station in factory.stations if station.engine == engine)


def with_station(factory: FactoryView, engine: str, **members: Any) -> FactoryView:
    """Return the factory with other members of one station."""
    taken = tuple(changed(s, **members) if s.engine == engine else s for s in factory.stations)
    return changed(factory, stations=taken)


def enrolled(job: ReadyJob, step: Step) -> FactoryView:
    """Return a factory that offers what the text of an `enrol` step lists."""
    wanted = step.text.removeprefix("enrol a factory with ").split(", ")
    facts = {"node>=19": "node=20.1", "node<20": "node=18.2", "mem-gb>=16": "mem_gb=32"}
    if {"node>=19", "node<20"} <= set(wanted):
        facts |= {"node>=19": "node=19.5", "node<20": "node=19.5"}
    return FactoryView(
        name="f-1" if "factory:f-1" in wanted else "new",
        host=job.host or "",
        capabilities=tuple(facts.get(text, text) for text in wanted[1:]),
        stations=(StationView(engine=step.engine),),
    )
