"""The hash chain over a job's events: what is hashed, and how a chain is checked. *Pure.*

    hash = sha256(prev_hash + canonical JSON of the event without prev_hash and hash)

Canonical JSON has sorted keys, no spaces, ASCII only; times are ISO 8601 in UTC with microseconds. The first event's
`prev_hash` is 64 zeros. Anybody with an export can check it without this program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from store.column_types import canonical_json, utc_text
from store.views import ChainReport, EventView

GENESIS = "0" * 64
HASHED = ("job_id", "product_id", "seq", "at", "type", "epoch", "attempt_seq", "message", "data")


def event_hash(prev_hash: str, event: Mapping[str, Any]) -> str:
    """Return the hash of `event`, which has every member of `HASHED`, on top of `prev_hash`."""
    return hash_after(prev_hash, {name: event[name] for name in HASHED})


def hash_after(prev_hash: str, line: Mapping[str, Any]) -> str:
    """Return the hash of a line that follows the one with `prev_hash`; its member `at` is an aware time."""
    hashed = {**line, "at": utc_text(line["at"])}
    return hashlib.sha256((prev_hash + canonical_json(hashed)).encode()).hexdigest()


def check_chain(job_id: str, events: Iterable[EventView], *, last_seq: int, last_hash: str) -> ChainReport:
    """Return whether `events`, in order, are whole, unchanged, and end where the job's row says that they end."""
    prev_hash, count = GENESIS, 0
    for event in events:
        problem = _problem(event, count + 1, prev_hash)
        if problem:
            return ChainReport(job_id=job_id, ok=False, events=count, broken_at=count + 1, problem=problem)
        prev_hash, count = event.hash, count + 1
    if (count, prev_hash) != (last_seq, last_hash):
        problem = f"the log ends at event {count}, the job's row says {last_seq}"
        if count == last_seq:
            problem = f"event {count} is not the one that the job's row names as the newest"
        return ChainReport(job_id=job_id, ok=False, events=count, broken_at=count + 1, problem=problem)
    return ChainReport(job_id=job_id, ok=True, events=count)


def _problem(event: EventView, expected_seq: int, prev_hash: str) -> str:
    if event.seq != expected_seq:
        return f"event {expected_seq} is missing: {event.seq} follows"
    if event.prev_hash != prev_hash:
        return f"event {event.seq} does not follow the one before it"
    if event.hash != event_hash(prev_hash, event.model_dump()):
        return f"event {event.seq} was changed after it was written"
    return ""


def digest(content: object) -> str:
    """Return the SHA-256 of bytes, of text, or of anything else as canonical JSON."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    text = content if isinstance(content, str) else canonical_json(content)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


LOG_FIELDS = ("log_tail", "log", "stdout", "stderr", "output")
"""Members of event data that hold log text."""


def without_log_text(data: Any) -> Any:
    """Return JSON `data` with log text replaced by its length and digest: logs never enter events."""
    if isinstance(data, Mapping):
        return {
            str(key): _digested(value) if key in LOG_FIELDS and isinstance(value, str) else without_log_text(value)
            for key, value in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [without_log_text(item) for item in data]
    return data


def _digested(text: str) -> Any:
    return {"chars": len(text), "sha256": digest(text)} if text else ""
