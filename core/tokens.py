"""What a token looks like, and what is kept of it. *Pure*: randomness is an argument.

A token is a prefix that tells people and secret scanners what they look at, and 256 random bits as 43 characters of
URL-safe base 64. The ledger keeps its SHA-256 and nothing else. A slow hash with a salt protects secrets that people
choose, because those can be guessed; 256 random bits cannot, whatever a guess costs, and a fast hash without a salt
lets a token be found by an index instead of being tried against every row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from core.roles import Role

PERSON_PREFIX: Final = "gfu_"
PREFIXES: Final = {Role.FACTORY: "gff_", Role.ENROLMENT: "gfe_", Role.TRACKER: "gft_"}
"""Prefix of tokens that are no person's."""
OLD_PERSON_PREFIX: Final = "gf_"
"""Prefix of the token that the first version put into `<home>/token`; such a file stays good."""

RANDOM_BYTES: Final = 32
LIFETIME: Final = timedelta(days=90)
"""How long a token is good when nobody says otherwise."""
ENROLMENT_LIFETIME: Final = timedelta(minutes=15)
LONGEST_ENROLMENT: Final = timedelta(days=1)
_SHAPE: Final = re.compile(r"gf[ufet]?_[A-Za-z0-9_-]{43}")


def prefix_of(roles: Sequence[Role]) -> str:
    """Return the prefix of a token with those roles."""
    return PREFIXES.get(roles[0], PERSON_PREFIX) if len(roles) == 1 else PERSON_PREFIX


def is_token_shaped(text: str) -> bool:
    """Return whether `text` could be a token of ours; whatever could not need not be looked up."""
    return _SHAPE.fullmatch(text) is not None


def digest_of(token: str) -> str:
    """Return what the ledger knows a token by: its SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()
