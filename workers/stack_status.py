"""What a stack looks like from outside: its parts, how long they run, the memory they take. Does I/O: files, /proc."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from core.version import VERSION
from workers.stack_state import PartRecord, ProcessId, read_state


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in bytes: of one process, and of all that it started (a factory's supervisors and engines).

    Pages that processes share, such as libraries, are counted in each of them.
    """

    rss_bytes: int = 0
    descendants_rss_bytes: int = 0


def memory_of(process: ProcessId) -> Memory:
    """Measure one process and its descendants; zeros when it is gone."""
    if not process.alive:
        return Memory()
    try:
        found = psutil.Process(process.pid)
        return Memory(found.memory_info().rss, _sum_rss(found.children(recursive=True)))
    except psutil.Error:
        return Memory()


def _sum_rss(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def status_document(home: Path) -> dict[str, Any]:
    """Return all that is known about the stack of `home` without asking any of its parts."""
    state = read_state(home)
    if state is None or not state.alive:
        leftovers = [part.name for part in state.parts if part.process.alive] if state else []
        return {
            "up": False,
            "state": "down" if not leftovers else "broken",
            "home": str(home),
            "cli_version": VERSION,
            "leftovers": leftovers,
            "failure": asdict(state.failure) if state and state.failure else None,
            "parts": [],
        }
    now = datetime.now(UTC)
    steward = PartRecord("steward", "steward", state.steward.pid, state.steward.birth, "ready", state.started_at)
    steward_log = str(home / "logs" / "steward.log")
    running = [part for part in (steward, *state.parts) if part.state != "done"]
    rows = [_part_row(part, now) | asdict(memory_of(part.process)) for part in running]
    rows[0]["log"] = steward_log
    return {
        "up": state.state == "ready",
        "state": state.state,
        "home": state.home,
        "version": state.version,
        "cli_version": VERSION,
        "same_version": state.version == VERSION,
        "started_at": state.started_at,
        "uptime_s": _age_s(state.started_at, now),
        "ready_s": state.ready_s,
        "urls": dict(state.urls),
        "ports": dict(state.ports),
        "factories_wanted": state.factories_wanted,
        "parts": rows,
        "memory": {
            "rss_bytes": sum(row["rss_bytes"] for row in rows),
            "descendants_rss_bytes": sum(row["descendants_rss_bytes"] for row in rows[1:]),
        },
    }


def _part_row(part: PartRecord, now: datetime) -> dict[str, Any]:
    return {
        "name": part.name,
        "kind": part.kind,
        "state": part.state if part.process.alive else "down",
        "pid": part.pid,
        "uptime_s": _age_s(part.since, now),
        "restarts": part.restarts,
        "url": part.url,
        "log": part.log,
    }


def _age_s(since: str, now: datetime) -> float:
    try:
        return round((now - datetime.fromisoformat(since)).total_seconds(), 1)
    except ValueError:
        return 0.0
