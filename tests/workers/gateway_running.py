"""A gateway in this process, in front of the tests' Temporal server; who may come in is a dictionary."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeVar

import grpc.aio
from google.protobuf.message import Message
from temporalio.client import Client

from tests.conftest import TemporalServer
from workers.gateway_calls import Calls
from workers.gateway_door import Door, Limits
from workers.gateway_frontend import WORKFLOW_SERVICE, Frontend
from workers.gateway_messages import PayloadCheck
from workers.gateway_policy import FactoryIdentity
from workers.gateway_seal import TaskSeal
from workers.gateway_server import Tls, serving
from workflows.connection import data_converter

RESULT_BYTES = 256 << 10
KEY = b"k" * 32
ReplyT = TypeVar("ReplyT", bound=Message)


class WatchedFrontend(Frontend):
    """Notes what reaches Temporal."""

    def __init__(self, address: str, namespace: str) -> None:
        super().__init__(address, namespace)
        self.sent: list[tuple[str, Message]] = []
        self.under_way = 0

    async def call(self, method: str, request: Message, reply: type[ReplyT], *, timeout_s: float = 10.0) -> ReplyT:
        """Note the call and make it."""
        self.sent.append((method, request))
        self.under_way += 1
        try:
            return await super().call(method, request, reply, timeout_s=timeout_s)
        finally:
            self.under_way -= 1

    def methods(self) -> list[str]:
        """Return the names of the calls that were made, polls left out."""
        return [method for method, _ in self.sent if method != "PollActivityTaskQueue"]


@dataclass
class RunningGateway:
    """A gateway that serves; `known` says which tokens are good, now."""

    address: str
    namespace: str
    frontend: WatchedFrontend
    known: dict[str, FactoryIdentity] = field(default_factory=dict)
    channels: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    def enrol(self, name: str, *queues: str) -> str:
        """Let a factory in; return its token."""
        token = f"gff_{name}"
        self.known[token] = FactoryIdentity(name, frozenset(queues))
        return token

    async def client(self, token: str, **options: object) -> Client:
        """Return a client as a factory has one."""
        return await Client.connect(
            self.address,
            namespace=self.namespace,
            api_key=token,
            tls=False,
            data_converter=data_converter(),
            **options,  # type: ignore[arg-type]
        )

    async def raw(self, token: str | None = None) -> Raw:
        """Return a way to send anything."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]
        channel = await self.channels.enter_async_context(grpc.aio.insecure_channel(self.address, options=options))
        return Raw(channel, () if token is None else (("authorization", f"Bearer {token}"),))


@dataclass
class Raw:
    """Sends what no SDK would."""

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]

    async def send(
        self, method: str, body: bytes | Message = b"", *, service: str = WORKFLOW_SERVICE, timeout_s: float = 60.0
    ) -> tuple[grpc.StatusCode, bytes | str]:
        """Call a method; return the status with the answer's bytes or the refusal's words."""
        data = body if isinstance(body, bytes) else body.SerializeToString()
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(f"/{service}/{method}")
        try:
            return grpc.StatusCode.OK, await call(data, metadata=self.metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""


@contextlib.asynccontextmanager
async def running_gateway(
    server: TemporalServer, *, limits: Limits | None = None, tls: Tls | None = None, codec: str = ""
) -> AsyncIterator[RunningGateway]:
    """Run a gateway until the block ends."""
    frontend = WatchedFrontend(server.address, server.namespace)
    running = RunningGateway("", server.namespace, frontend)

    async def authenticate(token: str) -> FactoryIdentity | None:
        return running.known.get(token)

    calls = Calls(frontend, TaskSeal(KEY), PayloadCheck(data_converter(codec), RESULT_BYTES))
    door = Door(calls, authenticate, limits or Limits(calls_per_s=1000, polls=32))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(frontend.close)
        port = await stack.enter_async_context(serving(door, "127.0.0.1", 0, tls, result_bytes=RESULT_BYTES))
        running.address = f"127.0.0.1:{port}"
        await stack.enter_async_context(running.channels)
        yield running
