"""Whose a record is, as far as it never changes: a job's product, an attempt's factory. *Does I/O: the ledger.*

Every request of a factory asks for it, so answers are kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, TypeVar

from store.ledger import Ledger

KEPT: Final = 20_000
"""Answers of each kind that are remembered; beyond that the oldest are forgotten."""

Key = TypeVar("Key", bound=Hashable)


class Owners:
    """Knows whose jobs and attempts are."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._products: dict[str, str] = {}
        self._factories: dict[tuple[str, int], str] = {}

    async def product_of(self, job_id: str) -> str:
        """Return the product of a job.

        Raises:
            NotFound: there is no such job.

        """
        if job_id not in self._products:
            _remember(self._products, job_id, await self._ledger.product_of(job_id))
        return self._products[job_id]

    async def factory_of(self, job_id: str, epoch: int) -> str | None:
        """Return the factory that an attempt was granted to; None when there is no such attempt (yet)."""
        known = self._factories.get((job_id, epoch))
        if known is None:
            known = await self._ledger.factory_of(job_id, epoch)
            if known is not None:
                _remember(self._factories, (job_id, epoch), known)
        return known


def _remember(known: dict[Key, str], key: Key, value: str) -> None:
    known[key] = value
    if len(known) > KEPT:
        del known[next(iter(known))]
