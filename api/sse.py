"""A job's events and log lines as one live stream of server-sent events. *Does I/O: reads the ledger.*

The stream is read from the ledger and from nowhere else, so it shows what other processes wrote too, and an id says
exactly how far a reader got: `e12-l345` means events up to 12 and log lines up to 345. Going on from there neither
loses nor repeats anything, whichever API process answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from heapq import merge
from typing import Final, NamedTuple, TypeVar

from core.errors import FieldProblem, InvalidInput
from core.lifecycle import ENDED
from store.ledger import Ledger
from store.views import EventView, LatestIds, LogView

BATCH: Final = 500
POLL_S: Final = 0.25
"""Pause between two looks when nothing of this process changed the job; what other processes write waits so long."""
KEEP_ALIVE_S: Final = 5.0
"""A comment is sent when a reader has caught up, and then so often, so that a broken connection is noticed."""
RETRY_MS: Final = 1000
UNSHOWN: Final = {"product_id", "attempt_seq"}
_POSITION = re.compile(r"e(\d{1,18})-l(\d{1,18})")

Row = TypeVar("Row", EventView, LogView)


class Position(NamedTuple):
    """How far a reader of a job's stream got."""

    event_seq: int = 0
    log_id: int = 0

    def __str__(self) -> str:
        """Return the position as an id of an event."""
        return f"e{self.event_seq}-l{self.log_id}"

    @classmethod
    def parse(cls, text: str | None) -> Position:
        """Return the position that `text` names; the beginning for an empty one.

        Raises:
            InvalidInput: it is no id of this stream.

        """
        if not text:
            return cls()
        found = _POSITION.fullmatch(text)
        if found is None:
            problem = FieldProblem(
                path="header.Last-Event-ID",
                message="is no id of this stream",
                value=text[:100],
                expected="an id like e12-l345",
            )
            raise InvalidInput("1 problem in the request", (problem,))
        return cls(int(found[1]), int(found[2]))


class Wakeups:
    """Tells the streams of this process at once that a job changed, where the change came through this process."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def notify(self, job_id: str) -> None:
        """Wake every stream of the job."""
        for event in self._waiting.get(job_id, ()):
            event.set()

    def listeners(self, job_id: str) -> int:
        """Return how many streams of the job this process serves."""
        return len(self._waiting.get(job_id, ()))

    @contextlib.contextmanager
    def listening(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set when the job changes, while the context is open."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]


class JobStream:
    """One reader's stream of one job."""

    def __init__(
        self,
        ledger: Ledger,
        wakeups: Wakeups,
        stopping: asyncio.Event,
        *,
        allowed: Callable[[], Awaitable[bool]],
    ) -> None:
        """`allowed` says whether the reader may still have it; asked before each look, several times a second."""
        self._allowed = allowed
        self._ledger = ledger
        self._wakeups = wakeups
        self._stopping = stopping

    async def frames(self, job_id: str, start: Position, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Yield the frames after `start`: what is there, then (with `follow`) what comes, until the job has ended.

        The last frame of a job that has ended is `end`; without it the reader should come back with the last id.
        """
        position = start
        yield f"retry: {RETRY_MS}\n\n".encode()
        with self._wakeups.listening(job_id) as changed:
            sent_at, caught_up = time.monotonic(), False
            while await self._allowed():
                changed.clear()
                latest = await self._ledger.latest_ids(job_id)
                position, rows = await self._read(job_id, position, latest)
                if rows:
                    yield b"".join(rows)
                    sent_at, caught_up = time.monotonic(), False
                    continue
                if latest.stage in ENDED:
                    yield _frame("end", position, json.dumps({"id": job_id, "stage": latest.stage}))
                    return
                if not follow or self._stopping.is_set():
                    return
                if not caught_up or time.monotonic() - sent_at >= KEEP_ALIVE_S:
                    yield b": caught up\n\n"
                    sent_at, caught_up = time.monotonic(), True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), POLL_S)

    async def _read(self, job_id: str, start: Position, latest: LatestIds) -> tuple[Position, list[bytes]]:
        """Return the frames of the next batch after `start`, and the position behind it."""
        events: Sequence[EventView] = ()
        logs: Sequence[LogView] = ()
        if latest.event_seq > start.event_seq:
            events = await self._ledger.events(job_id, after_seq=start.event_seq, limit=BATCH)
        if latest.log_id > start.log_id:
            logs = await self._ledger.read_logs(job_id, after_id=start.log_id, limit=BATCH)
        position, frames = start, list[bytes]()
        for row in in_order(events, logs):
            if isinstance(row, EventView):
                position = position._replace(event_seq=row.seq)
                name = "stage" if row.type == "stage.changed" else "event"
                frames.append(_frame(name, position, row.model_dump_json(exclude=UNSHOWN, ensure_ascii=True)))
            else:
                position = position._replace(log_id=row.id)
                frames.append(_frame("log", position, row.model_dump_json(ensure_ascii=True)))
        return position, frames


def in_order(events: Sequence[EventView], logs: Sequence[LogView]) -> Iterator[EventView | LogView]:
    """Merge both by time, each kept in its own order.

    A full batch ends somewhere; what the other sequence has after that time waits for the next batch, so that long
    logs do not push later events before them.
    """
    if len(logs) == BATCH:
        events = _until(events, logs[-1].at)
    elif len(events) == BATCH:
        logs = _until(logs, events[-1].at)
    return merge(events, logs, key=lambda row: row.at)


def _until(rows: Sequence[Row], horizon: datetime) -> Sequence[Row]:
    for index, row in enumerate(rows):
        if row.at > horizon:
            return rows[:index]
    return rows


def _frame(name: str, position: Position, data: str) -> bytes:
    """Return one frame; `data` is JSON in ASCII, so that no reader can take a character of it for a line end."""
    return f"id: {position}\nevent: {name}\ndata: {data}\n\n".encode()
