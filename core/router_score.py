"""How good a place a factory is for a job, in integers. *Pure.*

Each part is a whole number from 0 to 1000; the score is the weighted sum. Shares are cut to thousandths before anything
is added, so that no rounding differs between two machines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from operator import mul
from typing import NamedTuple

from core.capability import unmet
from core.router_classes import JobClass
from core.router_explain import score_line
from core.router_fleet import Standing
from core.router_policy import Weights
from core.router_snapshot import FactoryView

PARTS = tuple(Weights.model_fields)
"""The parts of a score, in order."""
ENGINE = PARTS.index("engine")
"""The one part that differs between two engines of a factory."""
LOAD = PARTS.index("load")
"""The one part that changes while a plan takes seats."""
PREFERENCE_STEP = 200
"""What each further place in the engine preference costs, of 1000."""
WARM_SHARE = 500
"""What a mirrored repository is worth, of 1000; as much again for the factory that ran the job last."""


class Score(NamedTuple):
    """A weighted sum, with all that went into it; the total is in thousandths of weight."""

    total: int
    values: tuple[int, ...]
    """0 … 1000 for each of `PARTS`."""
    factors: tuple[int, ...]
    """The weight of each."""

    @property
    def weights(self) -> dict[str, int]:
        """Return what each part counts."""
        return dict(zip(PARTS, self.factors, strict=True))

    def __str__(self) -> str:
        """Return total and parts as one line."""
        return score_line(self.total, self.weights, self.values)


def weigh(values: Sequence[int], factors: Sequence[int]) -> int:
    """Return the weighted sum."""
    return sum(map(mul, values, factors))


def preference(place: int) -> int:
    """Return what the engine at that place of the job's preference is worth; the first is at 0."""
    return max(0, 1000 - PREFERENCE_STEP * place)


@lru_cache(maxsize=16_384)
def tie(seed: int, factory: str, engine: str) -> int:
    """Return a number that orders equal scores: arbitrary, the same for the same seed, other for another seed."""
    text = f"{seed}\0{factory}\0{engine}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def score_values(job: JobClass, standing: Standing, engine: str, *, overdue: bool) -> tuple[int, ...]:
    """Return how good that engine on that factory is for the job, one value for each of `PARTS`.

    `overdue`: the factory was passed over as often as it may be.
    """
    factory = standing.view
    return (
        preference(job.needs.engines.index(engine)),
        _preferred(job, factory),
        standing.merits.health,
        standing.load,
        standing.merits.cheapness,
        _warmth(job, factory),
        min(1000, 1000 * (len(job.needs.requirements) + 1) // (len(standing.kind.offers) + 1)),
        1000 * overdue,
    )


def _preferred(job: JobClass, factory: FactoryView) -> int:
    """Return the share of the job's preferences that the factory satisfies."""
    if not job.prefers:
        return 0
    met = sum(
        unmet(wish, factory.identity if wish.name in ("factory", "host") else factory.offers) is None
        for wish in job.prefers
    )
    return 1000 * met // len(job.prefers)


def _warmth(job: JobClass, factory: FactoryView) -> int:
    mirrored = bool(job.repository_url) and job.repository_url in factory.warm_repositories
    return WARM_SHARE * mirrored + WARM_SHARE * (job.last_factory == factory.name)
