"""The two tokens of a stack, as files that only their owner can read. *Does I/O: files.*

`<home>/token` opens the client side of the API (command line, browser), `<home>/factory-token` the side that factories
write to. Each is 256 random bits with a prefix that tells people and secret scanners what they look at.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from core.errors import Unavailable

USER_PREFIX = "gf_"
FACTORY_PREFIX = "gff_"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a caller must show to be taken for a user or for a factory."""

    user: str
    factory: str


def user_token_file(home: Path) -> Path:
    """Return the file that holds the token of the client side."""
    return home / "token"


def factory_token_file(home: Path) -> Path:
    """Return the file that holds the token of the factory side."""
    return home / "factory-token"


def ensure_tokens(home: Path) -> Tokens:
    """Read both tokens of `home`, and make the ones that do not exist yet."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Tokens(
        user=_ensure(user_token_file(home), USER_PREFIX),
        factory=_ensure(factory_token_file(home), FACTORY_PREFIX),
    )


def _ensure(path: Path, prefix: str) -> str:
    """Return the token in `path`; make it first if there is none. Safe against several processes doing it at once."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{prefix}{secrets.token_urlsafe(32)}\n")
            with contextlib.suppress(FileExistsError):  # another process was first: its token stands
                os.link(draft, path)
        finally:
            draft.unlink()
    token = path.read_text().strip()
    if len(token) < len(prefix) + 32:
        raise Unavailable(
            f"{path} does not hold a usable token",
            hint=f"delete {path} and restart the API; a new token is made then",
        )
    return token
