"""Jobs per second through a whole life with all gates, against bare Temporal doing the same work in the same run.

Ours: N jobs submitted at once over HTTP; each is granted, built by the shell engine in a worktree, sealed, judged,
shipped by an API call when it reaches its gate. Bare: `tests.bench.bare`. Rounds alternate; the medians count.
Does I/O: a stack, git, processes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from temporalio.client import Client

from activities import git
from core.attempt import workflow_id
from tests.bench import bare
from tests.bench.field import Field, bare_workers, document_of, field, make_remote
from tests.bench.measuring import median, parser, publish, tell

CLIENTS = 8
"""Requests under way at once, for ours and for bare."""
LOOK_S = 0.5
"""How often the client looks which jobs are at their gate, for ours and for bare."""


def manifest(where: str, number: str) -> str:
    """Return a job that writes one file and is verified by `true`."""
    return (
        f"---\nengine: shell\n{where}\nverify: 'true'\n---\n# Bench {number}\n\n```sh\necho {number} > out.txt\n```\n"
    )


async def each(items: list[str], act: Callable[[str], Awaitable[object]]) -> None:
    """Do something for all items, CLIENTS at a time."""
    gate = asyncio.Semaphore(CLIENTS)

    async def one(item: str) -> None:
        async with gate:
            await act(item)

    await asyncio.gather(*(one(item) for item in items))


async def ours(ground: Field, places: list[str]) -> tuple[float, list[str]]:
    """Take one job per place through its life; return seconds and job ids."""
    ids: list[str] = []
    shipping: set[str] = set()
    async with ground.http() as http:

        async def submit(place: str) -> None:
            body = {"manifest": manifest(place, str(len(ids)))}
            ids.append(document_of(await http.post("/fleet/jobs", json=body))["jobs"][0]["id"])

        async def ship(item: str) -> None:
            job_id, sha = item.split(" ", 1)
            document_of(await http.post(f"/fleet/jobs/{job_id}/actions", json={"action": "ship", "sha": sha}))

        began = time.monotonic()
        submitting = asyncio.create_task(each(places, submit))
        tasks: list[asyncio.Task[None]] = []
        while len(shipping) < len(places):
            ready = [item for item in await at_the_gate(http) if item.split(" ", 1)[0] not in shipping]
            shipping.update(item.split(" ", 1)[0] for item in ready)
            tasks.append(asyncio.create_task(each(ready, ship)))
            await asyncio.sleep(LOOK_S)
        await asyncio.gather(submitting, *tasks)
        while await unfinished(http):
            await asyncio.sleep(0.05)
        return time.monotonic() - began, ids


async def at_the_gate(http: httpx.AsyncClient) -> list[str]:
    """Return `id sha` of all jobs that wait for a ship."""
    page = document_of(await http.get("/fleet/jobs", params={"stage": "testing", "limit": 100}))
    return [f"{job['id']} {job['candidate_sha'] or ''}" for job in page["jobs"]]


async def unfinished(http: httpx.AsyncClient) -> bool:
    """Return whether a job has not ended yet."""
    for stage in ("testing", "review", "building", "assigned", "queued"):
        if document_of(await http.get("/fleet/jobs", params={"stage": stage, "limit": 1}))["jobs"]:
            return True
    return False


async def bare_round(client: Client, works: list[bare.Work], gates: Path) -> float:
    """Take all works through the bare workflow; return seconds."""
    by_id = {work.job_id: work for work in works}
    gates.write_text("")
    shipping: set[str] = set()
    began = time.monotonic()

    async def start(job_id: str) -> None:
        if by_id[job_id].remote:  # ours resolves the base at submit
            await git.ls_remote(by_id[job_id].remote, "HEAD", "refs/heads/*")
        await client.start_workflow("BareWorkflow", by_id[job_id], id=job_id, task_queue=bare.CONTROL)

    async def ship(job_id: str) -> None:
        await client.get_workflow_handle(job_id).execute_update("ship")

    submitting = asyncio.create_task(each(list(by_id), start))
    tasks: list[asyncio.Task[None]] = []
    while len(shipping) < len(works):
        ready = [line for line in gates.read_text().splitlines() if line not in shipping]
        shipping.update(ready)
        tasks.append(asyncio.create_task(each(ready, ship)))
        await asyncio.sleep(LOOK_S)
    await asyncio.gather(submitting, *tasks)
    await each(list(by_id), lambda job_id: client.get_workflow_handle(job_id).result())
    return time.monotonic() - began


async def events_per_job(client: Client, ids: list[str]) -> float:
    """Return the longest history among the jobs, in events."""
    lengths: list[int] = []

    async def ask(job_id: str) -> None:
        lengths.append((await client.get_workflow_handle(workflow_id("default", job_id)).describe()).history_length)

    await each(ids, ask)
    return max(lengths)


async def measure(jobs: int, rounds: int, seats: int) -> tuple[dict[str, object], dict[str, object]]:
    """Alternate ours and bare, with and without git; return the figures and the details."""
    with field(seats=seats) as ground:
        client = await ground.client()
        remote = make_remote(ground.folder / "ours")[0]
        bare_remote, bare_base = make_remote(ground.folder / "bare")
        mirror = ground.folder / "bare" / "mirror.git"
        await git.init_mirror(mirror, borrow=await git.borrowable_objects(bare_remote))
        gates = ground.folder / "gates"
        speeds: dict[str, list[float]] = {"ours": [], "bare": [], "ours_without_git": [], "bare_without_git": []}
        events = 0.0

        def works(name: str, count: int, *, with_git: bool) -> list[bare.Work]:
            places = {"remote": str(bare_remote), "mirror": str(mirror), "base": bare_base} if with_git else {}
            return [
                bare.Work(f"bare-{name}-{n}", str(ground.folder / "bare" / f"{name}-{n}"), gates=str(gates), **places)
                for n in range(count)
            ]

        def folders(name: str, count: int) -> list[str]:
            made = [ground.folder / "plain" / f"{name}-{n}" for n in range(count)]
            for path in made:
                path.mkdir(parents=True)
            return [f"cwd: {path}" for path in made]

        async with bare_workers(ground.temporal, seats):
            tell("warming up")
            await ours(ground, [f"repo: {remote}"] * 6)
            await bare_round(client, works("warm", 6, with_git=True), gates)
            for number in range(rounds):
                took, ids = await ours(ground, [f"repo: {remote}"] * jobs)
                speeds["ours"].append(jobs / took)
                events = max(events, await events_per_job(client, ids))
                took = await bare_round(client, works(f"git-{number}", jobs, with_git=True), gates)
                speeds["bare"].append(jobs / took)
                took, _ = await ours(ground, folders(str(number), jobs))
                speeds["ours_without_git"].append(jobs / took)
                took = await bare_round(client, works(f"plain-{number}", jobs, with_git=False), gates)
                speeds["bare_without_git"].append(jobs / took)
                shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in speeds.items())
                tell(f"round {number + 1} of {rounds}, jobs/s: {shown}")
        memory = ground.memory_mb()
    middle = {name: median(values) for name, values in speeds.items()}
    figures: dict[str, object] = {
        "jobs_per_s": round(middle["ours"], 2),
        "bare_jobs_per_s": round(middle["bare"], 2),
        "ratio": round(middle["ours"] / middle["bare"], 3),
        "ratio_without_git": round(middle["ours_without_git"] / middle["bare_without_git"], 3),
        "events_per_job": int(events),
        "p50_ms": None,
        "p95_ms": None,
    }
    rounded = {name: [round(value, 2) for value in values] for name, values in speeds.items()}
    return figures, {"jobs": jobs, "seats": seats, "rounds": rounded, "memory_mb": memory}


def main() -> int:
    """Measure and publish."""
    options = parser("jobs", jobs=200, rounds=3, seats=8).parse_args()
    figures, details = asyncio.run(measure(options.jobs, options.rounds, options.seats))
    publish("jobs", figures, as_json=options.json, details=details)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
