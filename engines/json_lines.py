"""Reading JSON Lines that another program wrote: nothing in them can raise, and no value is taken on trust. *Pure.*"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Lines above this are not decoded: an agent's tool output can be as large as it likes."""
MAX_TEXT = 16_384
"""Longest text of an event, in characters."""
MAX_COUNT = 2**53
"""Largest count that every JSON reader keeps exact; anything above is no count of tokens."""
MAX_USD = Decimal(10) ** 12


def decode_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `line`; None for anything else."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        value = json.loads(line.decode("utf-8", "replace"), parse_float=Decimal)
    except (ValueError, RecursionError, InvalidOperation):
        return None
    return value if isinstance(value, dict) else None


def plain_line(line: bytes) -> str:
    """Return a line as text for people: its end stripped, undecodable bytes replaced, shortened."""
    return storable(line[: 4 * MAX_TEXT].decode("utf-8", "replace").rstrip("\r\n"), MAX_TEXT)


def member(value: object, *path: str | int) -> Any:
    """Return what lies at `path` in nested objects and lists; None when a step is missing."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value


def text_of(value: object, limit: int = MAX_TEXT) -> str:
    """Return `value` if it is text, as `storable`; otherwise an empty string."""
    return storable(value, limit) if isinstance(value, str) else ""


def storable(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` so that every database takes it: no NUL, no lone surrogates, `limit` characters at most."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.replace("\0", "␀").encode("utf-8", "replace").decode("utf-8")


def count_of(value: object) -> int | None:
    """Return `value` if it is a believable count, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    if isinstance(value, Decimal) and (not value.is_finite() or value != value.to_integral_value()):
        return None
    return int(value) if 0 <= value <= MAX_COUNT else None


def usd_of(value: object) -> Decimal | None:
    """Return `value` as an amount of dollars, rounded to a hundred-millionth; None if it is no believable amount."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    amount = Decimal(value)
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        return None
    return Decimal(f"{amount:.8f}".rstrip("0").rstrip("."))


def json_safe(value: object, depth: int = 6) -> Any:
    """Return `value` as plain JSON values of bounded size, for the data of an event."""
    if isinstance(value, Decimal):
        return float(value) if abs(value) <= MAX_COUNT else None
    if isinstance(value, str):
        return text_of(value, 4000)
    if isinstance(value, dict) and depth:
        return {text_of(str(key), 200): json_safe(item, depth - 1) for key, item in list(value.items())[:100]}
    if isinstance(value, list) and depth:
        return [json_safe(item, depth - 1) for item in value[:100]]
    return value if value is None or isinstance(value, bool | int) else "…"
