"""From an operator's word to the end of every process of an engine, with the factory link and without it.

The engine has children in sessions of their own, and keeps on forking. *Cancel* is the job's end; *halt* is the kill
switch of the whole fleet with `stop_running`, which is released afterwards. The clock starts before the request and
stops when the kernel has reported the last process of the attempt dead. Does I/O: stacks, processes.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from tests.bench.engines import family_of, stage, submit, until, wait_for_end
from tests.bench.field import document_of, field, make_remote
from tests.bench.measuring import median, parser, percentile, publish, tell

LINK_TARGET_S = 0.5
BEYOND_A_BEAT_S = 1.0
"""The target without the link: so long after the next beat."""
FAMILY = 5
"""Processes that have to be there before anything is stopped."""
JOB = """---
engine: shell
repo: {remote}
timeout: 30m
---
# Resist

```sh
setsid sh -c 'trap "" TERM HUP; sleep 9876; true' &
setsid setsid sh -c 'while :; do sleep 0.2 & sleep 0.1; done' &
trap '' TERM
while :; do sh -c 'sleep 0.3; true' & sleep 0.1; done
```
"""


async def running(http: httpx.AsyncClient, job_id: str) -> int:
    """Wait until the job's newest attempt is a whole family; return its epoch."""
    epoch = int((await stage(http, job_id, "building"))["attempts"][-1]["epoch"])

    async def look() -> bool:
        await asyncio.sleep(0.1)
        return len(family_of(job_id, epoch)) >= FAMILY

    await until(f"the family of {job_id}", look)
    return epoch


async def halted_s(http: httpx.AsyncClient, job_id: str) -> float:
    """Pull the kill switch; return how long the job's processes lived, in seconds; release it."""
    epoch = await running(http, job_id)
    began = time.monotonic()
    halt = {"scope": "fleet", "stop_running": True, "reason": "bench"}
    document_of(await http.post("/fleet/halts", json=halt))
    took = await asyncio.to_thread(wait_for_end, job_id, epoch) - began
    await stage(http, job_id, "queued")
    document_of(await http.post("/fleet/halts/release", json={"scope": "fleet"}))
    return took


async def cancelled_s(http: httpx.AsyncClient, job_id: str) -> float:
    """Cancel the job; return how long its processes lived, in seconds."""
    epoch = await running(http, job_id)
    began = time.monotonic()
    document_of(await http.post(f"/fleet/jobs/{job_id}/actions", json={"action": "cancel"}))
    took = await asyncio.to_thread(wait_for_end, job_id, epoch) - began
    await stage(http, job_id, "cancelled")
    return took


async def rounds(link: bool, times: int, options: Any) -> dict[str, list[float]]:
    """Stop engines again and again on a stack with or without link; return the seconds, by how they were stopped."""
    taken: dict[str, list[float]] = {"halt": [], "cancel": []}
    with field(seats=3, factory_link=link, beat_s=options.beat, factory_beat_s=options.beat) as place:
        remote: Path = make_remote(place.folder / "kill")[0]
        async with place.http() as http:
            for number in range(options.warm_up + times):
                job_id = await submit(http, JOB.format(remote=remote))
                halted, cancelled = await halted_s(http, job_id), await cancelled_s(http, job_id)
                if number >= options.warm_up:
                    taken["halt"].append(halted)
                    taken["cancel"].append(cancelled)
                    tell(f"link {link}: halt {halted:.3f} s, cancel {cancelled:.3f} s")
    return taken


def figures_of(taken: dict[str, list[float]], suffix: str) -> dict[str, float]:
    """Return median and 95th percentile of each way to stop."""
    found = {}
    for way, seconds in taken.items():
        found[f"{way}{suffix}_p50_s"] = round(median(seconds), 3)
        found[f"{way}{suffix}_p95_s"] = round(percentile(seconds, 0.95), 3)
    return found


def main() -> int:
    """Measure and publish."""
    options = parser("kill", rounds=20, without_link=10, warm_up=1, beat=5).parse_args()
    linked = asyncio.run(rounds(True, options.rounds, options))
    unlinked = asyncio.run(rounds(False, options.without_link, options))
    figures: dict[str, Any] = figures_of(linked, "") | {"target_s": LINK_TARGET_S}
    figures |= figures_of(unlinked, "_without_link") | {"without_link_target_s": options.beat + BEYOND_A_BEAT_S}
    details = {"beat_s": options.beat, "linked": linked, "unlinked": unlinked}
    publish("kill", figures, as_json=options.json, details=details)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
