"""A factory that tries everything else: other calls, other queues, other tasks, other tokens, other bytes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from temporalio import workflow
from temporalio.api.common.v1 import Payload, Payloads, WorkerVersionStamp, WorkflowExecution
from temporalio.api.deployment.v1 import Deployment
from temporalio.api.enums.v1 import TaskQueueKind, TimeoutType
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure, TerminatedFailureInfo, TimeoutFailureInfo
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatRequest,
    RecordActivityTaskHeartbeatResponse,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.exceptions import TimeoutError as ActivityTimeout
from temporalio.worker import Worker

from core.attempt import factory_queue, station_queue
from tests.conftest import TemporalServer
from tests.waiting import PATIENCE_S, until
from tests.workers.gateway_running import KEY, RESULT_BYTES, Raw, RunningGateway, running_gateway
from tests.workers.rpc_catalogue import methods_of_sdk, methods_of_server
from workers import gateway_calls, gateway_door
from workers.gateway_calls import PASSING
from workers.gateway_door import Limits
from workers.gateway_frontend import NOT_SERVING, SERVING, WORKFLOW_SERVICE
from workers.gateway_policy import FactoryIdentity
from workers.gateway_seal import Task, TaskSeal

CONTROL = "test-gateway-attacks"
DENIED = grpc.StatusCode.PERMISSION_DENIED
STRANGER = grpc.StatusCode.UNAUTHENTICATED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
TOO_MUCH = grpc.StatusCode.RESOURCE_EXHAUSTED
OK = grpc.StatusCode.OK
JSON = {"encoding": b"json/plain"}


@dataclass
class Order:
    """What the workflow is to have done."""

    queue: str
    heartbeat_s: float = 20.0
    attempts: int = 1


WAIT = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED


@workflow.defn(sandboxed=False)
class OneTask:
    """Runs one activity on a factory's queue, and counts the signals that it gets."""

    def __init__(self) -> None:
        self.signals = 0

    @workflow.run
    async def run(self, order: Order) -> Any:
        result = await workflow.execute_activity(
            "task",
            order.queue,
            task_queue=order.queue,
            start_to_close_timeout=timedelta(seconds=60),
            heartbeat_timeout=timedelta(seconds=order.heartbeat_s),
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=0.1), maximum_attempts=order.attempts),
            cancellation_type=WAIT,
        )
        return [result, self.signals]

    @workflow.signal
    async def ship(self) -> None:
        self.signals += 1


@dataclass
class Factory:
    """A factory that speaks bytes."""

    name: str
    raw: Raw
    gateway: RunningGateway
    control: Client

    @property
    def queue(self) -> str:
        """Its workspace queue."""
        return factory_queue(self.name)

    async def take(
        self, *, heartbeat_s: float = 20.0, attempts: int = 1
    ) -> tuple[WorkflowHandle[OneTask, Any], PollActivityTaskQueueResponse]:
        """Have a workflow start a task for this factory, and take it."""
        order = Order(self.queue, heartbeat_s, attempts)
        handle = await self.control.start_workflow(OneTask.run, order, id=f"gwa-{uuid.uuid4().hex}", task_queue=CONTROL)
        return handle, await self.poll()

    async def poll(self, queue: str = "") -> PollActivityTaskQueueResponse:
        """Take a task that is there."""
        status, answer = await self.raw.send("PollActivityTaskQueue", poll_of(queue or self.queue))
        assert status == OK, answer
        assert isinstance(answer, bytes)
        task = PollActivityTaskQueueResponse.FromString(answer)
        assert task.task_token
        return task

    async def complete(self, token: bytes, value: bytes = b'"done"') -> None:
        """Answer properly."""
        result = Payloads(payloads=[Payload(metadata=JSON, data=value)])
        request = RespondActivityTaskCompletedRequest(task_token=token, result=result)
        assert (await self.raw.send("RespondActivityTaskCompleted", request))[0] == OK


def poll_of(queue: str, **fields: Any) -> PollActivityTaskQueueRequest:
    """Return a request for a task of a queue."""
    return PollActivityTaskQueueRequest(task_queue=TaskQueue(name=queue), **fields)


async def make_factory(gateway: RunningGateway, control: Client, *queues: str) -> Factory:
    """Return a factory of its own, attested for shared queues."""
    name = f"f{uuid.uuid4().hex[:8]}"
    return Factory(name, await gateway.raw(gateway.enrol(name, *queues)), gateway, control)


@pytest.fixture
async def control(temporal_client: Client) -> AsyncIterator[Client]:
    """Run the workflows, with direct access to Temporal."""
    async with Worker(temporal_client, task_queue=CONTROL, workflows=[OneTask]):
        yield temporal_client


@pytest.fixture
async def gateway(temporal_server: TemporalServer) -> AsyncIterator[RunningGateway]:
    """Run a gateway."""
    async with running_gateway(temporal_server) as running:
        yield running


@pytest.fixture
async def factory(gateway: RunningGateway, control: Client) -> Factory:
    """Return a factory that is known to the gateway."""
    return await make_factory(gateway, control)


async def cause_of(handle: WorkflowHandle[OneTask, Any]) -> BaseException:
    """Return what the activity failed with; a workflow that was wedged by it would never say."""
    with pytest.raises(WorkflowFailureError) as caught:
        await asyncio.wait_for(handle.result(), PATIENCE_S)
    assert isinstance(caught.value.cause, ActivityError)
    assert caught.value.cause.cause is not None
    return caught.value.cause.cause


# --- other calls ------------------------------------------------------------------------------------------------------


async def test_every_other_method_of_temporal_is_denied(factory: Factory, temporal_server: TemporalServer) -> None:
    """What the server offers, by its own reflection, and what the SDK knows: only the table passes."""
    everything = await methods_of_server(temporal_server.address) | methods_of_sdk()
    services = {name.split("/")[0].rpartition(".")[2] for name in everything}
    assert {"WorkflowService", "OperatorService", "AdminService", "ServerReflection", "CloudService"} <= services
    passing = {f"{WORKFLOW_SERVICE}/{name}" for name in PASSING}
    assert passing < everything
    assert sum(name.endswith("ById") for name in everything) >= 4
    for name in sorted(everything - passing - {"grpc.health.v1.Health/Check"}):
        service, method = name.split("/")
        status, words = await factory.raw.send(method, service=service)
        assert status == DENIED, f"{name}: {status} {words!r}"
    assert factory.gateway.frontend.sent == []


@pytest.mark.parametrize(
    "method",
    ["", "/", "Nothing", "pollactivitytaskqueue", "PollActivityTaskQueue/", "../RespondActivityTaskCompleted", "é"],
)
@pytest.mark.parametrize("service", [WORKFLOW_SERVICE, WORKFLOW_SERVICE.lower(), "WorkflowService", "a/b"])
async def test_made_up_methods_are_denied(service: str, method: str, factory: Factory) -> None:
    """Near misses of a name are other names."""
    status, _ = await factory.raw.send(method, service=service)
    assert status in {DENIED, grpc.StatusCode.UNIMPLEMENTED}
    assert factory.gateway.frontend.sent == []


@pytest.mark.parametrize("service", ["WorkflowService", f"{WORKFLOW_SERVICE}.x", f"x.{WORKFLOW_SERVICE}", "a/b"])
async def test_passing_methods_of_another_service_are_denied(service: str, factory: Factory) -> None:
    """A method is its service and its name."""
    for method in PASSING:
        assert (await factory.raw.send(method, service=service))[0] == DENIED
    assert factory.gateway.frontend.sent == []


async def test_control_over_workflows_is_denied_and_changes_nothing(factory: Factory) -> None:
    """Signals, terminations and answers by id, with all that they would need: the job does not notice."""
    handle, task = await factory.take()
    execution = WorkflowExecution(workflow_id=handle.id)
    about: dict[str, Any] = {"namespace": "default", "workflow_id": handle.id, "activity_id": task.activity_id}
    requests: list[tuple[str, Message]] = [
        ("SignalWorkflowExecution", SignalWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution, signal_name="ship")),
        ("TerminateWorkflowExecution", TerminateWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution)),
        ("RespondActivityTaskCompletedById", RespondActivityTaskCompletedByIdRequest(
            result=Payloads(payloads=[Payload(metadata=JSON, data=b'"forged"')]), **about)),
        ("RespondActivityTaskFailedById", RespondActivityTaskFailedByIdRequest(**about)),
    ]  # fmt: skip
    for method, request in requests:
        assert (await factory.raw.send(method, request))[0] == DENIED
    await factory.complete(task.task_token)
    assert await handle.result() == ["done", 0]


# --- other queues -----------------------------------------------------------------------------------------------------


async def test_polling_any_other_queue_is_denied(factory: Factory) -> None:
    """Control queues, other factories', system queues, partitions, shared ones without attestation, near misses."""
    name = factory.name
    queues = [
        "", "gf.control", "gf.io", CONTROL, "gf.factory.", "gf.station.", "gf.factory.other", factory_queue(f"{name}x"),
        factory_queue(f"x{name}"), factory_queue(name).upper(), factory_queue(name) + " ", f" {factory_queue(name)}",
        factory_queue(name) + "\n", factory_queue(name) + "/1", factory_queue(name) + "\0",
        station_queue("other", "codex"), station_queue(name, ""), station_queue(name, "codex\n"),
        station_queue(f"{name}.b", "codex"),  # a factory whose name goes on where this one's ends
        station_queue(name, "a/b"), station_queue(name, "*"), "gf.station.*.codex", f"gf.station.{name}",
        "gf.caps.linux.1", "gf.caps.", f"gf.caps.{name}", f"/_sys/{factory_queue(name)}/1",
        "temporal-sys-per-ns-tq", "temporal-sys-batcher-taskqueue", "temporal-sys-processor-parent-close-policy",
        f"temporal-sys/worker-commands/{name}", "x" * 100_000,
    ]  # fmt: skip
    for queue in queues:
        status, words = await factory.raw.send("PollActivityTaskQueue", poll_of(queue))
        assert status == DENIED, f"{queue[:80]!r}: {status}"
        assert len(words) < 400
    assert factory.gateway.frontend.sent == []


@pytest.mark.parametrize("kind", [TaskQueueKind.TASK_QUEUE_KIND_STICKY, 3, 4, 99])
async def test_polling_another_kind_of_queue_is_denied(kind: Any, factory: Factory) -> None:
    """Its name alone does not make a queue the factory's."""
    sticky = TaskQueue(name=factory.queue, kind=kind, normal_name="gf.control")
    assert (await factory.raw.send("PollActivityTaskQueue", PollActivityTaskQueueRequest(task_queue=sticky)))[
        0
    ] == DENIED
    assert factory.gateway.frontend.sent == []


async def test_only_queue_and_nothing_else_of_a_poll_reaches_temporal(factory: Factory) -> None:
    """No identity, rate, version, control queue or group of the caller's choosing."""
    handle, task = await factory.take()
    await factory.complete(task.task_token)
    await handle.result()
    evil = PollActivityTaskQueueRequest(
        namespace="default",
        identity="control/1",
        task_queue=TaskQueue(name=factory.queue, normal_name="gf.control"),
        worker_instance_key="k",
        worker_control_task_queue="gf.control",
        poller_group_id="g",
    )
    evil.task_queue_metadata.max_tasks_per_second.value = 0
    evil.deployment_options.build_id = "b"
    evil.worker_version_capabilities.build_id = "b"
    before = len(factory.gateway.frontend.sent)
    poll = asyncio.create_task(factory.raw.send("PollActivityTaskQueue", evil))
    await until(lambda: len(factory.gateway.frontend.sent) > before)
    poll.cancel()
    sent = factory.gateway.frontend.sent[-1][1]
    expected = PollActivityTaskQueueRequest(
        namespace="default",
        identity=f"factory/{factory.name}",
        task_queue=TaskQueue(name=factory.queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL),
    )
    assert sent == expected


async def test_shared_queue_needs_attestation(gateway: RunningGateway, control: Client) -> None:
    """The queue of a capability set passes for a factory that was attested for it, and only that one."""
    queue = f"gf.caps.linux.{uuid.uuid4().hex}"
    attested = await make_factory(gateway, control, queue)
    handle = await control.start_workflow(OneTask.run, Order(queue), id=uuid.uuid4().hex, task_queue=CONTROL)
    await attested.complete((await attested.poll(queue)).task_token)
    assert await handle.result() == ["done", 0]
    assert (await attested.raw.send("PollActivityTaskQueue", poll_of(queue + "0")))[0] == DENIED


# --- other tasks ------------------------------------------------------------------------------------------------------


def answers(token: bytes) -> list[tuple[str, Message]]:
    """Return every call that takes a task token, otherwise in order."""
    result = Payloads(payloads=[Payload(metadata=JSON, data=b'"forged"')])
    return [
        ("RecordActivityTaskHeartbeat", RecordActivityTaskHeartbeatRequest(task_token=token)),
        ("RespondActivityTaskCompleted", RespondActivityTaskCompletedRequest(task_token=token, result=result)),
        ("RespondActivityTaskFailed", RespondActivityTaskFailedRequest(task_token=token)),
        ("RespondActivityTaskCanceled", RespondActivityTaskCanceledRequest(task_token=token)),
    ]


async def test_forged_task_tokens_never_reach_temporal(factory: Factory) -> None:
    """Temporal's own token, another key's, cut ones, changed ones, none: denied. The real one still works."""
    handle, task = await factory.take()
    sealed = task.task_token
    inner = TaskSeal(KEY).unwrap(sealed, FactoryIdentity(factory.name))
    other_key = TaskSeal(b"x" * 32).wrap(inner)
    cut = [sealed[:length] for length in (0, 1, 3, 34, 35, 36, len(sealed) - 1)]
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(0, len(sealed), 23)]
    grown = [sealed + b" ", b" " + sealed, sealed + sealed, b"\0" * 500, b"gf1", b"gf1" + b"\0" * 32]
    for token in [inner.token, other_key, *cut, *changed, *grown]:
        for method, request in answers(token):
            assert (await factory.raw.send(method, request))[0] == DENIED, (method, token[:40])
    assert factory.gateway.frontend.methods() == []
    await factory.complete(sealed)
    assert await handle.result() == ["done", 0]


async def test_task_token_of_another_factory_never_reaches_temporal(factory: Factory, control: Client) -> None:
    """A token that was overheard is of no use to anybody else."""
    handle, task = await factory.take()
    thief = await make_factory(factory.gateway, control)
    for method, request in answers(task.task_token):
        status, words = await thief.raw.send(method, request)
        assert (status, words) == (DENIED, "this task token was given to another factory")
    assert factory.gateway.frontend.methods() == []
    await factory.complete(task.task_token)
    assert await handle.result() == ["done", 0]


async def test_task_token_of_a_queue_that_was_taken_away_is_denied(gateway: RunningGateway, control: Client) -> None:
    """An attestation that is withdrawn ends what was begun under it."""
    queue = f"gf.caps.linux.{uuid.uuid4().hex}"
    factory = await make_factory(gateway, control, queue)
    task = Task(factory.name, queue, "w", "r", "1", 1, b"token")
    gateway.enrol(factory.name)
    for method, request in answers(TaskSeal(KEY).wrap(task)):
        assert (await factory.raw.send(method, request))[0] == DENIED
    assert gateway.frontend.sent == []


async def test_second_answer_is_not_found(factory: Factory) -> None:
    """A token is spent with its task; Temporal says so, and the gateway passes that on."""
    handle, task = await factory.take()
    await factory.complete(task.task_token)
    assert await handle.result() == ["done", 0]
    for method, request in answers(task.task_token):
        assert (await factory.raw.send(method, request))[0] == grpc.StatusCode.NOT_FOUND, method


async def test_factory_never_sees_temporals_own_token(factory: Factory) -> None:
    """What it gets is an envelope; the rest of the task is what an SDK needs."""
    handle, task = await factory.take()
    assert task.task_token.startswith(b"gf1")
    assert task.activity_type.name == "task"
    assert task.workflow_execution.workflow_id == handle.id
    await factory.complete(task.task_token)


# --- other tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "gff_unknown", "gf_person", "x" * 4000])
async def test_strangers_learn_nothing(token: str | None, gateway: RunningGateway) -> None:
    """Whatever a caller without a good token calls, the answer is the same."""
    raw = await gateway.raw(token)
    calls = [(WORKFLOW_SERVICE, method) for method in PASSING] + [("grpc.health.v1.Health", "Watch"), ("a.b", "C")]
    seen = {(await raw.send(method, b"\xff", service=service)) for service, method in calls}
    assert seen == {(STRANGER, "no token of a factory, or one that is not valid any more")}
    assert gateway.frontend.sent == []


@pytest.mark.parametrize(
    "headers",
    [
        ["Basic {t}"], ["{t}"], ["Bearer"], ["Bearer  "], ["Bearer {t}x"], ["Bearer {t} {t}"], ["Bearer x,Bearer {t}"],
        ["Bearer gff_x", "Bearer {t}"], ["Bearer {t}", "Bearer {t}"],
    ],
)  # fmt: skip
async def test_odd_authorization_is_no_authorization(headers: list[str], factory: Factory) -> None:
    """One header, of the right scheme, with one token."""
    good = factory.raw.metadata[0][1].removeprefix("Bearer ")
    factory.raw.metadata = tuple(("authorization", text.format(t=good)) for text in headers)
    assert (await factory.raw.send("GetSystemInfo"))[0] == STRANGER


async def test_scheme_is_not_case_sensitive(factory: Factory) -> None:
    """`bearer` is what some clients write."""
    factory.raw.metadata = (("authorization", factory.raw.metadata[0][1].replace("Bearer", "bearer")),)
    assert (await factory.raw.send("GetSystemInfo"))[0] == OK


async def test_revoked_token_ends_open_polls_within_a_second_and_everything_after(factory: Factory) -> None:
    """Revocation needs no cooperation of the factory: it gets no task, and is refused when it asks again."""
    polls = [asyncio.create_task(factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue))) for _ in range(3)]
    await until(lambda: len(factory.gateway.frontend.sent) == 3)
    factory.gateway.known.clear()
    ended = await asyncio.wait_for(asyncio.gather(*polls), 30)  # they would last twice as long
    assert gateway_calls.RECHECK_S < 0.5
    assert ended == [(OK, b"")] * 3
    assert (await factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue)))[0] == STRANGER
    for method, request in answers(b"x"):
        assert (await factory.raw.send(method, request))[0] == STRANGER


async def test_token_that_changes_hands_ends_open_polls(factory: Factory) -> None:
    """The same token for another factory is another token."""
    poll = asyncio.create_task(factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue)))
    await until(lambda: len(factory.gateway.frontend.sent) == 1)
    factory.gateway.known[next(iter(factory.gateway.known))] = FactoryIdentity("somebody-else")
    assert (await asyncio.wait_for(poll, 30))[0] == DENIED


async def test_task_that_comes_after_the_token_is_given_back(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that comes between two looks at the token: a factory that is out does not get it, and the job hears."""
    monkeypatch.setattr(gateway_calls, "RECHECK_S", 60.0)
    poll = asyncio.create_task(factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue)))
    await until(lambda: len(factory.gateway.frontend.sent) == 1)
    factory.gateway.known.clear()
    handle = await factory.control.start_workflow(
        OneTask.run, Order(factory.queue), id=uuid.uuid4().hex, task_queue=CONTROL
    )
    assert (await poll)[0] == STRANGER
    error = await cause_of(handle)
    assert isinstance(error, ApplicationError)
    assert error.type == "WorkerShutdown"


async def test_gateway_that_cannot_check_tokens_lets_nobody_in(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that is away: open polls end, nothing passes, and nothing of the error is told."""
    poll = asyncio.create_task(factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue)))
    await until(lambda: len(factory.gateway.frontend.sent) == 1)

    class Broken(dict[str, FactoryIdentity]):
        def get(self, key: str, default: object = None) -> Any:
            raise ConnectionError(f"no database at secret.example for {key}")

    factory.gateway.known = Broken()
    expected = (grpc.StatusCode.UNAVAILABLE, "tokens cannot be checked at the moment")
    assert await asyncio.wait_for(poll, 30) == expected
    assert await factory.raw.send("GetSystemInfo") == expected


# --- other bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(PASSING))
@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff", b"\x0a\x05abc", b"{}", b"\x0b" * 200])
async def test_malformed_requests_are_refused(method: str, body: bytes, factory: Factory) -> None:
    """Bytes that are no message are the caller's mistake."""
    assert await factory.raw.send(method, body) == (INVALID, f"not a {PASSING[method].request.DESCRIPTOR.name}")
    assert factory.gateway.frontend.sent == []


@pytest.mark.parametrize("body", [b"\x0a\x02\xff\xfe", b"\x12\x03\x0a\x09x", b"\x12\x02\x0a\xff"])
@pytest.mark.parametrize("method", ["PollActivityTaskQueue", *(method for method, _ in answers(b""))])
async def test_malformed_parts_are_refused(method: str, body: bytes, factory: Factory) -> None:
    """Text that is no text, and parts that are cut off; a task token is bytes, and then simply none of ours."""
    assert (await factory.raw.send(method, body))[0] in {INVALID, DENIED}
    assert factory.gateway.frontend.sent == []


async def test_unknown_fields_do_not_pass(factory: Factory) -> None:
    """What a newer Temporal may understand, and we do not, stays here."""
    handle, task = await factory.take()
    request = RespondActivityTaskCompletedRequest(
        task_token=task.task_token,
        result=Payloads(payloads=[Payload(metadata=JSON | {"evil": b"1"}, data=b'"done"')]),
        identity="control/1",
        resource_id="workflow:gf-job-x",
        worker_version=WorkerVersionStamp(build_id="b", use_versioning=True),
        deployment=Deployment(series_name="s", build_id="b"),
    )
    body = request.SerializeToString() + b"\xf2\x3f\x04evil"  # field 1022, which nobody knows
    assert (await factory.raw.send("RespondActivityTaskCompleted", body))[0] == OK
    assert await handle.result() == ["done", 0]
    method, sent = factory.gateway.frontend.sent[-1]
    inner = TaskSeal(KEY).unwrap(task.task_token, FactoryIdentity(factory.name)).token
    assert (method, sent) == (
        "RespondActivityTaskCompleted",
        RespondActivityTaskCompletedRequest(
            namespace="default",
            task_token=inner,
            identity=f"factory/{factory.name}",
            result=Payloads(payloads=[Payload(metadata=JSON, data=b'"done"')]),
        ),
    )


@pytest.mark.parametrize("named", ["other", "temporal-system", "DEFAULT", "default "])
async def test_other_namespaces_are_denied(named: str, factory: Factory) -> None:
    """The namespace is the gateway's choice, not the caller's."""
    requests = [
        ("DescribeNamespace", DescribeNamespaceRequest(namespace=named)),
        ("PollActivityTaskQueue", poll_of(factory.queue, namespace=named)),
        *answers(b"x"),
    ]
    for method, request in requests:
        request.namespace = named  # type: ignore[attr-defined]
        assert (await factory.raw.send(method, request))[0] == DENIED
    assert factory.gateway.frontend.sent == []


async def test_describing_another_namespace_by_id_tells_of_ours(factory: Factory) -> None:
    """An id in the place of a name opens no other namespace."""
    request = DescribeNamespaceRequest(id="32049b68-7872-4094-8e63-d0dd59896a83")
    status, answer = await factory.raw.send("DescribeNamespace", request)
    assert status == OK
    assert isinstance(answer, bytes)
    assert b"default" in answer
    assert factory.gateway.frontend.sent == []


@pytest.mark.parametrize("size", [RESULT_BYTES + 1, 2 * RESULT_BYTES])
async def test_oversize_result_ends_the_task_with_the_reason(size: int, factory: Factory) -> None:
    """The caller is told, and the job need not wait for a heartbeat."""
    handle, task = await factory.take(attempts=3)
    result = Payloads(payloads=[Payload(metadata=JSON, data=b'"' + b"x" * (size - 2) + b'"')])
    request = RespondActivityTaskCompletedRequest(task_token=task.task_token, result=result)
    status, words = await factory.raw.send("RespondActivityTaskCompleted", request)
    assert status == INVALID
    assert f"at most {RESULT_BYTES} may pass" in str(words)
    await factory.complete((await factory.poll()).task_token)
    assert await handle.result() == ["done", 0]
    history = await handle.fetch_history()
    (begun,) = (event for event in history.events if event.HasField("activity_task_started_event_attributes"))
    attempt = begun.activity_task_started_event_attributes
    assert attempt.attempt == 2
    assert attempt.last_failure.message.startswith(f"the gateway did not let the result pass: {size + 30}"[:-4])


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_enormous_request_is_refused_before_it_is_read(compression: grpc.Compression, factory: Factory) -> None:
    """Also one that is small on the wire."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = factory.raw.channel.unary_unary(
        f"/{WORKFLOW_SERVICE}/GetSystemInfo"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\0" * (16 << 20), metadata=factory.raw.metadata, compression=compression)
    assert caught.value.code() in {TOO_MUCH, INVALID}
    assert (await factory.raw.send("GetSystemInfo"))[0] == OK


@pytest.mark.parametrize(
    "payloads",
    [
        [],
        [Payload(metadata=JSON, data=b"1"), Payload(metadata=JSON, data=b"2")],
        [Payload(data=b"1")],
        [Payload(metadata={"encoding": b"binary/plain"}, data=b"1")],
        [Payload(metadata={"encoding": b"binary/encrypted"}, data=b"1")],
        [Payload(metadata={"encoding": b"json/external-storage-reference"}, data=b"{}")],
        [Payload(metadata={"encoding": b"\xff\xfe"}, data=b"1")],
        [Payload(metadata=JSON, data=b"{")],
        [Payload(metadata=JSON, data=b'"\\ud800"')],
        [Payload(metadata=JSON, data=b"[" * 100_000)],
        [Payload(metadata={"encoding": b"json/protobuf"}, data=b"{}")],
        [Payload(metadata={"encoding": b"json/protobuf", "messageType": b"no.such.Type"}, data=b"{}")],
    ],
    ids=range(12),
)
async def test_result_that_no_workflow_could_decode_ends_the_task(payloads: list[Payload], factory: Factory) -> None:
    """Such a result would fail the workflow's task again and again; the failure that takes its place is decodable."""
    handle, task = await factory.take()
    request = RespondActivityTaskCompletedRequest(task_token=task.task_token, result=Payloads(payloads=payloads))
    assert (await factory.raw.send("RespondActivityTaskCompleted", request))[0] == INVALID
    error = await cause_of(handle)
    assert isinstance(error, ApplicationError)
    assert (error.type, error.message.partition(":")[0]) == ("BadResult", "the gateway did not let the result pass")


HEARTBEAT = TimeoutType.TIMEOUT_TYPE_HEARTBEAT
GARBAGE = Payloads(payloads=[Payload(metadata=JSON, data=b"{")])
EVIL_FAILURES = [
    Failure(
        message="m", timeout_failure_info=TimeoutFailureInfo(timeout_type=HEARTBEAT, last_heartbeat_details=GARBAGE)
    ),
    Failure(message="m", terminated_failure_info=TerminatedFailureInfo(identity="control/1")),
    Failure(message="m", encoded_attributes=Payload(metadata=JSON, data=b"{")),
    Failure(message="m", application_failure_info=ApplicationFailureInfo(type="T", details=GARBAGE)),
    Failure(
        message="m",
        application_failure_info=ApplicationFailureInfo(next_retry_delay=Duration(seconds=10**9)),
    ),
    Failure(message="m", cause=Failure(message="c", encoded_attributes=Payload(metadata=JSON, data=b"{"))),
    Failure(message="m" * 200_000, stack_trace="s" * 100_000, source="x" * 9_000),
    Failure(),
]


@pytest.mark.parametrize("failure", EVIL_FAILURES, ids=range(len(EVIL_FAILURES)))
async def test_failure_is_only_words(failure: Failure, factory: Factory) -> None:
    """Nothing smuggled in a failure reaches the workflow: no time-out or termination, nothing to decode, no flood."""
    handle, task = await factory.take()
    request = RespondActivityTaskFailedRequest(
        task_token=task.task_token, failure=failure, last_heartbeat_details=GARBAGE
    )
    assert (await factory.raw.send("RespondActivityTaskFailed", request))[0] == OK
    error = await cause_of(handle)
    assert isinstance(error, ApplicationError)
    assert error.details == ()
    assert error.failure is not None
    assert error.failure.ByteSize() < 16_000
    assert error.message == (failure.message[:4000] or "Application error")
    assert factory.gateway.frontend.methods() == ["RespondActivityTaskFailed"]


def chain(length: int) -> Failure:
    """Return a failure with that many causes."""
    failure = Failure(message="0")
    for number in range(1, length + 1):
        failure = Failure(message=str(number), cause=failure)
    return failure


async def test_chain_of_causes_is_cut(factory: Factory) -> None:
    """A failure carries a few causes, not as many as fit."""
    handle, task = await factory.take()
    request = RespondActivityTaskFailedRequest(task_token=task.task_token, failure=chain(40))
    assert (await factory.raw.send("RespondActivityTaskFailed", request))[0] == OK
    words = []
    error: BaseException | None = await cause_of(handle)
    while isinstance(error, ApplicationError):
        words.append(error.message)
        error = error.cause
    assert words == ["40", "39", "38", "37"]


@pytest.mark.parametrize(
    "details",
    [
        GARBAGE,
        Payloads(payloads=[Payload(metadata=JSON, data=b'"' + b"x" * 1100 + b'"')]),
        Payloads(payloads=[Payload(metadata={"encoding": b"json/protobuf"}, data=b"{}")]),
    ],
    ids=range(3),
)
async def test_unfit_heartbeat_details_are_left_out_and_the_lease_lives(details: Payloads, factory: Factory) -> None:
    """Such details would wedge the workflow when the heartbeat times out; the beat itself counts."""
    handle, task = await factory.take(heartbeat_s=3.0)
    beat = RecordActivityTaskHeartbeatRequest(task_token=task.task_token, details=details)
    for _ in range(3):
        await asyncio.sleep(1.1)
        assert (await factory.raw.send("RecordActivityTaskHeartbeat", beat))[0] == OK
    error = await cause_of(handle)
    assert isinstance(error, ActivityTimeout)
    assert error.last_heartbeat_details == []


async def test_fit_heartbeat_details_are_kept(factory: Factory) -> None:
    """And arrive as they were."""
    handle, task = await factory.take(heartbeat_s=3.0)
    details = Payloads(payloads=[Payload(metadata=JSON, data=b'{"epoch":1}')])
    beat = RecordActivityTaskHeartbeatRequest(task_token=task.task_token, details=details)
    status, answer = await factory.raw.send("RecordActivityTaskHeartbeat", beat)
    assert status == OK
    assert isinstance(answer, bytes)
    assert not RecordActivityTaskHeartbeatResponse.FromString(answer).cancel_requested
    error = await cause_of(handle)
    assert isinstance(error, ActivityTimeout)
    assert list(error.last_heartbeat_details) == [{"epoch": 1}]


async def test_cancel_that_nobody_asked_for_is_refused_by_temporal(factory: Factory) -> None:
    """A factory cannot end a job as cancelled."""
    handle, task = await factory.take()
    request = RespondActivityTaskCanceledRequest(task_token=task.task_token, details=GARBAGE)
    status, words = await factory.raw.send("RespondActivityTaskCanceled", request)
    assert (status, words) == (INVALID, "Temporal answered RespondActivityTaskCanceled with INVALID_ARGUMENT")
    await factory.complete(task.task_token)
    assert await handle.result() == ["done", 0]


async def test_cancel_with_garbage_is_a_plain_cancel(factory: Factory) -> None:
    """Its details would be decoded by the workflow, so they are checked like all others."""
    handle, task = await factory.take()
    await handle.cancel()
    beat = RecordActivityTaskHeartbeatRequest(task_token=task.task_token)

    async def cancelled() -> bool:
        answer = (await factory.raw.send("RecordActivityTaskHeartbeat", beat))[1]
        assert isinstance(answer, bytes)
        return RecordActivityTaskHeartbeatResponse.FromString(answer).cancel_requested

    async with asyncio.timeout(PATIENCE_S):
        while not await cancelled():
            await asyncio.sleep(0.02)
    request = RespondActivityTaskCanceledRequest(task_token=task.task_token, details=GARBAGE)
    assert (await factory.raw.send("RespondActivityTaskCanceled", request))[0] == OK
    with pytest.raises(WorkflowFailureError) as caught:
        await asyncio.wait_for(handle.result(), PATIENCE_S)
    assert isinstance(caught.value.cause, CancelledError)


# --- too much ---------------------------------------------------------------------------------------------------------


async def test_flood_is_stopped_for_its_factory_alone(temporal_server: TemporalServer, control: Client) -> None:
    """Beyond its rate a factory is refused; others do not notice, and it recovers."""
    async with running_gateway(temporal_server, limits=Limits(calls_per_s=2, polls=4)) as gateway:
        noisy, quiet = await make_factory(gateway, control), await make_factory(gateway, control)
        seen = [(await noisy.raw.send("GetSystemInfo"))[0] for _ in range(40)]
        assert seen[:4] == [OK] * 4, "two seconds' worth at once"
        assert TOO_MUCH in seen[4:]
        assert (await quiet.raw.send("GetSystemInfo"))[0] == OK

        async def passes() -> bool:
            return (await noisy.raw.send("GetSystemInfo"))[0] == OK

        async with asyncio.timeout(PATIENCE_S):
            while not await passes():
                await asyncio.sleep(0.1)


async def test_open_polls_are_bounded(temporal_server: TemporalServer, control: Client) -> None:
    """A factory cannot take all long polls that a server has; one that ends makes room."""
    async with running_gateway(temporal_server, limits=Limits(calls_per_s=1000, polls=3)) as gateway:
        factory = await make_factory(gateway, control)
        polls = [
            asyncio.create_task(factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue))) for _ in range(3)
        ]
        await until(lambda: len(gateway.frontend.sent) == 3)
        assert (await factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue)))[0] == TOO_MUCH
        polls.pop().cancel()
        async with asyncio.timeout(PATIENCE_S):
            while len(gateway.frontend.sent) == 3:
                polls.append(asyncio.create_task(factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue))))
                await asyncio.sleep(0.1)
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


async def test_call_without_a_request_is_ended(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that opens calls and says nothing holds them for a while only; one that hangs up is refused."""
    monkeypatch.setattr(gateway_door, "BODY_S", 0.2)
    call: Any = factory.raw.channel.stream_stream(f"/{WORKFLOW_SERVICE}/GetSystemInfo")
    silent = call(metadata=factory.raw.metadata)
    assert await silent.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    monkeypatch.setattr(gateway_door, "BODY_S", 60.0)
    empty = call(metadata=factory.raw.metadata)
    await empty.done_writing()
    assert await empty.code() == INVALID


async def test_poll_whose_factory_hung_up_takes_no_task(factory: Factory) -> None:
    """A task must not go to a poll that nobody waits for."""
    poll = asyncio.create_task(factory.raw.send("PollActivityTaskQueue", poll_of(factory.queue)))
    await until(lambda: len(factory.gateway.frontend.sent) == 1)
    await asyncio.sleep(0.2)
    poll.cancel()
    await until(lambda: not factory.gateway.frontend.under_way)
    await asyncio.sleep(0.2)  # Temporal hears of it
    handle, task = await factory.take()
    await factory.complete(task.task_token)
    assert await handle.result() == ["done", 0]


# --- health and outages -----------------------------------------------------------------------------------------------


async def test_health_needs_no_token_and_is_temporals(gateway: RunningGateway) -> None:
    """A load balancer may ask; `Watch`, which stays open, is for nobody."""
    raw = await gateway.raw()
    assert await raw.send("Check", service="grpc.health.v1.Health") == (OK, SERVING)
    assert (await raw.send("Watch", service="grpc.health.v1.Health"))[0] == STRANGER


async def test_temporal_away_is_told_without_its_address() -> None:
    """A factory can wait, and learns nothing of where we look."""
    nowhere = TemporalServer("127.0.0.1:1", "default", log=None)  # type: ignore[arg-type]
    async with running_gateway(nowhere) as gateway:
        raw = await gateway.raw(gateway.enrol("f"))
        expected = (grpc.StatusCode.UNAVAILABLE, "Temporal is out of reach")
        assert await raw.send("PollActivityTaskQueue", poll_of(factory_queue("f"))) == expected
        token = TaskSeal(KEY).wrap(Task("f", factory_queue("f"), "w", "r", "1", 1, b"t"))
        for method, request in answers(token):
            assert await raw.send(method, request) == expected
        assert await raw.send("Check", service="grpc.health.v1.Health") == (OK, NOT_SERVING)
