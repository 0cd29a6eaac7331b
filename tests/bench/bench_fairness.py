"""Whether everybody gets what he is promised, over a long time: shares, the starvation bound, preemption, advice.

*Pure*: the fleets of `tests/core/router_simulations.py`, at length. Every broken promise is named, and the exit code is
then 1; what no fleet may ever do, such as two jobs with one lock, ends the bench at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from core.router import Explanation, FleetSnapshot, plan
from tests.bench.measuring import parser, publish, tell
from tests.core.random_fleets import after, any_fleet, carry_out, changed, engines_of
from tests.core.router_simulations import adversaries, preempting_fleets, weighted_dispatches

PROMISES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "every product gets its share, within 2 %": lambda found: found["share_error"] <= 0.02,
    "all are served alike, by Jain's index": lambda found: found["jain"] >= 0.99,
    "nobody is overtaken beyond the bound": lambda found: found["worst_of_bound"] <= 1,
    "preemption comes to rest": lambda found: found["preemption_cycles"] == 0,
    "every suggested change places its job": lambda found: found["changes_that_placed"] == found["changes_tried"],
}


def shares(products: int, dispatches: int) -> dict[str, Any]:
    """Return how far grants are off the shares, 1 to 16, while one product floods the line with 10,000 jobs."""
    got = weighted_dispatches(products=products, dispatches=dispatches, flood=10_000)
    return {"share_error": round(got.worst_error, 5), "jain": round(got.jain, 6), "dispatches": got.grants.total()}


def starvation(steps: int) -> dict[str, Any]:
    """Return how far an adversary came who wants jobs to wait for ever; 1 is the bound."""
    done, overtakings, worst = 0, 0, 0.0
    for adversary in adversaries(seed=1, moves=200):
        done, overtakings = done + adversary.steps, overtakings + adversary.overtakings
        worst = max(worst, adversary.worst)
        if done >= steps:
            break
    return {"adversarial_steps": done, "overtakings": overtakings, "worst_of_bound": worst}


def preemption(states: int) -> dict[str, Any]:
    """Return how many states of preempting fleets were seen, and how many came no nearer to rest."""
    found = Counter[str]()
    for fleet in preempting_fleets(seed=1, disturbances=100):
        found["preemption_states"] += fleet.states
        found["preemptions"] += fleet.preemptions
        found["preemption_cycles"] += fleet.cycles
        found["pauses_in_vain"] += fleet.in_vain
        if found["preemption_states"] >= states:
            break
    return dict(found)


def advised() -> Iterator[tuple[Explanation, FleetSnapshot]]:
    """Yield waiting jobs of random fleets with their explanation, and the fleet in which each waits alone."""
    seed = 1_000_000
    while True:
        snapshot = any_fleet(seed)
        decided = plan(snapshot)
        then = after(snapshot, decided.grants)
        for job in then.jobs:
            if engines_of(job):
                yield decided.explain(job.job_id), changed(then, jobs=(job,))
        seed += 1


def advice(changes: int) -> dict[str, Any]:
    """Return how many suggested changes really placed their job when they were carried out."""
    tried, placed = 0, 0
    for explanation, alone in advised():
        for change in filter(None, (explanation.change, explanation.alternative)):
            tried += 1
            placed += bool(plan(carry_out(alone, change)).grants)
        if tried >= changes:
            break
    return {"changes_tried": tried, "changes_that_placed": placed}


def main() -> int:
    """Simulate and publish; return 1 when a promise was broken."""
    options = parser(
        "fairness", products=1_000, dispatches=500_000, steps=1_000_000, states=1_000_000, changes=10_000
    ).parse_args()
    figures = advice(options.changes)
    tell(str(figures))
    figures |= starvation(options.steps)
    tell(str(figures))
    figures |= preemption(options.states)
    tell(str(figures))
    figures |= shares(options.products, options.dispatches)
    broken = [promise for promise, kept in PROMISES.items() if not kept(figures)]
    publish("fairness", figures, as_json=options.json, details={"broken": broken})
    for promise in broken:
        tell(f"broken: {promise}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
