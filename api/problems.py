"""Every error of the API as one RFC 9457 problem document: the only place where an error becomes a response. *Pure.*"""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core.errors import Fault, FieldProblem, GigafactoryError, InvalidInput

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1
SHOWN_VALUE_CHARS: Final = 200
"""Values that a caller sent are quoted back up to this length."""

HTTP_CODES: Final[Mapping[int, tuple[str, Fault, str]]] = {
    404: ("not_found", "caller", "no such path; GET /fleet/openapi.json lists every path"),
    405: ("method_not_allowed", "caller", "the path exists, the method does not; the Allow header lists the methods"),
    413: ("too_large", "caller", "send less in one request"),
    421: ("wrong_host", "caller", "use 127.0.0.1 or localhost; a name that points here by DNS is not accepted"),
}
"""Problems that the HTTP layer itself finds, beside those of `core.errors`: status → code, fault, hint."""


class ProblemResponse(Response):
    """A response that carries one problem document."""

    media_type = MEDIA_TYPE

    def __init__(self, problem: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> None:
        text = json.dumps(problem, default=str, ensure_ascii=False)
        # Half a surrogate pair, quoted from the request, is no UTF-8; as JSON's own escape it is shown as it came.
        body = text.encode(errors="backslashreplace")
        super().__init__(body, status_code=int(problem["status"]), headers=dict(headers or {}))


def problem_of_error(error: GigafactoryError) -> dict[str, Any]:
    """Return the problem document of an expected error, quoted values shortened."""
    problem = error.as_problem()
    for item in problem.get("errors", ()):
        if "value" in item:
            item["value"] = _shortened(item["value"])
    return problem


def problem_of_status(status: int, detail: str = "") -> dict[str, Any]:
    """Return the problem document of an error that the HTTP layer found: unknown path, wrong method, too large."""
    phrase = http.HTTPStatus(status).phrase
    code, fault, hint = HTTP_CODES.get(status, (f"http_{status}", "caller", ""))
    problem = {
        "type": f"urn:gigafactory:error:{code}",
        "title": code.replace("_", " "),
        "status": status,
        "detail": detail or phrase,
        "code": code,
        "fault": fault,
        "retryable": False,
    }
    return problem | ({"hint": hint} if hint else {})


def problem_of_bug(request_id: str) -> dict[str, Any]:
    """Return the problem document of an unexpected error: what went wrong stays in the log, found by `request_id`."""
    return {
        "type": "urn:gigafactory:error:internal",
        "title": "internal",
        "status": 500,
        "detail": "a bug in Gigafactory; the traceback is in the API's log",
        "code": "internal",
        "fault": "environment",
        "retryable": False,
        "hint": f"look for request_id {request_id} in <home>/logs/api.log",
        "request_id": request_id,
    }


def invalid_input_of(
    error: RequestValidationError | ValidationError, *, what: str = "request", within: str = ""
) -> InvalidInput:
    """Translate findings about a request, or another message, into one error that names every field at once.

    `within` is the part of it that was looked at, for findings that do not name it themselves.
    """
    prefix = (within,) if within else ()
    problems = tuple(
        FieldProblem(
            path=".".join(str(part) for part in (*prefix, *item["loc"])) or what,
            message=_message(item),
            value=_shortened(item.get("input")),
        )
        for item in error.errors()
    )
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InvalidInput(f"{count} in the {what}", problems)


def headers_for(status: int) -> dict[str, str]:
    """Return the headers that a status asks for."""
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if status == 503:
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {}


async def on_expected_error(request: Request, error: Exception) -> Response:
    """Answer an expected error of ours."""
    assert isinstance(error, GigafactoryError)
    return ProblemResponse(problem_of_error(error) | _request_id(request), headers=headers_for(type(error).status))


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """Answer a request whose path, query, headers or body do not fit the schema."""
    assert isinstance(error, RequestValidationError)
    return await on_expected_error(request, invalid_input_of(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer an error that the HTTP layer found itself."""
    assert isinstance(error, HTTPException)
    problem = problem_of_status(error.status_code, error.detail)
    return ProblemResponse(problem | _request_id(request), headers=error.headers)


def _request_id(request: Request) -> dict[str, str]:
    request_id = request.scope.get("state", {}).get("request_id")
    return {"request_id": request_id} if request_id else {}


def _message(item: Mapping[str, Any]) -> str:
    if item["type"] == "json_invalid":
        return f"not JSON: {item.get('ctx', {}).get('error', item['msg'])}"
    return str(item["msg"])


def _shortened(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + "…"
