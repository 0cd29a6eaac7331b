"""The price table."""

from __future__ import annotations

from decimal import Decimal

import pytest

from engines.prices import PRICES, estimate_usd, price_of


def test_estimate_adds_up_what_was_plain_cached_written_and_answered() -> None:
    """Cached and written tokens are parts of the input and have their own price."""
    cost = estimate_usd(
        "gpt-6.1-sol", input_tokens=1_000_000, cached=400_000, cache_writes=100_000, output_tokens=10_000
    )
    assert cost == Decimal("1.0") + Decimal("0.04") + Decimal("0.25") + Decimal("0.1")


@pytest.mark.parametrize("name", ["gpt-6.1-sol", "openai/gpt-6.1-sol", "GPT-6.1-Sol", "gpt-6.1-sol-2026-09-29"])
def test_model_is_known_by_its_usual_spellings(name: str) -> None:
    """Provider, case and date do not matter."""
    assert price_of(name) == PRICES["gpt-6.1-sol"]


@pytest.mark.parametrize("name", ["", "gpt-6.1-sol-mini", "house-model", "gpt"])
def test_unknown_model_has_no_cost(name: str) -> None:
    """Nothing near enough is taken for it."""
    assert estimate_usd(name, input_tokens=1, cached=0, cache_writes=0, output_tokens=1) is None


def test_prices_are_in_a_believable_order() -> None:
    """A slip of the keyboard would break one of these."""
    for price in PRICES.values():
        assert price.cached_input <= price.input / 10 <= price.input <= price.cache_write
        assert price.cache_write < price.output
