"""What becomes of each call that passes: answered here, or sent on as a request of ours. Does I/O: gRPC.

Nothing of a factory's request reaches Temporal as it came. What goes on is built anew: our namespace, the factory's
name as the identity, Temporal's own task token from the sealed one, and payloads that were checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import NamespaceState, TaskQueueKind
from temporalio.api.failure.v1 import Failure
from temporalio.api.namespace.v1 import NamespaceInfo
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    GetSystemInfoRequest,
    GetSystemInfoResponse,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatRequest,
    RecordActivityTaskHeartbeatResponse,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCanceledResponse,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskCompletedResponse,
    RespondActivityTaskFailedRequest,
    RespondActivityTaskFailedResponse,
    ShutdownWorkerRequest,
    ShutdownWorkerResponse,
)

from core.job_messages import WORKER_GONE
from core.version import VERSION
from workers.gateway_frontend import Frontend
from workers.gateway_limits import Allowance
from workers.gateway_messages import PayloadCheck, Unfit, failure_of, rebuilt_failure
from workers.gateway_policy import FactoryIdentity, Refused, denied
from workers.gateway_seal import Task, TaskSeal

RECHECK_S: Final = 0.4
"""Between two looks at the token of an open poll: a revoked one ends within a second, if `authenticate` is as fresh."""
LONGEST_POLL_S: Final = 70.0
ORDINARY: Final = (TaskQueueKind.TASK_QUEUE_KIND_UNSPECIFIED, TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
BAD_RESULT: Final = "BadResult"


@dataclass(frozen=True, slots=True)
class Caller:
    """A factory that makes a call."""

    identity: FactoryIdentity
    identify: Callable[[], Awaitable[FactoryIdentity]]
    """Returns whom the call's token speaks for now; raises Refused when that is nobody."""
    allowance: Allowance
    left_s: float | None
    """Seconds that the caller is willing to wait; None: for ever."""

    @property
    def shown_as(self) -> str:
        """How Temporal shows it, whatever it calls itself."""
        return f"factory/{self.identity.name}"


@dataclass(frozen=True)
class Calls:
    """One method for each call; all may raise Refused."""

    frontend: Frontend
    seal: TaskSeal
    payloads: PayloadCheck

    # --- what a worker asks when it starts and stops ------------------------------------------------------------------

    async def system_info(self, _caller: Caller, _request: GetSystemInfoRequest) -> Message:
        """Return what an SDK has to know of the server, and nothing about the one behind us."""
        capabilities = GetSystemInfoResponse.Capabilities(
            internal_error_differentiation=True, activity_failure_include_heartbeat=True
        )
        return GetSystemInfoResponse(server_version=f"gateway-{VERSION}", capabilities=capabilities)

    async def describe_namespace(self, _caller: Caller, _request: DescribeNamespaceRequest) -> Message:
        """Return that the namespace is there; it has no capabilities, so that workers use no further calls."""
        info = NamespaceInfo(
            name=self.frontend.namespace,
            state=NamespaceState.NAMESPACE_STATE_REGISTERED,
            limits=NamespaceInfo.Limits(blob_size_limit_error=self.payloads.result_bytes),
        )
        return DescribeNamespaceResponse(namespace_info=info)

    async def shut_down(self, _caller: Caller, _request: ShutdownWorkerRequest) -> Message:
        """Return that it was heard. There is nothing to do: an open poll ends with its call."""
        return ShutdownWorkerResponse()

    # --- taking a task ------------------------------------------------------------------------------------------------

    async def poll(self, caller: Caller, request: PollActivityTaskQueueRequest) -> Message:
        """Wait for a task on one of the factory's own queues."""
        queue = request.task_queue.name
        if request.task_queue.kind not in ORDINARY or not caller.identity.may_poll(queue):
            raise denied(f"the task queue {queue[:200]} is not one of this factory's")
        with caller.allowance.poll():
            task = await self._while_good(caller, queue)
        if not task.task_token:
            return PollActivityTaskQueueResponse()
        await self._give_back_unless_good(caller, queue, task.task_token)
        sealed = Task(
            factory=caller.identity.name,
            queue=queue,
            workflow_id=task.workflow_execution.workflow_id,
            run_id=task.workflow_execution.run_id,
            activity_id=task.activity_id,
            attempt=task.attempt,
            token=task.task_token,
        )
        task.task_token = self.seal.wrap(sealed)
        return task

    async def _while_good(self, caller: Caller, queue: str) -> PollActivityTaskQueueResponse:
        """Wait for a task for as long as the caller's token is good; the end of that is told as if none had come.

        So whoever has a newer token polls on at once, and whoever has none is refused then. An SDK that is told of it
        here would not poll for ten seconds.
        """
        request = PollActivityTaskQueueRequest(
            namespace=self.frontend.namespace,
            task_queue=TaskQueue(name=queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL),
            identity=caller.shown_as,
        )
        wait_s = LONGEST_POLL_S if caller.left_s is None else min(caller.left_s, LONGEST_POLL_S)
        poll = asyncio.ensure_future(
            self.frontend.call("PollActivityTaskQueue", request, PollActivityTaskQueueResponse, timeout_s=wait_s)
        )
        try:
            while not (await asyncio.wait({poll}, timeout=RECHECK_S))[0]:
                try:
                    await self._recheck(caller, queue)
                except Refused as refused:
                    if refused.code != grpc.StatusCode.UNAUTHENTICATED:
                        raise
                    return PollActivityTaskQueueResponse()
            return poll.result()
        finally:
            poll.cancel()

    async def _recheck(self, caller: Caller, queue: str) -> None:
        identity = await caller.identify()
        if identity.name != caller.identity.name or not identity.may_poll(queue):
            raise denied(f"the task queue {queue} is not one of this factory's any more")

    async def _give_back_unless_good(self, caller: Caller, queue: str, token: bytes) -> None:
        """Tell the workflow at once, without waiting for a heartbeat, of a task that came after its factory's token."""
        try:
            await self._recheck(caller, queue)
        except Refused as refused:
            await self._fail(caller, token, failure_of(WORKER_GONE, f"{caller.shown_as}: {refused.message}"))
            raise

    # --- answering for a task -----------------------------------------------------------------------------------------

    async def heartbeat(self, caller: Caller, request: RecordActivityTaskHeartbeatRequest) -> Message:
        """Pass a beat on; unfit details are left out, since a beat is a lease first of all."""
        upstream = RecordActivityTaskHeartbeatRequest(
            task_token=self.seal.unwrap(request.task_token, caller.identity).token,
            details=await self.payloads.details(request.details),
            identity=caller.shown_as,
            namespace=self.frontend.namespace,
        )
        return await self.frontend.call("RecordActivityTaskHeartbeat", upstream, RecordActivityTaskHeartbeatResponse)

    async def completed(self, caller: Caller, request: RespondActivityTaskCompletedRequest) -> Message:
        """Pass a result on; one that is unfit fails the activity, so that its workflow hears why and need not wait."""
        token = self.seal.unwrap(request.task_token, caller.identity).token
        try:
            result = await self.payloads.result(request.result)
        except Unfit as unfit:
            await self._fail(caller, token, failure_of(BAD_RESULT, f"the gateway did not let the result pass: {unfit}"))
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"the result does not pass: {unfit}") from None
        upstream = RespondActivityTaskCompletedRequest(
            task_token=token, result=result, identity=caller.shown_as, namespace=self.frontend.namespace
        )
        return await self.frontend.call("RespondActivityTaskCompleted", upstream, RespondActivityTaskCompletedResponse)

    async def failed(self, caller: Caller, request: RespondActivityTaskFailedRequest) -> Message:
        """Pass a failure on, as far as it may be told."""
        token = self.seal.unwrap(request.task_token, caller.identity).token
        details = await self.payloads.details(request.last_heartbeat_details)
        return await self._fail(caller, token, rebuilt_failure(request.failure), details)

    async def canceled(self, caller: Caller, request: RespondActivityTaskCanceledRequest) -> Message:
        """Pass on that a cancel was carried out; Temporal refuses it when none was asked for."""
        upstream = RespondActivityTaskCanceledRequest(
            task_token=self.seal.unwrap(request.task_token, caller.identity).token,
            details=await self.payloads.details(request.details),
            identity=caller.shown_as,
            namespace=self.frontend.namespace,
        )
        return await self.frontend.call("RespondActivityTaskCanceled", upstream, RespondActivityTaskCanceledResponse)

    async def _fail(self, caller: Caller, token: bytes, failure: Failure, details: Payloads | None = None) -> Message:
        upstream = RespondActivityTaskFailedRequest(
            task_token=token,
            failure=failure,
            last_heartbeat_details=details,
            identity=caller.shown_as,
            namespace=self.frontend.namespace,
        )
        return await self.frontend.call("RespondActivityTaskFailed", upstream, RespondActivityTaskFailedResponse)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that passes: what it is sent as, and the method that answers it."""

    request: type[Message]
    answer: Callable[[Calls, Caller, Any], Awaitable[Message]]


PASSING: Final = {
    "GetSystemInfo": Call(GetSystemInfoRequest, Calls.system_info),
    "DescribeNamespace": Call(DescribeNamespaceRequest, Calls.describe_namespace),
    "ShutdownWorker": Call(ShutdownWorkerRequest, Calls.shut_down),
    "PollActivityTaskQueue": Call(PollActivityTaskQueueRequest, Calls.poll),
    "RecordActivityTaskHeartbeat": Call(RecordActivityTaskHeartbeatRequest, Calls.heartbeat),
    "RespondActivityTaskCompleted": Call(RespondActivityTaskCompletedRequest, Calls.completed),
    "RespondActivityTaskFailed": Call(RespondActivityTaskFailedRequest, Calls.failed),
    "RespondActivityTaskCanceled": Call(RespondActivityTaskCanceledRequest, Calls.canceled),
}
"""Every call of the workflow service that passes; what Temporal may learn in later versions does not."""
