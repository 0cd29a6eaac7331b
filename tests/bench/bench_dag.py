"""A graph of jobs with empty bodies, 1 → fan → leaves → 1, against bare Temporal running the same graph.

Ours: all jobs in one request; each works in a directory of its own, is verified by `true` and ships by policy. Bare:
the workflow of `tests.bench.bare` for each job, started by a client when the jobs that it waits for are done.
Afterwards, in a smaller graph, the control part is killed half-way. Does I/O: a stack, processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import Client

from core.attempt import workflow_id
from tests.bench import bare
from tests.bench.field import Field, bare_workers, document_of, field
from tests.bench.measuring import parser, publish, tell

LOOK_S = 0.5
PARALLEL = 32
"""Bare workflows that the client has under way at once; ours needs no such bound."""

Graph = Mapping[str, Sequence[str]]
"""Job → the jobs that it waits for."""


def graph(jobs: int, fan: int) -> Graph:
    """Return one root, `fan` jobs that wait for it, leaves that each wait for one of those, and a join of all."""
    middle = [f"m{number}" for number in range(fan)]
    leaves = [f"l{number}" for number in range(jobs - fan - 2)]
    waits: dict[str, Sequence[str]] = {"root": ()} | dict.fromkeys(middle, ("root",))
    waits |= {leaf: (middle[number % fan],) for number, leaf in enumerate(leaves)}
    return waits | {"join": leaves}


def manifest(folder: Path, name: str, key: str, waits: Sequence[str]) -> dict[str, Any]:
    """Return one job of the graph."""
    place = folder / name
    place.mkdir(parents=True)
    fields = {"title": f"Node {name}", "engine": "shell", "cwd": str(place), "verify": "true", "review-policy": "auto"}
    deps = {"deps": [f"key:{key}-{other}" for other in waits]} if waits else {}
    return {"manifest": fields | deps | {"idempotency-key": f"{key}-{name}", "body": "```sh\ntrue\n```\n"}}


async def ours(ground: Field, waits: Graph, key: str, *, kill: bool = False) -> dict[str, Any]:
    """Take the graph through; return how long submit and all took, in seconds, and the ids by node."""
    folder = ground.folder / key
    body = {"jobs": [manifest(folder, name, key, parents) for name, parents in waits.items()]}
    async with ground.http() as http:
        began = time.monotonic()
        answer = document_of(await http.post("/fleet/jobs", json=body, timeout=600))
        submitted = time.monotonic() - began
        ids = dict(zip(waits, (job["id"] for job in answer["jobs"]), strict=True))
        if kill:
            await half_way(http, ids)
            kill_control(ground)
        await shipped(http, ids["join"])
        took = time.monotonic() - began
        await check_order(http, waits, ids)
    return {"submit_s": submitted, "took_s": took, "ids": ids}


async def half_way(http: httpx.AsyncClient, ids: Mapping[str, str]) -> None:
    """Wait until half of the jobs have shipped."""
    some = list(ids.values())[: len(ids) // 2]
    while document_of(await http.get(f"/fleet/jobs/{some[-1]}"))["stage"] != "shipped":
        await asyncio.sleep(LOOK_S)


async def shipped(http: httpx.AsyncClient, job_id: str) -> None:
    """Wait until a job has shipped."""
    while (job := document_of(await http.get(f"/fleet/jobs/{job_id}")))["stage"] != "shipped":
        reasons = [condition["reason"] for condition in job["conditions"]]
        if job["stage"] in ("failed", "dead_letter", "cancelled") or "parent_failed" in reasons:
            raise RuntimeError(f"{job_id} cannot ship any more: {job['stage']} {job['conditions']}")
        await asyncio.sleep(LOOK_S)


async def check_order(http: httpx.AsyncClient, waits: Graph, ids: Mapping[str, str]) -> None:
    """Look at every job: it has shipped once, and began after all that it waited for had ended.

    Raises:
        RuntimeError: a job did not.

    """
    documents: dict[str, Any] = {}
    gate = asyncio.Semaphore(8)

    async def look(name: str) -> None:
        async with gate:
            documents[name] = document_of(await http.get(f"/fleet/jobs/{ids[name]}"))

    await asyncio.gather(*(look(name) for name in waits))
    for name, parents in waits.items():
        job = documents[name]
        first = datetime.fromisoformat(job["attempts"][0]["granted_at"])
        late = [one for one in parents if datetime.fromisoformat(documents[one]["ended_at"]) > first]
        if job["stage"] != "shipped" or late:
            raise RuntimeError(f"{name} is {job['stage']} and began before {late}")


def kill_control(ground: Field) -> None:
    """Kill the control part of the stack, which has to come back by itself."""
    parts = json.loads(ground.gf("status", "--json"))["parts"]
    (control,) = (part for part in parts if part["name"] == "control")
    os.kill(control["pid"], signal.SIGKILL)


async def bare_run(client: Client, waits: Graph, folder: Path) -> float:
    """Take the graph through bare workflows; return seconds."""
    folder.mkdir(parents=True)
    gates = folder / "gates"
    gates.write_text("")
    turns = asyncio.Semaphore(PARALLEL)
    tasks: dict[str, asyncio.Task[None]] = {}

    async def node(name: str, parents: Sequence[str]) -> None:
        await asyncio.gather(*(tasks[parent] for parent in parents))
        async with turns:
            work = bare.Work(f"{folder.name}-{name}", str(folder / name), gates=str(gates))
            handle = await client.start_workflow("BareWorkflow", work, id=work.job_id, task_queue=bare.CONTROL)
            await handle.execute_update("ship")
            await handle.result()

    began = time.monotonic()
    for name, parents in waits.items():  # parents come before their children
        tasks[name] = asyncio.create_task(node(name, parents))
    await asyncio.gather(*tasks.values())
    return time.monotonic() - began


async def longest_history(client: Client, ids: Sequence[str]) -> int:
    """Return the length of the longest history among jobs, in events."""
    handles = [client.get_workflow_handle(workflow_id("default", job_id)) for job_id in ids]
    lengths = [(await handle.describe()).history_length for handle in handles]
    return max(lengths)


async def measure(jobs: int, fan: int, seats: int, killed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the graph with ours and bare, and a smaller one with a kill; return the figures and the details."""
    waits = graph(jobs, fan)
    with field(seats=seats) as ground:
        client = await ground.client()
        async with bare_workers(ground.temporal, seats):
            tell("warming up")
            await ours(ground, graph(12, 3), "warm")
            await bare_run(client, graph(12, 3), ground.folder / "bare-warm")
            mine = await ours(ground, waits, "ours")
            tell(f"ours: {jobs / mine['took_s']:.1f} jobs/s, submit {mine['submit_s']:.1f} s")
            plain = await bare_run(client, waits, ground.folder / "bare-run")
            tell(f"bare: {jobs / plain:.1f} jobs/s")
        ends = [mine["ids"][name] for name in ("root", "m0", "l0", "join")]
        events = await longest_history(client, ends)
        survived = await ours(ground, graph(killed, min(fan, killed // 4)), "killed", kill=True)
        tell(f"with a kill half-way: {killed / survived['took_s']:.1f} jobs/s")
        memory = ground.memory_mb()
    figures = {
        "jobs_per_s": round(jobs / mine["took_s"], 2),
        "bare_jobs_per_s": round(jobs / plain, 2),
        "ratio": round(plain / mine["took_s"], 3),
        "submit_s": round(mine["submit_s"], 2),
        "events_per_job": events,
        "killed_jobs_per_s": round(killed / survived["took_s"], 2),
    }
    return figures, {"jobs": jobs, "fan": fan, "seats": seats, "killed": killed, "memory_mb": memory}


def main() -> int:
    """Measure and publish."""
    options = parser("dag", jobs=10_000, fan=100, seats=4, killed=400).parse_args()
    figures, details = asyncio.run(measure(options.jobs, options.fan, options.seats, options.killed))
    publish("dag", figures, as_json=options.json, details=details)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
