"""From the death of what runs a job to the same job's engine at work elsewhere, with the work that was done by then.

Two factories; the one that builds is struck in the middle. *Killed*: SIGKILL of its agent; its supervisor kills the
engine, saves the work and certifies the death. *Vanished*: the agent and everything below it are frozen in one go, so
that nothing is said, no connection closes and nobody certifies, until the job is done elsewhere; then they wake up and
have to find themselves fenced. *Saturated*: nobody is struck, but every core is kept busy beside the engines; each
takeover is a false one. Judges: a file that engines append to, and the bare remote. Does I/O: a stack, processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.bench.engines import Judge, family_of, stage, submit, until
from tests.bench.field import Field, document_of, field, make_remote
from tests.bench.measuring import median, parser, percentile, publish, tell
from workers.process_table import kill, living_descendants

TARGETS = {"killed_s": 1.5, "vanished_beyond_lease_s": 2.0}
CHECKPOINT_S = 1
"""More often than by default, so that a machine has something to leave behind soon; a kill waits for none."""
JOB = """---
engine: shell
repo: {remote}
base: main
ship: base
profile: solo
review-policy: auto
verify: test -f kept-{number}
timeout: 30m
---
# Recover {number}

```sh
if [ -f kept-{number} ]; then
  echo "again {number} $(date +%s%N)" >> {judge}
  exit 0
fi
echo work > kept-{number}
setsid sh -c 'sleep 9876' &
echo "first {number} $GIGAFACTORY_ATTEMPT" >> {judge}
{work}
```
"""
BUSY = "while :; do echo $((i += 1)) > ticks-{number}; sleep 0.1; done"
"""What the engine does until it is struck: there is always something that no checkpoint has yet."""
SPIN = "while True: pass"


class Ground(NamedTuple):
    """What all rounds share."""

    field: Field
    http: httpx.AsyncClient
    remote: Path
    judge: Judge
    numbers: Iterator[int]


class Struck(NamedTuple):
    """One round."""

    number: int
    took_s: float
    certified: bool


async def round_of(ground: Ground, *, vanish: bool, patience_s: float) -> Struck:
    """Let one job lose its factory; return how long it took until its engine was at work at the other one.

    Raises:
        RuntimeError: the work was not taken along, or the old attempt lives on.

    """
    number = next(ground.numbers)
    work = BUSY.format(number=number)
    manifest = JOB.format(remote=ground.remote, number=number, judge=ground.judge.path, work=work)
    job_id = await submit(ground.http, manifest)
    await ground.judge.hears("first", str(number))
    first = (await stage(ground.http, job_id, "building"))["attempts"][-1]
    if vanish:
        await until("a checkpoint", lambda: checkpointed(ground, job_id))
    agent = ground.field.pid_of(first["factory"])
    began = time.time_ns()
    frozen = freeze(agent) if vanish else []
    if not vanish:
        os.kill(agent, signal.SIGKILL)
    try:
        again = await ground.judge.hears("again", str(number), patience_s=patience_s)
        document = await stage(ground.http, job_id, "shipped")
    finally:
        for pid in frozen:
            kill(pid, signal.SIGCONT)
    await until("the end of the old attempt", lambda: gone(job_id))
    await until(f"the return of {first['factory']}", lambda: back(ground, first["factory"], 0 if vanish else agent))
    epochs = [attempt["epoch"] for attempt in document["attempts"]]
    if document["stage"] != "shipped" or epochs != [1, 2] or document["attempts"][-1]["factory"] == first["factory"]:
        raise RuntimeError(f"{job_id} went another way: {document['stage']}, {document['attempts']}")
    struck = Struck(number, (int(again[2]) - began) / 1e9, await was_certified(ground.http, job_id))
    tell(f"{'vanished' if vanish else 'killed'}: {struck.took_s:.2f} s")
    return struck


async def back(ground: Ground, factory: str, dead: int) -> bool:
    """Return whether the steward has brought a factory up again, and the fleet counts on it."""
    await asyncio.sleep(0.05)
    state = document_of(await ground.http.get(f"/fleet/factories/{factory}"))["state"]
    return state == "online" and ground.field.pid_of(factory) not in (0, dead)


async def checkpointed(ground: Ground, job_id: str) -> bool:
    """Return whether the ledger knows of a checkpoint of the job."""
    await asyncio.sleep(0.05)
    return any(event["type"] == "attempt.checkpoint" for event in await events_of(ground.http, job_id))


async def events_of(http: httpx.AsyncClient, job_id: str) -> list[dict[str, Any]]:
    """Return the job's event log."""
    answer = await http.get(f"/fleet/jobs/{job_id}/events", params={"limit": 500})
    return list(document_of(answer)["events"])


def freeze(agent: int) -> list[int]:
    """Stop an agent and everything below it, the agent first; return them all."""
    kill(agent, signal.SIGSTOP)
    frozen = [agent]
    while below := [pid for pid in living_descendants(agent) if pid not in frozen]:
        for pid in below:
            kill(pid, signal.SIGSTOP)
        frozen += below
    return frozen


async def gone(job_id: str) -> bool:
    """Return whether nothing of the first attempt is left."""
    return not family_of(job_id, 1)


async def was_certified(http: httpx.AsyncClient, job_id: str) -> bool:
    """Return whether the job's first epoch was given up on a death certificate."""
    return any(event["type"] == "lease.lost" and event["data"]["certified"] for event in await events_of(http, job_id))


async def saturated(ground: Ground, jobs: int, last_s: int) -> int:
    """Keep every core busy for `last_s` seconds while jobs run; return how many attempts were taken away."""
    numbers = [next(ground.numbers) for _ in range(jobs)]
    works = (BUSY.format(number=number) for number in numbers)
    with burning(2 * (os.cpu_count() or 1)):
        ids = [
            await submit(
                ground.http, JOB.format(remote=ground.remote, number=number, judge=ground.judge.path, work=work)
            )
            for number, work in zip(numbers, works, strict=True)
        ]
        for number in numbers:
            await ground.judge.hears("first", str(number))
        await asyncio.sleep(last_s)
    documents = [await stage(ground.http, job_id, "building") for job_id in ids]
    for job_id in ids:
        document_of(await ground.http.post(f"/fleet/jobs/{job_id}/actions", json={"action": "cancel"}))
        await stage(ground.http, job_id, "cancelled")
    return sum(len(document["attempts"]) - 1 for document in documents)


@contextmanager
def burning(processes: int) -> Iterator[None]:
    """Run processes that do nothing but compute, until the block ends."""
    fires = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(processes)]
    try:
        yield
    finally:
        for fire in fires:
            fire.kill()
            fire.wait()


def doubled(remote: Path, numbers: list[int]) -> tuple[int, int]:
    """Return how many jobs never came to the base branch, and how many came more than once; the remote is the judge."""
    command = ["git", "-C", str(remote), "log", "--first-parent", "--format=%s", "main"]
    subjects = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    came = Counter(subjects)
    times = [sum(n for subject, n in came.items() if subject.endswith(f"Recover {number}")) for number in numbers]
    return times.count(0), sum(1 for n in times if n > 1)


async def measure(options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Strike again and again; return the figures and the details."""
    beat_s = options.lease / 6
    settings = {
        "lease_ttl_s": options.lease,
        "beat_s": beat_s,
        "factory_beat_s": beat_s,
        "checkpoint_s": CHECKPOINT_S,
    }
    with field(seats=3, factories=2, **settings) as place:
        async with place.http() as http:
            remote = make_remote(place.folder / "recovery")[0]
            ground = Ground(place, http, remote, Judge(place.folder / "judge"), count(1))
            patience = options.lease * 3 + 30.0
            rounds = options.warm_up + options.rounds  # what warms up counts only for the judge
            struck = [await round_of(ground, vanish=False, patience_s=patience) for _ in range(rounds)]
            killed = struck[options.warm_up :]
            vanished = [await round_of(ground, vanish=True, patience_s=patience) for _ in range(options.vanished)]
            numbers = [one.number for one in (*struck, *vanished)]
            false_takeovers = await saturated(ground, 4, options.saturated)
            lost, twice = doubled(remote, numbers)
    beyond = [one.took_s - options.lease for one in vanished]
    figures = {
        "p50_s": round(median([one.took_s for one in killed]), 3),
        "p95_s": round(percentile([one.took_s for one in killed], 0.95), 3),
        "target_s": TARGETS["killed_s"],
        "lost": lost,
        "doubled": twice,
        "uncertified": sum(not one.certified for one in killed),
        "vanished_beyond_lease_p50_s": round(median(beyond), 3) if beyond else None,
        "vanished_beyond_lease_max_s": round(max(beyond), 3) if beyond else None,
        "vanished_beyond_lease_target_s": TARGETS["vanished_beyond_lease_s"],
        "false_takeovers": false_takeovers,
    }
    took = {"killed_s": [one.took_s for one in killed], "vanished_s": [one.took_s for one in vanished]}
    asked = {name: getattr(options, name) for name in ("rounds", "vanished", "lease", "saturated")}
    return figures, asked | took


def main() -> int:
    """Measure and publish."""
    options = parser("recovery", warm_up=1, rounds=20, vanished=5, lease=30, saturated=60).parse_args()
    figures, details = asyncio.run(measure(options))
    publish("recovery", figures, as_json=options.json, details=details)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
