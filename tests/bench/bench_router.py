"""What the router costs: decisions per second, one pass after a seat became free, growth with classes.

*Pure* but for the clock: no ledger. Times are those of the processor, so that others on the machine matter less; one
core is used. A decision is a grant together with its complete explanation, written down as the ledger stores it: the
row of the decision as JSON, and with the first one of a plan and of a class the grounds that it shares with the others,
digest included. Some of what was written is read back, and has to give the same explanation byte for byte.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

from core.router import (
    ClassGrounds,
    Decision,
    Explanation,
    FactoryView,
    FleetGrounds,
    FleetSnapshot,
    Plan,
    PlannedGrant,
    ReadyJob,
    RouterCache,
    StationView,
    explanation_of,
    plan,
)
from core.router_pass import Pass
from tests.bench.measuring import median, parser, percentile, publish, tell

START = datetime(2026, 1, 1, tzinfo=UTC)
TOOLS = tuple(f"has:tool-{number}" for number in range(60))
REPOSITORIES = tuple(f"https://git.example/{name}.git" for name in ("shop", "web", "docs", "api"))
CAPABILITIES = 20
CHECKED = 50
"""Decisions of a plan that are read back from what was stored."""


class Shape(NamedTuple):
    """How large a fleet is, and how much alike its members are."""

    factories: int = 1_000
    factory_classes: int = 100
    job_classes: int = 50
    jobs: int = 10_000
    products: int = 20
    seats: int = 10


def offers(number: int, dice: Random) -> tuple[str, ...]:
    """Return the 20 capabilities of a class of factories; each class is unlike every other."""
    system = ("os:linux", "os:linux", "os:macos")[number % 3]
    facts = (system, f"node={18 + number % 5}.{number % 7}.0", f"mem_gb={8 * (1 + number % 4)}", f"build={number}")
    return (*facts, *dice.sample(TOOLS, CAPABILITIES - len(facts)))


def factories(shape: Shape, dice: Random) -> tuple[FactoryView, ...]:
    """Return the factories, idle; load, health, cost and mirrors differ within a class."""
    classes = [offers(number, dice) for number in range(shape.factory_classes)]
    return tuple(
        FactoryView(
            name=f"f-{number:04}",
            host=f"host-{number}",
            capabilities=classes[number % len(classes)],
            stations=tuple(StationView(engine=engine, seats=shape.seats) for engine in _engines(number, len(classes))),
            seats=shape.seats,
            load=Decimal(dice.randrange(100)) / 100,
            health=Decimal(dice.randrange(70, 101)) / 100,
            cost_class=number % 4,
            warm_repositories=(dice.choice(REPOSITORIES),),
        )
        for number in range(shape.factories)
    )


def _engines(number: int, classes: int) -> tuple[str, ...]:
    return ("claude", "codex") if number % classes % 4 else ("codex",)


def jobs(shape: Shape, dice: Random) -> tuple[ReadyJob, ...]:
    """Return the waiting jobs, a second apart."""
    classes = [
        {
            "capabilities": (
                *dice.sample(("os:linux", "node>=19", "mem-gb>=16"), number % 3),
                *dice.sample(TOOLS, number % 2),
            ),
            "engine_class": "agentic-coder",
            "engine_preference": ("codex",) if number % 2 else (),
            "repository_url": REPOSITORIES[number % len(REPOSITORIES)],
        }
        for number in range(shape.job_classes)
    ]
    return tuple(
        ReadyJob.model_validate(
            {
                "job_id": f"j-{number:05}",
                "product_id": f"p-{number % shape.products}",
                "submitted_at": START + timedelta(seconds=number),
                **dice.choice(classes),
            }
        )
        for number in range(shape.jobs)
    )


def fleet(shape: Shape) -> FleetSnapshot:
    """Return an idle fleet with its line of waiting jobs."""
    dice = Random(1)  # noqa: S311 - the same fleet again is what is wanted
    return FleetSnapshot(jobs=jobs(shape, dice), factories=factories(shape, dice), now=START)


class _Timed(Pass):
    """A walk that notes the milliseconds which each of its grants took."""

    def run(self) -> Iterator[PlannedGrant]:
        """Yield the grants."""
        self.times_ms: list[float] = []
        grants, began = super().run(), time.process_time()
        for grant in grants:
            self.times_ms.append((time.process_time() - began) * 1000)
            yield grant
            began = time.process_time()


class Stored(NamedTuple):
    """What a plan left behind, as the ledger keeps it."""

    decisions: dict[str, str]
    grounds: dict[str, str]

    @property
    def size(self) -> int:
        """Return the characters of all of it."""
        return sum(map(len, self.decisions.values())) + sum(map(len, self.grounds.values()))

    def explanation(self, job_id: str) -> Explanation:
        """Return the explanation of a decision, from nothing but what was stored."""
        decision = Decision.model_validate_json(self.decisions[job_id])
        fleet = FleetGrounds.model_validate_json(self.grounds[decision.fleet])
        return explanation_of(decision, fleet, ClassGrounds.model_validate_json(self.grounds[decision.job_class]))


def decide(snapshot: FleetSnapshot, decisions: int, cache: RouterCache) -> tuple[Plan, list[float], Stored]:
    """Place that many jobs; return the milliseconds until each was decided and written down, and what was written.

    The first decision of its class, in each plan, also works out how all places score for it, and writes that down.
    """
    walk = _Timed(snapshot, cache, decisions)
    decided, stored = Plan(walk), Stored({}, {})
    times = []
    for grant, walked_ms in zip(decided.grants, walk.times_ms, strict=True):
        began = time.process_time()
        _store(decided, grant, stored)
        times.append(walked_ms + (time.process_time() - began) * 1000)
    return decided, times, stored


def _store(decided: Plan, grant: PlannedGrant, stored: Stored) -> None:
    assert decided.reason(grant)
    stored.decisions[grant.job_id] = decided.decision(grant.job_id).model_dump_json()
    stored.grounds.update(decided.grounds([grant.job_id]))


def waiting_per_s(snapshot: FleetSnapshot, cache: RouterCache) -> int:
    """Return how many jobs that wait for a full fleet get their complete explanation in a second."""
    decided = plan(_full(snapshot), cache)
    began = time.process_time()
    for job_id in decided.waiting:
        decided.explain(job_id)
    return round(len(decided.waiting) / (time.process_time() - began))


def passes_ms(shape: Shape, passes: int) -> Iterator[float]:
    """Fill the whole fleet, free one seat at a time, and yield the milliseconds until its new job is written down."""
    dice = Random(2)  # noqa: S311 - as above
    snapshot, cache = _full(fleet(shape)), RouterCache()
    plan(snapshot, cache)
    for _ in range(passes):
        freed = dice.randrange(shape.factories)
        views = list(snapshot.factories)
        views[freed] = _with_a_free_seat(views[freed])
        now = snapshot.model_copy(update={"factories": tuple(views)})
        began = time.process_time()
        decided = plan(now, cache)
        for grant in decided.grants:
            _store(decided, grant, Stored({}, {}))
        turns = decided.turns_after({grant.job_id for grant in decided.grants})
        assert decided.overtaken is not None
        yield (time.process_time() - began) * 1000
        granted = {grant.job_id for grant in decided.grants}
        left = tuple(job for job in snapshot.jobs if job.job_id not in granted)
        snapshot = snapshot.model_copy(update={"jobs": left, "turns": turns})


def _full(snapshot: FleetSnapshot) -> FleetSnapshot:
    full = tuple(view.model_copy(update={"busy": view.seats}) for view in snapshot.factories)
    return snapshot.model_copy(update={"factories": full})


def _with_a_free_seat(view: FactoryView) -> FactoryView:
    return view.model_copy(update={"busy": view.seats - 1})


def rate(shape: Shape, decisions: int, rounds: int) -> dict[str, Any]:
    """Return written decisions per second and their 99th percentile, over rounds with a cache that is warm."""
    snapshot, cache = fleet(shape), RouterCache()
    plan(snapshot, cache, limit=1)
    gc.collect()
    gc.freeze()
    times = [one for _ in range(rounds - 1) for one in decide(snapshot, decisions, cache)[1]]
    decided, last, stored = decide(snapshot, decisions, cache)
    times += last
    asked = list(stored.decisions)[:: max(1, len(stored.decisions) // CHECKED)]
    same = all(stored.explanation(name).compact_json() == decided.explain(name).compact_json() for name in asked)
    waiting = waiting_per_s(snapshot, cache)
    gc.unfreeze()
    return {
        **shape._asdict(),
        "decisions": len(times),
        "decisions_per_s": round(1000 * len(times) / sum(times)),
        "p99_ms": round(percentile(times, 0.99), 3),
        "max_ms": round(max(times), 3),
        "stored_bytes_per_decision": stored.size // len(stored.decisions),
        "shown_identical": same,
        "waiting_explained_per_s": waiting,
    }


def growth(decisions: int, rounds: int) -> list[dict[str, Any]]:
    """Return the rate for more factories and jobs of as many classes, and for more classes of as many factories."""
    alike = [Shape(factories=500), Shape(), Shape(factories=2_000), Shape(jobs=40_000)]
    unlike = [Shape(factory_classes=count) for count in (10, 300, 1_000)]
    measured = []
    for shape in (*alike, *unlike, Shape(job_classes=200)):
        measured.append(rate(shape, decisions, rounds))
        tell(f"{shape}: {measured[-1]['decisions_per_s']}/s")
    return measured


def is_replayed(decisions: int) -> bool:
    """Return whether a second plan, from the snapshot as JSON and without a cache, says the same byte for byte."""
    snapshot = fleet(Shape(factories=100, jobs=1_000))
    again = FleetSnapshot.model_validate_json(snapshot.model_dump_json())
    return plan(snapshot, RouterCache(), limit=decisions).as_json() == plan(again, limit=decisions).as_json()


def main() -> int:
    """Measure and publish."""
    options = parser("router", decisions=10_000, rounds=3, passes=300).parse_args()
    grown = growth(options.decisions, options.rounds)
    named = Shape()
    usual = next(row for row in grown if all(row[key] == value for key, value in named._asdict().items()))
    distinct = next(row for row in grown if row["factory_classes"] == named.factories)
    passes = list(passes_ms(named, options.passes))
    figures = {
        "decisions_per_s": usual["decisions_per_s"],
        "p99_ms": usual["p99_ms"],
        "stored_bytes_per_decision": usual["stored_bytes_per_decision"],
        "shown_identical": all(row["shown_identical"] for row in grown),
        "waiting_explained_per_s": usual["waiting_explained_per_s"],
        "pass_ms": round(median(passes), 2),
        "pass_p99_ms": round(percentile(passes, 0.99), 2),
        "distinct_decisions_per_s": distinct["decisions_per_s"],
        "distinct_p99_ms": distinct["p99_ms"],
        "replay_identical": is_replayed(500),
        "peak_mem_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    publish("router", figures, as_json=options.json, details={"growth": grown, "passes": len(passes)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
