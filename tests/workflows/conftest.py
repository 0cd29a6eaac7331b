"""A job workflow on a real server, with scripted factories and a ledger that only remembers."""

from __future__ import annotations

import os
import sysconfig
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from core.attempt import Grant, workflow_id
from core.dag import Wait
from core.job import JobSpec, Repository, Stage
from core.job_messages import (
    CONTROL_QUEUE,
    IO_QUEUE,
    ChildrenReply,
    HoldRequest,
    JobInput,
    JobRef,
    ParentsReply,
    PlaceReply,
    PlaceRequest,
    ReclaimReply,
    ReclaimRequest,
    RouteReply,
    WriteReply,
    WriteRequest,
)
from core.lifecycle import Record
from workflows.job import JobWorkflow
from workflows.sandbox import workflow_runner

ROOT = Path(__file__).resolve().parents[2]
HISTORIES = ROOT / "tests" / "replay" / "histories"
RECORD = os.environ.get("GIGAFACTORY_RECORD_HISTORIES") == "1"
CANDIDATE = "c" * 40
BASE = "b" * 40

Step = Callable[[dict[str, Any]], Awaitable[Any]]


@dataclass
class Scripted:
    """What the control side answers, and what it was told; one per test."""

    records: list[WriteRequest] = field(default_factory=list)
    holds: int = 0
    routes: deque[Grant | RouteReply | None] = field(default_factory=deque)
    parents: deque[ParentsReply] = field(default_factory=deque)
    children: deque[Wait | None] = field(default_factory=deque)
    """Answers to the records that bring the job to its gate or ship it."""
    resolved: deque[Wait] = field(default_factory=deque)
    living: deque[ReclaimReply] = field(default_factory=deque)
    """Answers to the first reclaims; then `accepted`."""
    accepted: ReclaimReply = field(default_factory=ReclaimReply)
    reclaims: list[ReclaimRequest] = field(default_factory=list)
    place: str = ""

    @activity.defn(name="write_record")
    async def write_record(self, request: WriteRequest) -> WriteReply:
        """Remember the record; the same number twice is the same record."""
        if request.seq not in {known.seq for known in self.records}:
            self.records.append(request)
        asked = request.record.path[-1:] or [entry.type for entry in request.record.entries]
        at_gate = set(asked) & {Stage.REVIEW, Stage.TESTING, "decision.ship"}
        return WriteReply(children=self.children.popleft() if at_gate and self.children else None)

    @activity.defn(name="resolve_children")
    async def resolve_children(self, request: JobRef) -> ChildrenReply:
        """Answer as scripted, then `ready`."""
        return ChildrenReply(**dict(self.resolved.popleft() if self.resolved else Wait(outcome="ready")))

    @activity.defn(name="hold")
    async def hold(self, request: HoldRequest) -> None:
        """Count."""
        self.holds += 1

    @activity.defn(name="resolve_parents")
    async def resolve_parents(self, request: JobRef) -> ParentsReply:
        """Answer as scripted, then `ready`."""
        return self.parents.popleft() if self.parents else ParentsReply(outcome="ready")

    @activity.defn(name="route")
    async def route(self, request: JobRef) -> RouteReply:
        """Answer as scripted, then park."""
        answer = self.routes.popleft() if self.routes else None
        return answer if isinstance(answer, RouteReply) else RouteReply(grant=answer)

    @activity.defn(name="reclaim")
    async def reclaim(self, request: ReclaimRequest) -> ReclaimReply:
        """Answer as scripted."""
        self.reclaims.append(request)
        return self.living.popleft() if self.living else self.accepted

    @activity.defn(name="place_step")
    async def place_step(self, request: PlaceRequest) -> PlaceReply:
        """Answer as scripted."""
        return PlaceReply(factory=self.place)

    @property
    def stages(self) -> list[str]:
        """All stages that were written, in order."""
        return [stage.value for request in self.records for stage in request.record.path]

    @property
    def entries(self) -> list[str]:
        """The types of all entries that were written, in order."""
        return [entry.type for request in self.records for entry in request.record.entries]

    @property
    def last(self) -> Record:
        """The last record."""
        return self.records[-1].record


class Floor:
    """Scripted factories on a real server: `factory(...)` puts one on its queues."""

    def __init__(self, client: Client, control: Scripted, stack: AsyncExitStack) -> None:
        self.client = client
        self.control = control
        self.job_id = f"j-{uuid4().hex[:8]}"
        self.name = f"f{uuid4().hex[:8]}"
        self.retracted: list[str] = []
        self._stack = stack

    def grant(self, epoch: int = 1, factory: str = "", ttl_s: float = 30.0) -> Grant:
        """Return a grant on a factory of this test."""
        name = factory or self.name
        return Grant(
            job_id=self.job_id,
            epoch=epoch,
            factory=name,
            engine="shell",
            lease_ttl_s=ttl_s,
            granted_at=datetime.now(UTC),
            reason="only one",
        )

    async def factory(
        self, *, build: Step | None = None, judge: Step | None = None, ship: Step | None = None, name: str = ""
    ) -> None:
        """Start a factory that answers as given; a step that is not given succeeds."""
        name = name or self.name

        @activity.defn(name="run_engine")
        async def run_engine(request: dict[str, Any]) -> Any:
            return await (build or self.built)(request)

        @activity.defn(name="judge")
        async def judge_step(request: dict[str, Any]) -> Any:
            return await (judge or self.judged)(request)

        @activity.defn(name="ship")
        async def ship_step(request: dict[str, Any]) -> Any:
            return await (ship or self.shipped)(request)

        @activity.defn(name="retract")
        async def retract(request: dict[str, Any]) -> None:
            self.retracted.append(request["candidate_sha"])

        queues: dict[str, list[Callable[..., Any]]] = {
            f"gf.station.{name}.shell": [run_engine],
            f"gf.factory.{name}": [judge_step, ship_step, retract],
        }
        for queue, steps in queues.items():
            await self._stack.enter_async_context(
                Worker(
                    self.client,
                    task_queue=queue,
                    activities=steps,
                    max_concurrent_activity_task_polls=1,
                    max_heartbeat_throttle_interval=timedelta(seconds=0.1),
                )
            )

    async def enter(self, worker: Worker) -> None:
        """Run a worker of the test's own until the test ends."""
        await self._stack.enter_async_context(worker)

    async def built(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer with a candidate."""
        return {
            "job_id": request["job_id"],
            "epoch": request["epoch"],
            "outcome": "succeeded",
            "candidate_sha": CANDIDATE,
            "base_sha": BASE,
            "changed": True,
        }

    async def judged(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer with a green verdict."""
        return {
            "job_id": request["job_id"],
            "epoch": request["epoch"],
            "candidate_sha": request["candidate_sha"],
            "verify": "passed",
        }

    async def shipped(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer that it landed."""
        return {
            "job_id": request["job_id"],
            "epoch": request["epoch"],
            "outcome": "shipped",
            "commits": ["d" * 40],
            "ref": "refs/heads/main",
        }

    async def start(self, *, grant: Grant | None = None, **spec: Any) -> WorkflowHandle[Any, Any]:
        """Start the job's workflow."""
        values: dict[str, Any] = {
            "title": "t",
            "body": "b",
            "verify": ("true",),
            "repository": Repository(url="/r.git", base_sha=BASE),
        }
        argument = JobInput(job_id=self.job_id, spec=JobSpec.model_validate(values | spec), grant=grant)
        return await self.client.start_workflow(
            "JobWorkflow", argument, id=workflow_id("default", self.job_id), task_queue=CONTROL_QUEUE
        )


async def keep_history(handle: WorkflowHandle[Any, Any], name: str) -> None:
    """Write the history for `tests/replay`, when GIGAFACTORY_RECORD_HISTORIES=1 asks for it."""
    if RECORD:
        history = (await handle.fetch_history()).to_json()
        for folder in (sysconfig.get_path("purelib"), str(ROOT)):  # in stack traces; nobody else has them there
            history = history.replace(f"{folder}/", "")
        (HISTORIES / f"{name}.json").write_text(history)


@asynccontextmanager
async def open_floor(client: Client) -> AsyncIterator[Floor]:
    """Run the control side until the block ends."""
    control = Scripted()
    local: list[Callable[..., Any]] = [
        control.write_record,
        control.resolve_children,
        control.hold,
        control.resolve_parents,
        control.reclaim,
        control.place_step,
    ]
    async with AsyncExitStack() as stack:
        floor = Floor(client, control, stack)
        await stack.enter_async_context(
            Worker(
                client,
                task_queue=CONTROL_QUEUE,
                workflows=[JobWorkflow],
                activities=local,
                no_remote_activities=True,
                workflow_runner=workflow_runner(),
            )
        )
        await stack.enter_async_context(
            Worker(client, task_queue=IO_QUEUE, activities=[control.route, control.resolve_parents])
        )
        yield floor


@pytest.fixture
async def floor(temporal_client: Client) -> AsyncIterator[Floor]:
    """Return a control side with no factory yet."""
    async with open_floor(temporal_client) as opened:
        yield opened
