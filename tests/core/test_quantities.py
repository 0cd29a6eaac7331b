"""Humane quantities: what is read, what is refused, and that nothing is ever rounded."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.quantities import (
    DURATION_EXPECTED,
    QuantityError,
    format_count,
    format_duration,
    format_usd,
    parse_count,
    parse_duration,
    parse_seconds,
    parse_usd,
    parse_whole,
)

pytestmark = pytest.mark.req("M4")

DURATIONS = [
    ("90", "90"),
    ("0", "0"),
    ("90s", "90"),
    ("45m", "2700"),
    ("4h", "14400"),
    ("1h30m", "5400"),
    ("1.5h", "5400"),  # 1.5 x 3600
    ("0.1s", "0.1"),
    ("1d12h", "129600"),  # 86400 + 43200
    ("2w", "1209600"),  # 2 x 604800
    ("1w2d3h4m5.5s", "788645.5"),  # 604800 + 172800 + 10800 + 240 + 5.5
    (90, "90"),
    (0.1, "0.1"),
]


@pytest.mark.parametrize(("written", "seconds"), DURATIONS)
def test_duration_is_read_exactly(written: object, seconds: str) -> None:
    """Each spelling is worth exactly these seconds."""
    assert parse_duration(written) == Decimal(seconds)


WRONG_DURATIONS = [
    ("45min", "45m"),
    ("45 minutes", "45m"),
    ("4 Hours", "4h"),
    ("45M", "45m"),
    ("30m1h", "1h30m"),
    ("1 h 30 min", "1h30m"),
    ("10m10m", ""),
    ("soon", ""),
    ("", ""),
    ("-5m", ""),
    ("1e3", ""),
    ("٥m", ""),
    ("1h30", ""),
    (True, ""),
    (None, ""),
    (["5m"], ""),
    ("9" * 100, ""),
]


@pytest.mark.parametrize(("written", "suggestion"), WRONG_DURATIONS)
def test_wrong_duration_is_refused_with_the_nearest_spelling(written: object, suggestion: str) -> None:
    """What is no duration is refused; what is plainly meant is suggested, and the suggestion is valid."""
    with pytest.raises(QuantityError) as caught:
        parse_duration(written)
    assert caught.value.suggestion == suggestion
    assert caught.value.expected == DURATION_EXPECTED
    if suggestion:
        parse_duration(suggestion)


def test_seconds_refuse_fractions_and_values_out_of_range() -> None:
    """Whole seconds stay whole, and the limits are named in humane units."""
    assert parse_seconds("1.5m") == 90
    with pytest.raises(QuantityError, match="fraction"):
        parse_seconds("1.5s")
    with pytest.raises(QuantityError) as caught:
        parse_seconds("3h", least=1, most=7200)
    assert (caught.value.message, caught.value.expected) == ("is too long", "at least 1s and at most 2h")
    with pytest.raises(QuantityError) as caught:
        parse_seconds("0", least=1)
    assert (caught.value.message, caught.value.expected) == ("is too short", "at least 1s")


@pytest.mark.parametrize(
    ("written", "count"),
    [("500", 500), ("2_000", 2000), ("1.5k", 1500), ("2M", 2_000_000), ("0.25G", 250_000_000), (7, 7), ("0", 0)],
)
def test_count_is_read_exactly(written: object, count: int) -> None:
    """Each spelling is worth exactly this number."""
    assert parse_count(written) == count


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [
        ("2m", "2M"),
        ("2 M", "2M"),
        ("1.5K", "1.5k"),
        ("2,000", "2000"),
        ("many", ""),
        ("1.5", ""),
        ("-1", ""),
        (True, ""),
    ],
)
def test_wrong_count_is_refused_with_the_nearest_spelling(written: object, suggestion: str) -> None:
    """What is no whole number is refused; a wrong letter case is suggested right."""
    with pytest.raises(QuantityError) as caught:
        parse_count(written)
    assert caught.value.suggestion == suggestion


@pytest.mark.parametrize(
    ("written", "usd"), [("5", "5"), ("$5", "5"), ("0.50", "0.5"), (2.1, "2.1"), ("$0.000001", "0.000001"), (5, "5")]
)
def test_dollars_are_read_exactly(written: object, usd: str) -> None:
    """Amounts are decimals without drift, equal ones are spelled equally."""
    assert str(parse_usd(written)) == usd


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [("5 USD", "5"), ("US$5", "5"), ("5€", ""), ("0.0000001", ""), ("-5", ""), ("1,000", "1000"), ({}, "")],
)
def test_wrong_dollars_are_refused_with_the_nearest_spelling(written: object, suggestion: str) -> None:
    """Other currencies, negative and too fine amounts are refused."""
    with pytest.raises(QuantityError) as caught:
        parse_usd(written)
    assert caught.value.suggestion == suggestion


def test_whole_number_stays_in_its_range() -> None:
    """A number out of range is refused, and the nearest limit is suggested."""
    assert parse_whole("7", least=0, most=10) == 7
    with pytest.raises(QuantityError) as caught:
        parse_whole("11", least=0, most=10)
    assert caught.value.suggestion == "10"
    for wrong in ("x", "1.0", "-1", True, None):
        with pytest.raises(QuantityError):
            parse_whole(wrong, least=0, most=10)


@given(st.integers(0, 10**9), st.integers(0, 999))
def test_duration_survives_being_written_and_read(whole: int, thousandths: int) -> None:
    """What `format_duration` writes, `parse_duration` reads back as exactly the same."""
    seconds = whole + Decimal(thousandths) / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 10**15))
def test_count_survives_being_written_and_read(count: int) -> None:
    """What `format_count` writes, `parse_count` reads back as exactly the same."""
    assert parse_count(format_count(count)) == count


@given(st.decimals(0, 10**9, places=6))
def test_dollars_survive_being_written_and_read(amount: Decimal) -> None:
    """What `format_usd` writes, `parse_usd` reads back as exactly the same."""
    assert parse_usd(format_usd(amount)) == amount


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes a parser fail in any other way, and every suggestion is valid itself."""
    for parse in (parse_duration, parse_count, parse_usd):
        try:
            parse(text)
        except QuantityError as error:
            if error.suggestion:
                parse(error.suggestion)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (1500, "1500"),
        (15_000, "15k"),
        (1_500_000, "1.5M"),
        (2_000_000, "2M"),
        (1234, "1234"),
    ],
)
def test_count_is_written_as_short_as_possible(number: int, text: str) -> None:
    """A suffix is used only where it makes the number shorter."""
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (90, "1m30s"), (3600, "1h"), (5400, "1h30m"), (90_000, "1d1h")]
)
def test_duration_is_written_in_units_from_long_to_short(seconds: int, text: str) -> None:
    """Durations are shown as people write them."""
    assert format_duration(seconds) == text
