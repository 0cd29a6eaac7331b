"""What holds for the router whatever the fleet looks like: one property test for each sentence that people rely on.

The judges here are written anew from the rules and share nothing with the router but `unmet` and `overlaps`.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from core.capability import read_requirement, unmet
from core.engine_classes import ENGINE_CLASSES
from core.job import Priority
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
HOSTS = ("h-1", "h-2", "")
SCOPES = ((), ("src/",), ("docs/",), ("**/*.md",), ("src/a/**", "docs/x.md"))
JOBS = tuple(f"j-{number}" for number in range(8))
FLEETS = settings(max_examples=100, deadline=None)


def tuples_of(values: tuple[Any, ...], most: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return a strategy for a few distinct members of `values`; one draw each, since hundreds are needed."""
    return st.sampled_from([chosen for size in range(most + 1) for chosen in combinations(values, size)])


STATIONS = {
    engine: [None]
    + [
        StationView(engine=engine, seats=seats, busy=busy, usable=usable, version=version)
        for seats, busy in ((0, 0), (1, 0), (1, 1), (2, 1), (3, 0), (3, 4))
        for usable, version in ((True, ""), (True, "1.2.3"), (False, "1.2.3"))
    ]
    for engine in ENGINES
}


@st.composite
def factories(draw: st.DrawFn, name: str) -> FactoryView:
    """Return a factory in some state."""
    seats, busy = draw(st.sampled_from(((0, 0), (1, 0), (1, 1), (2, 1), (3, 0), (4, 2), (4, 5))))
    return FactoryView(
        name=name,
        host=draw(st.sampled_from(HOSTS)),
        state=draw(st.sampled_from(("online", "online", "online", "offline", "draining", "quarantined"))),
        capabilities=draw(tuples_of(FACTS, 6)),
        stations=tuple(s for engine in ENGINES if (s := draw(st.sampled_from(STATIONS[engine])))),
        seats=seats,
        busy=busy,
        warm_repositories=draw(tuples_of(("r", "s"), 2)),
        load=draw(st.sampled_from((Decimal(0), Decimal("0.33"), Decimal(2)))),
        cost_class=draw(st.integers(0, 12)),
        health=draw(st.sampled_from((Decimal(1), Decimal("0.7"), Decimal(0)))),
        free_disk_gb=draw(st.sampled_from((None, None, Decimal("0.5"), Decimal(1), Decimal(50)))),
    )


@st.composite
def jobs(draw: st.DrawFn, job_id: str) -> ReadyJob:
    """Return a job that wants something."""
    return ReadyJob(
        job_id=job_id,
        product_id=draw(st.sampled_from(("p", "q"))),
        priority=draw(st.sampled_from(Priority)),
        submitted_at=NOW + timedelta(seconds=draw(st.integers(0, 3))),
        capabilities=draw(tuples_of(NEEDS, 3)),
        prefers=draw(tuples_of(NEEDS, 2)),
        engine=draw(st.sampled_from((None, None, "claude", "shell", "codex", "nowhere"))),
        engine_class=draw(st.sampled_from(("agentic-coder", "script", "demo", None))),
        engine_preference=draw(tuples_of(("codex", "claude", "shell"), 2)),
        lock=draw(st.sampled_from((None, None, "l", "m"))),
        implied_locks=draw(tuples_of(("l", "d"), 1)),
        allowed_scope=draw(st.sampled_from(SCOPES)),
        repository_url=draw(st.sampled_from(("r", "s", ""))),
        host=draw(st.sampled_from((None, None, None, "h-1", "h-9"))),
        excluded_factories=draw(tuples_of(NAMES, 2)),
        overtaken=draw(st.integers(0, 25)),
        last_factory=draw(st.sampled_from((None, *NAMES))),
    )


@st.composite
def locks(draw: st.DrawFn) -> LockView:
    """Return what some job holds, a waiting one included."""
    return LockView(
        job_id=draw(st.sampled_from((*JOBS[:2], "x-1", "x-2"))),
        lock=draw(st.sampled_from((None, "l", "m"))),
        repository_url=draw(st.sampled_from(("r", "s"))),
        allowed_scope=draw(st.sampled_from(SCOPES)),
    )


@st.composite
def snapshots(draw: st.DrawFn, most_jobs: int = len(JOBS)) -> FleetSnapshot:
    """Return a small fleet in which everything collides with everything."""
    names = draw(tuples_of(NAMES, len(NAMES)))
    ids = draw(tuples_of(JOBS[:most_jobs], most_jobs))
    return FleetSnapshot(
        jobs=tuple(draw(jobs(job_id)) for job_id in ids),
        factories=tuple(draw(factories(name)) for name in names),
        locks=tuple(draw(st.lists(locks(), max_size=3))),
        products=draw(st.sampled_from(((), (ProductView(product_id="p", running=2, share=3),)))),
        now=NOW,
        seed=draw(st.integers(0, 3)),
    )


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
        held.append(
            LockView(job_id=job.job_id, repository_url=job.repository_url, allowed_scope=job.allowed_scope)
        )
    return changed(snapshot, jobs=tuple(waiting.values()), factories=tuple(fleet.values()), locks=tuple(held))


def changed(value: Any, **members: Any) -> Any:
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
    """Nobody behind the first of the most urgent jobs changes what it gets."""
    bound = snapshot.limits.starvation_bound
    urgent = min((job.priority.rank for job in snapshot.jobs), default=0)
    starved = [job for job in snapshot.jobs if job.priority.rank == urgent and job.overtaken >= bound]
    if not starved:
        return
    first = min(starved, key=lambda job: (job.submitted_at, job.job_id))
    alone = plan(changed(snapshot, jobs=(first,)))

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
    if step.kind == "wait_lock":
        return changed(fleet, locks=tuple(view for view in fleet.locks if view.lock != step.subject))
    if step.kind == "wait_scope":
        return changed(fleet, locks=tuple(view for view in fleet.locks if view.job_id != step.subject))
    if step.kind == "enrol":
        return changed(fleet, factories=(*fleet.factories, enrolled(fleet.jobs[0], step)))
    assert step.factory, f"{step.kind} is about a factory"
    others = tuple(factory for factory in fleet.factories if factory.name != step.factory)
    (concerned,) = (factory for factory in fleet.factories if factory.name == step.factory)
    return changed(fleet, factories=(*others, mended(concerned, step)))


def mended(factory: FactoryView, step: Step) -> FactoryView:
    """Return the factory after a step that is about it."""
    match step.kind:
        case "bring_online" | "end_drain" | "lift_quarantine":
            return changed(factory, state="online")
        case "free_disk":
            return changed(factory, free_disk_gb=Decimal(100))
        case "repair_engine":
            return with_station(factory, step.engine, usable=True)
        case "add_engine":
            return changed(factory, stations=(*factory.stations, StationView(engine=step.engine)))
        case "add_seats" if step.engine:
            return with_station(factory, step.engine, seats=1, busy=0)
        case "add_seats":
            return changed(factory, seats=1, busy=0)
    assert step.kind == "free_seat"
    room = changed(factory, busy=min(factory.busy, factory.seats - 1))
    (station,) = (s for s in room.stations if s.engine == step.engine) if step.engine else (None,)
    return with_station(room, step.engine, busy=min(station.busy, station.seats - 1)) if station else room


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


@pytest.mark.req("R5", "R9")
@settings(FLEETS, max_examples=200)
@given(snapshots(most_jobs=3))
def test_explain_suggested_change_really_places_the_job(snapshot: FleetSnapshot) -> None:
    """Whoever does what the explanation says, sees the job run; a change that asks for nothing is never suggested."""
    decided = plan(snapshot)
    then = after(snapshot, decided)

    for job in then.jobs:
        explanation = decided.explain(job.job_id)
        alone = changed(then, jobs=(job,))
        for change in (explanation.change, explanation.alternative):
            if change is None or any(step.kind == "name_engine" for step in change.steps):
                continue
            event(" + ".join(step.kind for step in change.steps))
            if any(step.kind == "enrol" and "factory:f-1" in step.text for step in change.steps):
                alone = changed(alone, factories=tuple(f for f in alone.factories if f.name != "f-1"))
            assert change.steps
            assert [grant.job_id for grant in plan(carry_out(alone, change)).grants] == [job.job_id]
