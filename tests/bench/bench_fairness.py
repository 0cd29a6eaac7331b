"""Whether everybody gets what he is promised, over a long time: shares, the starvation bound, preemption, advice.

*Pure*: the fleets of `tests/core/router_simulations.py`, at length. A judge that sees a promise broken ends the bench.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.router import Explanation, FleetSnapshot, plan
from tests.bench.measuring import parser, publish, tell
from tests.core.random_fleets import after, any_fleet, carry_out, changed, engines_of
from tests.core.router_simulations import adversaries, preempting_fleets, weighted_dispatches


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
    """Return how many states of preempting fleets were seen; each was nearer to rest, or the judge ended it."""
    seen, pauses, in_vain = 0, 0, 0
    for fleet in preempting_fleets(seed=1, disturbances=100):
        seen, pauses, in_vain = seen + fleet.states, pauses + fleet.preemptions, in_vain + fleet.in_vain
        if seen >= states:
            break
    return {"preemption_states": seen, "preemptions": pauses, "preemption_cycles": 0, "pauses_in_vain": in_vain}


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
    """Simulate and publish."""
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
    publish("fairness", figures, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
