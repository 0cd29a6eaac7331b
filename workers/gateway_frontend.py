"""The real Temporal server behind the gateway. Does I/O: gRPC."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from core.version import VERSION
from workers.gateway_policy import Refused

WORKFLOW_SERVICE: Final = "temporal.api.workflowservice.v1.WorkflowService"
HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = b"\x08\x01"
"""A serialised `HealthCheckResponse`, status SERVING; NOT_SERVING is status 2."""
NOT_SERVING: Final = b"\x08\x02"
_ASKS_FOR_WORKFLOW_SERVICE: Final = b"\x0a" + bytes([len(WORKFLOW_SERVICE)]) + WORKFLOW_SERVICE.encode()
"""A serialised `HealthCheckRequest`: field 1, the name of the service."""
HEALTH_TIMEOUT_S: Final = 2.0

CALL_TIMEOUT_S: Final = 10.0
CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 8 << 20),  # Temporal's own limit is 4 MB
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # the default of two minutes would outlast leases
)
RELAYED: Final = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""Answers of Temporal that concern the factory; all others are trouble of ours, which it can only wait out."""

ReplyT = TypeVar("ReplyT", bound=Message)


class Frontend:
    """A connection to Temporal's frontend, with our credentials and none of the caller's metadata."""

    def __init__(self, address: str, namespace: str) -> None:
        self.namespace = namespace
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._metadata = (
            ("temporal-namespace", namespace),
            ("client-name", "gigafactory-gateway"),
            ("client-version", VERSION),
        )
        self._calls: dict[str, Any] = {}

    async def call(
        self, method: str, request: Message, reply: type[ReplyT], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> ReplyT:
        """Make a call of the workflow service.

        Raises:
            Refused: Temporal refused it, or is out of reach.

        """
        if method not in self._calls:
            self._calls[method] = self._channel.unary_unary(
                f"/{WORKFLOW_SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply.FromString,
            )
        try:
            answer: ReplyT = await self._calls[method](request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code in RELAYED:
                raise Refused(code, f"Temporal answered {method} with {code.name}") from None
            raise Refused(grpc.StatusCode.UNAVAILABLE, "Temporal is out of reach") from None
        return answer

    async def health(self) -> bytes:
        """Return Temporal's own answer to a health check, or that it does not serve."""
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(HEALTH_CHECK)
        try:
            return await check(_ASKS_FOR_WORKFLOW_SERVICE, timeout=HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return NOT_SERVING

    async def close(self) -> None:
        """Close the connection; calls under way end."""
        await self._channel.close(grace=None)
