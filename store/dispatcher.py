"""Passes of the router over the ledger: read, plan, grant. Does I/O: SQL."""

from __future__ import annotations

import asyncio
from datetime import datetime

from core.attempt import Grant
from core.router import RouterCache, plan
from store import admission
from store.admission import Admitted, LeaseTerms
from store.database import Database
from store.fleet_snapshot import FleetReader
from store.turns import tell_passed_over

MAX_PASSES = 5
"""Passes in a row while other processes win races against ours; what is left then waits for the next call."""
GRANTS_AT_ONCE = 20
"""Grants of one transaction: more are made one transaction after the other, so that others who write get their turn."""


class Dispatcher:
    """Runs one pass at a time; calls that come in meanwhile share the pass after it."""

    def __init__(self, database: Database, fleet: FleetReader, terms: LeaseTerms) -> None:
        self._database = database
        self._fleet = fleet
        self._terms = terms
        self._cache = RouterCache()
        self._turn = asyncio.Lock()
        self._next: asyncio.Future[bool] | None = None

    async def dispatch(self, now: datetime, limit: int | None) -> tuple[Grant, ...]:
        """Grant what can be granted; return the grants, or () when another call of this process made them."""
        while self._next is not None:
            if await asyncio.shield(self._next):
                return ()
        mine = self._next = asyncio.get_running_loop().create_future()
        done = False
        try:
            async with self._turn:
                self._next = None
                grants = await self._passes(now, limit)
                done = True
                return grants
        finally:
            if self._next is mine:
                self._next = None
            mine.set_result(done)

    async def _passes(self, now: datetime, limit: int | None) -> tuple[Grant, ...]:
        granted: list[Grant] = []
        races = 0
        while races < MAX_PASSES and (limit is None or len(granted) < limit):
            most = GRANTS_AT_ONCE if limit is None else min(GRANTS_AT_ONCE, limit - len(granted))
            admitted = await self._one_pass(now, most)
            granted += admitted.grants
            races += bool(admitted.skipped)
            if not admitted.skipped and len(admitted.grants) < most:
                break
        return tuple(granted)

    async def _one_pass(self, now: datetime, limit: int) -> Admitted:
        snapshot = await self._database.read(self._fleet.read, now, only_if_grantable=True)
        if snapshot is None:
            return Admitted((), skipped=0)
        planned = plan(snapshot, self._cache, limit=limit)
        if not planned.grants and not planned.preemptions:
            return Admitted((), skipped=0)
        planned.grounds([grant.job_id for grant in planned.grants])  # kept by the plan, so that admission is short
        admitted = await self._database.write(admission.admit, planned, terms=self._terms, now=now)
        self._fleet.turns.passed(planned, {grant.job_id for grant in admitted.grants})
        if grown := self._fleet.turns.take_grown(planned.snapshot.limits.factory_bound):
            await self._database.write(tell_passed_over, grown)
        return admitted
