"""Runs an engine's command as a real process and feeds its parser: the least that a supervisor does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from engines.base import Command, Engine, EngineOutcome, EngineRun, StreamEvent
from tests.waiting import PATIENCE_S

STREAMS = Path(__file__).with_name("streams")
RECORD = "GIGAFACTORY_RECORD_STREAMS"
"""Set to 1 to write the streams of the real CLIs to `streams/`, with paths of this machine replaced."""


@dataclass(frozen=True)
class Ran:
    """A run that is over."""

    outcome: EngineOutcome
    events: list[StreamEvent]
    exit_code: int
    lines: list[bytes]
    stderr: str
    seconds: float

    def texts(self, kind: str) -> list[str]:
        """Return the texts of the events of one kind."""
        return [event.text for event in self.events if event.kind == kind]


@dataclass
class Running:
    """A process in a group of its own, whose lines go to the parser as they come."""

    engine: Engine
    run: EngineRun
    command: Command = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Self:
        self.command = self.engine.command(self.run)
        self.command.lay_down()
        self._parser = self.engine.parser(self.run)
        self._events: list[StreamEvent] = []
        self._lines: list[bytes] = []
        self._news = threading.Condition()
        self._stderr = self.run.attempt_dir / "stderr.txt"
        self._started = time.monotonic()
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                self.command.argv,
                env=dict(self.command.env),
                cwd=self.run.workdir,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write((self.command.stdin_text or "").encode())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self.process.wait(timeout=PATIENCE_S)
        self._reader.join(timeout=PATIENCE_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                events = self._parser.feed(line)
                with self._news:
                    self._lines.append(line)
                    self._events.extend(events)
                    self._news.notify_all()

    def event_came(self, kind: str, timeout_s: float) -> bool:
        """Wait for an event of that kind; tell whether it came in time."""
        with self._news:
            return self._news.wait_for(lambda: any(event.kind == kind for event in self._events), timeout_s)

    def kill(self) -> None:
        """Kill the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float = PATIENCE_S) -> Ran:
        """Wait for the end and judge it."""
        try:
            exit_code = self.process.wait(timeout=timeout_s)
        finally:
            self.kill()  # what the engine left behind holds the pipe open
        self._reader.join(timeout=PATIENCE_S)
        stderr = self._stderr.read_text(errors="replace")
        outcome = self._parser.finish(exit_code, stderr[-4000:])
        took = time.monotonic() - self._started
        return Ran(outcome, list(self._events), exit_code, list(self._lines), stderr, took)


def run_to_end(engine: Engine, run: EngineRun, timeout_s: float = PATIENCE_S) -> Ran:
    """Run an engine until it ends by itself."""
    with Running(engine, run) as running:
        return running.wait(timeout_s)


def keep_stream(name: str, ran: Ran, run: EngineRun, port: int) -> None:
    """Write the stream to `streams/NAME.jsonl` when recording is asked for."""
    if os.environ.get(RECORD) != "1":
        return
    text = b"".join(ran.lines).decode()
    for path, word in ((run.workdir, "/workdir"), (run.home, "/engine-home"), (run.attempt_dir, "/attempt")):
        text = text.replace(str(path), word)
    text = re.sub(r"/projects/-[^/\"]+", "/projects/-workdir", text).replace(f"127.0.0.1:{port}", "127.0.0.1:8080")
    head = {"exit_code": ran.exit_code, "stderr": ran.stderr[-2000:]}
    STREAMS.mkdir(exist_ok=True)
    (STREAMS / f"{name}.jsonl").write_text(f"{json.dumps({'recorded': head})}\n{text}")


class NoWayOut:
    """A proxy that lets nothing through and remembers who asked: the CLIs' way to the internet in these tests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                client.settimeout(5)
                try:
                    self.asked.append(client.recv(4096).decode("latin-1").partition("\r\n")[0])
                    client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                except OSError as error:
                    self.asked.append(f"connection that said nothing ({error})")

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that send everything but loopback here."""
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        return dict.fromkeys(names, self.url) | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
