"""A thousand factories on one API: whether everybody is heard in time while jobs run, end and are handed out.

Real: the API process, the ledger (SQLite, then PostgreSQL), tokens, registration, links, beats, reports, submits,
dispatch. Simulated: the factories are loops in this process (`simulated_factories`), and one process writes to the
ledger what control workers would (`simulated_control`); there is no Temporal, no engine, no git. Does I/O: processes,
an API, a database.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import structlog

from store import event_loop, migrate
from tests.bench.bench_router import TOOLS
from tests.bench.field import ROOT, document_of, guarded_home, make_remote
from tests.bench.measuring import median, parser, percentile, publish, tell
from tests.bench.simulated_factories import Attempt, SimulatedFactory, enrol, link_up, missed
from tests.bench.watched_api import beats
from tests.conftest_postgres import postgres_binaries, running_postgres
from workers.process_table import c_library, die_with_parent

LEASE_S = 30
JOB_CLASSES = 50
REPOSITORIES = 4
BATCH = 1_000
ENDS_PER_S = 2.0
"""Jobs that end, and seats that are handed out again, a second: as if a job took ten minutes, more or less."""
TARGET_MS = 20
ENDED_BY_ITS_JOB = "ended succeeded"
STILL_HELD = ("living open", "accepted open", "accepted succeeded")
"""How a lease may stand in the ledger at the end, beside that its job ended it: its state and the attempt's outcome."""


class Api(NamedTuple):
    """A running API process."""

    process: subprocess.Popen[bytes]
    http: httpx.AsyncClient
    environ: dict[str, str]
    beats: Path
    """Where it notes how long each beat takes on the ledger."""

    def memory_mb(self) -> dict[str, int]:
        """Return present and highest resident memory, MiB."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        return {name: int(lines[field].split()[0]) // 1024 for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))}

    def cpu_s(self) -> float:
        """Return the processor time it has used, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the ground ----------------------------------------------------------------------------------------------------


@contextmanager
def database(kind: str) -> Iterator[str]:
    """Yield the URL for the setting `database_url`; empty for SQLite."""
    if kind == "sqlite":
        yield ""
        return
    binaries = postgres_binaries()
    assert binaries is not None
    with running_postgres(binaries) as server:
        server.run("CREATE DATABASE gigafactory")
        yield server.url("gigafactory")


@asynccontextmanager
async def running_api(home: Path, database_url: str, beat_s: int) -> AsyncIterator[Api]:
    """Run an API process over a new ledger; no Temporal answers it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "GIGAFACTORY_HOME": str(home),
        "GIGAFACTORY_API_PORT": str(port),
        "GIGAFACTORY_TEMPORAL_ADDRESS": "127.0.0.1:1",
        "GIGAFACTORY_DATABASE_URL": database_url,
        "GIGAFACTORY_FACTORY_BEAT_S": str(beat_s),
        "GIGAFACTORY_LEASE_TTL_S": str(LEASE_S),
    }
    await migrate(database_url or f"sqlite:///{home / 'ledger.db'}")
    notes = home / "beats"
    process = start_api(home, environ, notes)
    try:
        url = f"http://127.0.0.1:{port}"
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await http.get("/fleet/health")
                    break
                if process.poll() is not None:
                    raise RuntimeError((home / "api.log").read_text()[-4000:])
                await asyncio.sleep(0.1)
            http.headers["Authorization"] = f"Bearer {(home / 'token').read_text().strip()}"
            yield Api(process, http, environ, notes)
    finally:
        process.kill()
        process.wait()


def start_api(home: Path, environ: dict[str, str], notes: Path) -> subprocess.Popen[bytes]:
    """Start the process, which notes its beats; it dies with this one."""
    c_library()
    with (home / "api.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.bench.watched_api", str(notes)],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it only asks the system for a signal
        )


def manifests(count: int, remotes: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield jobs of 50 classes; each can run on about a quarter of the factories, or more."""
    for number in range(count):
        kind = number % JOB_CLASSES
        fields = {
            "title": f"Job {number}",
            "engine": "shell",
            "repo": str(remotes[kind % len(remotes)]),
            "capabilities": [TOOLS[kind], *(["node>=19"] if kind % 3 == 0 else [])],
            "body": "true\n",
        }
        yield {"manifest": fields}


async def submit(http: httpx.AsyncClient, count: int, folder: Path) -> None:
    """Submit as many jobs."""
    remotes = [make_remote(folder / f"repository-{number}")[0] for number in range(REPOSITORIES)]
    jobs = list(manifests(count, remotes))
    for start in range(0, count, BATCH):
        document_of(await http.post("/fleet/jobs", json={"jobs": jobs[start : start + BATCH]}))


# --- one run -------------------------------------------------------------------------------------------------------


class Run:
    """Factories, and the process that stands for control workers."""

    def __init__(self, fleet: Sequence[SimulatedFactory], control: Process) -> None:
        self._by_name = {factory.name: factory for factory in fleet}
        self._control = control
        self._line: deque[tuple[str, Attempt]] = deque()
        """Attempts that run, the oldest first."""
        self.last_words = ""

    @property
    def running(self) -> int:
        """Return how many attempts run."""
        return len(self._line)

    async def follow(self) -> None:
        """Begin what is granted, until the control process has said its last."""
        assert self._control.stdout is not None
        while line := (await self._control.stdout.readline()).decode():
            if line.startswith("{"):
                self.last_words = line
                return
            job_id, epoch, factory = line.split()
            attempt = (job_id, int(epoch))
            await self._by_name[factory].begin(attempt)
            self._line.append((factory, attempt))

    async def end_some(self, seconds: float) -> None:
        """Let jobs end, one after the other, as long as it lasts."""
        assert self._control.stdin is not None
        for _ in range(round(seconds * ENDS_PER_S)):
            began = time.monotonic()
            factory, attempt = self._line.popleft()
            await self._by_name[factory].end(attempt)
            self._control.stdin.write("{} {}\n".format(*attempt).encode())
            await asyncio.sleep(max(0.0, began + 1 / ENDS_PER_S - time.monotonic()))

    async def close(self) -> None:
        """Let the control process say its last."""
        assert self._control.stdin is not None
        self._control.stdin.close()


async def measure(kind: str, options: Any) -> dict[str, Any]:
    """Run the fleet on one kind of database; return what was seen."""
    with guarded_home({}) as home, database(kind) as url:
        async with running_api(home, url, options.beat) as api:
            fleet = await enrol(api.http, options.factories)
            tell(f"{kind}: {len(fleet)} factories are registered")
            command = [sys.executable, "-P", "-m", "tests.bench.simulated_control"]
            async with asyncio.TaskGroup() as tasks:
                living = await link_up(fleet, tasks, options.beat)
                tell(f"{kind}: all are linked")
                control = await asyncio.create_subprocess_exec(*command, env=api.environ, stdin=PIPE, stdout=PIPE)
                run = Run(fleet, control)
                following = tasks.create_task(run.follow())
                await submit(api.http, options.factories + options.queued, home)
                tell(f"{kind}: {options.factories + options.queued} jobs are submitted")
                while run.running < options.factories:
                    await asyncio.sleep(0.1)
                tell(f"{kind}: {run.running} jobs run")
                began, used = time.monotonic(), api.cpu_s()
                await run.end_some(options.seconds)
                ended = time.monotonic()
                cpu = (api.cpu_s() - used) / (ended - began)
                await run.close()
                await following
                listed = document_of(await api.http.get("/fleet/factories"))["factories"]
                memory = api.memory_mb()
                for task in living:
                    task.cancel()
            await control.wait()
            on_ledger = beats(api.beats, began, ended)
            return seen(fleet, run.last_words, (began, ended), listed, on_ledger) | {
                "api_memory_mb": memory["now"],
                "api_memory_peak_mb": memory["peak"],
                "api_cpu_cores": round(cpu, 2),
            }


def seen(
    fleet: Sequence[SimulatedFactory],
    last_words: str,
    period: tuple[float, float],
    listed: list[dict[str, Any]],
    on_ledger: Sequence[float],
) -> dict[str, Any]:
    """Return the figures of one run."""
    began, ended = period
    told = json.loads(last_words)
    trips = [took * 1000 for factory in fleet for at, took in factory.acknowledged if began <= at <= ended]
    refused = [text for factory in fleet for text in factory.refused]
    for text in refused[:5]:
        tell(text)
    late = [at for at in told["late"].values() if at >= began]
    fates: dict[str, int] = told["ends"]
    by_its_job = fates.get(ENDED_BY_ITS_JOB, 0)
    otherwise = sum(fates.values()) - by_its_job - sum(fates.get(fate, 0) for fate in STILL_HELD)
    return {
        "leases": sum(fates.values()),
        "leases_ended_by_their_job": by_its_job,
        "leases_ended_otherwise": otherwise,
        "leases_missed": len(late) + otherwise,
        "beats_missed": missed(fleet, LEASE_S, began, ended),
        "missed_while_filling": missed(fleet, LEASE_S, 0, began) + len(told["late"]) - len(late),
        "factories_offline": sum(factory["state"] != "online" for factory in listed),
        "refused": len(refused),
        "beats": len(trips),
        "heartbeat_p50_ms": round(median(on_ledger), 2),
        "heartbeat_p95_ms": round(percentile(on_ledger, 0.95), 2),
        "heartbeat_max_ms": round(max(on_ledger), 2),
        "round_trip_p50_ms": round(median(trips), 2),
        "round_trip_p95_ms": round(percentile(trips, 0.95), 2),
        "passes": len(told["passes_ms"]),
        "dispatch_pass_p50_ms": round(median(told["passes_ms"]), 1) if told["passes_ms"] else None,
        "dispatch_pass_p95_ms": round(percentile(told["passes_ms"], 0.95), 1) if told["passes_ms"] else None,
        "record_p50_ms": round(median(told["records_ms"]), 2),
    }


def main() -> int:
    """Measure and publish."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # links say every step
    options = parser(
        "factories", factories=1_000, queued=10_000, beat=15, seconds=120, sqlite=1, postgres=1
    ).parse_args()
    figures: dict[str, Any] = {"heartbeat_target_ms": TARGET_MS}
    if options.sqlite:
        figures |= event_loop.run(measure("sqlite", options))
        tell(str(figures))
    if options.postgres and postgres_binaries() is not None:
        on_postgres = event_loop.run(measure("postgres", options))
        figures |= {f"postgres_{name}": value for name, value in on_postgres.items()}
    details = {name: getattr(options, name) for name in ("factories", "queued", "beat", "seconds")}
    publish("factories", figures, as_json=options.json, details=details | {"lease_s": LEASE_S})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
