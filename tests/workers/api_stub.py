"""A tiny HTTP server that notes what it is sent."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self


class ApiStub:
    """Answers 200 (or what `status` says) to every POST and puts (path, Authorization, body) into `requests`.

    Documents for some paths are in `answers`; a GET of any other path is 404.
    """

    def __init__(self) -> None:
        self.requests: SimpleQueue[tuple[str, str, dict[str, Any]]] = SimpleQueue()
        self.status = 200
        self.code = "stale_epoch"
        self.refused: set[str] = set()
        """Paths whose POST is answered with 409 and `code`."""
        self.answers: dict[str, dict[str, Any]] = {}
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                good = stub.answers.get(self.path, {"accepted": True, "state": "online"})
                status = 409 if self.path in stub.refused else stub.status
                self._answer(status, good if status < 400 else {"code": stub.code, "detail": "no"})
                stub.requests.put((self.path, self.headers["Authorization"], body))

            def do_GET(self) -> None:
                known = stub.answers.get(self.path)
                self._answer(200 if known else 404, known or {"code": "not_found", "detail": "no"})

            def _answer(self, status: int, document: dict[str, Any]) -> None:
                answer = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
