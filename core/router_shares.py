"""Fair shares: what each product has had in proportion to its share, and what it may have. *Pure.*

Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996) with a job as the unit of work: every product has a *level*,
which rises by 1/share with each grant, and the lowest level is served next. A product that comes late starts at the
level at which a seat that it could use was last given away, so that nobody saves up turns while he wants nothing. Each
priority is a fair queue of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from core.router_queue import PRIORITIES
from core.router_snapshot import FleetSnapshot, ProductView

SCALE = 720_720_000
"""One grant of a product with share 1; every share up to 16 divides it, so that nothing is rounded there."""
FORGET_BEYOND = 10_000
"""Levels that are remembered for one priority; above it, those that say nothing any more are dropped."""

_UNLISTED = ProductView(product_id="")


class Shares:
    """Levels and running jobs of all products, counted on while a plan grants."""

    def __init__(self, snapshot: FleetSnapshot, entry_level: Callable[[int, str], int]) -> None:
        """`entry_level` gives the level at which a product would enter the fair queue of a rank now."""
        self._products = {view.product_id: view for view in snapshot.products}
        self._remembered = snapshot.turns.levels
        self._entry_level = entry_level
        self._levels: dict[tuple[int, str], int] = {}
        self._started: dict[tuple[int, str], int] = {}
        self._running = {view.product_id: view.running for view in snapshot.products}

    def level(self, rank: int, product: str) -> int:
        """Return what the product has had at that priority, in proportion to its share."""
        level = self._levels.get((rank, product))
        if level is None:
            level = self._start(rank, product)
        return level

    def _start(self, rank: int, product: str) -> int:
        known = self._remembered.get(PRIORITIES[rank], {}).get(product)
        if known is None:
            known = self._view(product).running * self.step(product)
        level = max(known, self._entry_level(rank, product))
        self._levels[rank, product] = self._started[rank, product] = level
        return level

    def started(self, rank: int, product: str) -> int:
        """Return the level that the product had when the plan began."""
        self.level(rank, product)
        return self._started[rank, product]

    def step(self, product: str) -> int:
        """Return by how much one grant raises the product's level."""
        return SCALE // self._view(product).share

    def add(self, rank: int, product: str) -> None:
        """Count one grant."""
        self._levels[rank, product] = self.level(rank, product) + self.step(product)
        self._running[product] = self._running.get(product, 0) + 1

    def limit_reached(self, product: str, more: int = 0) -> str:
        """Return in words that the product, with so many jobs more, runs as many as it may; empty when it does not."""
        limit = self._view(product).limit
        running = self._running.get(product, 0) + more
        return f"{running} of {limit} jobs run" if limit is not None and running >= limit else ""

    def weights(self, product: str) -> tuple[tuple[str, int], ...]:
        """Return the parts of a score that the product weighs for itself, by name."""
        return tuple(sorted(self._view(product).weights.items()))

    def _view(self, product: str) -> ProductView:
        return self._products.get(product, _UNLISTED)


def remember(levels: dict[str, int], waiting: Collection[str], floor: int) -> dict[str, int]:
    """Return the levels worth remembering: of products that wait, and those above what a newcomer would get."""
    if len(levels) <= FORGET_BEYOND:
        return levels
    return {product: level for product, level in levels.items() if level > floor or product in waiting}
