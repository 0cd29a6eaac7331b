"""What attempts have to tell, kept on disk until the API has taken it. Does I/O: files, HTTP.

One file of JSON lines for each attempt, and beside it how far the API has acknowledged it. Lines and steps carry a
number of their own stream, so that sending them twice changes nothing. Whatever was written is sent: at once when the
API is there, later when it is back, by the next agent when this one dies.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from activities.factory import LogStream
from core.attempt import BuildResult
from core.errors import GigafactoryError, Unauthenticated, Unavailable
from workers.api_client import FactoryApi

log = structlog.get_logger(__name__)

BATCH_S: Final = 0.1
"""Longest time that a line waits for company."""
BATCH_ENTRIES: Final = 1000
BATCH_BYTES: Final = 2 * 1024 * 1024
SMALL_FILE_BYTES: Final = 64 * 1024
"""Captured files up to this size are spooled and travel in a report; larger ones have a request of their own."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
KEEP_S: Final = 7 * 24 * 3600
"""How long the numbers of an attempt whose lines were all taken are remembered."""
EVENTS: Final = "events"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some lines of a spool file."""

    entries: list[dict[str, Any]]
    end: int
    """Offset behind the last of them."""
    complete: bool
    """Nothing more is in the file."""


class SpoolFile:
    """The file of one attempt and its acknowledged part."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"
        self._ack_path = folder / f"{name}.ack.json"
        acknowledged = _read_json(self._ack_path)
        self._offset = int(acknowledged.get("offset", 0))
        self._numbers: Counter[str] = Counter(acknowledged.get("numbers", {}))
        self._file: FileIO | None = None
        if self.path.exists():
            _cut_torn_line(self.path)
            for entry in _entries(self.path.read_bytes()[self._offset :]):
                if "stream" in entry:
                    self._numbers[entry["stream"]] = max(self._numbers[entry["stream"]], entry["seq"])

    def append(self, entry: dict[str, Any], stream: str = "") -> None:
        """Add an entry; with a `stream` it gets that stream's next number."""
        if stream:
            self._numbers[stream] += 1
            entry |= {"stream": stream, "seq": self._numbers[stream]}
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)  # what was said survives our own death
        self._file.write(json.dumps(entry).encode() + b"\n")

    @property
    def pending(self) -> bool:
        """Return whether there is anything that was not acknowledged."""
        return self.path.exists() and self.path.stat().st_size > self._offset

    def next_batch(self) -> Batch:
        """Return the next entries that the API does not have."""
        if not self.path.exists():
            return Batch([], self._offset, complete=True)
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read(BATCH_BYTES).splitlines(keepends=True)
            lines = [line for line in lines if line.endswith(b"\n")][:BATCH_ENTRIES]
            end = self._offset + sum(map(len, lines))
            complete = end == file.seek(0, 2)
        return Batch(list(_entries(b"".join(lines))), end, complete)

    def acknowledge(self, batch: Batch) -> None:
        """Note that the API has a batch; a file that it has all of starts anew."""
        if batch.end == self._offset:
            return
        self._offset = batch.end
        if self.path.stat().st_size == batch.end:
            if self._file is not None:
                self._file.truncate(0)
                self._file.seek(0)
            else:
                self.path.unlink()
            self._offset = 0
        self._write_ack()

    def refuse(self) -> None:
        """Put the rest aside, visible: the API will never take it."""
        self.close()
        if self.path.exists():
            self.path.replace(self.path.with_suffix(".refused.jsonl"))
        self._offset = 0
        self._write_ack()

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()

    def _write_ack(self) -> None:
        draft = self._ack_path.with_suffix(".tmp")
        draft.write_text(json.dumps({"offset": self._offset, "numbers": self._numbers}), encoding="utf-8")
        draft.replace(self._ack_path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _entries(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def _cut_torn_line(path: Path) -> None:
    """Remove a last line that an agent was writing when it died."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


# --- one attempt ------------------------------------------------------------------------------------------------------


class SpooledReports:
    """What one attempt tells the API (`activities.factory.AttemptReports`), through its spool file."""

    def __init__(self, spool: Spool, job_id: str, epoch: int) -> None:
        self._spool = spool
        self._job_id = job_id
        self._epoch = epoch
        self._file = SpoolFile(spool.folder, f"{job_id}.{epoch}")
        self._sender: asyncio.Task[None] | None = None
        self._result: tuple[BuildResult, asyncio.Future[None]] | None = None
        self._hurry = asyncio.Event()
        self._refused: GigafactoryError | None = None

    def started(self, *, pid: int | None, engine_version: str, workdir: str, resumed_session: str = "") -> None:
        """Tell that the engine runs."""
        known = {"pid": pid, "engine_version": engine_version, "workdir": workdir, "resumed_session": resumed_session}
        self._add({"kind": "started", "at": _now(), **known})

    def log(self, stream: LogStream, text: str, at: datetime | None = None) -> None:
        """Add one redacted line of output."""
        self._add({"kind": "log", "at": at.isoformat() if at else _now(), "text": text}, stream)

    def event(self, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Add one step."""
        entry = {"kind": "event", "at": _now(), "type": kind, "message": message, "data": dict(data or {})}
        self._add(entry, EVENTS)

    def checkpoint(self, sha: str) -> None:
        """Tell where the work so far is kept."""
        self._add({"kind": "checkpoint", "sha": sha})

    async def deliver(self, result: BuildResult) -> None:
        """Hand in the result, and everything before it; waits for as long as the API is away."""
        if self._refused is not None:
            raise self._refused
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._result = (result, taken)
        self._hurry.set()
        self.wake()
        try:
            await taken
        finally:
            self._result = None

    async def quarantined(self, ref: str, sha: str, message: str) -> None:
        """Tell where the work lies that was finished without a lease; waits for as long as the API is away."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                return await self._spool.api.quarantined(self._job_id, self._epoch, ref=ref, sha=sha, message=message)
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)

    async def confirm(self) -> Literal["", "cancelled"]:
        """Tell the ledger that the attempt lives; return why it is to stop, if it is."""
        return await self._spool.api.confirm(self._job_id, self._epoch)

    async def upload(self, path: str, body: bytes, *, kind: Literal["file", "diff", "log"], media_type: str) -> None:
        """Store one captured file; a small one travels with the next report."""
        if len(body) <= SMALL_FILE_BYTES:
            described = {"path": path, "media_type": media_type, "sha256": hashlib.sha256(body).hexdigest()}
            self._add({"kind": "file", "file": described | {"kind": kind, "body": b64encode(body).decode()}})
            return None
        pause = FIRST_PAUSE_S
        for _ in range(4):
            try:
                return await self._spool.api.upload(
                    self._job_id, self._epoch, path, body, kind=kind, media_type=media_type
                )
            except Unavailable:
                await asyncio.sleep(pause)
                pause *= 3
        return await self._spool.api.upload(self._job_id, self._epoch, path, body, kind=kind, media_type=media_type)

    @property
    def busy(self) -> bool:
        """Return whether something waits to be sent."""
        return self._refused is None and (self._result is not None or self._file.pending)

    async def flush(self, limit_s: float) -> None:
        """Send what waits now, and wait for that as long as `limit_s`."""
        if not self.busy:
            return
        self._hurry.set()
        self.wake()
        assert self._sender is not None
        await asyncio.wait({self._sender}, timeout=limit_s)

    def close(self) -> None:
        """Stop sending; what is left stays on disk."""
        if self._sender is not None:
            self._sender.cancel()
        self._file.close()

    # --- sending ------------------------------------------------------------------------------------------------------

    def _add(self, entry: dict[str, Any], stream: str = "") -> None:
        if self._refused is None:
            self._file.append(entry, stream)
            self.wake()

    def wake(self) -> None:
        """See to it that what waits is sent."""
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Send until nothing is left; then this task ends, and the next entry starts another."""
        pause = FIRST_PAUSE_S
        while self.busy:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), BATCH_S)
            self._hurry.clear()
            try:
                await self._send_batch()
                pause = FIRST_PAUSE_S
            except (Unavailable, Unauthenticated) as error:
                log.warning("spool.waits", job_id=self._job_id, epoch=self._epoch, error=error.message)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
            except GigafactoryError as error:
                self._give_up(error)

    async def _send_batch(self) -> None:
        batch = self._file.next_batch()
        handed_in = self._result if batch.complete else None
        body = report_of(batch.entries) | self._spool.sender
        if handed_in is not None:
            result = handed_in[0]
            body["result"] = {"sha": result.candidate_sha, "answer": result.model_dump(mode="json")}
        elif not batch.entries:
            return
        await self._spool.api.report(self._job_id, self._epoch, body)
        self._file.acknowledge(batch)
        if handed_in is not None and not handed_in[1].done():
            handed_in[1].set_result(None)
            self._result = None

    def _give_up(self, error: GigafactoryError) -> None:
        log.warning("spool.refused", job_id=self._job_id, epoch=self._epoch, code=error.code, error=error.message)
        self._refused = error
        self._file.refuse()
        if self._result is not None and not self._result[1].done():
            self._result[1].set_exception(error)
            self._result = None


def report_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of a report for some entries of a spool file. *Pure.*"""
    body: dict[str, Any] = {}
    logs: dict[str, dict[str, Any]] = {}
    steps: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    for entry in entries:
        kind = entry["kind"]
        if kind == "log":
            block = logs.setdefault(
                entry["stream"], {"stream": entry["stream"], "first_seq": entry["seq"], "lines": []}
            )
            block["lines"].append({"at": entry["at"], "text": entry["text"]})
        elif kind == "event":
            steps.append(entry)
        elif kind == "file":
            files.append(entry["file"])
        else:
            body[kind] = {name: value for name, value in entry.items() if name != "kind"}
    if logs:
        body["logs"] = list(logs.values())
    if files:
        body["files"] = files
    if steps:
        names = ("at", "type", "message", "data")
        events = [{name: step[name] for name in names} for step in steps]
        body["events"] = {"first_seq": steps[0]["seq"], "events": events}
    return body


def _now() -> str:
    return datetime.now(UTC).isoformat()


# --- all of them ------------------------------------------------------------------------------------------------------


class Spool:
    """The reports of all attempts of a factory (`activities.factory.Reports`)."""

    def __init__(self, folder: Path, api: FactoryApi, *, factory: str, instance: str) -> None:
        self.folder = folder
        self.api = api
        self.sender = {"factory": factory, "instance": instance}
        self._attempts: dict[tuple[str, int], SpooledReports] = {}

    def attempt(self, job_id: str, epoch: int) -> SpooledReports:
        """Return the reports of one attempt, also of one that was opened before."""
        key = (job_id, epoch)
        if key not in self._attempts:
            self._forget_idle()
            self._attempts[key] = SpooledReports(self, job_id, epoch)
        return self._attempts[key]

    def resume(self) -> None:
        """Send what an earlier agent could not, and forget what was told long ago."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.ack.json"):
            if time.time() - path.stat().st_mtime > KEEP_S:
                path.unlink()
        for path in self.folder.glob("*.jsonl"):
            job_id, _, epoch = path.stem.rpartition(".")
            if epoch.isdigit():
                self.attempt(job_id, int(epoch)).wake()

    async def drain(self, limit_s: float) -> None:
        """Send what is left, for a limited time; the rest stays on disk for the next agent."""
        await asyncio.gather(*(reports.flush(limit_s) for reports in self._attempts.values()))
        for reports in self._attempts.values():
            reports.close()

    def _forget_idle(self) -> None:
        """Close the files of attempts that have nothing to tell; they are opened again when they do."""
        for key, reports in list(self._attempts.items()):
            if len(self._attempts) > 50 and not reports.busy:
                reports.close()
                del self._attempts[key]
