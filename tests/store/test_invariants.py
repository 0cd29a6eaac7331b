"""Whatever happens in whatever order: what the ledger promises about seats, epochs, stages and events holds."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count, pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from core.errors import GigafactoryError
from core.job import Stage
from core.lifecycle import ENDED, TRANSITIONS
from store.database import Database, open_database
from tests.store.fleet import Fleet

OPERATIONS = (
    *("dispatch", "route", "hold", "ready", "started", "accept", "lost", "log", "checkpoint", "take_back"),
    *("retry", "review", "testing", "fail", "ship", "cancel", "requeue", "restart", "recount"),
)
JOBS = 3
STEPS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, JOBS - 1), st.sampled_from([0, 0, 0, -1, 1])),
    min_size=5,
    max_size=30,
)
_examples = count(1)

PATHS = {
    "retry": (Stage.QUEUED,),
    "review": (Stage.REVIEW,),
    "testing": (Stage.TESTING,),
    "fail": (Stage.FAILED,),
    "ship": (Stage.SHIPPED,),
    "cancel": (Stage.CANCELLED,),
}


async def do(fleet: Fleet, operation: str, job_id: str, epoch: int) -> None:
    """Do one thing to the job."""
    ledger, now = fleet.ledger, fleet.tick()
    if operation in PATHS:
        ends = operation in ("retry", "fail")
        await fleet.record(
            job_id, *PATHS[operation], epoch=epoch, attempt_outcome="crash" if ends else None, release_locks=ends
        )
        return
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "dispatch": lambda: ledger.dispatch(now),
        "route": lambda: ledger.route(job_id, now),
        "hold": lambda: ledger.hold(job_id, "operator", now),
        "ready": lambda: ledger.ready(job_id, now),
        "started": lambda: fleet.started(job_id, epoch),
        "accept": lambda: fleet.accept(job_id, epoch),
        "lost": lambda: ledger.mark_lost(job_id, epoch, "gone", "", now),
        "log": lambda: fleet.logs(job_id, epoch, 1, fleet.line("x")),
        "checkpoint": lambda: fleet.checkpoint(job_id, epoch, f"{epoch:040x}"),
        "take_back": lambda: ledger.grant_undeliverable(job_id, epoch, now),
        "requeue": lambda: ledger.requeue(job_id, now),
        "restart": lambda: ledger.enqueue_start(job_id, now),
        "recount": lambda: ledger.recount_seats(now),
    }
    await calls[operation]()


def state(connection: Connection) -> dict[str, list[Any]]:
    """Return everything that the promises are about, as it is at one moment."""
    queries = {
        "factories": "SELECT name, busy, seats FROM factories",
        "stations": "SELECT factory, engine, busy FROM stations",
        "held": "SELECT job_id, factory, engine, state FROM leases WHERE holds_seat",
        "jobs": "SELECT id, stage, epoch, event_seq FROM jobs",
        "runs": "SELECT job_id, epoch FROM runs ORDER BY job_id, epoch",
        "leases": "SELECT job_id, epoch, state FROM leases",
        "locks": "SELECT name, job_id FROM locks WHERE kind = 'lock'",
    }
    return {name: list(connection.execute(text(query)).all()) for name, query in queries.items()}


async def check(database: Database) -> None:
    """Assert the promises about rows."""
    rows = await database.read(state)
    held = Counter(row.factory for row in rows["held"])
    assert {row.name: row.busy for row in rows["factories"]} == {row.name: held[row.name] for row in rows["factories"]}
    assert all(row.busy <= row.seats for row in rows["factories"])
    at = Counter((row.factory, row.engine) for row in rows["held"])
    assert all(row.busy == at[row.factory, row.engine] for row in rows["stations"])
    assert max(Counter(row.job_id for row in rows["held"]).values(), default=0) <= 1
    assert {row.state for row in rows["held"]} <= {"living", "accepted"}
    resting = {row.id for row in rows["jobs"] if Stage(row.stage) in (*ENDED, Stage.QUEUED)}
    assert not resting & {row.job_id for row in rows["held"]}
    newest = {row.id: row.epoch for row in rows["jobs"]}
    living = [row for row in rows["leases"] if row.state == "living"]
    assert all(row.epoch == newest[row.job_id] for row in living)
    for job_id, epoch in newest.items():
        assert [row.epoch for row in rows["runs"] if row.job_id == job_id] == list(range(1, epoch + 1))
    assert len({row.name for row in rows["locks"]}) == len(rows["locks"])


async def check_story(fleet: Fleet, job_id: str) -> None:
    """Assert that the events are whole and tell legal steps that lead to the present stage."""
    assert (await fleet.ledger.verify_chain(job_id)).ok
    changes = [e.data for e in await fleet.ledger.events(job_id, limit=5000) if e.type == "stage.changed"]
    stages = [Stage.QUEUED, *(Stage(change["to"]) for change in changes)]
    assert [change["from"] for change in changes] == stages[:-1]
    assert all(finish in TRANSITIONS[start] for start, finish in pairwise(stages))
    assert stages[-1] == await fleet.stage(job_id)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_order_of_events_keeps_the_promises(fleet: Fleet, steps: list[tuple[str, int, int]]) -> None:
    """Seats taken are the leases that hold one, a job has one lease at most, epochs grow by one, no stage is skipped,
    and every job's event chain verifies: after every step of any sequence, legal or not.
    """
    number = next(_examples)
    job_ids = [f"j-{number}-{n}" for n in range(JOBS)]
    database = open_database(fleet.url)
    await fleet.factory("f1", stations={"shell": 2}, seats=2)
    for n, job_id in enumerate(job_ids):
        await fleet.submit(job_id, lock="deploy" if n else None)
    await fleet.ledger.dispatch(fleet.now)
    for operation, n, shift in steps:
        epoch = (await fleet.job(job_ids[n])).epoch + shift
        with contextlib.suppress(GigafactoryError):
            await do(fleet, operation, job_ids[n], epoch)
        await check(database)
    for job_id in job_ids:
        await check_story(fleet, job_id)
        if await fleet.stage(job_id) not in ENDED:
            await fleet.record(job_id, Stage.CANCELLED)
    await check(database)
    assert await fleet.busy("f1") == 0
    await database.close()
