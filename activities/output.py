"""What a running command prints, on its way to the API. Does I/O: reads files that grow.

out.log ─▶ lines ─▶ parser of the engine ─▶ steps ─▶ redactor ─▶ reports
              └───▶ redactor ─▶ lines ─▶ reports
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from activities.factory import AttemptReports, LogStream
from activities.supervision import RunExit
from core.attempt import LOG_TAIL_CHARS
from core.redactor import Redactor
from engines.base import StreamEvent, StreamParser

LOOK_S: Final = 0.1
"""How often growing files are looked at."""
LAST_WORDS_S: Final = 2.0
"""How long a step that ends waits for the API to take its last lines; later they may come too late."""
CHUNK_BYTES: Final = 1 << 20
LONGEST_LOG_LINE: Final = 8192
LONGEST_DATA: Final = 4000
STDERR_FOR_ENGINE: Final = 8000


class GrowingFile:
    """Gives out what was appended to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        """Return the next bytes, at most `CHUNK_BYTES` of them."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""
        self._offset += len(chunk)
        return chunk


class RedactedStream:
    """One output file as redacted log lines; `tail` keeps the last of them."""

    def __init__(self, path: Path, stream: LogStream, reports: AttemptReports, redactor: Redactor) -> None:
        self._file = GrowingFile(path)
        self._stream: LogStream = stream
        self._reports = reports
        self._redactor = Redactor.sharing(redactor)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.tail: deque[str] = deque(maxlen=200)

    def pump(self) -> bytes:
        """Move what is new into the reports and return it raw; empty when there is nothing new."""
        chunk = self._file.read()
        self._tell(self._redactor.feed(self._decoder.decode(chunk)))
        return chunk

    def close(self) -> None:
        """Tell the last line too, although it has no end."""
        rest = self._redactor.feed(self._decoder.decode(b"", final=True)) + self._redactor.close()
        self._tell(rest if rest.endswith("\n") or not rest else rest + "\n")

    def _tell(self, text: str) -> None:
        for line in text.split("\n")[:-1]:
            shown = line.rstrip("\r")
            if len(shown) > LONGEST_LOG_LINE:
                shown = f"{shown[:LONGEST_LOG_LINE]}… ({len(shown) - LONGEST_LOG_LINE} more characters)"
            self._reports.log(self._stream, shown)
            self.tail.append(shown)


class EngineOutput:
    """Both streams of an engine, with its parser on standard output."""

    def __init__(
        self, folder: Path, parser: StreamParser, reports: AttemptReports, redactor: Redactor, *, tell_text: bool
    ) -> None:
        self._out = RedactedStream(folder / "out.log", "stdout", reports, redactor)
        self._err = RedactedStream(folder / "err.log", "stderr", reports, redactor)
        self._parser = parser
        self._reports = reports
        self._redactor = redactor
        self._tell_text = tell_text
        self._line = b""
        self.steps = 0
        self.last_step = ""

    async def follow(self, ended: asyncio.Future[RunExit]) -> None:
        """Pump until the command has ended and everything is read; an `ended` that failed counts as an end."""
        while not ended.done():
            self.pump()
            await asyncio.wait({ended}, timeout=LOOK_S)
        more = True
        while more:
            more = self.pump()
            await asyncio.sleep(0)
        self._feed(b"", last=True)
        self._out.close()
        self._err.close()

    def pump(self) -> bool:
        """Move what is new; return whether there was anything."""
        chunk = self._out.pump()
        self._feed(chunk)
        return bool(self._err.pump()) or bool(chunk)

    def _feed(self, chunk: bytes, *, last: bool = False) -> None:
        *lines, self._line = (self._line + chunk).split(b"\n") if chunk else [self._line]
        if last and self._line:
            lines, self._line = [self._line], b""
        for line in lines:
            for event in self._parser.feed(line):
                self._step(event)

    def _step(self, event: StreamEvent) -> None:
        if event.kind == "text" and not self._tell_text:
            return
        self.steps += 1
        self.last_step = self._redactor.redact(event.text)[:200]
        self._reports.event(event.kind, self._redactor.redact(event.text), self._clean(event.data))

    def _clean(self, data: Mapping[str, Any]) -> dict[str, Any]:
        text = self._redactor.redact(json.dumps(dict(data), default=str))
        if len(text) > LONGEST_DATA:
            return {"shortened": text[:LONGEST_DATA]}
        try:
            cleaned: dict[str, Any] = json.loads(text)
        except ValueError:  # a secret lay across the structure
            return {"shortened": text}
        return cleaned

    @property
    def stderr_tail(self) -> str:
        """Return the end of standard error, redacted."""
        return "\n".join(self._err.tail)[-STDERR_FOR_ENGINE:]

    @property
    def log_tail(self) -> str:
        """Return the end of the output for people."""
        return tail_of([*self._out.tail, *self._err.tail])


def tail_of(lines: list[str]) -> str:
    """Return the last lines that fit into a result."""
    return "\n".join(lines)[-LOG_TAIL_CHARS:]
