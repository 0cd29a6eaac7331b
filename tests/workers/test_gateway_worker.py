"""An ordinary worker of the SDK behind the gateway: it runs, beats, is cancelled, fails, is drained."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.worker import Worker

from core.attempt import factory_queue, station_queue
from tests.conftest import TemporalServer
from tests.waiting import PATIENCE_S
from tests.workers.gateway_running import RunningGateway, running_gateway

CONTROL = "test-gateway"


@dataclass
class Order:
    """What the workflow is to have done."""

    step: str
    queue: str
    argument: str = ""
    heartbeat_s: float = 20.0
    attempts: int = 1


@workflow.defn(sandboxed=False)
class OneStep:
    """Runs one activity on a factory's queue."""

    @workflow.run
    async def run(self, order: Order) -> Any:
        return await workflow.execute_activity(
            order.step,
            order.argument,
            task_queue=order.queue,
            start_to_close_timeout=timedelta(seconds=60),
            heartbeat_timeout=timedelta(seconds=order.heartbeat_s),
            retry_policy=RetryPolicy(maximum_attempts=order.attempts),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


class Steps:
    """Activities of a factory; `started` gets the id of each that runs on."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.all = [self.greet, self.nothing, self.beat_until_cancelled, self.fail, self.answer_much]

    @activity.defn
    async def greet(self, name: str) -> str:
        return f"hello {name} from {activity.info().task_queue}"

    @activity.defn
    async def nothing(self, _: str) -> None:
        return None

    @activity.defn
    async def beat_until_cancelled(self, _: str) -> str:
        handle = activity.client().get_async_activity_handle(task_token=activity.info().task_token)
        await handle.heartbeat({"epoch": 1, "step": "half"})
        self.started.put_nowait(activity.info().activity_id)
        while True:
            activity.heartbeat({"epoch": 1})
            await asyncio.sleep(0.05)

    @activity.defn
    async def fail(self, words: str) -> None:
        try:
            raise ValueError("the reason")
        except ValueError as error:
            raise ApplicationError(words, {"secret": 1}, type="Broken", non_retryable=True) from error

    @activity.defn
    async def answer_much(self, kib: str) -> str:
        return "x" * (int(kib) << 10)


@pytest.fixture
def steps() -> Steps:
    """Return the factory's activities."""
    return Steps()


@pytest.fixture
async def gateway(temporal_server: TemporalServer) -> AsyncIterator[RunningGateway]:
    """Run a gateway."""
    async with running_gateway(temporal_server) as running:
        yield running


@pytest.fixture
async def factory(gateway: RunningGateway, temporal_client: Client, steps: Steps) -> AsyncIterator[str]:
    """Run the control side directly and one factory's workers through the gateway; gives the factory's name."""
    name = f"f{uuid.uuid4().hex[:8]}"
    client = await gateway.client(gateway.enrol(name), identity="whoever")
    async with (
        Worker(temporal_client, task_queue=CONTROL, workflows=[OneStep]),
        Worker(client, task_queue=factory_queue(name), activities=steps.all),
        Worker(
            client,
            task_queue=station_queue(name, "codex"),
            activities=steps.all,
            max_heartbeat_throttle_interval=timedelta(seconds=0.1),
        ),
    ):
        yield name


async def start(client: Client, order: Order) -> WorkflowHandle[OneStep, Any]:
    """Start a workflow that has one step done."""
    return await client.start_workflow(OneStep.run, order, id=f"gw-{uuid.uuid4().hex}", task_queue=CONTROL)


async def cause_of(handle: WorkflowHandle[OneStep, Any]) -> BaseException:
    """Return what the activity failed with."""
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, ActivityError)
    assert caught.value.cause.cause is not None
    return caught.value.cause.cause


@pytest.mark.parametrize("queue_of", [factory_queue, lambda name: station_queue(name, "codex")])
async def test_worker_runs_activities_of_its_queues(
    queue_of: Any, factory: str, temporal_client: Client, gateway: RunningGateway
) -> None:
    """Both kinds of queue work; Temporal sees the factory's own name, whatever its client says."""
    handle = await start(temporal_client, Order("greet", queue_of(factory), "you"))
    assert await handle.result() == f"hello you from {queue_of(factory)}"
    history = await handle.fetch_history()
    begun = [
        event.activity_task_started_event_attributes.identity for event in history.events if event.event_type == 11
    ]
    assert begun == [f"factory/{factory}"]


async def test_activity_without_a_result_completes(factory: str, temporal_client: Client) -> None:
    """None is a payload too."""
    assert await (await start(temporal_client, Order("nothing", factory_queue(factory)))).result() is None


async def test_worker_beats_and_is_cancelled(
    factory: str, temporal_client: Client, gateway: RunningGateway, steps: Steps
) -> None:
    """Both ways of beating arrive, and so does the cancel in their answers."""
    handle = await start(temporal_client, Order("beat_until_cancelled", station_queue(factory, "codex")))
    await asyncio.wait_for(steps.started.get(), PATIENCE_S)
    described = await handle.describe()
    details = described.raw_description.pending_activities[0].heartbeat_details
    assert [payload.data for payload in details.payloads] in [[b'{"epoch":1,"step":"half"}'], [b'{"epoch":1}']]
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert "RespondActivityTaskCanceled" in gateway.frontend.methods()


async def test_failure_arrives_with_words_and_cause_but_no_details(factory: str, temporal_client: Client) -> None:
    """Message, type, whether to retry, stack trace and causes pass; encoded details do not."""
    error = await cause_of(await start(temporal_client, Order("fail", factory_queue(factory), "it broke", attempts=3)))
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type, error.non_retryable, error.details) == ("it broke", "Broken", True, ())
    assert error.failure is not None
    assert "test_gateway_worker.py" in error.failure.stack_trace
    assert isinstance(error.cause, ApplicationError)
    assert (error.cause.message, error.cause.type) == ("the reason", "ValueError")


async def test_result_of_the_largest_size_passes(factory: str, temporal_client: Client) -> None:
    """The bound is what it says."""
    handle = await start(temporal_client, Order("answer_much", factory_queue(factory), "255"))
    assert len(await handle.result()) == 255 << 10


async def test_oversize_result_fails_the_activity_at_once(factory: str, temporal_client: Client) -> None:
    """The SDK learns the bound from the gateway, and fails the activity instead of sending what would not pass."""
    error = await cause_of(await start(temporal_client, Order("answer_much", factory_queue(factory), "300")))
    assert isinstance(error, ApplicationError)
    assert "size" in error.message.lower()


async def test_worker_uses_no_call_that_is_refused(
    gateway: RunningGateway, temporal_client: Client, steps: Steps
) -> None:
    """From start to shutdown an ordinary worker stays within what passes."""
    name = f"f{uuid.uuid4().hex[:8]}"
    token = gateway.enrol(name)
    with capture_logs() as lines:
        client = await gateway.client(token)
        async with (
            Worker(temporal_client, task_queue=CONTROL, workflows=[OneStep]),
            Worker(client, task_queue=factory_queue(name), activities=steps.all),
        ):
            await (await start(temporal_client, Order("greet", factory_queue(name), "you"))).result()
        assert lines == []
        await (await gateway.raw(token)).send("StartWorkflowExecution")
    assert [line["event"] for line in lines] == ["gateway.refused"], "this is how a refused call would have shown"


async def test_drained_worker_gives_its_task_back(
    gateway: RunningGateway, temporal_client: Client, steps: Steps
) -> None:
    """A worker that is shut down under its activity: the workflow hears of it at once, by the failure's type."""
    name = f"f{uuid.uuid4().hex[:8]}"
    client = await gateway.client(gateway.enrol(name))
    async with Worker(temporal_client, task_queue=CONTROL, workflows=[OneStep]):
        worker = Worker(client, task_queue=factory_queue(name), activities=steps.all)
        running = asyncio.create_task(worker.run())
        handle = await start(temporal_client, Order("beat_until_cancelled", factory_queue(name)))
        await asyncio.wait_for(steps.started.get(), PATIENCE_S)
        await worker.shutdown()
        await running
        error = await asyncio.wait_for(cause_of(handle), 30)
    assert isinstance(error, ApplicationError)
    assert error.type == "WorkerShutdown"
