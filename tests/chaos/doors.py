"""What lies between the parts of a stack under test: doors that can be shut, relays that lose a chosen message.

    a part ──▶ its own door (TCP) ──▶ the relay that all share (HTTP and WebSocket, or gRPC) ──▶ API, Temporal
                                 └──▶ PostgreSQL

A door is what a network is to two machines: while it is `cut`, connections break and none is made; while it is
`silent`, nothing comes through, and what was sent comes late. A relay knows the messages: it loses a request before
it was served, or the answer after. No privileges needed. Does I/O: sockets.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import grpc
import grpc.aio

LOOPBACK = "127.0.0.1"
LIMIT = 16 << 20
"""Bytes of one message."""

Address = Callable[[], str]
"""Where something is now, as `host:port`."""


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection."""
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=LIMIT)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passable: asyncio.Event) -> None:
    """Carry bytes in one direction until they end."""
    while data := await reader.read(65536):
        await passable.wait()
        writer.write(data)
        await writer.drain()


async def first_to_end(*ways: asyncio.Task[None]) -> None:
    """Wait until one of the tasks ends, and end the others; raises what it failed with."""
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in done:
            way.result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


class Server:
    """A TCP server on a port of its own, whose connections can all be broken."""

    def __init__(self) -> None:
        self.port = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._meet, LOOPBACK, 0, limit=LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Break everything and listen no more."""
        assert self._server is not None
        self._server.close()
        self.break_all()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def break_all(self) -> None:
        """Break all connections."""
        for task in self._connections:
            task.cancel()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve_safely(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve_safely(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, EOFError):
                await self.serve(reader, writer)
        finally:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; it is broken afterwards."""
        raise NotImplementedError


class Door(Server):
    """One part's way to another one."""

    def __init__(self, leads_to: Address) -> None:
        super().__init__()
        self._leads_to = leads_to
        self._passable = asyncio.Event()
        self._passable.set()
        self._cut = False

    def shut(self, how: str) -> None:
        """Let nothing through: `cut` or `silent`."""
        self._passable.clear()
        self._cut = how == "cut"
        if self._cut:
            self.break_all()

    def reopen(self) -> None:
        """Let everything through again, also what was sent meanwhile."""
        self._cut = False
        self._passable.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        if self._cut:
            return
        far_reader, far_writer = await connect(self._leads_to())
        try:
            await first_to_end(
                asyncio.create_task(pump(reader, far_writer, self._passable)),
                asyncio.create_task(pump(far_reader, writer, self._passable)),
            )
        finally:
            far_writer.transport.abort()


class Losses:
    """Which messages are to be lost, and which were."""

    def __init__(self) -> None:
        self.waiting: Counter[tuple[str, str]] = Counter()
        self.lost: Counter[tuple[str, str]] = Counter()

    def expect(self, message: str, way: str) -> None:
        """Lose the next one."""
        self.waiting[message, way] += 1

    def take(self, message: str, way: Literal["request", "response"]) -> bool:
        """Return whether this message is lost."""
        if self.waiting[message, way] <= 0:
            return False
        self.waiting[message, way] -= 1
        self.lost[message, way] += 1
        return True


# --- HTTP and WebSocket ----------------------------------------------------------------------------------------------

ROUTES = (
    (r"POST /fleet/factories", "register"),
    (r"POST /fleet/factories/[^/]+/heartbeat", "beat"),
    (r"POST /fleet/factories/[^/]+/(drain|leave)", "drain"),
    (r"POST /fleet/attempts/[^/]+/\d+/report", "report"),
    (r"POST /fleet/attempts/[^/]+/\d+/artifacts", "artifact"),
    (r"POST /fleet/attempts/[^/]+/\d+/death", "death"),
    (r"POST /fleet/jobs", "submit"),
    (r"POST /fleet/jobs/[^/]+/actions", "action"),
    (r"GET /fleet/factories/[^/]+/link", "link.open"),
)


class HttpMessage(NamedTuple):
    """One request or answer."""

    first_line: str
    raw: bytes


async def read_http(reader: asyncio.StreamReader) -> HttpMessage | None:
    """Read one message with a known length; None when no further one comes."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode("latin-1").split("\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(length[1])) if length else b""
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        while not body.endswith(b"0\r\n\r\n"):
            size_line = await reader.readuntil(b"\r\n")
            body += size_line + await reader.readexactly(int(size_line, 16) + 2)
    return HttpMessage(lines[0], head + body)


def name_of_request(first_line: str) -> str:
    """Return the message that a request is; empty for one that nobody loses."""
    target = first_line.rpartition(" ")[0].partition("?")[0]
    return next((name for route, name in ROUTES if re.fullmatch(route, target)), "")


class HttpRelay(Server):
    """Stands before the API."""

    def __init__(self, leads_to: Address, losses: Losses) -> None:
        super().__init__()
        self._leads_to = leads_to
        self._losses = losses
        self._links: set[asyncio.Task[Any]] = set()

    def cut_links(self) -> int:
        """Break the factory links, and nothing else; return how many there were."""
        for task in self._links:
            task.cancel()
        return len(self._links)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay the requests of one connection, one after the other."""
        far_reader, far_writer = await connect(self._leads_to())
        try:
            while request := await read_http(reader):
                name = name_of_request(request.first_line)
                if self._losses.take(name, "request"):
                    return
                far_writer.write(request.raw)
                answer = await read_http(far_reader)
                if answer is None or self._losses.take(name, "response"):
                    return
                writer.write(answer.raw)
                await writer.drain()
                if " 101 " in answer.first_line:
                    await self._relay_link(FrameLosses(self._losses), reader, writer, far_reader, far_writer)
                    return
        finally:
            far_writer.transport.abort()

    async def _relay_link(
        self,
        losses: FrameLosses,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            await first_to_end(
                asyncio.create_task(carry_frames(reader, far_writer, losses.said)),
                asyncio.create_task(carry_frames(far_reader, writer, losses.heard)),
            )
        finally:
            self._links.discard(task)


class FrameLosses:
    """Tells which frame of one factory link is lost; the link breaks with it, as TCP loses nothing silently."""

    def __init__(self, losses: Losses) -> None:
        self._losses = losses
        self._calls: dict[int, str] = {}

    def said(self, message: dict[str, Any]) -> bool:
        """Return whether a message of the agent is lost."""
        kind = str(message.get("kind"))
        if kind == "call":
            kind = self._calls[int(message["id"])] = str(message["name"])
        return self._losses.take(f"link.{kind}", "request")

    def heard(self, message: dict[str, Any]) -> bool:
        """Return whether a message of the API is lost."""
        if message.get("kind") == "answer":
            return self._losses.take(f"link.{self._calls.pop(int(message['id']), '')}", "response")
        return self._losses.take(f"link.{message.get('kind')}", "request")


async def carry_frames(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_lost: Callable[[dict[str, Any]], bool]
) -> None:
    """Carry WebSocket frames in one direction, until they end or one is lost."""
    while True:
        raw, payload = await read_frame(reader)
        if raw[0] & 0x0F == 1 and is_lost(json.loads(payload)):
            return
        writer.write(raw)
        await writer.drain()


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one frame (RFC 6455, 5.2); return its bytes and its payload without the mask."""
    raw = await reader.readexactly(2)
    masked, length = raw[1] & 0x80, raw[1] & 0x7F
    if length >= 126:
        extended = await reader.readexactly(2 if length == 126 else 8)
        raw, length = raw + extended, int.from_bytes(extended, "big")
    key = await reader.readexactly(4) if masked else b""
    payload = await reader.readexactly(length)
    if not masked:
        return raw + payload, payload
    mask = (key * (length // 4 + 1))[:length]
    plain = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
    return raw + key + payload, plain.to_bytes(length, "big")


# --- gRPC -------------------------------------------------------------------------------------------------------------

GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", LIMIT),
    ("grpc.max_send_message_length", LIMIT),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.so_reuseport", 0),
)


class GrpcRelay(grpc.GenericRpcHandler):
    """Stands before Temporal; carries calls as they are, without looking into them."""

    def __init__(self, leads_to: Address, losses: Losses) -> None:
        self.port = 0
        self._leads_to = leads_to
        self._losses = losses
        self._server: grpc.aio.Server | None = None
        self._channel: grpc.aio.Channel | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = grpc.aio.server(options=GRPC_OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port(f"{LOOPBACK}:0")
        await self._server.start()

    async def close(self) -> None:
        """Listen no more."""
        if self._channel is not None:
            await self._channel.close()
        assert self._server is not None
        await self._server.stop(0)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return what carries a call; all calls of Temporal's clients have one request and one answer."""
        return grpc.unary_unary_rpc_method_handler(partial(self._carry, details.method))

    async def _carry(self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._leads_to(), options=GRPC_OPTIONS)
        name = method.rpartition("/")[2]
        if self._losses.take(name, "request"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the request was lost")
        metadata = [pair for pair in context.invocation_metadata() or () if pair[0] != "user-agent"]
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        try:
            answer = await call(request, timeout=context.time_remaining(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            context.set_trailing_metadata(tuple(error.trailing_metadata()))
            await context.abort(error.code(), error.details() or "")
        if self._losses.take(name, "response"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answer


@dataclass
class Doors:
    """All doors of one stack, with the relays behind them."""

    api: HttpRelay
    temporal: GrpcRelay
    losses: Losses
    doors: dict[str, dict[str, Door]]
    """part → service → its door."""

    @classmethod
    async def open(cls, ways: dict[str, tuple[str, ...]], addresses: dict[str, Address]) -> Doors:
        """Open a door for each part and service of `ways`; `addresses` says where the services are."""
        losses = Losses()
        api, temporal = HttpRelay(addresses["api"], losses), GrpcRelay(addresses["temporal"], losses)
        await api.open()
        await temporal.open()
        inner = addresses | {
            "api": lambda: f"{LOOPBACK}:{api.port}",
            "temporal": lambda: f"{LOOPBACK}:{temporal.port}",
        }
        doors = {part: {service: Door(inner[service]) for service in services} for part, services in ways.items()}
        for door in (door for of_part in doors.values() for door in of_part.values()):
            await door.open()
        return cls(api, temporal, losses, doors)

    def ports(self) -> dict[str, dict[str, int]]:
        """Return part → service → port of its door."""
        return {part: {service: door.port for service, door in of_part.items()} for part, of_part in self.doors.items()}

    def between(self, part: str, service: str) -> list[Door]:
        """Return the door of a part to a service, or to all (`*`)."""
        return [door for name, door in self.doors.get(part, {}).items() if service in ("*", name)]

    def all(self) -> list[Door]:
        """Return all doors."""
        return [door for of_part in self.doors.values() for door in of_part.values()]

    async def close(self) -> None:
        """Close everything."""
        for server in (*self.all(), self.api):
            await server.close()
        await self.temporal.close()
