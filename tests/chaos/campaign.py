"""One chaos run: a stack behind doors, a flow of jobs, faults from a plan, a verdict. Does I/O: everything.

Jobs come in herds and are shipped by a client that is patient, as any client has to be: it repeats what it got no
answer to. Faults follow the plan as jobs ship. Then everything is healed and what was begun gets its time to end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.bench.field import guarded_home
from tests.bench.measuring import tell
from tests.chaos.doors import LOOPBACK, Address, Doors
from tests.chaos.faults import Injector
from tests.chaos.plan import Fault, make_plan
from tests.chaos.referee import OVER, Certified, Referee, Verdict, certified, orphans_of
from tests.chaos.site import DATABASE_WAYS, WAYS, launch_command
from tests.topology.production import full_server, production
from workers.process_table import living_descendants
from workers.stack_home import factory_names, prepare
from workers.stack_state import ProcessId
from workers.temporal_server import locate_server

LEASE_S = 4.0
SETTINGS: dict[str, object] = {
    "lease_ttl_s": LEASE_S,
    "beat_s": 0.8,
    "factory_beat_s": 1.0,
    "checkpoint_s": 0.5,
    "reconcile_s": 2,
    "stop_grace_s": 0.5,
    "reclaim_limit": 1000,
    "quarantine_failures": 0,
}
"""Time runs quicker than in life; a job that is hit again and again is no poison here, and a factory not flaky."""
HERD = 12
"""Jobs that are submitted at once."""
LARGE_EVERY = 10
"""Every so many-th job has an artifact that goes to the API by itself."""
LOOK_S = 0.5
TELL_S = 10.0
ASK_AGAIN_S = 4.0
TARGET_S = 5.0
"""How long a fault waits for somebody to happen to."""
EVERY_S = 20.0
STALL_S = 150.0
"""Without any job shipping for so long, everything is healed; as long again, and what is left is stuck."""
CLIENT = "client"


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    jobs: int
    kills: int
    seed: int
    factories: int = 3
    seats: int = 3
    remotes: int = 4
    topology: str = "embedded"


@dataclass
class Ground:
    """A running stack behind doors."""

    home: Path
    doors: Doors
    token: str
    factories: list[str]
    postgres: int = 0
    """Pid of the database server; 0 when there is none."""

    def http(self) -> httpx.AsyncClient:
        """Return a client of the API, through a door of its own."""
        port = self.doors.doors[CLIENT]["api"].port
        return httpx.AsyncClient(
            base_url=f"http://{LOOPBACK}:{port}",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=10,
            limits=httpx.Limits(max_connections=HERD),
        )

    def databases(self) -> list[ProcessId]:
        """Return the processes of the database server that serve a connection."""
        found = living_descendants(self.postgres) if self.postgres else {}
        return [ProcessId(pid, birth) for pid, birth in found.items()]


class Foundation(NamedTuple):
    """What a stack stands on."""

    binary: Path
    """Temporal's development server, or the directory of the full server's programs."""
    postgres_port: int | None = None
    postgres_pid: int = 0


@contextmanager
def foundation(topology: str) -> Iterator[Foundation]:
    """Obtain Temporal's programs, and run a database server where the topology has one."""
    if topology == "embedded":
        found = asyncio.run(locate_server("", environ=os.environ, tell=tell, sound=True))
        assert found.binary is not None
        yield Foundation(found.binary)
        return
    programs = full_server()
    with production(programs, factories=0) as (_command, server):
        pid = int((server.socket / "data" / "postmaster.pid").read_text().split()[0])
        yield Foundation(programs, server.port, pid)


@asynccontextmanager
async def ground(scale: Scale, base: Foundation, keep: Sequence[Any] = ()) -> AsyncIterator[Ground]:
    """Run a stack until the block ends or this process does; when `keep` is not empty by then, its home stays."""
    settings = {f"GIGAFACTORY_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    settings["GIGAFACTORY_SEATS_PER_FACTORY"] = str(scale.seats)
    with guarded_home(settings, keep=keep) as home:
        prepare(home)
        factories = factory_names(home, scale.factories)

        def url(name: str) -> Address:
            return lambda: str(json.loads((home / "run" / "stack.json").read_text())["urls"][name]).split("//")[-1]

        ways = DATABASE_WAYS if base.postgres_port else WAYS
        ways = {**ways, **dict.fromkeys(factories, ("api", "temporal")), CLIENT: ("api",)}
        places = {
            "api": url("api"),
            "temporal": url("temporal"),
            "postgres": lambda: f"{LOOPBACK}:{base.postgres_port}",
        }
        doors = await Doors.open(ways, places)
        try:
            command = launch_command(
                "up",
                factories=scale.factories,
                ports=doors.ports(),
                binary=base.binary,
                postgres_port=base.postgres_port,
            )
            await bring_up(command, {**os.environ, **settings, "GIGAFACTORY_HOME": str(home)})
            yield Ground(home, doors, (home / "token").read_text().strip(), factories, base.postgres_pid)
        finally:
            await doors.close()


async def bring_up(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Start the stack and wait until it is ready.

    Raises:
        RuntimeError: it did not start; why is on stderr.

    """
    root = str(Path(__file__).resolve().parents[2])
    process = await asyncio.create_subprocess_exec(
        *command, env={**environment, "PYTHONPATH": root}, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr
    )
    if await process.wait():
        raise RuntimeError("the stack did not start")


@dataclass
class Campaign:
    """Jobs and faults on one stack."""

    scale: Scale
    ground: Ground
    referee: Referee
    jobs: dict[int, set[str]] = field(default_factory=dict)
    """number → ids that the API gave it; more than one is one too many."""
    shipped: set[str] = field(default_factory=set)
    """Ids that the remotes hold a mark of."""
    missed: int = 0
    """Faults that found nobody."""

    def __post_init__(self) -> None:
        self.injector = Injector(self.ground.home, self.ground.doors, self.ground.databases)
        self.http = self.ground.http()
        self._asked: dict[str, float] = {}
        self._moved = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, plan: Sequence[Fault], *, steadily: Sequence[Fault] = ()) -> float:
        """Take all jobs through; return the seconds it took.

        Beside the plan, one of the faults of `steadily` is done every EVERY_S seconds, in turn.
        """
        began = time.monotonic()
        work = [self._submit_all(), self._ship_all(), self._watch()]
        if steadily:
            work.append(self._strike_steadily(steadily))
        chores = [asyncio.create_task(chore) for chore in work]
        try:
            await self._strike_all(plan)
            await self.injector.heal()
            tell(f"{self.injector.done.total()} faults are done and healed")
            self._moved = time.monotonic()
            while len(self.shipped) < self.scale.jobs and not self._stalled:
                await asyncio.sleep(LOOK_S)
                for chore in chores:
                    if chore.done() and not chore.cancelled() and (error := chore.exception()):
                        raise error
            took = time.monotonic() - began
            await self._settle()
            return took
        finally:
            for chore in (*chores, *self._tasks):
                chore.cancel()
            await asyncio.gather(*chores, *self._tasks, return_exceptions=True)

    @property
    def ids(self) -> set[str]:
        """Return the jobs that the API is known to have taken."""
        return {job_id for ids in self.jobs.values() for job_id in ids}

    @property
    def _stalled(self) -> bool:
        return time.monotonic() - self._moved > STALL_S

    # --- faults -------------------------------------------------------------------------------------------------------

    async def _strike_all(self, plan: Sequence[Fault]) -> None:
        """Do all of the plan; the kill of a part that nobody has kills an agent, which always is there."""
        for fault in plan:
            while len(self.shipped) < fault.due * self.scale.jobs and not self._stalled:
                await asyncio.sleep(0.1)
            if self._stalled:
                tell(f"no job has shipped for {STALL_S:.0f} s: healing")
                return
            instead = replace(fault, target="agent") if fault.what == "kill" else None
            if not await self._strike(fault) and not (instead and await self._strike(instead)):
                self.missed += 1

    async def _strike_steadily(self, faults: Sequence[Fault]) -> None:
        for fault in itertools.cycle(faults):
            await asyncio.sleep(EVERY_S)
            await self._strike(fault)

    async def _strike(self, fault: Fault) -> bool:
        """Strike as soon as there is somebody; False when nobody comes."""
        deadline = time.monotonic() + TARGET_S
        while time.monotonic() < deadline:
            if self.injector.strike(fault):
                await asyncio.sleep(0.2)
                return True
            await asyncio.sleep(0.1)
        return False

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        """Call the API until it answers."""
        while True:
            try:
                answer = await self.http.request(method, path, **body)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                return answer
            await asyncio.sleep(0.2)

    async def _submit_all(self) -> None:
        """Submit in herds, so that there is always somewhat more than the seats hold."""
        open_at_most = 2 * HERD + 2 * self.scale.factories * self.scale.seats
        for first in range(0, self.scale.jobs, HERD):
            while len(self.jobs) - len(self.shipped) > open_at_most - HERD:
                await asyncio.sleep(0.2)
            herd = range(first, min(first + HERD, self.scale.jobs))
            await asyncio.gather(*(self._submit(number) for number in herd))

    async def _submit(self, number: int) -> None:
        text = self.referee.task(number).manifest(self.referee.ledger, large=number % LARGE_EVERY == 0)
        ids = self.jobs.setdefault(number, set())
        answer = await self.ask("POST", "/fleet/jobs", json={"manifest": text})
        if answer.status_code not in (200, 201):
            raise RuntimeError(answer.text)
        ids.update(str(job["id"]) for job in answer.json()["jobs"])

    async def _ship_all(self) -> None:
        """Ship what is at its gate, again and again until it has shipped."""
        while True:
            page = (await self.ask("GET", "/fleet/jobs", params={"stage": "testing", "limit": 200})).json()["jobs"]
            for job in page:
                if job["id"] not in self.ids:
                    continue
                waited = time.monotonic() - self._asked.get(job["id"], 0.0)
                if waited > ASK_AGAIN_S and job["candidate_sha"]:
                    self._asked[job["id"]] = time.monotonic()
                    self._tasks.add(task := asyncio.create_task(self._ship(job["id"], job["candidate_sha"])))
                    task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(LOOK_S)

    async def _ship(self, job_id: str, sha: str) -> None:
        await self.ask("POST", f"/fleet/jobs/{job_id}/actions", json={"action": "ship", "sha": sha})

    async def _watch(self) -> None:
        """Ask the remotes how far the jobs are."""
        told = 0.0
        while True:
            shipped = await asyncio.to_thread(self.referee.shipped)
            if len(shipped) > len(self.shipped):
                self._moved = time.monotonic()
            self.shipped = shipped
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                done = f"{self.injector.kills} kills, {self.injector.done.total()} faults"
                tell(f"{len(shipped)} of {self.scale.jobs} jobs shipped; {done}")
            await asyncio.sleep(LOOK_S)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Give the product its time to be done with every job, and everything of every attempt to be gone."""
        deadline = time.monotonic() + STALL_S
        while time.monotonic() < deadline:
            claims = await self.claims()
            if all(claims.get(job_id) in OVER for job_id in self.ids) and not orphans_of(self.ids):
                return
            await asyncio.sleep(LOOK_S)

    async def claims(self) -> dict[str, str]:
        """Return the stage that the product says each job has."""
        found: dict[str, str] = {}
        cursor: dict[str, Any] = {}
        while True:
            page = (await self.ask("GET", "/fleet/jobs", params={"limit": 200, **cursor})).json()
            found |= {job["id"]: job["stage"] for job in page["jobs"]}
            if not page.get("next_cursor"):
                return found
            cursor = {"cursor": page["next_cursor"]}

    async def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return the event log of a job."""
        events: list[dict[str, Any]] = []
        while page := (
            await self.ask(
                "GET",
                f"/fleet/jobs/{job_id}/events",
                params={"after": events[-1]["seq"] if events else 0, "limit": 500},
            )
        ).json()["events"]:
            events += page
        return events

    async def judge(self) -> Verdict:
        """Have the referee say what is wrong."""
        told: list[Certified] = []
        for job_id in sorted({line.job_id for line in self.referee.lines() if line.epoch > 1} & self.ids):
            told += certified(await self.events(job_id), job_id)
        return self.referee.judge(self.jobs, await self.claims(), told, orphans_of(self.ids))

    async def evidence(self, verdict: Verdict) -> dict[str, Any]:
        """Return the verdict with the stories of the jobs that it names."""
        numbers = {*verdict.lost, *verdict.stuck, *verdict.shipped_twice, *verdict.unproven}
        ids = sorted({job_id for number in numbers for job_id in self.jobs.get(number, ())})
        ids += sorted({attempt.rpartition(".")[0] for attempt in verdict.outlived})
        stories = {job_id: (await self.events(job_id))[-60:] for job_id in ids[:50]}
        return {"scale": asdict(self.scale), "verdict": asdict(verdict), "stories": stories}


def plan_of(scale: Scale) -> tuple[Fault, ...]:
    """Return the faults of a run."""
    return make_plan(scale.seed, scale.kills, lease_s=LEASE_S, database=scale.topology == "production")
