"""Which of a factory's claims count: detected, declared, and attested are three different things. *Pure.*

*Detected* is what the agent found on its machine, *declared* what the machine's settings say, *attested* what an
operator vouched for. The first two are the machine's own word. A sensitive claim (a credential, a network) counts for
routing only when it was attested for that factory; an attestation without a claim counts for nothing, so that a
credential that has gone is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from core.capability import name_and_value, plain_offer


class Claims(NamedTuple):
    """A factory's claims, apart by whether they count."""

    counted: tuple[str, ...]
    unattested: tuple[str, ...]
    """Sensitive claims that nobody attested."""


def is_sensitive(offer: str, patterns: tuple[str, ...]) -> bool:
    """Return whether `offer`, in whatever form it is made, falls under one of `patterns`.

    A pattern is `name:glob`, `has:glob` or a name: `credential:*` also covers `has:credential` and `credential=x`.
    """
    name, value = name_and_value(offer)
    return any(fnmatchcase(name, names) and fnmatchcase(value.lower(), values) for names, values in _patterns(patterns))


@lru_cache(maxsize=64)
def _patterns(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for text in texts:
        name, _, value = text.strip().lower().partition(":")
        found.append((value, "*") if name == "has" else (name, value or "*"))
    return tuple((name.replace("-", "_"), value) for name, value in found)


@lru_cache(maxsize=16_384)
def count_claims(
    detected: tuple[str, ...], declared: tuple[str, ...], attested: tuple[str, ...], sensitive: tuple[str, ...]
) -> Claims:
    """Return which claims count; `attested` is spelled as `plain_offer` spells it, `sensitive` are patterns."""
    vouched = frozenset(attested)
    doubtful = {
        offer
        for offer in (*detected, *declared)
        if is_sensitive(offer, sensitive) and plain_offer(offer) not in vouched
    }
    return Claims(_without(detected, declared, doubtful), tuple(sorted(doubtful)))


def _without(detected: tuple[str, ...], declared: tuple[str, ...], doubtful: Iterable[str]) -> tuple[str, ...]:
    return tuple(offer for offer in dict.fromkeys((*detected, *declared)) if offer not in doubtful)
