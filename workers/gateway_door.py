"""The one entrance for every call: token, allowance, table. Does I/O: gRPC.

The token is looked at before anything of the body is read. Who has none learns nothing, not even which calls there are.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError, Message

from workers.gateway_calls import PASSING, Call, Caller, Calls
from workers.gateway_frontend import HEALTH_CHECK, WORKFLOW_SERVICE
from workers.gateway_limits import Allowance, Complaints
from workers.gateway_policy import Authenticate, FactoryIdentity, Refused, denied

log = structlog.get_logger(__name__)

BODY_S: Final = 10.0
"""Longest that a caller may take to send its request."""
HEALTH_FRESH_S: Final = 1.0

Context = grpc.aio.ServicerContext[bytes, bytes]
Serve = Callable[[Context], Awaitable[bytes]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only


@dataclass(frozen=True, slots=True)
class Limits:
    """What one factory may use."""

    calls_per_s: float
    polls: int
    """Open at once."""


class Door(grpc.aio.ServerInterceptor):
    """Lets calls of factories in; the methods are in the order in which a call meets them."""

    def __init__(
        self,
        calls: Calls,
        authenticate: Authenticate,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._authenticate = authenticate
        self._limits = limits
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}
        self._complaints = Complaints(clock)
        self._health = b""
        self._health_at = -HEALTH_FRESH_S

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],  # noqa: ARG002 - nobody is asked
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return what handles a call."""
        method = handler_call_details.method
        if method == HEALTH_CHECK:
            return _handler(self._answer_health)
        name = ""
        try:
            token = bearer_token(handler_call_details)
            identity = await self._identify(token)
            name = identity.name
            allowance = self._allowance_of(name)
            allowance.spend(self._clock())
            call = passing(method)
        except Refused as refused:
            self._complaints.tell(name, method, refused)
            return _handler(_refusing(refused))
        return _handler(self._serving(method, call, identity, token))

    async def _identify(self, token: str) -> FactoryIdentity:
        """Return whom a token speaks for now; while nobody can tell, it speaks for no one."""
        try:
            identity = await self._authenticate(token) if token else None
        except Exception as error:  # noqa: BLE001 - whatever keeps us from knowing
            log.error("gateway.cannot_authenticate", **_shape_of(error))  # noqa: TRY400 - its words may hold secrets
            raise Refused(grpc.StatusCode.UNAVAILABLE, "tokens cannot be checked at the moment") from None
        if identity is None:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no token of a factory, or one that is not valid any more")
        return identity

    def _allowance_of(self, factory: str) -> Allowance:
        if factory not in self._allowances:
            self._allowances[factory] = Allowance(self._limits.calls_per_s, self._limits.polls, now=self._clock())
        return self._allowances[factory]

    def _serving(self, method: str, call: Call, identity: FactoryIdentity, token: str) -> Serve:
        async def serve(context: Context) -> bytes:
            allowance = self._allowance_of(identity.name)
            caller = Caller(identity, lambda: self._identify(token), allowance, context.time_remaining())
            try:
                with allowance.call():
                    request = parsed(call.request, await read_body(context))
                    self._check_namespace(request)
                    reply = await call.answer(self._calls, caller, request)
            except Refused as refused:
                self._complaints.tell(identity.name, method, refused)
                raise
            return reply.SerializeToString()

        return serve

    def _check_namespace(self, request: Message) -> None:
        if getattr(request, "namespace", "") not in {"", self._calls.frontend.namespace}:
            raise denied("this gateway serves another namespace")

    async def _answer_health(self, _context: Context) -> bytes:
        """Return Temporal's health, which is ours; it is asked once a second at most."""
        now = self._clock()
        if now - self._health_at >= HEALTH_FRESH_S:
            self._health_at = now
            self._health = await self._calls.frontend.health()
        return self._health


def passing(method: str) -> Call:
    """Return the call that a method's full name stands for.

    Raises:
        Refused: it does not pass.

    """
    service, _, name = method.removeprefix("/").rpartition("/")
    if service != WORKFLOW_SERVICE or name not in PASSING:
        raise denied(f"{name[:100]} does not pass the gateway")
    return PASSING[name]


def bearer_token(details: grpc.HandlerCallDetails) -> str:
    """Return what stands behind `authorization: Bearer`; "" for anything else, and for several of them."""
    found = [value for key, value in details.invocation_metadata or () if key == "authorization"]
    scheme, _, token = str(found[0]).partition(" ") if len(found) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""


def parsed(kind: type[Message], body: bytes) -> Message:
    """Return a request from its bytes.

    Raises:
        Refused: they are none.

    """
    try:
        return kind.FromString(body)
    except DecodeError:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"not a {kind.DESCRIPTOR.name}") from None


async def read_body(context: Context) -> bytes:
    """Return the one message that a call brings.

    Raises:
        Refused: it did not come.

    """
    try:
        async with asyncio.timeout(BODY_S):
            body = await context.read()
    except TimeoutError:
        raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {BODY_S:g} s") from None
    if not isinstance(body, bytes):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a call without a request")
    return body


def _refusing(refused: Refused) -> Serve:
    async def serve(_context: Context) -> bytes:
        raise refused

    return serve


def _handler(serve: Serve) -> Handler:
    """Return what gRPC runs for a call: as a stream, because `serve` then decides whether and how long to read."""

    async def run(_requests: object, context: Context) -> None:
        try:
            reply = await serve(context)
        except Refused as refused:
            code, message = refused.code, refused.message
        except Exception as error:  # noqa: BLE001 - a bug; gRPC would send its words to the caller
            log.error("gateway.broken", **_shape_of(error))  # noqa: TRY400 - its words may hold what was sent
            code, message = grpc.StatusCode.INTERNAL, "the gateway failed"
        else:
            await context.write(reply)
            return
        await context.abort(code, message)

    return grpc.stream_stream_rpc_method_handler(run)


def _shape_of(error: Exception) -> dict[str, Any]:
    """Return an error's kind and place, without its words."""
    return {"error": type(error).__name__, "where": traceback.format_tb(error.__traceback__)[-3:]}
