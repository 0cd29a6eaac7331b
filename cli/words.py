"""Values as people read them: ages, tokens, costs, what a job waits for. *Pure*: the present time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

SHOWN = 20
"""Jobs that a line names."""
UNKNOWN = "–"
"""Shown for what nobody knows; never a 0."""
SHORT_SHA = 12


def span(seconds: float) -> str:
    """Return a length of time in its largest sensible unit: `4.2 s`, `12 min`, `3 h`, `5 d`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for size, unit in ((120, "s"), (7200, "min"), (172_800, "h")):
        if seconds < size:
            return f"{seconds / {'s': 1, 'min': 60, 'h': 3600}[unit]:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def age(then: str | None, now: datetime) -> str:
    """Return how long ago the ISO time `then` was."""
    return span((now - datetime.fromisoformat(then)).total_seconds()) if then else UNKNOWN


def between(start: str | None, finish: str | None) -> str:
    """Return the time from `start` to `finish`, both ISO times."""
    if not start or not finish:
        return UNKNOWN
    return span((datetime.fromisoformat(finish) - datetime.fromisoformat(start)).total_seconds())


def clock(at: str) -> str:
    """Return the time of day, here, of the ISO time `at`."""
    return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")


def moment(at: str) -> str:
    """Return day and time of day, here, of the ISO time `at`."""
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def in_future(at: str | None, now: datetime) -> bool:
    """Return whether the ISO time `at` is still to come."""
    return at is not None and datetime.fromisoformat(at) > now


def tokens(count: int | None) -> str:
    """Return a number of tokens."""
    return UNKNOWN if count is None else f"{count:,}"


def cost(document: Mapping[str, Any] | None) -> str:
    """Return a cost: how much, and how it is known."""
    if not document or document.get("usd") is None:
        return UNKNOWN
    bound = "" if document.get("complete", True) else "at least "
    source = document.get("source", "")
    usd = float(document["usd"])
    digits = 2 if usd == 0 or usd >= 1 else 4
    return f"{bound}${usd:.{digits}f}" + (f" ({source})" if source not in ("reported", "") else "")


def short(sha: str | None) -> str:
    """Return the beginning of a commit's hash."""
    return (sha or "")[:SHORT_SHA] or UNKNOWN


def clipped(text: str, length: int) -> str:
    """Return `text` on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def waiting(document: Mapping[str, Any]) -> str:
    """Return what a job waits for, in a few words; empty when nothing."""
    found = document.get("waiting")
    return f"{found['kind']}: {found['message']}" if found else ""


def awaited(jobs: Sequence[Mapping[str, Any]], total: int) -> str:
    """Return jobs that another one waits for, with their stages and what is unusual about the wait."""
    named = [
        f"{one['job_id']} ({one['stage']}{', dropped' if one['state'] == 'dropped' else ''})" for one in jobs[:SHOWN]
    ]
    return ", ".join(named) + (f" and {total - SHOWN} more" if total > SHOWN else "")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 path`, `3 paths`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
