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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.measuring import parser, publish, tell
from tests.chaos.campaign import Campaign, Foundation, Scale, foundation, ground, plan_of
from tests.chaos.referee import Referee
from tests.chaos.zombies import Outcome, attack

MUST_BE_ZERO = ("lost", "shipped_twice", "stuck", "unproven", "outlived_certificate", "orphans", "zombie_taken")


async def measure(scale: Scale, base: Foundation, zombies: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one campaign; return the figures and the details."""
    keep: list[Path] = []
    async with ground(scale, base, keep) as stack:
        try:
            referee = Referee(stack.home.parent, scale.remotes)
            campaign = Campaign(scale, stack, referee)
            took = await campaign.run(plan_of(scale))
            verdict = await campaign.judge()
            attempts = len({(line.job_id, line.epoch) for line in referee.lines()})
            stale = await attack(campaign, zombies) if zombies and verdict.clean else Outcome()
            if not verdict.clean or stale.taken:
                evidence = stack.home / "evidence.json"
                story = await campaign.evidence(verdict) | {"zombies": asdict(stale)}
                evidence.write_text(json.dumps(story, indent=1))
                keep.append(evidence)
        except BaseException:
            keep.append(stack.home)
            tell(f"broken off; the stack's home stays: {stack.home}")
            raise
    figures = {
        "jobs": scale.jobs,
        "kills": campaign.injector.kills,
        "lost": len(verdict.lost),
        "shipped_twice": len(verdict.shipped_twice),
        "stuck": len(verdict.stuck),
        "unproven": len(verdict.unproven),
        "outlived_certificate": len(verdict.outlived),
        "orphans": len(verdict.orphans),
        "zombie_writes": sum(stale.written.values()),
        "zombie_refused": sum(stale.refused.values()),
        "zombie_taken": stale.taken,
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
        "zombies": stale.written,
        "faults_without_target": campaign.missed,
    }
    for path in keep:
        tell(f"seed {scale.seed}: something is wrong; what is known of it: {path}")
    return figures, details


def main() -> int:
    """Measure and publish."""
    made = parser("chaos", jobs=2000, kills=1000, seed=1, factories=3, seats=3, remotes=4, zombies=10_000)
    made.add_argument("--topology", choices=("embedded", "production"), default="embedded", help="default embedded")
    given = vars(made.parse_args())
    as_json = given.pop("json")
    zombies = given.pop("zombies")
    scale = Scale(**given)
    with foundation(scale.topology) as base:
        figures, details = asyncio.run(measure(scale, base, zombies))
    publish("chaos", figures, as_json=as_json, details=details)
    return int(any(figures.get(name) for name in MUST_BE_ZERO))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
