"""The router's parts one by one: what scenarios and properties do not name."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from core.job import JobSpec, Priority, Repository, RepositoryKind
from core.router import (
    Change,
    FactoryView,
    FleetSnapshot,
    Limits,
    LockView,
    ProductView,
    ReadyJob,
    RouterCache,
    RunningJob,
    Score,
    StationView,
    Step,
    Turns,
    Weights,
    plan,
)
from core.router_classes import engine_chain
from core.router_match import Answer, judge, unmet_needs
from core.router_score import PARTS, score_values
from core.router_shares import SCALE
from core.router_snapshot import ready_job

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(job_id: str, **members: Any) -> ReadyJob:
    """Return a job for the shell engine; the number in its id is its age in seconds."""
    number = int(job_id.rpartition("-")[2])
    values: dict[str, Any] = {"job_id": job_id, "submitted_at": NOW + timedelta(seconds=number), "engine": "shell"}
    return ReadyJob(**values | members)


def factory(name: str, seats: int = 1, **members: Any) -> FactoryView:
    """Return an idle factory with shell seats."""
    values: dict[str, Any] = {"name": name, "seats": seats, "stations": (StationView(engine="shell", seats=seats),)}
    return FactoryView(**values | members)


def fleet(jobs: list[ReadyJob], factories: list[FactoryView], **members: Any) -> FleetSnapshot:
    """Return a snapshot."""
    return FleetSnapshot(jobs=tuple(jobs), factories=tuple(factories), now=NOW, **members)


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.req("R4")
def test_plan_weighted_products_take_turns_by_share() -> None:
    """Over many grants each product gets its share: 1, 2 and 4 parts of seven."""
    products = tuple(ProductView(product_id=f"p{share}", share=share) for share in (1, 2, 4))
    waiting = [job(f"{share}-{number}", product_id=f"p{share}") for share in (1, 2, 4) for number in range(100)]

    grants = plan(fleet(waiting, [factory("f-1", 70)], products=products)).grants

    assert Counter(grant.job_id[0] for grant in grants) == {"1": 10, "2": 20, "4": 40}


@pytest.mark.req("R4")
def test_plan_jobs_of_equal_age_keep_their_order_in_every_plan() -> None:
    """A job's place among equals does not depend on the seed, so that it does not jump about."""
    waiting = [job(f"j-{number}", submitted_at=NOW) for number in (3, 1, 2)]

    assert [plan(fleet(waiting, [], seed=seed)).waiting for seed in range(5)] == [("j-1", "j-2", "j-3")] * 5


# --- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("R1")
def test_plan_equal_factories_are_chosen_by_the_seed() -> None:
    """A tie falls differently for different seeds, and always the same for one seed."""
    factories = [factory(name) for name in ("f-1", "f-2", "f-3")]

    chosen = [plan(fleet([job("j-1")], factories, seed=seed)).grants[0].factory for seed in range(60)]
    again = [plan(fleet([job("j-1")], factories[::-1], seed=seed)).grants[0].factory for seed in range(60)]

    assert chosen == again
    assert min(Counter(chosen).values()) >= 10, "each of three equal factories gets its part"


@pytest.mark.req("R3")
@pytest.mark.parametrize(
    ("better", "worse", "weights"),
    [
        ({"health": Decimal(1)}, {"health": Decimal("0.4")}, Weights()),
        ({"load": Decimal("0.1")}, {"load": Decimal("0.9")}, Weights()),
        ({"cost_class": 0}, {"cost_class": 4}, Weights()),
        ({"cost_class": 9}, {"cost_class": 0}, Weights(cost=0, load=0, fit=5)),
        ({"seats": 2}, {"seats": 2, "busy": 1}, Weights()),
        ({"warm_repositories": ("r",)}, {}, Weights()),
        ({"name": "f-last"}, {"warm_repositories": ()}, Weights()),
        ({"capabilities": ("os:linux",)}, {"capabilities": ("os:macos",)}, Weights()),
        ({"cost_class": 3}, {"cost_class": 4}, Weights(cost=0)),
    ],
)
def test_plan_one_difference_decides_between_two_factories(
    better: dict[str, Any], worse: dict[str, Any], weights: Weights
) -> None:
    """Each part of the score moves the decision when all others are equal; a weight of 0 silences its part."""
    plainer = {"capabilities": ("a", "b", "c")} if weights.cost == 0 else {}
    wanted = job("j-1", repository_url="r", last_factory="f-last", prefers=("os:linux", "os:any"))
    good = factory(**{"name": "f-good"} | better)
    bad = factory(**{"name": "f-bad"} | plainer | worse)

    for seed in range(5):
        (grant,) = plan(fleet([wanted], [bad, good], weights=weights, seed=seed)).grants
        assert grant.factory == good.name


@pytest.mark.req("R10")
def test_engine_chain_explicit_then_preference_then_class() -> None:
    """The chain is what the explanation shows as `may run on`."""
    assert engine_chain("codex", "agentic-coder", ("claude",)) == ("codex",)
    assert engine_chain(None, "agentic-coder", ("gemini", "own"))[:3] == ("gemini", "own", "claude")
    assert engine_chain(None, "unheard-of", ("own",)) == ("own",)
    assert engine_chain(None, None) == ()


@pytest.mark.req("R3")
def test_plan_scores_fall_as_seats_are_taken() -> None:
    """The second of two equal jobs sees the seat that the first took, in its grant and in its explanation."""
    decided = plan(fleet([job("j-1"), job("j-2")], [factory("f-1", 2)]))

    first, second = decided.grants

    assert first.score.total > second.score.total
    for grant in decided.grants:
        assert decided.explain(grant.job_id).options[0].total == grant.score.total


@pytest.mark.req("R2")
def test_plan_cost_follows_classes_not_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand equal jobs are scored no more often than there are places and grants."""
    scored = Counter[str]()

    def counting(*arguments: Any, **options: Any) -> tuple[int, ...]:
        scored["times"] += 1
        return score_values(*arguments, **options)

    monkeypatch.setattr("core.router_table.score_values", counting)
    factories = [factory(f"f-{number}", 3) for number in range(10)]
    factories.append(factory("f-other", 1, stations=(StationView(engine="codex"),)))
    decided = plan(fleet([job(f"j-{number}", product_id=f"p{number % 7}") for number in range(2000)], factories))

    assert len(decided.grants) == 30
    assert scored["times"] == 10
    assert len(decided.waiting) == 1970
    assert decided.explain(decided.waiting[-1]).position == 1970


@pytest.mark.req("R2")
def test_plan_factories_that_tell_their_names_are_judged_as_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every agent tells `factory:NAME` with its capabilities; that makes no factory unlike its equals."""
    judged = Counter[str]()

    def counting(*arguments: Any) -> Answer:
        judged["times"] += 1
        return judge(*arguments)

    monkeypatch.setattr("core.router_match.judge", counting)
    factories = [factory(f"f-{n}", capabilities=(f"factory:f-{n}", "has:docker")) for n in range(20)]
    snapshot = fleet([job("j-1", capabilities=("has:docker",))], factories)
    decided = plan(snapshot)

    assert len(decided.grants) == 1
    assert judged["times"] == 1
    pinned = plan(fleet([job("j-1", capabilities=("factory:f-7",))], factories))
    assert [grant.factory for grant in pinned.grants] == ["f-7"]


@pytest.mark.req("R3")
def test_plan_product_with_weights_of_its_own_chooses_by_them() -> None:
    """The same two places, the same kind of job: one product takes the cheaper factory, the other the freer one."""
    products = (ProductView(product_id="thrifty", weights={"load": 0}), ProductView(product_id="hasty"))
    factories = [factory("cheap", 2, load=Decimal(1)), factory("dear", 2, cost_class=5)]
    jobs = [job("j-1", product_id="thrifty"), job("j-2", product_id="hasty")]

    grants = plan(fleet(jobs, factories, products=products)).grants

    assert {grant.job_id: grant.factory for grant in grants} == {"j-1": "cheap", "j-2": "dear"}


@pytest.mark.req("R4")
def test_plan_cannot_be_limited_to_less_than_it_says() -> None:
    """A plan of at most one grant grants the first in line, and the others wait as before."""
    decided = plan(fleet([job("j-1"), job("j-2")], [factory("f-1", 2)]), limit=1)

    assert [grant.job_id for grant in decided.grants] == ["j-1"]
    assert decided.waiting == ("j-2",)


@pytest.mark.req("R4")
def test_plan_factory_that_was_passed_over_too_often_goes_first() -> None:
    """A factory that every job finds worse gets one all the same; the count begins anew, that of the others grows."""
    factories = [factory("better", 3), factory("slow", 3, load=Decimal(2), cost_class=9, health=Decimal(0))]
    limits = Limits(factory_bound=4)
    turns, chosen = Turns(), []
    for number in range(10):
        decided = plan(fleet([job(f"j-{number}")], factories, turns=turns, limits=limits))
        best = decided.explain(f"j-{number}").options[0]
        chosen.append((best.factory, best.values[PARTS.index("starvation")]))
        turns = decided.turns_after({f"j-{number}"})

    assert chosen == [*[("better", 0)] * 4, ("slow", 1000), *[("better", 0)] * 4, ("slow", 1000)]


@pytest.mark.req("R4")
def test_weight_of_starvation_outweighs_all_others_together() -> None:
    """By default no score keeps a factory waiting beyond its bound."""
    weights = Weights().model_dump()
    assert weights.pop("starvation") > sum(weights.values())


# --- what must not bring the planning down ----------------------------------------------------------------------------


def test_plan_requirement_of_a_newer_version_holds_only_its_own_job() -> None:
    """A requirement that is not understood is a reason to wait for its job, and to drop it even for a new factory."""
    odd = job("j-1", capabilities=("node ^20",))
    decided = plan(fleet([odd, job("j-2")], [factory("f-1")]))
    explanation = decided.explain("j-1")

    assert [grant.job_id for grant in decided.grants] == ["j-2"]
    assert explanation.verdict == "never"
    assert str(explanation.alternative) == "drop node ^20 and enrol a factory with engine shell"


def test_explain_contradicting_requirements_are_dropped_before_a_factory_is_enrolled() -> None:
    """No machine has two operating systems; the advice does not ask for one."""
    torn = job("j-1", capabilities=("os:linux", "os:macos", "has:docker"), host="h-1")

    change = plan(fleet([torn], [])).explain("j-1").change

    assert str(change) == "drop os:macos and enrol a factory with engine shell, host h-1, has:docker, os:linux"


@pytest.mark.parametrize(
    ("snapshot", "message"),
    [
        (fleet([job("j-1"), job("j-1")], []), "the snapshot has the same job twice: j-1"),
        (fleet([], [factory("f-1"), factory("f-1")]), "the snapshot has the same factory twice: f-1"),
        (
            fleet([], [factory("f-1", stations=(StationView(engine="a"), StationView(engine="a")))]),
            "factory f-1 has a station for the same engine twice: a",
        ),
    ],
)
def test_plan_name_that_appears_twice_is_an_error(snapshot: FleetSnapshot, message: str) -> None:
    """Two things of one name would share their seats or locks unseen."""
    with pytest.raises(ValueError, match=message):
        plan(snapshot)


def test_snapshot_naive_time_and_negative_weight_are_refused() -> None:
    """Times without zone and weights that reward the worse place never reach the router."""
    with pytest.raises(ValidationError):
        job("j-1", submitted_at=NOW.replace(tzinfo=None))
    with pytest.raises(ValidationError):
        Weights(load=-1)


def test_explain_unknown_job_is_a_key_error() -> None:
    """A plan speaks only of the jobs of its snapshot."""
    with pytest.raises(KeyError):
        plan(fleet([job("j-1")], [])).explain("j-2")


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.req("R5")
def test_render_waiting_job_names_everything_in_one_order() -> None:
    """People read verdict, place in line, engines, needs, blockers, every factory, and what to do."""
    waiting = job("j-7", capabilities=("node>=20",), lock="shop", queued_at=NOW)
    repair = StationView(engine="shell", seats=2, busy=2, usable=False, repair="install a shell")
    factories = [
        factory("ash", stations=(repair,), capabilities=("node=20.1",)),
        factory("elm", state="draining", capabilities=("node=18.0",)),
        factory("fir", capabilities=("node=22.0",)),
    ]
    explanation = plan(fleet([waiting], factories, locks=(LockView(job_id="j-3", lock="shop"),))).explain("j-7")

    assert explanation.queued_at == NOW
    assert explanation.render() == [
        "j-7 waits: not now (1 of 1 in line)",
        "  may run on shell (engine shell)",
        "  needs node>=20",
        "  blocked by lock shop held by j-3",
        "  ash: ✗ station_full: shell: 2 of 2 seats taken, needs a free seat",
        "  ash: ✗ engine_unusable: shell: shell does not work, needs a working shell; install a shell",
        "  elm: ✗ draining: draining, needs an online factory; until it starts anew, or `gf undrain`",
        "  elm: ✗ capability: node=18.0, needs node>=20",
        "  fir: ✓ shell: score 160 = engine 60 + health 40 + load 30 + cost 20 + fit 10",
        "  smallest change: wait for lock shop held by j-3",
    ]


@pytest.mark.req("R5")
def test_render_avoided_factory_says_why_it_comes_last() -> None:
    """Whoever wonders why the better factory was passed over reads that it lost the job."""
    decided = plan(fleet([job("j-1", excluded_factories=("f-1",))], [factory("f-1"), factory("f-2", cost_class=9)]))
    lines = decided.explain("j-1").render()

    assert lines[0] == "j-1 runs shell on f-2"
    assert lines[-1].startswith("  f-1: ✓ shell: score ")
    assert lines[-1].endswith("; lost this job before, so only when no other can")


def test_change_many_alike_factories_are_counted() -> None:
    """Five equal ways are one sentence."""
    change = Change(steps=(Step(kind="free_seat", text="wait for a free seat on a"),), also=("b", "c", "d", "e", "f"))

    assert str(change) == "wait for a free seat on a (or the same on b, c, d and 2 more)"


def test_score_without_any_weight_is_plainly_zero() -> None:
    """A score line never ends in nothing."""
    nothing = (0,) * len(PARTS)
    assert str(Score(0, nothing, nothing)) == "0"
    assert str(Score(1530, (0, 0, 0, 51, *nothing[4:]), (30,) * len(PARTS))) == "1.53 = load 1.53"


def test_plan_grant_reason_is_one_line_for_people() -> None:
    """The ledger stores it with the grant."""
    alone = plan(fleet([job("j-1")], [factory("f-1")]))
    chosen = plan(fleet([job("j-1")], [factory("f-1"), factory("f-2", busy=1), factory("f-3", 2)]))
    (only,), (best,) = alone.grants, chosen.grants

    assert alone.reason(only).startswith("shell on f-1: the only place that can take it now, score 1")
    assert chosen.reason(best).startswith(f"shell on {best.factory}: best of 2 places, score 1")


@pytest.mark.req("R4")
def test_overtaken_if_some_grants_were_refused_counts_by_those_that_came_true() -> None:
    """What only a refused grant would have held, a lock or the last place under a limit, is nobody's excuse."""
    waits = job("j-1", product_id="old", lock="l")
    jobs = [
        waits,
        job("j-2", product_id="new", lock="l"),
        job("j-3", product_id="capped"),
        job("j-4", product_id="new"),
    ]
    products = (
        ProductView(product_id="old", running=5),
        ProductView(product_id="new", share=16),
        ProductView(product_id="capped", limit=1, share=16),
    )
    decided = plan(fleet(jobs, [factory("f-1", seats=3)], products=products))
    assert {grant.job_id for grant in decided.grants} == {"j-2", "j-3", "j-4"}

    assert decided.overtaken == decided.overtaken_if({"j-2", "j-3", "j-4"}) == {}, "its lock was in the way"
    assert decided.overtaken_if({"j-4"}) == {"j-1": 1, "j-2": 1, "j-3": 1}
    assert decided.overtaken_if({"j-2"}) == {}
    assert decided.overtaken_if({"j-3"}) == {"j-1": 1, "j-2": 1}


@pytest.mark.req("R4")
def test_turns_after_some_grants_were_refused_count_only_those_that_came_true() -> None:
    """A product whose grant was refused has had nothing, and the next plan begins as if it had not been planned."""
    jobs = [job("j-1", product_id="p"), job("j-2", product_id="q")]
    decided = plan(fleet(jobs, [factory("f-1", 2)]))
    assert len(decided.grants) == 2

    turns = decided.turns_after({"j-1"})

    assert turns.levels == {Priority.MEDIUM: {"p": SCALE, "q": 0}}
    assert turns == plan(fleet(jobs, [factory("f-1", 2)]), limit=1).turns_after({"j-1"})


@pytest.mark.req("R4")
def test_turns_of_very_many_products_forget_those_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten is who wants nothing now and has had no more than a newcomer would be given."""
    monkeypatch.setattr("core.router_shares.FORGET_BEYOND", 3)
    had = {"waits": 0, "gone": 2 * SCALE, "gone-and-ahead": 9 * SCALE, "granted": 4 * SCALE}
    turns = Turns(levels={Priority.MEDIUM: had}, latest={Priority.MEDIUM: (("f-1", 3 * SCALE),)})
    jobs = [job("j-1", product_id="waits"), job("j-2", product_id="granted")]
    snapshot = fleet(jobs, [factory("f-1")], turns=turns)

    decided = plan(snapshot)
    kept = decided.turns_after({grant.job_id for grant in decided.grants}).levels[Priority.MEDIUM]

    assert kept == {"waits": 4 * SCALE, "gone-and-ahead": 9 * SCALE, "granted": 4 * SCALE}


def test_plan_with_an_overfull_cache_begins_it_anew_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that has seen too many kinds of jobs and factories forgets them, which no plan shows."""
    monkeypatch.setattr("core.router_cache.MOST_NEEDS", 3)
    monkeypatch.setattr("core.router_cache.MOST_KINDS", 3)
    cache = RouterCache()
    for age in range(4):
        jobs = [job(f"j-{number}", capabilities=(f"has:tool-{number + age}",)) for number in range(6)]
        machines = [factory(f"f-{number}", capabilities=(f"has:tool-{number + age}",)) for number in range(6)]

        decided = plan(fleet(jobs, machines), cache)

        assert {grant.job_id[2:]: grant.factory[2:] for grant in decided.grants} == {str(n): str(n) for n in range(6)}
        assert decided.as_json() == plan(fleet(jobs, machines)).as_json()


# --- preemption -------------------------------------------------------------------------------------------------------


def running(job_id: str, at: str, **members: Any) -> RunningJob:
    """Return a low job of the shell engine that runs there."""
    values: dict[str, Any] = {"job_id": job_id, "priority": Priority.LOW, "factory": at, "engine": "shell"}
    return RunningJob(**values | {"granted_at": NOW} | members)


@pytest.mark.req("R6")
@pytest.mark.parametrize(
    ("victims", "product", "paused"),
    [
        ([running("x-1", "f-1")], ProductView(product_id="p"), {"x-1"}),
        ([running("x-1", "f-gone")], ProductView(product_id="p"), set()),
        ([running("x-1", "f-1")], ProductView(product_id="p", running=2, limit=2), set()),
        ([running("x-1", "f-1", product_id="p")], ProductView(product_id="p", running=2, limit=2), {"x-1"}),
        ([running("x-1", "f-1", product_id="p")], ProductView(product_id="p", running=3, limit=2), set()),
    ],
    ids=["pauses", "factory-gone", "limit-of-another", "limit", "beyond-the-limit"],
)
def test_preemption_pauses_only_who_makes_room(
    victims: list[RunningJob], product: ProductView, paused: set[str]
) -> None:
    """Nobody is paused on a machine that left the fleet, nor for a product that would be at its limit all the same."""
    urgent = job("j-1", product_id="p", priority=Priority.CRITICAL)
    full = factory("f-1", busy=1, stations=(StationView(engine="shell", busy=1),))
    limits = Limits(preemption=True)

    decided = plan(fleet([urgent], [full], running=tuple(victims), products=(product,), limits=limits))

    assert {item.victim for item in decided.preemptions} == paused


# --- what the router is told ------------------------------------------------------------------------------------------


@pytest.mark.req("R7")
def test_ready_job_of_a_directory_without_git_takes_a_lock_of_its_own() -> None:
    """Two jobs never work in one directory at once; a repository is no lock, since each attempt has its worktree."""
    here = Repository(kind=RepositoryKind.DIRECTORY, url="/srv/site", host="h-1")
    spec = JobSpec(title="t", body="b", repository=here, engine="shell", lock="site")

    placed = ready_job("j-1", spec, NOW)

    assert placed.locks == ("directory h-1:/srv/site", "site")
    assert (placed.job_id, placed.submitted_at, placed.host) == ("j-1", NOW, "h-1")
    in_git = spec.model_copy(update={"repository": Repository(url="git@example.org:site.git"), "lock": None})
    assert ready_job("j-1", in_git, NOW).locks == ()


@pytest.mark.req("R2")
def test_unmet_needs_are_those_of_the_machine_and_of_its_name() -> None:
    """An operator who moves a job by hand is held to the same requirements as the router."""
    needs = job("j-1", capabilities=("node>=20", "has:docker", "factory:f-2")).job_class.needs

    found = unmet_needs(needs, factory("f-1", capabilities=("node=18.1", "has:docker")))

    assert [(item.required, item.observed) for item in found] == [
        ("node>=20", "node=18.1"),
        ("factory:f-2", "another factory"),
    ]
    assert unmet_needs(needs, factory("f-2", capabilities=("node=20.1", "docker=24.0"))) == ()
