"""Jobs on a stack that is killed, frozen, cut apart and robbed of messages, judged by an independent ledger and git.

`tests/chaos` holds the parts: `plan` (what, from a seed), `faults` (how), `doors` (the network), `referee` (the
judge), `campaign` (the run), `zombies` (writes of attempts that are over). The exit code is 1 when a figure that
has to be 0 is not; then the stack's home stays, with `evidence.json` in it. Does I/O: a stack, git, processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tests.bench.measuring import parser, publish, tell
from tests.chaos.campaign import Campaign, Foundation, Scale, foundation, ground, plan_of
from tests.chaos.referee import Referee
from tests.chaos.throughput import compare
from tests.chaos.zombies import Outcome, attack

MUST_BE_ZERO = ("lost", "shipped_twice", "stuck", "unproven", "outlived_certificate", "orphans", "zombie_taken")


@dataclass(frozen=True)
class Order:
    """What was asked for beside the campaign."""

    zombies: int
    """Stale writes."""
    rate_jobs: int
    rate_rounds: int
    """Jobs of each round, clean and under fire, and how many rounds of both."""


async def measure(scale: Scale, base: Foundation, order: Order) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one campaign, then what else was asked for; return the figures and the details."""
    keep: list[Path] = []
    async with ground(scale, base, keep) as stack:
        keep.append(stack.home)  # unless all goes well
        campaign = Campaign(scale, stack, Referee(stack.home.parent / "chaos", scale.remotes))
        took = await campaign.run(plan_of(scale))
        verdict = await campaign.judge()
        attempts = len({(line.job_id, line.epoch) for line in campaign.referee.lines()})
        stale = await attack(campaign, order.zombies) if order.zombies and verdict.clean else Outcome()
        rates = None
        if order.rate_rounds and verdict.clean:
            rates = await compare(scale, stack, jobs=order.rate_jobs, rounds=order.rate_rounds)
        verdicts = (verdict, *(rates.verdicts if rates else ()))
        if stale.taken or not all(one.clean for one in verdicts):
            evidence = stack.home / "evidence.json"
            story = await campaign.evidence(verdict)
            evidence.write_text(json.dumps(story | {"zombies": asdict(stale)}, indent=1))
            tell(f"seed {scale.seed}: something is wrong; what is known of it: {evidence}")
        else:
            keep.clear()
    figures = {
        "jobs": scale.jobs,
        "kills": campaign.injector.kills,
        "lost": sum(len(one.lost) for one in verdicts),
        "shipped_twice": sum(len(one.shipped_twice) for one in verdicts),
        "stuck": sum(len(one.stuck) for one in verdicts),
        "unproven": sum(len(one.unproven) for one in verdicts),
        "outlived_certificate": sum(len(one.outlived) for one in verdicts),
        "orphans": sum(len(one.orphans) for one in verdicts),
        "zombie_writes": sum(stale.written.values()),
        "zombie_refused": sum(stale.refused.values()),
        "zombie_taken": stale.taken,
        "throughput_ratio": rates.ratio if rates else None,
        "jobs_per_s": round(len(campaign.shipped) / took, 2),
    }
    lost = stack.doors.losses.lost
    details = {
        "seed": scale.seed,
        "topology": scale.topology,
        "duration_s": round(took),
        "attempts": attempts,
        "done": dict(sorted(campaign.injector.done.items())),
        "messages_lost": {f"{message} {way}": count for (message, way), count in sorted(lost.items())},
        "faults_without_target": campaign.missed,
        "zombies": stale.written,
        "throughput": {"clean": rates.clean, "killed": rates.killed, "kills": rates.kills} if rates else None,
    }
    return figures, details


def main() -> int:
    """Measure and publish."""
    sizes = {"factories": 3, "seats": 3, "remotes": 4, "zombies": 10_000, "rate_jobs": 300, "rate_rounds": 2}
    made = parser("chaos", jobs=2000, kills=1000, seed=1, **sizes)
    made.add_argument("--topology", choices=("embedded", "production"), default="embedded", help="default embedded")
    given = vars(made.parse_args())
    as_json = given.pop("json")
    order = Order(**{one.name: given.pop(one.name) for one in fields(Order)})
    scale = Scale(**given)
    with foundation(scale.topology) as base:
        figures, details = asyncio.run(measure(scale, base, order))
    publish("chaos", figures, as_json=as_json, details=details)
    return int(any(figures.get(name) for name in MUST_BE_ZERO))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
