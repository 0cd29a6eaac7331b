"""From the submit of a job to its engine's first instruction, on an idle factory, one job at a time.

The engine itself writes the time at which it runs; the client takes the time before the request. Bare: a workflow of
two empty activities on the same server, from start to result, alternating with ours. Does I/O: a stack, processes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from temporalio.client import Client

from tests.bench import bare
from tests.bench.field import Field, bare_workers, document_of, field, make_remote
from tests.bench.measuring import median, parser, percentile, publish, tell

LOOK_S = 0.02


def manifest(remote: Path, stamp: Path) -> str:
    """Return a job whose engine writes the time of its first instruction, in nanoseconds since the epoch."""
    return f"---\nengine: shell\nrepo: {remote}\n---\n# Stamp\n\n```sh\ndate +%s%N > {stamp}\n```\n"


async def dispatch_ms(http: httpx.AsyncClient, remote: Path, stamp: Path) -> float:
    """Submit one job and return how long its engine took to run, in milliseconds; ends when nothing runs any more."""
    began = time.time_ns()
    document = document_of(await http.post("/fleet/jobs", json={"manifest": manifest(remote, stamp)}))
    job_id = document["jobs"][0]["id"]
    job: dict[str, Any] = {"stage": "queued"}
    while job["stage"] in ("queued", "assigned", "building") or job["waiting"] is None:
        job = document_of(await http.get(f"/fleet/jobs/{job_id}"))
        if job["stage"] == "failed":
            raise RuntimeError(f"{job_id} failed: {job['attempts']}")
        await asyncio.sleep(LOOK_S)
    document_of(await http.post(f"/fleet/jobs/{job_id}/actions", json={"action": "cancel"}))
    return (int(stamp.read_text()) - began) / 1e6


async def bare_ms(client: Client) -> float:
    """Run the bare workflow of two empty activities and return its whole time in milliseconds."""
    began = time.monotonic()
    await client.execute_workflow("TwoActivities", id=f"bare-{uuid4().hex}", task_queue=bare.CONTROL)
    return (time.monotonic() - began) * 1000


async def measure(ground: Field, jobs: int) -> tuple[list[float], list[float]]:
    """Alternate ours and bare; return both lists of milliseconds."""
    client = await ground.client()
    remote = make_remote(ground.folder / "ours")[0]
    ours: list[float] = []
    bares: list[float] = []
    async with ground.http() as http, bare_workers(ground.temporal, 3):
        for number in range(jobs + 3):
            mine = await dispatch_ms(http, remote, ground.folder / f"stamp-{number}")
            plain = await bare_ms(client)
            if number >= 3:  # the first ones warm both up
                ours.append(mine)
                bares.append(plain)
            if number % 10 == 9:
                tell(f"{number + 1} of {jobs + 3}: ours {median(ours):.0f} ms, bare {median(bares):.0f} ms")
    return ours, bares


def main() -> int:
    """Measure and publish."""
    options = parser("dispatch", jobs=60).parse_args()
    with field(seats=3) as ground:
        ours, bares = asyncio.run(measure(ground, options.jobs))
    figures = {
        "jobs_per_s": None,
        "bare_jobs_per_s": None,
        "ratio": round(median(ours) / median(bares), 2),
        "ratio_without_git": None,
        "events_per_job": None,
        "p50_ms": round(median(ours), 1),
        "p95_ms": round(percentile(ours, 0.95), 1),
        "bare_p50_ms": round(median(bares), 1),
        "bare_p95_ms": round(percentile(bares, 0.95), 1),
    }
    publish("dispatch", figures, as_json=options.json, details={"jobs": options.jobs})
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
