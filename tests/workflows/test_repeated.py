"""A workflow task that wrote into the ledger is forgotten, and is done again with more, or less, to decide on.

Nothing is fake but the factory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.worker import Worker

from activities.ledger_steps import LedgerSteps
from core.attempt import BuildResult, Grant, workflow_id
from core.decision import decide
from core.job import FailureKind, RetrySpec
from core.job_events import Act, JobState, Write
from core.job_messages import CONTROL_QUEUE, IO_QUEUE, RECORDS_PER_LIFE, JobInput, WriteRequest
from core.lifecycle import Decided
from core.repeated import remembered
from core.settings import Settings
from store import migrate, open_ledger
from tests.store.fleet import CANDIDATE, Fleet
from tests.waiting import PATIENCE_S
from tests.workflows.conftest import Floor, Scripted, keep_history
from workflows.job import JobWorkflow
from workflows.sandbox import workflow_runner

SIGNALS: dict[str, Any] = {"ship": "a" * 40}
"""What goes with a signal; nothing for those that are not here."""


@dataclass
class Desk:
    """A job on a real ledger and a real server; `loses` names the record after which the task is forgotten."""

    fleet: Fleet
    floor: Floor
    steps: LedgerSteps
    handle: WorkflowHandle[Any, Any] | None = None
    loses: str = ""
    meanwhile: tuple[str, ...] = ()
    forgotten: list[int] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    update: asyncio.Task[None] | None = None

    @activity.defn(name="write_record")
    async def write_record(self, request: WriteRequest) -> Any:
        """Write; after the record that is to be forgotten, let signals come and then have the task fail."""
        reply = await self.steps.write_record(request)
        said = {*(str(stage) for stage in request.record.path), *(entry.type for entry in request.record.entries)}
        if self.loses not in said:
            return reply
        self.loses = ""
        self.forgotten.append(request.seq)
        for name in self.meanwhile:
            if name == "cancel by update":
                self.update = asyncio.create_task(self.act("cancel"))
                for _ in range(3):
                    await self.job.describe()  # the server has the update before it answers this
            elif name == "granted":
                await self.job.signal(name, (await self._granted()).model_dump(mode="json"))
            else:
                await self.job.signal(name, args=[SIGNALS[name]] if name in SIGNALS else [])
        return "no answer that a workflow can read"

    @property
    def job(self) -> WorkflowHandle[Any, Any]:
        """The job's workflow."""
        assert self.handle is not None
        return self.handle

    async def _granted(self) -> Grant:
        await self.fleet.ledger.dispatch(self.fleet.now)
        grant = await self.fleet.ledger.grant(self.floor.job_id)
        assert grant is not None
        return grant

    async def open(self, *, build: str = "succeeded", granted: bool = True, **spec: Any) -> None:
        """Submit the job and start its workflow, with a grant or without one."""
        job_id = self.floor.job_id
        await self.fleet.factory(self.floor.name)

        async def attempt(request: dict[str, Any]) -> Any:
            self.fleet.now = datetime.now(UTC)
            await self.fleet.started(job_id, request["epoch"])
            if build == "held":
                await self.held.wait()
            answer = await self.floor.built(request)
            if build == "failed":
                return answer | {"outcome": "failed", "failure": "crash", "candidate_sha": "", "base_sha": ""}
            await self.fleet.accept(job_id, request["epoch"], answer=BuildResult.model_validate(answer))
            return answer

        await self.floor.factory(build=attempt)
        await self.fleet.submit(job_id, verify=("true",), **spec)
        grant = await self._granted() if granted else None
        payload = await self.fleet.ledger.start_payload(job_id)
        self.handle = await self.floor.client.start_workflow(
            "JobWorkflow",
            JobInput(job_id=job_id, spec=payload.spec, grant=grant, life=payload.life),
            id=workflow_id("default", job_id),
            task_queue=CONTROL_QUEUE,
        )

    async def until(self, done: Callable[[JobState], bool]) -> JobState:
        """Wait until the workflow's state is so."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                state: JobState = await self.job.query("state", result_type=JobState)
                if done(state):
                    return state
                await asyncio.sleep(0.02)

    async def act(self, action: str, sha: str = "") -> None:
        """Do what the API does."""
        await self.job.execute_update("act", {"action": action, "sha": sha, "by": "ann"})

    async def told(self) -> Counter[str]:
        """Return how often the ledger's log has each type of event."""
        return Counter(event.type for event in await self.fleet.events(self.floor.job_id))

    async def ends(self, stage: str) -> Counter[str]:
        """Check that workflow and ledger end there, by one line of records; return what the ledger was told."""
        async with asyncio.timeout(PATIENCE_S):
            outcome = await self.job.result()
        job = await self.fleet.job(self.floor.job_id)
        assert (outcome["stage"], job.stage.value) == (stage, stage)
        changes = [event.data for event in await self.fleet.events(self.floor.job_id, "stage.changed")]
        assert [change["from"] for change in changes[1:]] == [change["to"] for change in changes[:-1]]
        assert (await self.fleet.ledger.verify_chain(self.floor.job_id)).ok
        return await self.told()

    async def forgot(self) -> bool:
        """Return whether one task was done again after it had written."""
        kinds = [event.event_type for event in (await self.job.fetch_history()).events]
        return len(self.forgotten) == 1 and EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED in kinds


@pytest.fixture
async def desk(tmp_path: Path, temporal_client: Client) -> AsyncIterator[Desk]:
    """Return a ledger, a control side and a factory."""
    settings = Settings(home=tmp_path)
    await migrate(settings.ledger_url)
    ledger = open_ledger(settings)
    async with AsyncExitStack() as stack:
        floor = Floor(temporal_client, Scripted(), stack)
        steps = LedgerSteps(ledger, lambda: None)
        opened = Desk(Fleet(ledger, settings.ledger_url, now=datetime.now(UTC)), floor, steps)
        local = [step for step in steps.local if step != steps.write_record]
        await floor.enter(
            Worker(
                temporal_client,
                task_queue=CONTROL_QUEUE,
                workflows=[JobWorkflow],
                activities=[*local, opened.write_record],
                no_remote_activities=True,
                workflow_runner=workflow_runner(),
            )
        )
        await floor.enter(Worker(temporal_client, task_queue=IO_QUEUE, activities=steps.remote))
        yield opened
    await ledger.close()


async def test_verdict_holds_and_the_cancel_that_came_meanwhile_is_decided_on_next(desk: Desk) -> None:
    """The job is in testing, as everybody saw; then it is cancelled. Not one word is written twice or missing."""
    desk.loses, desk.meanwhile = "testing", ("cancel",)
    await desk.open()
    told = await desk.ends("cancelled")
    assert await desk.forgot()
    assert (told["gate.verify"], told["decision.cancel"], told["decision.refused"]) == (1, 1, 0)
    changes = [event.data["to"] for event in await desk.fleet.events(desk.floor.job_id, "stage.changed")]
    assert changes == ["assigned", "building", "review", "testing", "cancelled"]
    await keep_history(desk.job, "ledger-ahead-of-a-cancel")


async def test_word_that_came_too_early_is_refused_after_the_verdict_that_it_met(desk: Desk) -> None:
    """Somebody ships at once what the ledger shows in testing, before the workflow knows; then it is shipped."""
    desk.loses, desk.meanwhile = "testing", ("ship",)
    await desk.open()
    await desk.until(lambda state: state.stage == "testing")
    await desk.act("ship", CANDIDATE)
    told = await desk.ends("shipped")
    assert await desk.forgot()
    assert (told["gate.verify"], told["decision.refused"], told["decision.ship"]) == (1, 1, 1)


@dataclass(frozen=True)
class Word:
    """An operator's word at the gate, which the ledger has; another word comes before the workflow knows it."""

    action: str
    sha: str
    meanwhile: str
    stage: str
    told: dict[str, int]


@pytest.mark.parametrize(
    "word",
    [
        Word("ship", CANDIDATE, "pause", "shipped", {"decision.ship": 1, "decision.pause": 0, "decision.refused": 1}),
        Word("ship", CANDIDATE, "cancel", "shipped", {"decision.ship": 1, "decision.cancel": 0, "job.shipped": 1}),
        Word("reject", "", "cancel", "failed", {"decision.reject": 1, "decision.cancel": 0}),
        Word("cancel", "", "ship", "cancelled", {"decision.cancel": 1, "decision.refused": 0}),
        Word("requeue", "", "cancel", "cancelled", {"decision.requeue": 1, "decision.cancel": 1}),
        Word("pause", "", "cancel", "cancelled", {"decision.pause": 1, "decision.cancel": 1}),
        Word("approve", CANDIDATE, "cancel", "cancelled", {"decision.approve": 1, "decision.cancel": 1}),
    ],
    ids=lambda word: f"{word.action}-{word.meanwhile}",
)
async def test_word_that_the_ledger_has_holds(desk: Desk, word: Word) -> None:
    """It is written once and its caller hears that it was taken; the later word is decided on after it."""
    await desk.open()
    await desk.until(lambda state: state.stage == "testing")
    desk.loses, desk.meanwhile = f"decision.{word.action}", (word.meanwhile,)
    await desk.act(word.action, word.sha)
    told = await desk.ends(word.stage)
    assert await desk.forgot()
    assert {kind: told[kind] for kind in word.told} == word.told


@pytest.mark.parametrize("retried", [True, False], ids=["retry", "end"])
async def test_failed_attempt_holds(desk: Desk, retried: bool) -> None:
    """A failure that the ledger has stays one failure: the job is cancelled out of its backoff, or has ended."""
    desk.loses, desk.meanwhile = ("queued" if retried else "failed"), ("cancel",)
    await desk.open(
        build="failed", retry=RetrySpec(max=1, backoff_s=3600, on=(FailureKind.CRASH,)) if retried else None
    )
    told = await desk.ends("cancelled" if retried else "failed")
    assert await desk.forgot()
    assert (told["job.requeued"], told["job.failed"], told["decision.cancel"]) == ((1, 0, 1) if retried else (0, 1, 0))


async def test_stop_that_the_ledger_has_reaches_the_engine(desk: Desk) -> None:
    """A pause of a running engine, noted by a forgotten task, still stops it; what came meanwhile is refused."""
    await desk.open(build="held")
    await desk.until(lambda state: state.step == "build")
    desk.loses, desk.meanwhile = "decision.pause", ("ship",)
    await desk.act("pause")
    assert (await desk.until(lambda state: bool(state.stopping))).step == "build"
    desk.held.set()
    assert (await desk.until(lambda state: state.stage == "queued")).paused
    await desk.act("cancel")
    told = await desk.ends("cancelled")
    assert await desk.forgot()
    assert (told["decision.pause"], told["decision.refused"], told["decision.cancel"]) == (1, 1, 1)


async def test_update_that_temporal_forgot_but_the_ledger_has_was_taken(desk: Desk) -> None:
    """The server died with the task: its pause is in no history. The next word meets a paused job."""
    await desk.open()
    state = await desk.until(lambda state: state.stage == "testing")
    job_id, seq = desk.floor.job_id, RECORDS_PER_LIFE + 2
    paused = decide(state, Act(action="pause", by="ann"), datetime.now(UTC))
    (record,) = (command.record for command in paused.commands if isinstance(command, Write))
    decided = Decided(seq=seq, state=remembered(paused.state))
    await desk.steps.write_record(WriteRequest(job_id=job_id, seq=seq, record=record, decided=decided))
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await desk.act("ship", CANDIDATE)
    assert "is paused; resume it first" in str(caught.value.cause)
    await desk.act("resume")
    await desk.act("ship", CANDIDATE)
    told = await desk.ends("shipped")
    assert (told["decision.pause"], told["decision.resume"], told["decision.ship"]) == (1, 1, 1)


async def test_word_that_comes_with_the_end_is_answered(desk: Desk) -> None:
    """Of two words in one task the first ends the job: the second is refused, and does not keep the workflow open."""
    await desk.open()
    await desk.until(lambda state: state.stage == "testing")
    desk.loses, desk.meanwhile = "decision.approve", ("reject", "cancel by update")
    await desk.job.signal("approve", CANDIDATE)
    await desk.ends("failed")
    assert desk.update is not None
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await desk.update
    assert "has ended in failed" in str(caught.value.cause)


async def test_cancel_that_comes_with_the_grant_keeps_the_engine_from_starting(desk: Desk) -> None:
    """Both in one task: the step is begun and stopped before there is an activity; no engine runs for nothing."""
    await desk.open(build="held", granted=False)
    desk.loses, desk.meanwhile = "decision.refused", ("granted", "cancel")
    await desk.job.signal("ship", "a" * 40)
    told = await desk.ends("cancelled")
    assert (told["job.granted"], told["attempt.started"], told["decision.cancel"]) == (1, 0, 1)
    kinds = [event.event_type for event in (await desk.job.fetch_history()).events]
    assert EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED not in kinds
    await keep_history(desk.job, "cancel-with-the-grant")
