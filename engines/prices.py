"""What model tokens cost, for engines that report tokens but no cost. *Pure* data and one function.

An estimate from list prices of standard processing: no batch, priority or regional tier, no discount, and the rate for
prompts of up to 272,000 tokens (above that the provider charges double for input and half more for output; a CLI's
totals do not show single requests). A model that is not in the table has an unknown cost, never zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

SOURCE = "https://developers.openai.com/api/docs/pricing and the providers' announcements of these models"
AS_OF = "2026-11-21"
MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal


def _price(plain: str, cached: str, write: str, output: str) -> Price:
    return Price(Decimal(plain), Decimal(cached), Decimal(write), Decimal(output))


PRICES: dict[str, Price] = {
    "gpt-6-astra": _price("10", "1", "12.5", "50"),
    "gpt-6.1-sol": _price("2", "0.10", "2.5", "10"),
    "gpt-6-sol": _price("2", "0.20", "2.5", "10"),
    "gpt-6.1-terra": _price("1", "0.05", "1.25", "5"),
    "gpt-6-luna": _price("0.10", "0.01", "0.125", "0.50"),
    "gpt-5.6-sol": _price("4", "0.40", "4", "20"),
    "gpt-5.6-terra": _price("2", "0.20", "2", "12"),
    "gpt-5.6-luna": _price("0.20", "0.02", "0.20", "1.20"),
    "gpt-5.5": _price("5", "0.50", "5", "30"),
}
"""By model; where a provider charges nothing extra for writing to its cache, that is the price of input."""

_DATED = re.compile(r"-20\d\d-\d\d-\d\d$")


def price_of(model: str) -> Price | None:
    """Return the price of `model`, written with or without its provider (`openai/`) and date."""
    return PRICES.get(_DATED.sub("", model.lower().rpartition("/")[2]))


def estimate_usd(
    model: str, *, input_tokens: int, cached: int, cache_writes: int, output_tokens: int
) -> Decimal | None:
    """Return what these tokens cost by the table; None for a model that is not in it.

    `cached` and `cache_writes` are parts of `input_tokens`.
    """
    price = price_of(model)
    if price is None:
        return None
    plain = max(0, input_tokens - cached - cache_writes)
    total = (
        plain * price.input
        + cached * price.cached_input
        + cache_writes * price.cache_write
        + output_tokens * price.output
    )
    return total / MILLION
