"""What a control worker does to the ledger, without Temporal and workflows. *A process; does I/O: the ledger.*

It takes lines `JOB EPOCH` on standard input: an attempt that has handed its result in. For each it writes what the
workflow would (review, shipped, seat free) and hands the seat out again, with the ledger's own methods. It prints a
line `JOB EPOCH FACTORY` for each lease that came to life, whoever granted it. Twice a second it looks in the ledger for
living leases whose factory was not heard of for as long as a lease lasts. When its input ends it prints one JSON
document.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, and_, func, select

from core.job import Stage
from core.lifecycle import Record
from store import event_loop
from store.database import open_database
from store.ledger import Ledger, open_ledger
from store.settings_source import read_settings
from store.tables import factories, leases, runs

LOOK_S = 0.5


class Control:
    """One process beside the API."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.passes_ms: list[float] = []
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


def living(connection: Connection) -> list[tuple[str, int, str, datetime]]:
    """Return (job, epoch, factory, when that was last heard of) of every lease that lives."""
    found = connection.execute(
        select(leases.c.job_id, leases.c.epoch, leases.c.factory, factories.c.last_beat_at)
        .join(factories, factories.c.name == leases.c.factory)
        .where(leases.c.state == "living")
    )
    return [(row.job_id, row.epoch, row.factory, row.last_beat_at) for row in found]


def ends(connection: Connection) -> dict[str, int]:
    """Return how many leases there are for each way in which one can stand."""
    rows = connection.execute(
        select(leases.c.state, runs.c.outcome, func.count().label("leases"))
        .join(runs, and_(runs.c.job_id == leases.c.job_id, runs.c.epoch == leases.c.epoch))
        .group_by(leases.c.state, runs.c.outcome)
    )
    return {f"{row.state} {row.outcome or 'open'}": row.leases for row in rows}


async def main() -> None:
    """Serve until the input ends."""
    settings = read_settings()
    ledger, database = open_ledger(settings), open_database(settings.ledger_url)
    control = Control(ledger)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    seen: set[tuple[str, int]] = set()
    late: dict[str, float] = {}
    patience = timedelta(seconds=settings.lease_ttl_s)

    async def announce() -> None:
        while True:
            for job_id, epoch, factory, heard_at in await database.read(living):
                if (job_id, epoch) not in seen:
                    seen.add((job_id, epoch))
                    sys.stdout.write(f"{job_id} {epoch} {factory}\n")
                if heard_at < datetime.now(UTC) - patience:
                    late[f"{job_id} {epoch}"] = time.monotonic()
            sys.stdout.flush()
            await asyncio.sleep(LOOK_S)

    async with asyncio.TaskGroup() as tasks:
        announcing = tasks.create_task(announce())
        while line := (await lines.readline()).split():
            await control.free(line[0].decode(), int(line[1]))
        announcing.cancel()
    told = {
        "passes_ms": control.passes_ms,
        "records_ms": control.records_ms,
        "late": late,
        "ends": await database.read(ends),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    await database.close()
    await ledger.close()


if __name__ == "__main__":
    event_loop.run(main())
