"""What a control worker does to the ledger, without Temporal and workflows. *A process; does I/O: the ledger.*

It takes lines `JOB EPOCH` on standard input: an attempt that has handed its result in. For each it writes what the
workflow would (review, shipped, seat free) and hands the seat out again, with the ledger's own methods. It prints a
line `JOB EPOCH FACTORY` for each lease that came to life, whoever granted it, and in between lets factories beat on the
ledger itself, to see how long that takes for a process that has nothing else to do. When its input ends it prints one
JSON document.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from core.job import Stage
from core.lifecycle import Record
from store import event_loop
from store.database import open_database
from store.ledger import Ledger, open_ledger
from store.messages import FactoryStatus
from store.settings_source import read_settings
from store.tables import factories, leases

LOOK_S = 0.5
BEAT_S = 0.1


class Control:
    """One process beside the API."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.passes_ms: list[float] = []
        self.beats_ms: list[float] = []
        self.records_ms: list[float] = []

    async def free(self, job_id: str, epoch: int) -> None:
        """Bring a job to its good end, and hand its seat to the next one."""
        began = time.perf_counter()
        review = Record(path=(Stage.REVIEW,), epoch=epoch, attempt_outcome="succeeded", candidate_sha="c" * 40)
        shipped = Record(path=(Stage.SHIPPED,), epoch=epoch, end_lease=True, release_locks=True, commits=("c" * 40,))
        for seq, record in enumerate((review, shipped), start=1):
            await self._ledger.record(job_id, seq, record, datetime.now(UTC))
        self.records_ms.append((time.perf_counter() - began) * 500)
        began = time.perf_counter()
        if await self._ledger.dispatch(datetime.now(UTC)):
            self.passes_ms.append((time.perf_counter() - began) * 1000)

    async def beat(self, names: list[tuple[str, str]]) -> None:
        """Let one factory after the other be heard of, on the ledger itself."""
        number = 0
        while True:
            await asyncio.sleep(BEAT_S)
            name, instance = names[number % len(names)]
            began = time.perf_counter()
            await self._ledger.factory_heartbeat(name, instance, FactoryStatus(sentinel=""), datetime.now(UTC))
            self.beats_ms.append((time.perf_counter() - began) * 1000)
            number += 1


def living(connection: Connection) -> list[tuple[str, int, str]]:
    """Return (job, epoch, factory) of every lease that lives."""
    found = connection.execute(
        select(leases.c.job_id, leases.c.epoch, leases.c.factory).where(leases.c.state == "living")
    )
    return [(row.job_id, row.epoch, row.factory) for row in found]


def lost(connection: Connection) -> int:
    """Return how many leases were lost."""
    return len(connection.execute(select(leases.c.job_id).where(leases.c.state == "lost")).all())


def known(connection: Connection) -> list[tuple[str, str]]:
    """Return (name, instance) of every factory."""
    return [(row.name, row.instance) for row in connection.execute(select(factories.c.name, factories.c.instance))]


async def main() -> None:
    """Serve until the input ends."""
    settings = read_settings()
    ledger, database = open_ledger(settings), open_database(settings.ledger_url)
    control = Control(ledger)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    seen: set[tuple[str, int, str]] = set()

    async def announce() -> None:
        while True:
            for lease in await database.read(living):
                if lease not in seen:
                    seen.add(lease)
                    sys.stdout.write("{} {} {}\n".format(*lease))
            sys.stdout.flush()
            await asyncio.sleep(LOOK_S)

    names = await database.read(known)
    async with asyncio.TaskGroup() as tasks:
        aside = [tasks.create_task(announce()), tasks.create_task(control.beat(names))]
        while line := (await lines.readline()).split():
            await control.free(line[0].decode(), int(line[1]))
        for task in aside:
            task.cancel()
    told = {
        "passes_ms": control.passes_ms,
        "beats_ms": control.beats_ms,
        "records_ms": control.records_ms,
        "lost": await database.read(lost),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    await database.close()
    await ledger.close()


if __name__ == "__main__":
    event_loop.run(main())
