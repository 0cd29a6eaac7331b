"""What holds for the router whatever the fleet looks like: one property test for each sentence that people rely on.

The judges here are written anew from the rules and share nothing with the router but `unmet` and `overlaps`.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from core.capability import read_requirement, unmet
from core.engine_classes import ENGINE_CLASSES
from core.job import Message, Priority
from core.router import (
    Change,
    Explanation,
    FactoryView,
    FleetSnapshot,
    LockView,
    Plan,
    ProductView,
    ReadyJob,
    StationView,
    Step,
    plan,
)
from core.scope import overlaps

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = ("os:linux", "os:macos", "node=18.2", "node=20.1", "has:docker", "gpu", "mem_gb=8", "mem_gb=32")
NEEDS = ("os:any", "os:linux", "os:macos", "node>=19", "node<20", "has:docker", "gpu", "mem-gb>=16", "factory:f-1")
ENGINES = ("claude", "codex", "shell")
NAMES = ("f-1", "f-2", "f-3", "f-4")
Model = TypeVar("Model", bound=Message)
COMPLETE = ("os:linux", "node=20.1", "has:docker", "gpu", "mem_gb=32")
HOSTS = ("h-1", "h-2", "")
SCOPES = ((), ("src/",), ("docs/",), ("**/*.md",), ("src/a/**", "docs/x.md"))
JOBS = tuple(f"j-{number}" for number in range(8))
FLEETS = settings(max_examples=250, deadline=None)


class Dice(Random):
    """Random choices for one fleet. Hypothesis draws only the seed: its own draws are too uneven to fill a fleet."""

    def some(self, values: tuple[Any, ...], most: int) -> tuple[Any, ...]:
        """Return up to `most` distinct members of `values`."""
        return tuple(self.sample(values, self.randint(0, most)))

    def mostly(self, usual: Any, *rare: Any, percent: int = 70) -> Any:
        """Return `usual` in that many percent of all cases: where everything is broken, nothing is shown."""
        return usual if self.randrange(100) < percent else self.choice(rare)


def any_factory(dice: Dice, name: str) -> FactoryView:
    """Return a factory in some state."""
    seats = dice.mostly(dice.choice((1, 1, 2, 3, 5)), 0, percent=90)
    stations = dice.mostly(3, 0, 1, 2, percent=75)
    return FactoryView(
        name=name,
        host=dice.choice(HOSTS),
        state=dice.mostly("online", "offline", "draining", "quarantined", percent=80),
        capabilities=dice.mostly(COMPLETE, (), dice.some(FACTS, 6), percent=65),
        stations=tuple(any_station(dice, engine) for engine in dice.sample(ENGINES, stations)),
        seats=seats,
        busy=dice.mostly(0, dice.randint(0, seats + 1)),
        warm_repositories=dice.some(("r", "s"), 2),
        load=dice.choice((Decimal(0), Decimal("0.33"), Decimal(2))),
        cost_class=dice.randint(0, 12),
        health=dice.choice((Decimal(1), Decimal("0.7"), Decimal(0))),
        free_disk_gb=dice.mostly(None, Decimal("0.5"), Decimal(1), Decimal(50)),
    )


def any_station(dice: Dice, engine: str) -> StationView:
    """Return a station in some state."""
    seats = dice.mostly(dice.randint(1, 3), 0, percent=90)
    busy = dice.mostly(0, dice.randint(0, seats + 1), percent=60)
    usable = dice.mostly(True, False, percent=80)
    return StationView(engine=engine, seats=seats, busy=busy, usable=usable, version=dice.choice(("", "1.2.3")))


def any_job(dice: Dice, job_id: str) -> ReadyJob:
    """Return a job that wants something."""
    return ReadyJob(
        job_id=job_id,
        product_id=dice.choice(("p", "q")),
        priority=dice.choice(tuple(Priority)),
        submitted_at=NOW + timedelta(seconds=dice.randint(0, 3)),
        capabilities=dice.mostly((), dice.some(NEEDS, 3), percent=50),
        prefers=dice.some(NEEDS, 2),
        engine=dice.mostly(None, "claude", "shell", "codex", "nowhere", percent=80),
        engine_class=dice.mostly("agentic-coder", "script", "demo", None, percent=85),
        engine_preference=dice.some(ENGINES, 2),
        lock=dice.mostly(None, "l", "m"),
        implied_locks=dice.mostly((), ("l",), ("d",), ("d", "m"), percent=85),
        allowed_scope=dice.mostly((), *SCOPES, percent=50),
        repository_url=dice.choice(("r", "s", "")),
        host=dice.mostly(None, "h-1", "h-9", percent=85),
        excluded_factories=dice.mostly((), dice.some(NAMES, 2)),
        overtaken=dice.randint(0, 25),
        last_factory=dice.choice((None, *NAMES)),
    )


def any_lock(dice: Dice) -> LockView:
    """Return what some job holds, a waiting one included."""
    return LockView(
        job_id=dice.choice((*JOBS[:2], "x-1", "x-2")),
        lock=dice.choice((None, "l", "m")),
        repository_url=dice.choice(("r", "s")),
        allowed_scope=dice.choice(SCOPES),
    )


def any_fleet(seed: int, most_jobs: int) -> FleetSnapshot:
    """Return a small fleet in which everything collides with everything."""
    dice = Dice(seed)
    size = dice.mostly(dice.randint(2, 4), 0, 1, percent=85)
    return FleetSnapshot(
        jobs=tuple(any_job(dice, job_id) for job_id in dice.sample(JOBS, dice.randint(1, most_jobs))),
        factories=tuple(any_factory(dice, name) for name in dice.sample(NAMES, size)),
        locks=tuple(any_lock(dice) for _ in range(dice.mostly(0, 1, 2, 3, percent=40))),
        products=dice.choice(((), (ProductView(product_id="p", running=2, share=3),))),
        now=NOW,
        seed=dice.randint(0, 3),
    )


def snapshots(most_jobs: int = len(JOBS)) -> st.SearchStrategy[FleetSnapshot]:
    """Return a strategy for fleets."""
    return st.integers(0, 2**48).map(lambda seed: any_fleet(seed, most_jobs))


def test_snapshots_of_these_tests_are_worth_planning() -> None:
    """The generated fleets grant, refuse and block often enough for the other tests to mean something."""
    seen: Counter[str] = Counter()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(snapshots())
    def look(snapshot: FleetSnapshot) -> None:
        decided = plan(snapshot)
        explanations = [decided.explain(job.job_id) for job in snapshot.jobs]
        seen.update({"fleets": 1, "several grants": len(decided.grants) > 1})
        seen.update({explanation.verdict for explanation in explanations})
        seen["blocked"] += any(explanation.blockers for explanation in explanations)
        seen["choice"] += any(
            sum(len(report.options) for report in explanation.reports) > 1
            for explanation in explanations
            if explanation.verdict == "granted"
        )

    look()

    for what in ("granted", "several grants", "choice", "not_now", "never", "blocked"):
        assert seen[what] >= seen["fleets"] * 0.25, f"{what}: {seen}"


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


def expected_codes(job: ReadyJob, factory: FactoryView) -> Counter[str]:
    """Return how often each reason must appear for that factory."""
    wanted = [station for station in factory.stations if station.engine in engines_of(job)]
    reasons = {
        factory.state: factory.state != "online",
        "pinned": job.host is not None and job.host != factory.host,
        "engine": not wanted,
        "disk": factory.free_disk_gb is not None and factory.free_disk_gb < 1,
        "factory_full": 0 < factory.seats <= factory.busy,
    }
    counts = Counter(code for code, applies in reasons.items() if applies)
    counts["capability"] += len(missing(job, factory))
    counts["no_seats"] += (factory.seats == 0) + sum(station.seats == 0 for station in wanted)
    counts["engine_unusable"] += sum(not station.usable for station in wanted)
    counts["station_full"] += sum(0 < station.seats <= station.busy for station in wanted)
    return +counts


def holders(job: ReadyJob, held: tuple[LockView, ...]) -> set[str]:
    """Return the other jobs that hold what this one needs."""
    names = {*job.implied_locks, job.lock} - {None}
    return {
        view.job_id
        for view in held
        if view.job_id != job.job_id
        and (
            view.lock in names
            or (view.repository_url == job.repository_url != "" and overlaps(view.allowed_scope, job.allowed_scope))
        )
    }


def after(snapshot: FleetSnapshot, decided: Plan) -> FleetSnapshot:
    """Return the fleet with the grants of the plan carried out, one by one, and the jobs that still wait."""
    fleet = {factory.name: factory for factory in snapshot.factories}
    held = list(snapshot.locks)
    waiting = {job.job_id: job for job in snapshot.jobs}
    for grant in decided.grants:
        job = waiting.pop(grant.job_id)
        fleet[grant.factory] = occupied(fleet[grant.factory], grant.engine, 1)
        held += [LockView(job_id=job.job_id, lock=name) for name in {*job.implied_locks, job.lock} - {None}]
        held.append(LockView(job_id=job.job_id, repository_url=job.repository_url, allowed_scope=job.allowed_scope))
    return changed(snapshot, jobs=tuple(waiting.values()), factories=tuple(fleet.values()), locks=tuple(held))


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


def idle(factory: FactoryView) -> FactoryView:
    """Return the factory online, repaired, roomy and without work."""
    repaired = tuple(changed(station, busy=0, usable=True) for station in factory.stations)
    return changed(factory, state="online", busy=0, free_disk_gb=None, stations=repaired)


# --- safety -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("R2", "R7", "R9")
@FLEETS
@given(snapshots())
def test_plan_any_fleet_every_grant_keeps_every_rule(snapshot: FleetSnapshot) -> None:
    """Carried out one by one, no grant takes a seat that is not free, a lock that is held, or an unfit factory."""
    known = {job.job_id: job for job in snapshot.jobs}
    fleet = {factory.name: factory for factory in snapshot.factories}
    decided = plan(snapshot)
    event(f"{len(decided.grants)} grants")

    for count, grant in enumerate(decided.grants):
        job = known[grant.job_id]
        so_far = after(snapshot, Plan(snapshot, decided.grants[:count]))
        factory = next(f for f in so_far.factories if f.name == grant.factory)
        station = next(s for s in factory.stations if s.engine == grant.engine)
        assert factory.state == "online"
        assert factory.busy < factory.seats
        assert station.usable
        assert station.busy < station.seats
        assert grant.engine in engines_of(job)
        assert not missing(job, factory)
        assert job.host in {None, fleet[grant.factory].host}
        assert factory.free_disk_gb is None or factory.free_disk_gb >= 1
        assert not holders(job, so_far.locks)
    assert len({grant.job_id for grant in decided.grants}) == len(decided.grants)


@pytest.mark.req("R8", "R9")
@FLEETS
@given(snapshots())
def test_plan_any_fleet_leaves_no_seat_unused_that_a_job_could_take(snapshot: FleetSnapshot) -> None:
    """Planning again after the grants were carried out grants nothing more."""
    assert plan(after(snapshot, plan(snapshot))).grants == ()


@pytest.mark.req("R4", "R9")
@FLEETS
@given(snapshots())
def test_plan_first_in_line_is_treated_as_if_it_were_alone(snapshot: FleetSnapshot) -> None:
    """Priority, starvation, fair share and age say who is first; nobody behind it changes what it gets."""
    used = {view.product_id: Fraction(view.running, view.share) for view in snapshot.products}

    def turn(job: ReadyJob) -> tuple[Any, ...]:
        if job.overtaken >= snapshot.limits.starvation_bound:
            return job.priority.rank, 0, 0, job.submitted_at, job.job_id
        return job.priority.rank, 1, used.get(job.product_id, 0), job.submitted_at, job.job_id

    alone = plan(changed(snapshot, jobs=(min(snapshot.jobs, key=turn),)))

    assert plan(snapshot).grants[: len(alone.grants)] == alone.grants


@pytest.mark.req("R2", "R9")
@FLEETS
@given(snapshots(most_jobs=1))
def test_plan_avoided_factory_is_used_only_when_no_other_can(snapshot: FleetSnapshot) -> None:
    """A job returns to a factory that lost it only if every other one rejects it."""
    for grant in plan(snapshot).grants:
        job = snapshot.jobs[0]
        if grant.factory in job.excluded_factories:
            rest = tuple(f for f in snapshot.factories if f.name not in job.excluded_factories)
            assert plan(changed(snapshot, factories=rest)).grants == ()


# --- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.req("R1", "R9")
@FLEETS
@given(snapshots(), st.randoms(use_true_random=False))
def test_plan_shuffled_input_gives_the_same_bytes(snapshot: FleetSnapshot, random: Any) -> None:
    """Neither a second run nor another order of anything that has no order changes one byte."""

    def shuffled(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(random.sample(values, len(values)))

    other = changed(
        snapshot,
        jobs=tuple(
            changed(job, capabilities=shuffled(job.capabilities), excluded_factories=shuffled(job.excluded_factories))
            for job in shuffled(snapshot.jobs)
        ),
        factories=tuple(
            changed(factory, capabilities=shuffled(factory.capabilities), stations=shuffled(factory.stations))
            for factory in shuffled(snapshot.factories)
        ),
        locks=shuffled(snapshot.locks),
    )
    text = plan(snapshot).as_json()

    assert plan(snapshot).as_json() == text
    assert plan(FleetSnapshot.model_validate_json(snapshot.model_dump_json())).as_json() == text
    assert plan(other).as_json() == text


@pytest.mark.req("R5")
@FLEETS
@given(snapshots(), st.randoms(use_true_random=False))
def test_plan_explanations_do_not_depend_on_the_order_of_asking(snapshot: FleetSnapshot, random: Any) -> None:
    """Explanations are made on demand, and say the same whatever was asked before."""
    decided = plan(snapshot)
    asked = random.sample(snapshot.jobs, len(snapshot.jobs))

    for job in asked:
        assert decided.explain(job.job_id) == plan(snapshot).explain(job.job_id)


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.req("R5", "R9")
@FLEETS
@given(snapshots())
def test_explain_waiting_job_has_every_reason_of_every_factory(snapshot: FleetSnapshot) -> None:
    """One report for each factory with exactly the reasons that apply, all holders, and a place in the line."""
    decided = plan(snapshot)
    then = after(snapshot, decided)

    for job in then.jobs:
        explanation = decided.explain(job.job_id)
        assert [report.factory for report in explanation.reports] == sorted(f.name for f in then.factories)
        for factory in then.factories:
            report = next(r for r in explanation.reports if r.factory == factory.name)
            assert Counter(r.code for r in report.rejections) == expected_codes(job, factory)
            assert bool(report.options) <= bool(explanation.blockers)
            assert report.avoided == (factory.name in job.excluded_factories)
        assert {blocker.held_by for blocker in explanation.blockers} == holders(job, then.locks)
        assert explanation.change is not None
    assert sorted(park.explanation.position for park in decided.parks) == list(range(1, len(then.jobs) + 1))
    assert {park.job_id for park in decided.parks} == {job.job_id for job in then.jobs}


@pytest.mark.req("R3", "R5", "R9")
@FLEETS
@given(snapshots())
def test_explain_granted_job_was_the_best_of_its_score_table(snapshot: FleetSnapshot) -> None:
    """The place that was granted has the highest score of the table, unless better ones are avoided."""
    decided = plan(snapshot)

    for grant in decided.grants:
        explanation = decided.explain(grant.job_id)
        assert (explanation.verdict, explanation.factory, explanation.engine) == (
            "granted",
            grant.factory,
            grant.engine,
        )
        table = {
            (report.avoided, report.factory, option.engine): option.score
            for report in explanation.reports
            for option in report.options
        }
        avoided = next(report.avoided for report in explanation.reports if report.factory == grant.factory)
        assert table[avoided, grant.factory, grant.engine] == grant.score
        assert (avoided, -grant.score.total) == min((key[0], -score.total) for key, score in table.items())
        assert grant.score.total == sum(part.value * part.weight for part in grant.scores)


@pytest.mark.req("R5")
@FLEETS
@given(snapshots())
def test_explain_any_job_survives_storing_and_renders(snapshot: FleetSnapshot) -> None:
    """The compact form is read back unchanged, and every factory has a line for people."""
    decided = plan(snapshot)

    for job in snapshot.jobs:
        explanation = decided.explain(job.job_id)
        assert Explanation.model_validate_json(explanation.compact_json()) == explanation
        text = "\n".join(explanation.render())
        assert all(f"{factory.name}: " in text for factory in snapshot.factories)
        json.loads(decided.as_json())


@pytest.mark.req("R4", "R5")
@FLEETS
@given(snapshots())
def test_explain_positions_follow_priority_and_starvation(snapshot: FleetSnapshot) -> None:
    """The line is sorted by priority, and within it those past their bound come first."""
    known = {job.job_id: job for job in snapshot.jobs}
    bound = snapshot.limits.starvation_bound
    line = [known[park.job_id] for park in plan(snapshot).parks]
    keys = [(job.priority.rank, job.overtaken < bound) for job in line]

    assert all(before <= behind for before, behind in pairwise(keys))


@pytest.mark.req("R5", "R9")
@FLEETS
@given(snapshots())
def test_explain_verdict_never_means_not_even_on_an_idle_fleet(snapshot: FleetSnapshot) -> None:
    """`never` and `not_now` are told apart by what an idle, repaired copy of the fleet does with the job alone."""
    decided = plan(snapshot)
    rested = changed(snapshot, factories=tuple(idle(factory) for factory in snapshot.factories), locks=())

    for job in after(snapshot, decided).jobs:
        verdict = decided.explain(job.job_id).verdict
        placed = plan(changed(rested, jobs=(job,))).grants
        event(verdict)
        assert bool(placed) == (verdict == "not_now")


# --- advice -----------------------------------------------------------------------------------------------------------


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
    if step.kind == "enrol":
        new = enrolled(fleet.jobs[0], step)
        others = tuple(factory for factory in fleet.factories if factory.name != new.name)
        return changed(fleet, factories=(*others, new))
    assert step.factory, f"{step.kind} is about a factory"
    mended = (mend(factory, step) if factory.name == step.factory else factory for factory in fleet.factories)
    return changed(fleet, factories=tuple(mended))


def let_go(view: LockView, step: Step) -> LockView:
    """Return what the job of a wait still holds after it."""
    if view.job_id != step.held_by:
        return view
    if step.kind == "wait_lock":
        return changed(view, lock=None) if view.lock == step.subject else view
    return changed(view, allowed_scope=()) if view.repository_url == step.subject else view


def mend(factory: FactoryView, step: Step) -> FactoryView:
    """Return the factory after a step that is about it."""
    if step.kind == "free_seat":
        return with_free_seat(factory, step.engine)
    if step.kind == "add_engine":
        return changed(factory, stations=(*factory.stations, StationView(engine=step.engine)))
    if step.kind == "repair_engine":
        return with_station(factory, step.engine, usable=True)
    if step.kind == "add_seats" and step.engine:
        return with_station(factory, step.engine, seats=1, busy=0)
    members: dict[str, dict[str, object]] = {
        "bring_online": {"state": "online"},
        "end_drain": {"state": "online"},
        "lift_quarantine": {"state": "online"},
        "free_disk": {"free_disk_gb": Decimal(100)},
        "add_seats": {"seats": 1, "busy": 0},
    }
    return changed(factory, **members[step.kind])


def with_free_seat(factory: FactoryView, engine: str) -> FactoryView:
    """Return the factory after one of its jobs ended; one of that engine, where an engine is named."""
    room = changed(factory, busy=min(factory.busy, factory.seats - 1))
    for station in room.stations:
        if station.engine == engine:
            return with_station(room, engine, busy=min(station.busy, station.seats - 1))
    return room


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


def waiting_alone(snapshot: FleetSnapshot) -> list[tuple[Explanation, FleetSnapshot]]:
    """Return each waiting job's explanation, with the fleet after the plan in which it waits alone."""
    decided = plan(snapshot)
    then = after(snapshot, decided)
    return [(decided.explain(job.job_id), changed(then, jobs=(job,))) for job in then.jobs if engines_of(job)]


@pytest.mark.req("R5", "R9")
@settings(FLEETS, max_examples=1000)
@given(snapshots(most_jobs=3))
def test_explain_suggested_change_really_places_the_job(snapshot: FleetSnapshot) -> None:
    """Whoever does what the explanation says sees the job run; the alternative works as well."""
    for explanation, alone in waiting_alone(snapshot):
        for change in filter(None, (explanation.change, explanation.alternative)):
            event(" + ".join(step.kind for step in change.steps))
            assert change.steps
            placed = plan(carry_out(alone, change)).grants
            assert [grant.job_id for grant in placed] == [explanation.job_id]


@pytest.mark.req("R5", "R9")
@settings(FLEETS, max_examples=500)
@given(snapshots(most_jobs=3))
def test_explain_suggested_change_has_no_needless_step(snapshot: FleetSnapshot) -> None:
    """Leaving out any one step leaves the job waiting."""
    for explanation, alone in waiting_alone(snapshot):
        assert explanation.change is not None
        steps = explanation.change.steps
        for left_out in range(len(steps)):
            fewer = Change(steps=(*steps[:left_out], *steps[left_out + 1 :]))
            assert plan(carry_out(alone, fewer)).grants == ()
