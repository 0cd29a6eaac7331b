"""Whatever happens to jobs in whatever order: edges, holds and messages are what a small model says."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from core.errors import GigafactoryError
from core.job import Dependency, Stage
from core.lifecycle import ENDED
from core.settings import Settings
from store import open_ledger
from store.database import Database, open_database
from tests.store.fleet import Fleet

PARENTS = ("p0", "p1", "p2")
WAITS = {
    "join": {"p0": "shipped", "p1": "testing"},
    "late": {"p0": "testing", "p2": "shipped", "join": "shipped"},
    "only": {"p1": "shipped"},
}
JOBS = (*PARENTS, *WAITS)
FORWARD = ("review", "testing", "ship")
OPERATIONS = (*FORWARD, *FORWARD, "ship", "fail", "cancel", "retry", "requeue", "drop", "begin", "restart")
STEPS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(JOBS), st.sampled_from(PARENTS)), min_size=5, max_size=40
)
PATHS = {
    "review": (Stage.REVIEW,),
    "testing": (Stage.REVIEW, Stage.TESTING),
    "ship": (Stage.REVIEW, Stage.SHIPPED),
    "fail": (Stage.FAILED,),
    "cancel": (Stage.CANCELLED,),
    "retry": (Stage.QUEUED,),
}
_examples = count(1)


class Model:
    """What the edges should be, from the stages alone, and what each waiting job was told last."""

    def __init__(self) -> None:
        self.edges = {(child, parent): "open" for child, parents in WAITS.items() for parent in parents}
        self.told: dict[str, str] = {}

    def went(self, job_id: str, stages: tuple[Stage, ...]) -> None:
        """Take in that a job went through stages."""
        for (child, parent), state in self.edges.items():
            if parent == job_id and state != "dropped":
                self.edges[child, parent] = self._after(state, WAITS[child][parent], stages)

    @staticmethod
    def _after(state: str, until: str, stages: tuple[Stage, ...]) -> str:
        for stage in stages:
            if stage in (Stage.FAILED, Stage.DEAD_LETTER, Stage.CANCELLED):
                state = "failed"
            elif stage == Stage.SHIPPED or (stage == Stage.TESTING and until == "testing"):
                state = "done"
            elif stage != Stage.REVIEW:
                state = "open"
        return state

    def outcome(self, child: str) -> str:
        """Return what a job's wait comes to."""
        states = {self.edges[child, parent] for parent in WAITS[child]}
        return "failed" if "failed" in states else "waiting" if "open" in states else "ready"


async def build(fleet: Fleet, job_id: str, model: Model) -> None:
    """Have a queued job built, as far as it may have a seat."""
    await fleet.ledger.route(job_id, fleet.now)
    job = await fleet.job(job_id)
    if job.stage == Stage.ASSIGNED:
        model.went(job_id, (Stage.ASSIGNED,))
        await fleet.started(job_id, job.epoch)


async def do(fleet: Fleet, operation: str, job_id: str, parent: str, model: Model) -> None:
    """Do one thing to a job, and tell the model what became of it."""
    ledger, now = fleet.ledger, fleet.tick()
    if operation in FORWARD:
        await build(fleet, job_id, model)
    if operation in PATHS:
        epoch = (await fleet.job(job_id)).epoch
        before = await fleet.stage(job_id)
        path = PATHS[operation][-1:] if before in (Stage.REVIEW, Stage.TESTING) else PATHS[operation]
        await fleet.record(job_id, *path, epoch=epoch, attempt_outcome="crash" if operation == "fail" else None)
        model.went(job_id, path)
    elif operation == "drop":
        await ledger.drop_edges(job_id, [parent], now, by="ada")
        model.edges[job_id, parent] = "dropped"
    elif operation == "requeue":
        await ledger.requeue(job_id, now)
        model.went(job_id, (Stage.QUEUED,))
        model.told.pop(job_id, None)
    elif operation == "begin":
        await ledger.begin_waiting(job_id, now)
    elif await ledger.enqueue_start(job_id, now) is not None:
        model.went(job_id, (await fleet.stage(job_id),))
        model.told.pop(job_id, None)


def rows(connection: Connection) -> list[Any]:
    """Return the edges as they are."""
    return list(connection.execute(text("SELECT child_id, parent_id, state FROM edges")).all())


async def check(fleet: Fleet, database: Database, model: Model) -> None:
    """Compare the ledger with the model, after everything in the outbox was delivered."""
    found = {(row.child_id, row.parent_id): row.state for row in await database.read(rows)}
    assert found == model.edges
    for row in await fleet.deliver():
        if row.job_id in WAITS and row.kind == "start":
            ready = (await fleet.ledger.start_payload(row.job_id)).ready  # otherwise the workflow asks
            asked = await fleet.ledger.parents_state(row.job_id)
            model.told[row.job_id] = "ready" if ready else asked.outcome
        elif row.name == "parents_changed":
            assert row.payload["outcome"] != model.told[row.job_id], "told what it knew"
            model.told[row.job_id] = row.payload["outcome"]
    for child in WAITS:
        job = await fleet.job(child)
        outcome = model.outcome(child)
        if job.stage in ENDED:
            continue
        if job.held == "parents":
            assert outcome != "ready", f"{child} is left behind"
            assert child not in model.told, "it has a workflow"
            assert [c.reason for c in job.conditions] == ["parents" if outcome == "waiting" else "parent_failed"]
        else:
            assert model.told[child] == outcome, f"{child} was told something else last"
        if job.stage == Stage.QUEUED and outcome != "ready":
            assert job.held is not None


async def play(home: Path, steps: list[tuple[str, str, str]]) -> None:
    """Do all steps on an empty ledger, checking after each."""
    configured = Settings(home=home)
    ledger, database = open_ledger(configured), open_database(configured.ledger_url)
    fleet, model = Fleet(ledger, configured.ledger_url), Model()
    await fleet.factory("f1", stations={"shell": 20}, seats=20)
    for parent in PARENTS:
        await fleet.submit(parent)
    for child, parents in WAITS.items():
        deps = tuple(Dependency.model_validate({"job_id": job, "until": until}) for job, until in parents.items())
        await fleet.submit(child, deps=deps)
    for operation, job_id, parent in steps:
        with contextlib.suppress(GigafactoryError):
            await do(fleet, operation, job_id, parent, model)
        await check(fleet, database, model)
    await database.close()
    await ledger.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_edges_follow_the_stages(sqlite_template: Path, tmp_path: Path, steps: list[tuple[str, str, str]]) -> None:
    """No job is left behind, none starts early, and none is told the same twice."""
    home = tmp_path / f"example-{next(_examples)}"
    home.mkdir()
    shutil.copyfile(sqlite_template, home / "ledger.db")
    asyncio.run(play(home, steps))
