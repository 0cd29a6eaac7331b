"""Fights with others for one job: takes grants and loses them: `raise_epochs.py URL TIMES`; waits for a line first.

Prints one JSON line: the epochs that this process lost.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from core.job import Stage
from core.lifecycle import Record
from core.settings import Settings
from store import open_ledger


async def main(url: str, times: int) -> None:
    """Lose `times` epochs that nobody else lost."""
    ledger = open_ledger(Settings(home=Path("/nonexistent"), database_url=url))
    await ledger.job("j-1")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    lost: list[int] = []
    while len(lost) < times:
        now = datetime.now(UTC)
        grant = await ledger.route("j-1", now)
        if grant is None:
            continue
        if await ledger.mark_lost("j-1", grant.epoch, "fight", "", now):
            record = Record(path=(Stage.QUEUED,), epoch=grant.epoch, end_lease=True)
            await ledger.record("j-1", grant.epoch, record, now)
            lost.append(grant.epoch)
    await ledger.close()
    sys.stdout.write(json.dumps(lost) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
