"""The tokens as one process knows them: every request asks here, hardly any asks the ledger. Does I/O: the ledger.

The book holds all tokens that open. Before it answers it catches up with the ledger if it did not within the last
`MAX_AGE_S`: one small read of what changed since the revision that it knows, whatever the number of callers. So a
token that was revoked anywhere is refused here within that time, and a thousand factories cost a few reads a second.
A token that the book does not have is looked up at once, so that a new one opens at once.

A token that lies in a file of this home and that the ledger has never seen is adopted: that is how a stack's own
tokens, which exist before its ledger does, come to be in it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from core.access import Access
from core.errors import Unauthenticated
from core.roles import Role
from core.tokens import digest_of, is_token_shaped
from store.messages import NewToken
from store.token_files import LocalToken, local_tokens
from store.tokens import refusal_of
from store.views import TokenChanges, TokenRow

MAX_AGE_S: Final = 0.25
"""Longest time for which the book answers without having looked at the ledger."""


class TokenSource(Protocol):
    """What the book needs of the ledger."""

    async def token_changes(self, after: int, now: datetime, sha256: str | None = None) -> TokenChanges:
        """Return what changed about tokens after a revision, and the token with a digest if asked for."""

    async def adopt_token(self, new: NewToken, now: datetime) -> TokenRow:
        """Take in a token of a file of this home."""


class TokenBook:
    """Knows whom a token stands for."""

    def __init__(
        self, ledger: TokenSource, home: Path, *, person: str = "local", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`person` is who the token in `<home>/token` stands for."""
        self._ledger = ledger
        self._home = home
        self._person = person
        self._clock = clock
        self._rows: dict[str, TokenRow] = {}
        self._revision = 0
        self._read_at = float("-inf")
        self._turn = asyncio.Lock()

    async def identify(self, token: str, now: datetime) -> TokenRow:
        """Return the token that was shown, if it opens.

        Raises:
            Unauthenticated: it is none of ours, was revoked, or has expired.
            Unavailable: the ledger is away; nobody gets in on old knowledge.

        """
        if not is_token_shaped(token):
            raise _unknown()
        sha256 = digest_of(token)
        await self._catch_up(now)
        row = self._rows.get(sha256)
        if row is None:
            row = await self._read(now, sha256) or await self._adopt(token, now)
        if not row.opens(now):
            raise Unauthenticated(refusal_of(row, now), hint="ask an admin for another one: `gf token create`")
        return row

    async def still_opens(self, row: TokenRow, now: datetime) -> bool:
        """Return whether a token that was identified before is still good; for connections that stay open."""
        await self._catch_up(now)
        known = self._rows.get(row.sha256)
        return known is not None and known.opens(now)

    async def _catch_up(self, now: datetime) -> None:
        if self._clock() - self._read_at <= MAX_AGE_S:
            return
        async with self._turn:
            if self._clock() - self._read_at > MAX_AGE_S:  # nobody did it while we waited
                await self._read(now)

    async def _read(self, now: datetime, sha256: str | None = None) -> TokenRow | None:
        """Take in what changed; return the token with that digest, also one that opens nothing any more.

        Of reads that overtake each other the one that saw most wins: what it saw includes what the others did.
        """
        began = self._clock()
        changes = await self._ledger.token_changes(self._revision, now, sha256)
        if changes.revision > self._revision:
            for row in changes.changed:
                if row.opens(now):
                    self._rows[row.sha256] = row
                else:
                    self._rows.pop(row.sha256, None)
            self._revision = changes.revision
        self._read_at = max(self._read_at, began)
        return changes.found

    async def _adopt(self, token: str, now: datetime) -> TokenRow:
        local = await asyncio.to_thread(self._find_file, token)
        if local is None:
            raise _unknown()
        new = NewToken(
            id=new_token_id(),
            sha256=digest_of(token),
            name=local.factory or self._person,
            access=Access(roles=(Role.FACTORY if local.factory else Role.ADMIN,), factory=local.factory),
            origin=str(local.path),
        )
        return await self._ledger.adopt_token(new, now)

    def _find_file(self, token: str) -> LocalToken | None:
        shown = token.encode()
        return next((one for one in local_tokens(self._home) if hmac.compare_digest(one.token.encode(), shown)), None)


def new_token_id() -> str:
    """Return an id by which people name a token; it is no secret."""
    return f"t-{secrets.token_hex(6)}"


def _unknown() -> Unauthenticated:
    return Unauthenticated(
        "unknown token",
        hint="the token of a stack is in <home>/token; is GIGAFACTORY_HOME the home of the stack that runs here?",
    )
