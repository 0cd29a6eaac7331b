"""A scripted model endpoint on loopback, so that the real agent CLIs run in tests without an account.

Speaks the two protocols that the CLIs use, both as server-sent events: Anthropic's `POST /v1/messages` and OpenAI's
`POST /v1/responses`. A test gives one answer per expected model call; the same answers serve both protocols:

    with ScriptedEndpoint([Answer(tools=(Tool("Write", {...}),)), Answer("done")]) as endpoint:
        ... run the CLI against endpoint.url ...
    assert endpoint.calls[1].tool_results() == [...]

Every request is recorded (`requests`), model calls also in `calls`. When the script is used up, the last answer is
given again if `repeat_last`, otherwise the call gets HTTP 500 and `overrun` counts it.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Event = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A call of one of the CLI's tools."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A model's turn: words, then tool calls; with tool calls the CLI comes back with their results."""

    text: str = ""
    tools: tuple[Tool, ...] = ()
    input_tokens: int = 100
    output_tokens: int = 20
    cut: bool = False
    """Close the connection (RST) after the words, before the turn is complete."""
    hang: bool = False
    """After the words say nothing more until the client goes away or the endpoint closes."""
    endless: bool = False
    """Repeat the words, one event each 20 ms, until the client goes away or the endpoint closes."""
    chunks: tuple[str, ...] = ()
    """The words in exactly these pieces, one event each, instead of `text`."""

    @property
    def pieces(self) -> tuple[str, ...]:
        """Return the words as they go over the wire."""
        return self.chunks or ((self.text,) if self.text else ())


@dataclass(frozen=True)
class Failure:
    """An HTTP error in the provider's own shape."""

    status: int
    kind: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """Further members of the `error` object."""


@dataclass(frozen=True)
class Seen:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: Any

    def transcript(self) -> str:
        """Return the conversation that the CLI sent, as JSON text to search in."""
        return json.dumps(self.body.get("messages") or self.body.get("input") or [])

    def tool_results(self) -> list[str]:
        """Return the outputs of tool calls in the conversation, oldest first, as text."""
        items = [item for item in self.body.get("input") or [] if isinstance(item, dict)]
        kinds = {"function_call_output", "custom_tool_call_output"}
        outputs = [item.get("output") for item in items if item.get("type") in kinds]
        contents = [message.get("content") for message in self.body.get("messages") or []]
        blocks = [block for content in contents if isinstance(content, list) for block in content]
        outputs += [block.get("content") for block in blocks if block.get("type") == "tool_result"]
        return [_flat(output) for output in outputs]


def _flat(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else json.dumps(content)


Line = Answer | Failure | Callable[[], Answer | Failure]
"""What a model call is answered; one that depends on the moment is made when it is asked for."""
Script = Sequence[Line]


class ScriptedEndpoint:
    """The server; a context manager that serves while it is open."""

    def __init__(self, script: Script = (), *, repeat_last: bool = False) -> None:
        self.requests: list[Seen] = []
        self.calls: list[Seen] = []
        self.overrun = 0
        self.first_call = threading.Event()
        """Set when the first model call came in."""
        self.call_came = threading.Event()
        """Set at every model call; whoever waits clears it."""
        self.client_left = threading.Event()
        """Set when a client went away in the middle of an endless or hanging answer."""
        self.closing = threading.Event()
        self._script: list[Line] = list(script)
        self._repeat_last = repeat_last
        self._lock = threading.Lock()
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """Return the base URL without a path; OpenAI's CLIs want `/v1` behind it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def extend(self, script: Script) -> None:
        """Add answers for the calls to come."""
        with self._lock:
            self._script.extend(script)

    def begin(self, script: Script) -> None:
        """Give these answers from now on, instead of those that are left, and forget the calls so far."""
        with self._lock:
            self._script = list(script)
            self.calls = []

    def next_answer(self, seen: Seen) -> Answer | Failure:
        """Record a model call and take its answer from the script."""
        with self._lock:
            self.calls.append(seen)
            self.first_call.set()
            self.call_came.set()
            if not self._script:
                self.overrun += 1
                return Failure(500, "api_error", "the test's script has no further answer")
            last = self._repeat_last and len(self._script) == 1
            line = self._script[0] if last else self._script.pop(0)
            return line() if callable(line) else line


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: ScriptedEndpoint) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = endpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is part of many tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean; `requests` tells everything."""

    def _serve(self) -> None:
        endpoint = self.server.endpoint
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            body = {"undecodable": len(raw)}
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers, body)
        endpoint.requests.append(seen)
        path = self.path.partition("?")[0]
        if self.command == "POST" and path == "/v1/messages":
            self._answer(endpoint.next_answer(seen), body, anthropic_events, anthropic_error)
        elif self.command == "POST" and path == "/v1/responses":
            self._answer(endpoint.next_answer(seen), body, openai_events, openai_error)
        else:
            self._send_json(404, {"type": "error", "error": {"type": "not_found_error", "message": path}})

    def _answer(
        self,
        answer: Answer | Failure,
        body: Any,
        events: Callable[[Answer, Any], Iterator[tuple[str, Event]]],
        error: Callable[[Failure], Event],
    ) -> None:
        if isinstance(answer, Failure):
            self._send_json(answer.status, error(answer), answer.headers)
            return
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self._stream(answer, list(events(answer, body)))
        except OSError:
            self.server.endpoint.client_left.set()

    def _stream(self, answer: Answer, events: list[tuple[str, Event]]) -> None:
        endpoint = self.server.endpoint
        for moment, event in events:
            if moment == "words":
                self._send_event(event)
                while answer.endless and not endpoint.closing.wait(0.02):
                    self._send_event(event)
            elif moment == "end" and answer.cut:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            elif moment == "end" and answer.hang:
                while not endpoint.closing.wait(0.05):
                    self.wfile.write(b": nothing yet\n\n")
            else:
                self._send_event(event)

    def _send_event(self, event: Event) -> None:
        self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _send_json(self, status: int, body: Event, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


# --- Anthropic -------------------------------------------------------------------------------------------------------


def anthropic_events(answer: Answer, body: Any) -> Iterator[tuple[str, Event]]:
    """Yield the events of one turn as `/v1/messages` streams them, each with its moment: `start`, `words`, `end`."""
    usage = {"input_tokens": answer.input_tokens, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body.get("model"), "content": []}
    yield "start", {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}
    index = 0
    if answer.pieces:
        yield "start", {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        for piece in answer.pieces:
            delta = {"type": "text_delta", "text": piece}
            yield "words", {"type": "content_block_delta", "index": 0, "delta": delta}
        yield "end", {"type": "content_block_stop", "index": 0}
        index = 1
    for offset, tool in enumerate(answer.tools):
        yield from _anthropic_tool(index + offset, tool)
    reason = "tool_use" if answer.tools else "end_turn"
    final = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
    yield "end", {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": final}
    yield "end", {"type": "message_stop"}


def _anthropic_tool(index: int, tool: Tool) -> Iterator[tuple[str, Event]]:
    block = {"type": "tool_use", "id": f"toolu_{index}_{abs(hash(str(tool)))}", "name": tool.name, "input": {}}
    delta = {"type": "input_json_delta", "partial_json": json.dumps(tool.arguments)}
    yield "start", {"type": "content_block_start", "index": index, "content_block": block}
    yield "start", {"type": "content_block_delta", "index": index, "delta": delta}
    yield "start", {"type": "content_block_stop", "index": index}


def anthropic_error(failure: Failure) -> Event:
    """Return the body of an Anthropic error."""
    return {"type": "error", "error": {"type": failure.kind, "message": failure.message, **failure.extra}}


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def openai_events(answer: Answer, body: Any) -> Iterator[tuple[str, Event]]:
    """Yield the events of one turn as `/v1/responses` streams them, each with its moment: `start`, `words`, `end`."""
    response = {"id": "resp_1", "object": "response", "model": body.get("model"), "output": []}
    yield "start", {"type": "response.created", "response": {**response, "status": "in_progress"}}
    if answer.pieces:
        item = {"type": "message", "role": "assistant", "id": "msg_1", "content": []}
        yield "start", {"type": "response.output_item.added", "output_index": 0, "item": item}
        for piece in answer.pieces:
            yield "words", {"type": "response.output_text.delta", "item_id": "msg_1", "delta": piece}
        text = [{"type": "output_text", "text": "".join(answer.pieces)}]
        yield "end", {"type": "response.output_item.done", "output_index": 0, "item": {**item, "content": text}}
    for number, tool in enumerate(answer.tools):
        call = {
            "type": "function_call",
            "call_id": f"call_{number}_{abs(hash(str(tool)))}",
            "name": tool.name,
            "arguments": json.dumps(tool.arguments),
        }
        yield "start", {"type": "response.output_item.done", "item": call}
    usage = {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    yield "end", {"type": "response.completed", "response": {**response, "status": "completed", "usage": usage}}


def openai_error(failure: Failure) -> Event:
    """Return the body of an OpenAI error."""
    return {"error": {"type": failure.kind, "code": failure.kind, "message": failure.message, **failure.extra}}
