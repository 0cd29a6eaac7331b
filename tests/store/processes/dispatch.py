"""Dispatches and finishes jobs beside others until none is left: `dispatch.py URL JOBS`; waits for a line first.

Prints one JSON line: every grant that this process made, as [job, epoch, factory, engine].
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from core.job import Stage
from core.lifecycle import Record
from core.scope import overlaps
from core.settings import Settings
from store import open_ledger
from store.messages import AttemptReport, HandedIn, StartedInfo


async def main(url: str, jobs: int) -> None:
    """Grant and finish until `jobs` jobs are shipped."""
    ledger = open_ledger(Settings(home=Path("/nonexistent"), database_url=url))
    await ledger.factories()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    granted: list[list[object]] = []
    while len((await ledger.jobs(stages=[Stage.SHIPPED], limit=500)).items) < jobs:
        grants = await ledger.dispatch(datetime.now(UTC))
        held = (await ledger.snapshot(datetime.now(UTC))).locks
        for one, other in combinations([view for view in held if view.allowed_scope], 2):
            assert not overlaps(one.allowed_scope, other.allowed_scope), (one, other)
        for grant in grants:
            granted.append([grant.job_id, grant.epoch, grant.factory, grant.engine])
            now = datetime.now(UTC)
            report = AttemptReport(started=StartedInfo(), result=HandedIn(sha="c" * 40))
            await ledger.report(grant.job_id, grant.epoch, report, now)
            end = Record(path=(Stage.REVIEW, Stage.SHIPPED), epoch=grant.epoch, end_lease=True, release_locks=True)
            await ledger.record(grant.job_id, 1, end, now)
    await ledger.close()
    sys.stdout.write(json.dumps(granted) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
