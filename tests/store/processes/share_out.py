"""Dispatches jobs and ends them at once, beside others, until none is left: `share_out.py URL JOBS ROUTING`.

Waits for a line first; prints how many of its plans came true.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from core.job import Stage
from core.lifecycle import Record
from core.router_policy import RoutingPolicy
from core.settings import Settings
from store import open_ledger


async def main(url: str, jobs: int, routing: str) -> None:
    """Grant and end until `jobs` jobs were cancelled."""
    policy = RoutingPolicy.model_validate_json(routing)
    ledger = open_ledger(Settings(home=Path("/nonexistent"), database_url=url, routing=policy))
    await ledger.factories()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    passes = 0
    while len((await ledger.jobs(stages=[Stage.CANCELLED], limit=500)).items) < jobs:
        grants = await ledger.dispatch(datetime.now(UTC))
        passes += bool(grants)
        for grant in grants:
            end = Record(path=(Stage.CANCELLED,), epoch=grant.epoch, end_lease=True, release_locks=True)
            await ledger.record(grant.job_id, 1, end, datetime.now(UTC))
    await ledger.close()
    sys.stdout.write(f"{passes}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
