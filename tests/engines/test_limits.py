"""Reset times, as providers write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.limits import FURTHEST, from_epoch, reset_time

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def at(day: int, hour: int, minute: int = 0, second: int = 0) -> datetime:
    """Return a moment of November 2026."""
    return datetime(2026, 11, day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Claude AI usage limit reached|1795258800", at(21, 11)),
        ("Claude AI usage limit reached|1795258800000", at(21, 11)),
        ("You've hit your 5-hour limit · resets 10:28am (UTC)", at(21, 10, 29)),
        ("You've hit your limit · resets 2pm (Asia/Shanghai)", at(22, 6, 1)),
        ("limit will reset at 9am (America/Chicago).", at(21, 15, 1)),
        ("You've hit your weekly limit · resets Nov 25, 3pm (Europe/Berlin)", at(25, 14, 1)),
        ("resets Nov 25 at 3pm (Europe/Berlin)", at(25, 14, 1)),
        ("purchase more credits or try again at 10:31 AM.", at(21, 10, 32)),
        ("or try again at Nov 24, 2026 10:31 AM.", at(24, 10, 32)),
        ("Try again at November 24th, 2026 8:35 PM.", at(24, 20, 36)),
        ("try again at 9:45 AM.", at(21, 10)),
        ("try again at 3:00 AM.", at(22, 3, 1)),
        ("Rate limit reached. Please try again in 7.5s. Visit", NOW + timedelta(seconds=7.5)),
        ("Please try again in 250ms.", NOW + timedelta(milliseconds=250)),
        ("try again in 1h30m", at(21, 11, 30)),
        ("Try again in 5 days 3 hours 10 minutes.", NOW + timedelta(days=5, hours=3, minutes=10)),
        ("try again in 3 hours and 5 minutes", at(21, 13, 5)),
        ("retry-after: 20", None),
        ("retry after 20 seconds", NOW + timedelta(seconds=20)),
        ("quota resets at 2026-11-21T12:30:00Z", at(21, 12, 30)),
        ("quota resets at 2026-11-21T12:30:00+02:00", at(21, 10, 30)),
        ("available again at 15:30 (UTC)", at(21, 15, 31)),
        ("try again later", None),
        ("resets 5 (UTC)", None),
        ("resets 25:00 (UTC)", None),
        ("resets 13pm (UTC)", None),
        ("resets 3pm (Nowhere/Atall)", None),
        ("resets Foo 12, 3pm (UTC)", None),
        ("resets Feb 31, 3pm (UTC)", None),
        ("usage limit reached|9999999999", None),
        ("This request would exceed your account's rate limit.", None),
        ("", None),
    ],
)
def test_reset_time_is_read(text: str, expected: datetime | None) -> None:
    """Every form that providers use gives its moment; anything doubtful gives none."""
    assert reset_time(text, NOW) == expected


def test_clock_without_zone_is_read_in_the_zone_of_the_cli() -> None:
    """A bare clock time belongs to whoever wrote it."""
    assert reset_time("try again at 8:00 PM.", NOW, ZoneInfo("Asia/Tokyo")) == at(21, 11, 1)


def test_day_of_next_year_is_in_the_future() -> None:
    """Around New Year a day without a year is the next one, not the last."""
    eve = datetime(2026, 12, 30, 12, tzinfo=UTC)
    assert reset_time("resets Jan 2, 9am (UTC)", eve) == datetime(2027, 1, 2, 9, 1, tzinfo=UTC)


def test_epoch_is_read_with_care() -> None:
    """Only whole numbers that lie in a believable window count."""
    soon = int(NOW.timestamp()) + 60
    assert from_epoch(soon, NOW) == NOW + timedelta(seconds=60)
    assert from_epoch(soon * 1000, NOW) == NOW + timedelta(seconds=60)
    assert from_epoch(soon - 120, NOW) == NOW
    for value in (None, True, "1795258800", 1.5, -1, 0, 10**30, soon + 90 * 86400):
        assert from_epoch(value, NOW) is None


@given(
    st.text()
    | st.from_regex(r"(resets?|try again|in|after|until)[ ]{0,3}(at |in )?[0-9A-Za-z:,./|() -]{0,60}", fullmatch=True)
)
def test_any_text_gives_a_usable_moment_or_none(text: str) -> None:
    """No text raises, and what comes out is aware, not past, and within a month."""
    moment = reset_time(text, NOW)
    assert moment is None or NOW <= moment <= NOW + FURTHEST
