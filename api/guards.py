"""What every request passes before it is looked at: request id, host check, size limit; and what catches bugs after it.

*Does I/O: log lines.*
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import ProblemResponse, problem_of_bug, problem_of_status
from core.errors import FieldProblem, InvalidInput

log = structlog.get_logger("api")

LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
MIB: Final = 1024 * 1024
BODY_LIMIT: Final = 2 * MIB
SPOOL_LIMIT: Final = 8 * MIB
"""Reports of attempts carry logs and events in batches."""
SUBMIT_LIMIT: Final = 16 * MIB
"""A submit may carry ten thousand files."""
ARTIFACT_LIMIT: Final = 64 * MIB
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def body_limit(path: str) -> int:
    """Return how many bytes a request to `path` may carry."""
    if path in ("/fleet/jobs", "/fleet/explain") or path.endswith("/children"):
        return SUBMIT_LIMIT
    if path.startswith("/fleet/attempts/"):
        if path.endswith("/report"):
            return SPOOL_LIMIT
        if path.endswith("/artifacts"):
            return ARTIFACT_LIMIT
    return BODY_LIMIT


async def whole_characters(connection: HTTPConnection) -> None:
    """Refuse a JSON body with half a surrogate pair, which UTF-8 cannot say: neither ledger nor answers could carry it.

    Raises:
        InvalidInput: there is one.

    """
    if not isinstance(connection, Request) or connection.url.path.endswith("/artifacts"):
        return  # a captured file is kept as it is
    body = await connection.body()
    if _SURROGATE.search(body) is None:
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end + 20]
        problem = FieldProblem(
            path="body", message="half of a surrogate pair is no character", value=around, expected="text of whole ones"
        )
        raise InvalidInput("1 problem in the request", (problem,)) from None


class RequestScope:
    """Outermost ASGI middleware: gives each request an id, and turns a bug into a loud log line and a 500 problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        started_at = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id, method=scope["method"], path=scope["path"]):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                log.exception("request.bug")
                if status:
                    raise  # half an answer is out: the server must cut the connection
                await ProblemResponse(problem_of_bug(request_id))(scope, receive, send_with_id)
            finally:
                log.debug("request", status=status, duration_s=round(time.monotonic() - started_at, 4))


class HostCheck:
    """Refuses names that only DNS points here: a web page could use them to reach a loopback API (DNS rebinding)."""

    def __init__(self, app: ASGIApp, *, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its `Host` is one of ours."""
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = re.sub(r":\d{1,5}$", "", host).lower()
            if name not in self._names:
                problem = problem_of_status(421, f"this API does not answer for the host {host[:100]!r}")
                await ProblemResponse(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses bodies above the limit of their path: at once when the length is announced, else when it is passed."""

    def __init__(self, app: ASGIApp, *, limit: Callable[[str], int] = body_limit) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        detail = f"the body is larger than {limit} bytes"
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            await ProblemResponse(problem_of_status(413, detail))(scope, receive, send)
            return
        seen = 0

        async def counted_receive() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, detail)
            return message

        await self._app(scope, counted_receive, send)
