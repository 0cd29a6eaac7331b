"""When is work possible again? Reads the moment out of what providers and CLIs write. *Pure*: `now` is an argument.

The forms, all seen in the wild (2024 to 2026):

    Claude AI usage limit reached|1762952400                     epoch, seconds or milliseconds
    You've hit your 5-hour limit · resets 10:28am (UTC)          clock, with zone
    … resets Nov 25, 3pm (Europe/Berlin)                         day and clock
    … try again at 10:31 AM.   … at May 26th, 2026 8:35 PM.      clock or full date, in the CLI's own zone
    Please try again in 7.66s. … in 1h30m … in 5 days 3 hours    a span
    resets at 2026-11-21T10:28:00Z                               ISO 8601
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

FURTHEST = timedelta(days=35)
"""The longest window of any provider is a month; anything later is a misreading."""
LATE = timedelta(minutes=30)
"""A clock time that lies this little in the past means "just now", not tomorrow."""
LONGEST_TEXT = 4000

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

_EPOCH = re.compile(r"\|\s*(\d{10}(?:\d{3})?)\b")
_ISO = re.compile(r"\b(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\.\d{1,6})?)\d*\s?(Z|[+-]\d\d:?\d\d)")
_SPAN_PART = (
    r"\d{1,9}(?:\.\d{1,9})?\s?(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|weeks?)"
)
_SPAN = re.compile(
    rf"\b(?:in|after|retry-after:?|wait)\s{{1,3}}((?:{_SPAN_PART}[\s,]{{0,2}}(?:and\s)?){{1,6}})(?!\w)", re.IGNORECASE
)
_SPAN_PIECE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s?(ms|milli|s|m|h|d|w)", re.IGNORECASE)
_CLOCK = re.compile(
    r"\b(?:resets?|try again|available|until|back)\s{1,3}(?:again\s)?(?:at\s|on\s)?"
    r"(?:(?P<month>[A-Z][a-z]{2})[a-z]{0,6}\.?\s(?P<day>\d{1,2})(?:st|nd|rd|th)?(?:,?\s(?P<year>20\d\d))?,?\s(?:at\s)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s?(?P<half>[ap]\.?m\b)?(?:\s?\((?P<zone>[A-Za-z0-9_+/-]{2,40})\))?",
    re.IGNORECASE,
)


def reset_time(text: str, now: datetime, zone: tzinfo = UTC) -> datetime | None:
    """Return the moment that `text` names, aware and in UTC; None when it names none, or one that cannot be.

    `zone` is what the CLI wrote clock times in, when it does not say. Clock times have minutes at best, so the end of
    the minute is returned: never before the limit is gone.
    """
    text = text[:LONGEST_TEXT]
    for read in (_read_epoch, _read_iso, _read_span):
        found = read(text, now)
        if found is not None:
            return plausible(found, now)
    found = _read_clock(text, now, zone)
    return plausible(found, now) if found is not None else None


def from_epoch(value: object, now: datetime) -> datetime | None:
    """Return the moment of an epoch number in seconds or milliseconds, if it is one and can be."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    seconds = value / 1000 if value > 10**12 else value
    if not 0 < seconds < 10**11:
        return None
    return plausible(datetime.fromtimestamp(seconds, UTC), now)


def plausible(moment: datetime, now: datetime) -> datetime | None:
    """Return `moment` in UTC, but not before `now`; None when it is further away than any provider's window."""
    moment = moment.astimezone(UTC)
    if moment > now + FURTHEST or moment < now - FURTHEST:
        return None
    return max(moment, now)


def _read_epoch(text: str, now: datetime) -> datetime | None:
    found = _EPOCH.search(text)
    return from_epoch(int(found.group(1)), now) if found else None


def _read_iso(text: str, now: datetime) -> datetime | None:
    found = _ISO.search(text)
    if not found:
        return None
    try:
        return datetime.fromisoformat(found.group(1) + found.group(2))
    except ValueError:
        return None


def _read_span(text: str, now: datetime) -> datetime | None:
    found = _SPAN.search(text)
    if not found:
        return None
    pieces = _SPAN_PIECE.findall(found.group(1))
    seconds = sum(
        float(number) * _UNITS_S["ms" if unit.lower() == "milli" else unit.lower()] for number, unit in pieces
    )
    return now + timedelta(seconds=seconds) if seconds < FURTHEST.total_seconds() else None


def _read_clock(text: str, now: datetime, zone: tzinfo) -> datetime | None:
    for found in _CLOCK.finditer(text):
        if found["minute"] is None and found["half"] is None:
            continue  # a bare number is no time of day
        local = _zone(found["zone"], zone)
        if local is None:
            continue
        try:
            return _moment(found, now.astimezone(local))
        except (ValueError, OverflowError):
            continue
    return None


def _zone(name: str | None, otherwise: tzinfo) -> tzinfo | None:
    if name is None:
        return otherwise
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return None


def _moment(found: re.Match[str], now: datetime) -> datetime:
    hour, minute = int(found["hour"]), int(found["minute"] or 0)
    if found["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(hour)
        hour = hour % 12 + (12 if found["half"].lower().startswith("p") else 0)
    moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if found["month"]:
        month = _MONTHS.index(found["month"].lower()) + 1
        moment = moment.replace(year=int(found["year"] or now.year), month=month, day=int(found["day"]))
        if not found["year"] and moment < now - timedelta(days=180):
            moment = moment.replace(year=now.year + 1)
    elif moment < now - LATE:
        moment += timedelta(days=1)
    return moment + timedelta(minutes=1)
