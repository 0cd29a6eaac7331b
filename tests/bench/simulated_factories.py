"""Factories without machines: each is a loop that says to the API what an agent says, over a link of its own.

Real: token, registration, `workers.link.FactoryLink`, beats, reports, by HTTP where the link is down. Simulated: there
is no engine, no workspace and no Temporal; what an attempt has to tell is one line of output with each beat.
Does I/O: HTTP, WebSocket, files.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

import httpx

from tests.bench.bench_router import offers
from tests.bench.field import document_of
from workers.factory_agent import beat_pause_s
from workers.link import FactoryLink, LinkDown

CLASSES = 100
"""Kinds of factories; each has 20 capabilities."""
LINKS_PER_S = 100
GB = {"mem_gb": 64, "free_disk_gb": 500, "free_memory_gb": 32}

Attempt = tuple[str, int]


class SimulatedFactory:
    """One factory with one seat."""

    def __init__(self, number: int, http: httpx.AsyncClient, secret: str, dice: Random) -> None:
        self.name = f"sim-{number:04}"
        self.instance = f"instance-{self.name}"
        self.running: dict[Attempt, int] = {}
        """Attempts with the number of lines that they have told."""
        self.acknowledged: list[tuple[float, float]] = []
        """Of each beat: the monotonic time of its answer, and how long that took, in seconds."""
        self.refused: list[str] = []
        self._http = http
        self._credentials = {"Authorization": f"Bearer {secret}"}
        self._capabilities = offers(number % CLASSES, Random(number % CLASSES))  # noqa: S311 - the same fleet each time
        self._dice = dice
        self.link = FactoryLink(
            str(http.base_url).rstrip("/"),
            self.name,
            self.instance,
            credentials=lambda: self._credentials,
            running=lambda: tuple(self.running),
            switch_epoch=lambda: 0,
            stop=lambda job_id, epoch, reason: self.refused.append(f"{job_id} epoch {epoch} was {reason}"),
            look=lambda: None,
        )

    async def register(self) -> None:
        """Report for work."""
        body = {
            "name": self.name,
            "instance": self.instance,
            "host": socket.gethostname(),  # the repositories lie on this machine, and so their jobs need it
            "pid": 1,
            "os": "linux",
            "arch": "x86_64",
            "seats": 1,
            "capabilities": [f"factory:{self.name}", *self._capabilities],
            "stations": [{"engine": "shell", "version": "1.0", "seats": 1, "usable": True}],
            **GB,
        }
        document_of(await self._http.post("/fleet/factories", json=body, headers=self._credentials))

    async def live(self, beat_s: float) -> None:
        """Beat until cancelled, beginning at any moment of the first interval."""
        pause = self._dice.random() * beat_s
        while True:
            await asyncio.sleep(pause)
            await self.beat()
            for attempt in tuple(self.running):
                await self.tell(attempt)
            pause = beat_pause_s(beat_s)

    async def beat(self) -> None:
        """Say that we live, and note how long the answer took."""
        body = {
            "instance": self.instance,
            "load": round(self._dice.random(), 2),
            "free_disk_gb": GB["free_disk_gb"],
            "free_memory_gb": GB["free_memory_gb"],
            "sentinel": "",
            "warm_repositories": [],
        }
        began = time.monotonic()
        if await self._call("beat", body, f"/fleet/factories/{self.name}/heartbeat"):
            self.acknowledged.append((time.monotonic(), time.monotonic() - began))

    async def begin(self, attempt: Attempt) -> None:
        """Take up an attempt, as if its activity had come from Temporal."""
        self.running[attempt] = 0
        self.link.running_changed()
        await self._report(attempt, started={"at": _now(), "pid": 1, "engine_version": "1.0"})

    async def tell(self, attempt: Attempt) -> None:
        """Bring one more line of output."""
        self.running[attempt] += 1
        lines = [{"at": _now(), "text": f"still at it, {self.running[attempt]} lines by now"}]
        await self._report(attempt, logs=[{"stream": "stdout", "first_seq": self.running[attempt], "lines": lines}])

    async def end(self, attempt: Attempt) -> None:
        """Hand the result of an attempt in."""
        await self._report(attempt, result={"sha": "c" * 40})
        self.running.pop(attempt, None)
        self.link.running_changed()

    async def _report(self, attempt: Attempt, **parts: Any) -> None:
        job_id, epoch = attempt
        body = {"factory": self.name, "instance": self.instance, **parts}
        await self._call("report", body, f"/fleet/attempts/{job_id}/{epoch}/report", job_id=job_id, epoch=epoch)

    async def _call(self, name: Any, body: Mapping[str, Any], path: str, **attempt: Any) -> bool:
        """Make a call, over HTTP when the link is down; return whether it was taken."""
        said: object
        try:
            answer = await self.link.call(name, body, **attempt)
            status, said = answer.status, answer.body
        except LinkDown:
            try:
                response = await self._http.post(path, json=body, headers=self._credentials)
                status, said = response.status_code, response.json()
            except httpx.TransportError as error:
                status, said = 599, repr(error)
        if status >= 400:
            self.refused.append(f"{name} of {self.name}: {status} {said}")
        return status < 400


async def enrol(http: httpx.AsyncClient, count: int) -> list[SimulatedFactory]:
    """Make as many factories, each with a token of its own, and let them report for work."""
    dice = Random(1)  # noqa: S311 - the same moments each time
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> SimulatedFactory:
        async with gate:
            wanted = {"name": f"sim-{number:04}", "roles": ["factory"], "factory": f"sim-{number:04}"}
            made = document_of(await http.post("/fleet/tokens", json=wanted))
            factory = SimulatedFactory(number, http, made["secret"], dice)
            await factory.register()
            return factory

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def link_up(
    fleet: Sequence[SimulatedFactory], tasks: asyncio.TaskGroup, beat_s: float
) -> list[asyncio.Task[None]]:
    """Start all links and loops; return their tasks when every link is up."""
    started = []
    for number, factory in enumerate(fleet):
        started += [tasks.create_task(factory.link.run()), tasks.create_task(factory.live(beat_s))]
        if number % 10 == 0:
            await asyncio.sleep(10 / LINKS_PER_S)
    while not all(factory.link.up for factory in fleet):
        await asyncio.sleep(0.1)
    return started


def missed(fleet: Sequence[SimulatedFactory], lease_s: float, since: float, until: float) -> int:
    """Return how often a factory was not acknowledged for longer than a lease, in gaps that end in that period.

    `since` and `until` are monotonic times.
    """
    times = [[at for at, _ in factory.acknowledged if at <= until] + [until] for factory in fleet]
    return sum(later >= since and later - earlier > lease_s for one in times for earlier, later in pairwise(one))


def _now() -> str:
    return datetime.now(UTC).isoformat()
