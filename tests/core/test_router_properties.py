"""What holds for the router whatever the fleet looks like: one property test for each sentence that people rely on.

The judges (`random_fleets`) are written anew from the rules.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from core.job import Priority
from core.router import (
    Change,
    ClassGrounds,
    Decision,
    Explanation,
    FleetGrounds,
    FleetSnapshot,
    Limits,
    PlannedGrant,
    ReadyJob,
    RouterCache,
    Turns,
    explanation_of,
    plan,
)
from core.router_shares import SCALE
from tests.core.random_fleets import (
    JOBS,
    able,
    after,
    any_crowd,
    any_fleet,
    at_limit,
    carry_out,
    changed,
    closed_engines,
    eligible_seats,
    engines_of,
    expected_codes,
    holders,
    missing,
    rested,
)

FLEETS = settings(max_examples=250)


def snapshots(most_jobs: int = len(JOBS)) -> st.SearchStrategy[FleetSnapshot]:
    """Return a strategy for fleets."""
    return st.integers(0, 2**48).map(lambda seed: any_fleet(seed, most_jobs))


def test_snapshots_of_these_tests_are_worth_planning() -> None:
    """The generated fleets grant, refuse and block often enough for the other tests to mean something."""
    seen: Counter[str] = Counter()

    @settings(max_examples=200, derandomize=True, database=None)
    @given(snapshots())
    def look(snapshot: FleetSnapshot) -> None:
        decided = plan(snapshot)
        explanations = [decided.explain(job.job_id) for job in snapshot.jobs]
        seen.update({"fleets": 1, "several grants": len(decided.grants) > 1})
        seen.update({explanation.verdict for explanation in explanations})
        seen["blocked"] += any(explanation.blockers for explanation in explanations)
        seen["choice"] += any(len(item.options) > 1 for item in explanations if item.verdict == "granted")
        seen["rare: starved"] += any(not grant.fair for grant in decided.grants)
        seen["rare: limited"] += any(b.kind == "product" for item in explanations for b in item.blockers)

    look()

    for what in ("granted", "several grants", "choice", "not_now", "never", "blocked"):
        assert seen[what] >= seen["fleets"] * 0.25, f"{what}: {seen}"
    for what in ("rare: starved", "rare: limited"):
        assert seen[what] >= seen["fleets"] * 0.04, f"{what}: {seen}"


# --- safety -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("R2", "R7", "R9")
@FLEETS
@given(snapshots())
def test_plan_any_fleet_every_grant_keeps_every_rule(snapshot: FleetSnapshot) -> None:
    """Carried out one by one, no grant takes a seat that is not free, a lock that is held, or an unfit factory."""
    known = {job.job_id: job for job in snapshot.jobs}
    hosts = {factory.name: factory.host for factory in snapshot.factories}
    decided = plan(snapshot)
    event(f"{len(decided.grants)} grants")

    for count, grant in enumerate(decided.grants):
        job = known[grant.job_id]
        so_far = after(snapshot, decided.grants[:count])
        factory = next(f for f in so_far.factories if f.name == grant.factory)
        station = next(s for s in factory.stations if s.engine == grant.engine)
        assert factory.state == "online"
        assert factory.busy < factory.seats
        assert station.usable
        assert station.busy < station.seats
        assert grant.engine in engines_of(job)
        assert grant.engine not in closed_engines(so_far)
        assert not missing(job, factory)
        assert job.host in {None, hosts[grant.factory]}
        assert factory.free_disk_gb is None or factory.free_disk_gb >= snapshot.limits.disk_floor_gb
        assert factory.free_memory_gb is None or factory.free_memory_gb >= snapshot.limits.memory_floor_gb
        assert not holders(job, so_far.locks)
        assert not at_limit(so_far, job.product_id)
    assert len({grant.job_id for grant in decided.grants}) == len(decided.grants)


@pytest.mark.req("R8", "R9")
@FLEETS
@given(snapshots())
def test_plan_any_fleet_leaves_no_seat_unused_that_a_job_could_take(snapshot: FleetSnapshot) -> None:
    """Planning again after the grants were carried out grants nothing more."""
    assert plan(after(snapshot, plan(snapshot).grants)).grants == ()


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


# --- order ------------------------------------------------------------------------------------------------------------


def one_by_one(snapshot: FleetSnapshot) -> list[PlannedGrant]:
    """Return the grants of the plainest reading of the rules: each job in its turn, as if it were alone.

    Levels are fractions here, and nothing is kept from one job to the next but what grants take.
    """
    granted: list[PlannedGrant] = []
    state = snapshot
    for priority in Priority:
        waiting = sorted(
            (job for job in snapshot.jobs if job.priority == priority), key=lambda job: (job.submitted_at, job.job_id)
        )
        starved = [job for job in waiting if is_starved(job, snapshot)]
        levels = {job.product_id: level_at_first(snapshot, waiting, priority, job.product_id) for job in waiting}
        while waiting:
            turn = starved.pop(0) if starved else next_of(waiting, levels)
            waiting.remove(turn)
            alone = plan(changed(state, jobs=(turn,))).grants
            if alone:
                state = after(changed(state, jobs=(turn,)), alone)
                granted += alone
                levels[turn.product_id] += Fraction(1, share_of(snapshot, turn.product_id))
    return granted


def is_starved(job: ReadyJob, snapshot: FleetSnapshot) -> bool:
    """Return whether one more turn of all seats that the job could use may break the bound."""
    seats = eligible_seats(job, snapshot)
    return job.overtaken + seats > snapshot.limits.starvation_bound * seats


def next_of(waiting: list[ReadyJob], levels: dict[str, Fraction]) -> ReadyJob:
    """Return the oldest job of the product that had least."""
    heads = {job.product_id: job for job in reversed(waiting)}.values()
    return min(heads, key=lambda job: (levels[job.product_id], job.submitted_at, job.job_id))


def share_of(snapshot: FleetSnapshot, product_id: str) -> int:
    """Return the share of a product."""
    return next((view.share for view in snapshot.products if view.product_id == product_id), 1)


def level_at_first(snapshot: FleetSnapshot, waiting: list[ReadyJob], priority: Priority, product_id: str) -> Fraction:
    """Return what a product had before: as remembered, or what it runs; and no less than a newcomer."""
    running = next((view.running for view in snapshot.products if view.product_id == product_id), 0)
    seed = Fraction(running, share_of(snapshot, product_id))
    remembered = snapshot.turns.levels.get(priority, {}).get(product_id)
    own = seed if remembered is None else Fraction(remembered, SCALE)
    oldest = next(job for job in waiting if job.product_id == product_id)
    fleet = {factory.name: factory for factory in snapshot.factories}
    closed = closed_engines(snapshot)
    for name, level in snapshot.turns.latest.get(priority, ()):
        if name in fleet and able(oldest, fleet[name], closed):
            return max(own, Fraction(level, SCALE))
    return own


@pytest.mark.req("R4", "R9")
@settings(FLEETS, max_examples=500)
@given(snapshots())
def test_plan_grants_what_the_rules_say_one_by_one(snapshot: FleetSnapshot) -> None:
    """Lines, lanes, tables and caches change nothing: priority, starvation, fair share and age decide, job by job."""

    def said(grants: tuple[PlannedGrant, ...] | list[PlannedGrant]) -> list[tuple[Any, ...]]:
        return [(grant.job_id, grant.factory, grant.engine, grant.score) for grant in grants]

    assert said(plan(snapshot).grants) == said(one_by_one(snapshot))


@pytest.mark.req("R4", "R5")
@FLEETS
@given(snapshots())
def test_plan_line_is_the_order_in_which_seats_would_be_given(snapshot: FleetSnapshot) -> None:
    """The place in the line of a job is its turn, by the same rules, among those that wait."""
    decided = plan(snapshot)
    known = {job.job_id: job for job in snapshot.jobs}
    bound = snapshot.limits.starvation_bound
    line = [known[job_id] for job_id in decided.waiting]
    keys = [(job.priority.rank, not (job.overtaken >= bound and is_starved(job, snapshot))) for job in line]

    assert all(before <= behind for before, behind in pairwise(keys))
    assert {job.job_id for job in line} == set(known) - {grant.job_id for grant in decided.grants}
    for before, behind in pairwise(line):
        if (before.priority, before.product_id) == (behind.priority, behind.product_id):
            starved = [job.overtaken >= bound and is_starved(job, snapshot) for job in (before, behind)]
            ages = [(job.submitted_at, job.job_id) for job in (before, behind)]
            assert starved == [True, False] or ages[0] < ages[1]


# --- who was passed over ----------------------------------------------------------------------------------------------


@pytest.mark.req("R4", "R9")
@FLEETS
@given(snapshots() | st.integers(0, 2**48).map(any_crowd))
def test_plan_counts_as_overtaken_only_who_was(snapshot: FleetSnapshot) -> None:
    """Counted are jobs that wait for seats and nothing else, once for each of their seats that a later equal got."""
    decided = plan(snapshot)
    then = after(snapshot, decided.grants)
    known = {job.job_id: job for job in snapshot.jobs}
    counts = Counter[str]()
    for number, grant in enumerate(decided.grants):
        got, before = known[grant.job_id], after(snapshot, decided.grants[:number])
        factory = next(factory for factory in before.factories if factory.name == grant.factory)
        closed = closed_engines(then)
        counts.update(
            job.job_id
            for job in then.jobs
            if job.priority == got.priority
            and (job.submitted_at, job.job_id) < (got.submitted_at, got.job_id)
            and not expected_codes(job, changed(factory, stations=best_station(job, factory, closed)), closed)
            and not holders(job, then.locks)
            and not at_limit(then, job.product_id)
        )
    event(f"{len(decided.overtaken)} overtaken")

    assert all(decided.overtaken[job_id] == counts[job_id] for job_id in decided.overtaken)
    for job_id in counts.keys() - decided.overtaken.keys():
        assert any(
            alike(known[job_id], known[other]) and decided.overtaken[other] >= counts[job_id]
            for other in decided.overtaken
        ), "an older job of the same line was counted instead"


def best_station(job: ReadyJob, factory: Any, closed: set[str]) -> tuple[Any, ...]:
    """Return one station of the factory that could take the job, or all of them when none can."""
    for station in factory.stations:
        if not expected_codes(job, changed(factory, stations=(station,)), closed):
            return (station,)
    return tuple(factory.stations)


def alike(job: ReadyJob, other: ReadyJob) -> bool:
    """Return whether two jobs wait in one line."""
    members = "product_id", "priority", "locks", "claim"
    same = all(getattr(job, member) == getattr(other, member) for member in members)
    return same and job.job_class.needs == other.job_class.needs


# --- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.req("R1", "R9")
@FLEETS
@given(snapshots(), st.randoms(use_true_random=False))
def test_plan_shuffled_input_gives_the_same_bytes(snapshot: FleetSnapshot, random: Random) -> None:
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
            changed(
                factory,
                capabilities=shuffled(factory.capabilities),
                unattested=shuffled(factory.unattested),
                stations=shuffled(factory.stations),
            )
            for factory in shuffled(snapshot.factories)
        ),
        locks=shuffled(snapshot.locks),
        products=shuffled(snapshot.products),
    )
    text = plan(snapshot).as_json()

    assert plan(snapshot).as_json() == text
    assert plan(FleetSnapshot.model_validate_json(snapshot.model_dump_json())).as_json() == text
    assert plan(other).as_json() == text


@pytest.mark.req("R1", "R9")
@settings(FLEETS, max_examples=100)
@given(st.lists(st.integers(0, 2**48), min_size=2, max_size=6))
def test_plan_with_a_warm_cache_gives_the_same_bytes(seeds: list[int]) -> None:
    """One cache over fleets that have nothing, little or everything in common: no plan can be told from a cold one."""
    cache = RouterCache()
    for seed, other in pairwise(seeds):
        first, second = any_fleet(seed), any_fleet(other)
        half = changed(first, jobs=first.jobs[::2], factories=(*first.factories[1:],))
        later = after(first, plan(first).grants)
        for snapshot in (first, half, second, later, first, changed(second, limits=Limits(disk_floor_gb=Decimal(60)))):
            assert plan(snapshot, cache).as_json() == plan(snapshot).as_json()


def test_plan_of_a_cache_that_moved_on_refuses_to_answer() -> None:
    """A plan never answers from the jobs of another one."""
    cache = RouterCache()
    snapshot = any_fleet(1)
    old = plan(snapshot, cache)
    plan(changed(snapshot, jobs=()), cache)

    with pytest.raises(RuntimeError, match="out of date"):
        old.explain(snapshot.jobs[0].job_id)


@pytest.mark.req("R5")
@FLEETS
@given(snapshots(), st.randoms(use_true_random=False))
def test_plan_explanations_do_not_depend_on_the_order_of_asking(snapshot: FleetSnapshot, random: Random) -> None:
    """Explanations are written down on demand, and say the same whatever was asked before."""
    decided = plan(snapshot)
    asked = random.sample(snapshot.jobs, len(snapshot.jobs))

    for job in asked:
        assert decided.explain(job.job_id) == plan(snapshot).explain(job.job_id)


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.req("R5", "R9")
@FLEETS
@given(snapshots())
def test_explain_waiting_job_has_every_reason_of_every_factory(snapshot: FleetSnapshot) -> None:
    """Every factory is in one report with exactly the reasons that apply; holders and the place in line are named."""
    decided = plan(snapshot)
    then = after(snapshot, decided.grants)
    closed = closed_engines(then)

    for job in then.jobs:
        explanation = decided.explain(job.job_id)
        named = [name for report in explanation.reports for name in report.factories]
        assert sorted(named) == sorted(factory.name for factory in then.factories)
        for factory in then.factories:
            report = explanation.report(factory.name)
            assert report is not None
            assert Counter(r.code for r in report.rejections) == expected_codes(job, factory, closed)
            assert {s.engine for s in factory.stations} & {*engines_of(job)} == set(report.engines)
        assert bool(explanation.options) <= bool(explanation.blockers)
        assert set(explanation.avoided) == {f.name for f in then.factories} & {*job.excluded_factories}
        assert {b.held_by for b in explanation.blockers if b.kind != "product"} == holders(job, then.locks)
        assert any(b.kind == "product" for b in explanation.blockers) == at_limit(then, job.product_id)
        assert explanation.change is not None
        assert decided.waiting[explanation.position - 1] == job.job_id
    assert len(decided.waiting) == len(then.jobs)


@pytest.mark.req("R3", "R5", "R9")
@FLEETS
@given(snapshots())
def test_explain_granted_job_was_the_best_of_its_score_table(snapshot: FleetSnapshot) -> None:
    """The place that was granted has the highest score of the table, unless better ones are avoided."""
    decided = plan(snapshot)

    for grant in decided.grants:
        explanation = decided.explain(grant.job_id)
        granted = ("granted", grant.factory, grant.engine)
        assert (explanation.verdict, explanation.factory, explanation.engine) == granted
        best = explanation.options[0]
        assert (best.factory, best.engine, best.total, best.values) == (
            grant.factory,
            grant.engine,
            grant.score.total,
            grant.score.values,
        )
        ranking = [(option.factory in explanation.avoided, -option.total) for option in explanation.options]
        assert ranking == sorted(ranking)
        for option in explanation.options:
            parts = zip(option.values, explanation.weights.values(), strict=True)
            assert option.total == sum(value * weight for value, weight in parts)


@pytest.mark.req("R5", "R9")
@FLEETS
@given(snapshots())
def test_decision_with_its_stored_grounds_gives_the_same_explanation(snapshot: FleetSnapshot) -> None:
    """What is stored of a grant is enough to show its explanation later, byte for byte, without fleet or router."""
    decided = plan(snapshot)
    grounds = decided.grounds(grant.job_id for grant in decided.grants)
    stored = {grant.job_id: decided.decision(grant.job_id).model_dump_json() for grant in decided.grants}
    assert all(hashlib.sha256(text.encode()).hexdigest() == digest for digest, text in grounds.items())

    for grant in decided.grants:
        decision = Decision.model_validate_json(stored[grant.job_id])
        fleet = FleetGrounds.model_validate_json(grounds[decision.fleet])
        job_class = ClassGrounds.model_validate_json(grounds[decision.job_class])
        again, told = explanation_of(decision, fleet, job_class), decided.explain(grant.job_id)
        assert again.compact_json() == told.compact_json()
        assert again.render() == told.render()
        places = len(told.options)
        assert (f"best of {places} places" if places > 1 else "the only place") in decided.reason(grant)


@pytest.mark.req("R3", "R5")
@FLEETS
@given(snapshots())
def test_explain_score_table_is_that_of_the_fleet_at_that_moment(snapshot: FleetSnapshot) -> None:
    """What a job's table says is what it would say if the grants before it had been carried out beforehand."""
    decided = plan(snapshot)
    known = {job.job_id: job for job in snapshot.jobs}

    for number, grant in enumerate(decided.grants):
        so_far = changed(after(snapshot, decided.grants[:number]), jobs=(known[grant.job_id],))
        alone = plan(so_far).explain(grant.job_id)
        told = decided.explain(grant.job_id)
        assert (told.options, told.reports) == (alone.options, alone.reports)


@pytest.mark.req("R5")
@FLEETS
@given(snapshots())
def test_explain_any_job_survives_storing_and_renders(snapshot: FleetSnapshot) -> None:
    """The compact form is read back unchanged, and every factory has a line for people."""
    decided = plan(snapshot)
    assert json.loads(decided.as_json())

    for job in snapshot.jobs:
        explanation = decided.explain(job.job_id)
        assert Explanation.model_validate_json(explanation.compact_json()) == explanation
        lines = explanation.render()
        for factory in snapshot.factories:
            assert any(factory.name in line.partition(": ")[0] or " more: " in line for line in lines)


@pytest.mark.req("R5", "R9")
@FLEETS
@given(snapshots())
def test_explain_verdict_never_means_not_even_on_an_idle_fleet(snapshot: FleetSnapshot) -> None:
    """`never` and `not_now` are told apart by what an idle, repaired copy of the fleet does with the job alone."""
    decided = plan(snapshot)

    for job in after(snapshot, decided.grants).jobs:
        verdict = decided.explain(job.job_id).verdict
        placed = plan(changed(rested(snapshot), jobs=(job,))).grants
        event(verdict)
        assert bool(placed) == (verdict == "not_now")


# --- advice -----------------------------------------------------------------------------------------------------------

Waiting = tuple[FleetSnapshot, ReadyJob]


def each_waiting(snapshot: FleetSnapshot, look: Callable[[Explanation, FleetSnapshot], None]) -> int:
    """Call `look` with each waiting job's explanation, and the fleet after the plan in which it waits alone."""
    decided = plan(snapshot)
    then = after(snapshot, decided.grants)
    waiting = [job for job in then.jobs if engines_of(job)]
    for job in waiting:
        look(decided.explain(job.job_id), changed(then, jobs=(job,)))
    return len(waiting)


def must_place(explanation: Explanation, alone: FleetSnapshot) -> None:
    """Fail unless whoever does what the explanation says sees the job run."""
    for change in filter(None, (explanation.change, explanation.alternative)):
        assert change.steps
        placed = plan(carry_out(alone, change)).grants
        assert [grant.job_id for grant in placed] == [explanation.job_id], change


@pytest.mark.req("R5", "R9")
@settings(FLEETS, max_examples=300)
@given(snapshots(most_jobs=3))
def test_explain_suggested_change_really_places_the_job(snapshot: FleetSnapshot) -> None:
    """Whoever does what the explanation says sees the job run; the alternative works as well."""
    each_waiting(snapshot, must_place)


@pytest.mark.req("R5", "R9")
@pytest.mark.slow
def test_explain_ten_thousand_suggested_changes_place_their_jobs() -> None:
    """The same for 10,000 changes on random fleets, always the same ones."""
    done, seed = 0, 0
    while done < 10_000:
        done += each_waiting(any_fleet(seed), must_place)
        seed += 1


@pytest.mark.req("R5", "R9")
@settings(FLEETS, max_examples=500)
@given(snapshots(most_jobs=3))
def test_explain_suggested_change_has_no_needless_step(snapshot: FleetSnapshot) -> None:
    """Leaving out any one step leaves the job waiting."""

    def every_step_counts(explanation: Explanation, alone: FleetSnapshot) -> None:
        assert explanation.change is not None
        steps = explanation.change.steps
        for left_out in range(len(steps)):
            fewer = Change(steps=(*steps[:left_out], *steps[left_out + 1 :]))
            assert plan(carry_out(alone, fewer)).grants == (), steps

    each_waiting(snapshot, every_step_counts)


# --- why not there ----------------------------------------------------------------------------------------------------


@pytest.mark.req("R5", "R9")
@FLEETS
@given(snapshots(most_jobs=3))
def test_why_not_tells_the_truth_about_every_job_and_factory(snapshot: FleetSnapshot) -> None:
    """The verdict is that of a fleet of this one factory, and its change places the job there."""
    decided = plan(snapshot)
    then = after(snapshot, decided.grants)

    for job in then.jobs:
        for factory in then.factories:
            answer = decided.why_not(job.job_id, factory.name)
            assert answer is not None
            event(answer.verdict)
            only = changed(then, jobs=(job,), factories=(factory,), limits=changed(then.limits, engines={}))
            possible = bool(plan(changed(rested(only), jobs=(job,))).grants)
            assert (answer.verdict != "never") == possible
            assert answer.render()
            if answer.change is not None and not closed_engines(then):
                placed = plan(carry_out(only, answer.change)).grants
                assert [grant.factory for grant in placed] == [factory.name]
            elif not then.limits.engines:
                assert not engines_of(job) or expected_codes(job, factory)["pinned"]
    assert decided.why_not(snapshot.jobs[0].job_id, "f-gone") is None


@pytest.mark.req("R5")
@FLEETS
@given(snapshots())
def test_why_not_of_a_granted_job_names_the_better_place(snapshot: FleetSnapshot) -> None:
    """Where a factory could have taken the job, the parts that decided add up to the difference of the scores."""
    decided = plan(snapshot)

    for grant in decided.grants:
        explanation = decided.explain(grant.job_id)
        for factory in snapshot.factories:
            answer = decided.why_not(grant.job_id, factory.name)
            assert answer is not None
            assert (answer.verdict == "runs_there") == (factory.name == grant.factory)
            options = [option for option in explanation.options if option.factory == factory.name]
            assert (answer.verdict == "scored_less") == (bool(options) and factory.name != grant.factory)
            if answer.verdict == "scored_less":
                decisive = sum(item.there - item.here for item in answer.differences)
                assert decisive == grant.score.total - options[0].total


def test_turns_that_nothing_is_known_of_are_empty() -> None:
    """A first plan needs no memory."""
    assert FleetSnapshot(now=any_fleet(0).now).turns == Turns()
