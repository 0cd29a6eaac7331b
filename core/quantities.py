"""Humane quantities, exactly: `45m`, `1h30m`, `2M`, `1.5k`, `$5`. *Pure.*

Whole numbers and `Decimal` only: what a person wrote is never rounded. Every refusal says what was expected and, where
the meaning is plain (`45min`, `2m` tokens), the nearest valid spelling. What a `format_…` writes parses back to exactly
the same quantity.
"""

from __future__ import annotations

import re
from decimal import Decimal

DURATION_EXPECTED = "a duration such as 90s, 45m, 4h, 1h30m or 2d"
COUNT_EXPECTED = "a whole number such as 500, 1.5k or 2M"
USD_EXPECTED = "an amount of US dollars such as 5, 0.50 or $5"
WHOLE_EXPECTED = "a whole number"

LONGEST_TEXT = 20
"""No quantity needs more characters; with 20 every product and sum below fits the 28 digits of `Decimal` exactly."""

SECONDS_PER = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
"""Units of duration, longest first: the order in which they may follow each other."""

FACTOR = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
"""Suffixes of counts; upper and lower case matter, because `m` means minutes elsewhere."""

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[wdhms])+", re.ASCII)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([wdhms])", re.ASCII)
_COUNT = re.compile(r"([0-9]+(?:_[0-9]{3})*(?:\.[0-9]+)?)([kMG]?)", re.ASCII)
_UNIT_WORDS = (
    (re.compile(r"weeks?|wks?", re.ASCII), "w"),
    (re.compile(r"days?", re.ASCII), "d"),
    (re.compile(r"hours?|hrs?", re.ASCII), "h"),
    (re.compile(r"minutes?|mins?", re.ASCII), "m"),
    (re.compile(r"seconds?|secs?", re.ASCII), "s"),
)


class QuantityError(ValueError):
    """A text is no such quantity; `suggestion` is the nearest valid spelling, or empty."""

    def __init__(self, message: str, *, expected: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.suggestion = suggestion


def parse_duration(value: object) -> Decimal:
    """Return the seconds that `value` names: `1h30m`, `0.5s`, or a bare number of seconds.

    Units run from long to short (`w d h m s`), each at most once; any part may have decimals.

    Raises:
        QuantityError: anything else, with a suggestion where the meaning is plain.

    """
    text = _text(value, DURATION_EXPECTED)
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    parts = _PART.findall(text) if _DURATION.fullmatch(text) else []
    units = [unit for _, unit in parts]
    if not parts or units != [unit for unit in SECONDS_PER if unit in units]:
        raise QuantityError("is not a duration", expected=DURATION_EXPECTED, suggestion=_nearest_duration(text))
    return sum((Decimal(number) * SECONDS_PER[unit] for number, unit in parts), Decimal(0))


def parse_seconds(value: object, *, least: int = 0, most: int | None = None) -> int:
    """Return the whole seconds that `value` names, between `least` and `most` (both in seconds, inclusive).

    Raises:
        QuantityError: no duration, a fraction of a second, or out of range.

    """
    seconds = parse_duration(value)
    if seconds != seconds.to_integral_value():
        raise QuantityError("has a fraction of a second", expected="whole seconds, " + DURATION_EXPECTED)
    check_range(seconds, least, most)
    return int(seconds)


def check_range(seconds: Decimal, least: int, most: int | None) -> None:
    """Raise `QuantityError` unless `least` ≤ `seconds` ≤ `most`; the limits are named in humane units."""
    if seconds < least or (most is not None and seconds > most):
        problem = "is too short" if seconds < least else "is too long"
        until = "" if most is None else f" and at most {format_duration(most)}"
        raise QuantityError(problem, expected=f"at least {format_duration(least)}{until}")


def parse_count(value: object) -> int:
    """Return the whole number that `value` names: `500`, `2_000`, `1.5k`, `2M`, `1G`.

    Raises:
        QuantityError: no number, an unknown suffix, or not whole (`1.5`).

    """
    text = _text(value, COUNT_EXPECTED)
    match = _COUNT.fullmatch(text)
    if match is None:
        raise QuantityError("is not a count", expected=COUNT_EXPECTED, suggestion=_nearest_count(text))
    count = Decimal(match[1].replace("_", "")) * FACTOR[match[2]]
    if count != count.to_integral_value():
        raise QuantityError("is not a whole number", expected=COUNT_EXPECTED)
    return int(count)


def parse_usd(value: object) -> Decimal:
    """Return the US dollars that `value` names (`5`, `0.50`, `$5`), exactly; millionths are the finest step.

    Raises:
        QuantityError: no amount, another currency, or finer than a millionth.

    """
    text = _text(value, USD_EXPECTED)
    number = text.removeprefix("$")
    if not _NUMBER.fullmatch(number):
        bare = re.sub(r"(?i)^(us)?\$|\s+|usd|dollars?|,", "", text)
        nearest = bare if _NUMBER.fullmatch(bare) else ""
        raise QuantityError("is not an amount of dollars", expected=USD_EXPECTED, suggestion=nearest)
    if len(number.partition(".")[2].rstrip("0")) > 6:
        raise QuantityError("is finer than a millionth of a dollar", expected=USD_EXPECTED)
    return Decimal(format_usd(Decimal(number)))


def parse_whole(value: object, *, least: int, most: int) -> int:
    """Return the whole number that `value` is or spells, between `least` and `most` (inclusive).

    Raises:
        QuantityError: no whole number, or out of range.

    """
    expected = f"{WHOLE_EXPECTED} from {least} to {most}"
    text = _text(value, expected)
    if not re.fullmatch(r"[0-9]+", text, re.ASCII):
        raise QuantityError("is not a whole number", expected=expected)
    if not least <= int(text) <= most:
        raise QuantityError("is out of range", expected=expected, suggestion=str(min(max(int(text), least), most)))
    return int(text)


def format_duration(seconds: int | Decimal) -> str:
    """Return a text for `seconds` (≥ 0) that `parse_duration` reads back: 5400 → `1h30m`."""
    rest = Decimal(seconds)
    parts = []
    for unit, size in SECONDS_PER.items():
        if unit in {"w", "s"}:
            continue
        whole, rest = divmod(rest, size)
        if whole:
            parts.append(f"{int(whole)}{unit}")
    if rest or not parts:
        parts.append(f"{format_usd(rest)}s")
    return "".join(parts)


def format_count(count: int) -> str:
    """Return the shortest text for `count` (≥ 0) that `parse_count` reads back: 1500000 → `1.5M`."""
    for suffix, digits in (("G", 9), ("M", 6), ("k", 3)):
        whole, rest = divmod(count, FACTOR[suffix])
        decimals = f"{rest:0{digits}d}".rstrip("0")
        text = f"{whole}.{decimals}{suffix}" if decimals else f"{whole}{suffix}"
        if whole and len(text) < len(str(count)):
            return text
    return str(count)


def format_usd(amount: Decimal) -> str:
    """Return `amount` as plain digits without needless zeros and without an exponent: `5.00` → `5`."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text(value: object, expected: str) -> str:
    """Return `value` as the text that a person would have written for it; JSON numbers become their digits."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise QuantityError(f"is {kind_of(value)}", expected=expected)
    text = value if isinstance(value, str) else f"{Decimal(str(value)):f}"
    if len(text) > LONGEST_TEXT:
        raise QuantityError("is too long", expected=expected)
    return text


def kind_of(value: object) -> str:
    """Return what `value` is in the words of a manifest's author: `a list`, `a mapping`, `text`, `nothing`."""
    kinds = (
        (type(None), "nothing"),
        (bool, "true or false"),
        (str, "text"),
        (int | float | Decimal, "a number"),
        (list | tuple, "a list"),
        (dict, "a mapping"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def _nearest_duration(text: str) -> str:
    """Return the valid spelling of what is plainly meant (`45 Min`, `30m1h`), or an empty string."""
    plain = re.sub(r"[\s,]+|and", "", text.lower())
    for words, unit in _UNIT_WORDS:
        plain = words.sub(unit, plain)
    parts = dict.fromkeys(SECONDS_PER, "")
    if not _DURATION.fullmatch(plain):
        return ""
    for number, unit in _PART.findall(plain):
        if parts[unit]:
            return ""
        parts[unit] = number + unit
    return "".join(parts.values())


def _nearest_count(text: str) -> str:
    """Return the valid spelling of what is plainly meant (`2m`, `1.5 K`, `2,000`), or an empty string."""
    plain = re.sub(r"[\s,]+", "", text)
    if plain and plain[-1] in "KmgBb":
        plain = plain[:-1] + {"K": "k", "m": "M", "g": "G", "B": "G", "b": "G"}[plain[-1]]
    return plain if _COUNT.fullmatch(plain) else ""
