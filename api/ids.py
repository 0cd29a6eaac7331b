"""Ids of jobs: short, sortable by time, unique. *Does I/O: reads the clock and randomness.*

`j-` and ten characters of Crockford's base 32, in lower case: seven count 1/32 seconds since 2025, three are random.
Within a process each id is greater than the one before, so that two never meet; two processes meet with a chance of
1 in 32,768 when they submit within the same 1/32 s, and then the ledger refuses the second.
"""

from __future__ import annotations

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
EPOCH_S = 1_735_689_600
"""2025-01-01T00:00:00Z"""
RANDOM_BITS = 15
LENGTH = 10
PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"
"""What the API takes for a job id in a path."""


class JobIds:
    """Makes job ids; one instance per process."""

    def __init__(self) -> None:
        self._last = 0

    def next_id(self) -> str:
        """Return an id greater than every id this instance made before."""
        slot = int((time.time() - EPOCH_S) * 32)
        drawn = (slot << RANDOM_BITS) | secrets.randbits(RANDOM_BITS)
        self._last = max(drawn, self._last + 1)
        return "j-" + _base32(self._last)


def _base32(number: int) -> str:
    digits = [ALPHABET[(number >> (5 * place)) & 31] for place in range(LENGTH)]
    return "".join(reversed(digits))
