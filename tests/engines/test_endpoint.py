"""The scripted endpoint itself: what the tests of the CLIs lean on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.engines.endpoint import Answer, Failure, ScriptedEndpoint, Tool
from tests.waiting import PATIENCE_S

PATHS = ["/v1/messages?beta=true", "/v1/responses"]


def ask(
    endpoint: ScriptedEndpoint, path: str, body: dict[str, Any] | None = None
) -> tuple[HTTPConnection, HTTPResponse]:
    """Make one model call."""
    connection = HTTPConnection(urlsplit(endpoint.url).netloc, timeout=PATIENCE_S)
    connection.request("POST", path, json.dumps(body or {"model": "m"}), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def events(text: str) -> Iterator[dict[str, Any]]:
    """Return the events of a stream."""
    return (json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: "))


def words(text: str) -> list[str]:
    """Return the pieces of text in a stream of either protocol."""
    deltas = [event["delta"] for event in events(text) if "delta" in event]
    pieces = [delta if isinstance(delta, str) else delta.get("text") for delta in deltas]
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("path", PATHS)
def test_answers_come_in_the_order_of_the_script(path: str) -> None:
    """One answer for each call, then an error that says that the script is used up."""
    with ScriptedEndpoint([Answer(chunks=("sec", "ret")), Answer("b", tools=(Tool("t", {"x": 1}),))]) as endpoint:
        replies = []
        for _ in range(3):
            connection, response = ask(endpoint, path)
            replies.append((response.status, response.read().decode()))
            connection.close()
    assert [status for status, _ in replies] == [200, 200, 500]
    assert words(replies[0][1]) == ["sec", "ret"]
    assert '\\"x\\": 1' in replies[1][1]
    assert endpoint.overrun == 1
    assert [seen.path for seen in endpoint.calls] == [path] * 3


@pytest.mark.parametrize("path", PATHS)
def test_failure_has_its_status_headers_and_members(path: str) -> None:
    """Errors come in the provider's shape."""
    failure = Failure(429, "limit", "Slow down", {"retry-after": "5"}, {"resets_at": 7})
    with ScriptedEndpoint([failure]) as endpoint:
        connection, response = ask(endpoint, path)
        error = json.loads(response.read())["error"]
        connection.close()
    assert (response.status, response.headers["retry-after"]) == (429, "5")
    assert (error["type"], error["message"], error["resets_at"]) == ("limit", "Slow down", 7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("answer", [Answer("a", hang=True), Answer("a", endless=True)], ids=["hang", "endless"])
def test_answer_without_an_end_stops_when_the_client_leaves(path: str, answer: Answer) -> None:
    """The endpoint notices that nobody listens any more."""
    with ScriptedEndpoint([answer]) as endpoint:
        connection, response = ask(endpoint, path)
        assert response.readline()
        response.close()
        connection.close()
        assert endpoint.client_left.wait(PATIENCE_S)


@pytest.mark.parametrize("path", PATHS)
def test_cut_answer_has_no_end(path: str) -> None:
    """The connection breaks after the words."""
    with ScriptedEndpoint([Answer("half", cut=True)]) as endpoint:
        connection, response = ask(endpoint, path)
        received = ""
        with contextlib.suppress(ConnectionResetError):  # some systems show a reset as a plain end
            while line := response.readline().decode():
                received += line
        connection.close()
    assert "half" in received
    assert "message_stop" not in received
    assert "response.completed" not in received


def test_other_requests_are_recorded_and_refused() -> None:
    """Whatever else a CLI asks for can be seen afterwards."""
    with ScriptedEndpoint() as endpoint:
        connection, response = ask(endpoint, "/v1/models")
        response.read()
        connection.close()
    assert response.status == 404
    assert [seen.path for seen in endpoint.requests] == ["/v1/models"]
    assert endpoint.calls == []
