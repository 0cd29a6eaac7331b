"""How values read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cli import words
from cli.palette import diff_style_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (-3, "0.0 s"), (4.25, "4.2 s"), (61, "61 s"), (125, "2 min"), (7300, "2 h"), (200_000, "2 d")],
)
def test_span_uses_its_largest_sensible_unit(seconds: float, text: str) -> None:
    """A length of time is read at a glance."""
    assert words.span(seconds) == text


def test_age_of_nothing_is_unknown() -> None:
    """What did not happen has no age."""
    assert words.age(None, NOW) == words.UNKNOWN
    assert words.age("2026-01-01T00:00:00Z", NOW) == "24 h"
    assert words.between("2026-01-01T00:00:00Z", None) == words.UNKNOWN


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (None, words.UNKNOWN),
        ({"usd": None}, words.UNKNOWN),
        ({"usd": "0", "source": "reported", "complete": True}, "$0.00"),
        ({"usd": "0.01234", "source": "reported", "complete": True}, "$0.0123"),
        ({"usd": "12.5", "source": "estimated", "complete": False}, "at least $12.50 (estimated)"),
    ],
)
def test_cost_says_how_well_it_is_known(document: dict[str, Any] | None, text: str) -> None:
    """Unknown is never 0, a lower bound says that it is one, an estimate too."""
    assert words.cost(document) == text


def test_clipped_text_is_one_line_of_its_length() -> None:
    """Line ends become spaces, and what is cut off is seen."""
    assert words.clipped("a\n b", 10) == "a b"
    assert words.clipped("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("line", "style"),
    [("+++ b/x", "bold"), ("+x", "green"), ("--- a/x", "bold"), ("-x", "red"), ("@@ -1 +1 @@", "cyan"), (" x", "")],
)
def test_lines_of_a_diff_have_their_colour(line: str, style: str) -> None:
    """Headers are no additions."""
    assert diff_style_of(line) == style
