"""Raises one counter and one event chain many times: `count_up.py URL WORKER TIMES`; waits for a line first."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, select, update

from core.lifecycle import Entry, Record
from core.settings import Settings
from store import open_ledger
from store.database import open_database
from store.tables import jobs


def read_then_write(connection: Connection) -> None:
    """Add one in the way that loses updates when transactions begin deferred: read, compute here, write."""
    this = jobs.c.id == "j-1"
    overtaken = connection.execute(select(jobs.c.overtaken).where(this).with_for_update()).scalar_one()
    connection.execute(update(jobs).where(this).values(overtaken=overtaken + 1))


async def main(url: str, worker: int, times: int) -> None:
    """Raise both `times` times."""
    ledger, database = open_ledger(Settings(home=Path("/nonexistent"), database_url=url)), open_database(url)
    await ledger.job("j-1")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for number in range(times):
        await database.write(read_then_write)
        record = Record(entries=(Entry(type="note", message=f"{worker}.{number}"),))
        await ledger.record("j-1", worker * 1000 + number, record, datetime.now(UTC))
    await ledger.close()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
