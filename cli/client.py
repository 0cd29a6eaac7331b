"""The API's client of the command line: quick to import, one connection per call. *Does I/O: HTTP.*"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from cli.home import Endpoint, endpoint, home_dir

TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 40.0
"""Longer than the pause between two keep-alive comments of a stream, so that silence means a broken connection."""


class ApiProblem(Exception):
    """The API answered with a problem document."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(str(document.get("detail") or f"HTTP status {status}"))
        self.status = status
        self.document = document


class NotRunning(Exception):
    """There is no API to talk to."""


class ConnectionLost(Exception):
    """A stream broke off before its end."""


class ServerEvent(NamedTuple):
    """One event of a stream; the server's keep-alive comments come as `comment` without data."""

    name: str
    id: str
    data: dict[str, Any]


class Call(NamedTuple):
    """One request."""

    method: str
    path: str
    query: Mapping[str, object]
    body: object = None
    headers: Mapping[str, str] = {}
    timeout_s: float = TIMEOUT_S

    @property
    def target(self) -> str:
        """Return path and query."""
        given = {key: value for key, value in self.query.items() if value is not None}
        return self.path + (f"?{urlencode(given, doseq=True)}" if given else "")


class Client:
    """Calls the API at `target` and returns the JSON that it answers."""

    def __init__(self, target: Endpoint) -> None:
        self._token = target.token
        self._url = target.url
        parts = urlsplit(target.url)
        self._secure = parts.scheme == "https"
        self._host, self._port, self._prefix = parts.hostname or "", parts.port, parts.path.rstrip("/")

    def get(self, path: str, **query: object) -> Any:
        """GET `path`; query values that are None are left out."""
        return self._call(Call("GET", path, query))

    def post(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> Any:
        """POST `body` as JSON to `path`."""
        return self._call(Call("POST", path, {}, body, headers or {}))

    def text(self, path: str) -> str:
        """GET `path` as text."""
        connection, response = self._open(Call("GET", path, {}))
        try:
            return self._read(response).decode("utf-8", "replace")
        finally:
            connection.close()

    def stream(self, path: str, *, last_event_id: str = "", **query: object) -> Iterator[ServerEvent]:
        """GET `path` as a stream of events, until the server closes it.

        Raises:
            ConnectionLost: the connection broke; go on with the id of the last event.

        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        call = Call("GET", path, query, headers=headers, timeout_s=STREAM_TIMEOUT_S)
        connection, response = self._open(call)
        try:
            yield from _parse_events(response)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error
        finally:
            connection.close()

    def _call(self, call: Call) -> Any:
        connection, response = self._open(call)
        try:
            raw = self._read(response)
            return json.loads(raw) if raw else None
        except ValueError:
            raise NotRunning(f"what answers at {self._url} is not Gigafactory's API") from None
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotRunning(f"the API at {self._url} broke off its answer: {error}") from error

    def _open(self, call: Call) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=call.timeout_s)
        headers = {"Authorization": f"Bearer {self._token}", **call.headers}
        payload = None
        if call.body is not None:
            payload = json.dumps(call.body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(call.method, self._prefix + call.target, body=payload, headers=headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NotRunning(f"nothing answers at {self._url} ({error})") from error
        if response.status >= 400:
            problem = _problem(response.status, self._read(response))
            connection.close()
            raise problem
        return connection, response


def connect(home: Path | None = None) -> Client:
    """Return a client of the stack of `home` (default: this user's).

    Raises:
        NotRunning: no stack has said where it is.

    """
    place = home or home_dir()
    target = endpoint(place)
    if target is None:
        raise NotRunning(f"no stack runs for {place}")
    return Client(target)


def job_path(job_id: str, rest: str = "") -> str:
    """Return the path of a job's resource."""
    return f"/fleet/jobs/{quote(job_id, safe='')}{rest}"


def _problem(status: int, raw: bytes) -> Exception:
    try:
        document = json.loads(raw)
    except ValueError:
        document = None
    if not isinstance(document, dict) or "code" not in document:
        return NotRunning(f"something else than Gigafactory's API answered with status {status}")
    return ApiProblem(status, document)


def _parse_events(response: http.client.HTTPResponse) -> Iterator[ServerEvent]:
    """Parse server-sent events as the HTML standard describes them, as far as our server uses them."""
    name, event_id, data = "message", "", list[str]()
    while line := response.readline():
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            if data:
                yield ServerEvent(name, event_id, json.loads("\n".join(data)))
            name, data = "message", []
            continue
        field, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if not field:
            yield ServerEvent("comment", "", {})
        if field == "event":
            name = value
        elif field == "id":
            event_id = value
        elif field == "data":
            data.append(value)
