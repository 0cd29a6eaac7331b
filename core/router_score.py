"""How good a place a factory is for a job, in integers. *Pure.*

Each part is a whole number from 0 to 1000; the score is the weighted sum. Shares are cut to thousandths before anything
is added, so that no rounding differs between two machines.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal

from core.capability import unmet
from core.router_capacity import Seats
from core.router_explain import Score, ScorePart
from core.router_snapshot import FactoryView, JobClass, Weights

PREFERENCE_STEP = 200
"""What each further place in the engine preference costs, of 1000."""
WARM_SHARE = 500
"""What a mirrored repository is worth, of 1000; as much again for the factory that ran the job last."""
DEAREST_COST_CLASS = 9


def score(job: JobClass, factory: FactoryView, engine: str, seats: Seats, weights: Weights) -> Score:
    """Return how good that engine on that factory is for the job, given the seats that are free now.

    Only `load` changes while a plan is made, and only downwards: a score that was computed earlier is an upper bound.
    """
    parts = (
        ScorePart("engine", max(0, 1000 - PREFERENCE_STEP * job.engines.index(engine)), weights.engine),
        ScorePart("prefers", _preferred(job, factory), weights.prefers),
        ScorePart("health", _thousandths(factory.health), weights.health),
        ScorePart("load", _freedom(factory, seats), weights.load),
        ScorePart("cost", _cheapness(factory), weights.cost),
        ScorePart("warm", _warmth(job, factory), weights.warm),
        ScorePart("fit", _fit(job, factory), weights.fit),
    )
    return Score(total=sum(part.value * part.weight for part in parts), parts=parts)


def tie_break(seed: int, factory: str, engine: str) -> int:
    """Return a number that orders equal scores: arbitrary, the same for the same seed, other for another seed."""
    digest = hashlib.blake2b(f"{seed}\0{factory}\0{engine}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _preferred(job: JobClass, factory: FactoryView) -> int:
    """Return the share of the job's preferences that the factory satisfies."""
    if not job.prefers:
        return 0
    met = sum(
        unmet(wish, factory.identity if wish.name in ("factory", "host") else factory.offers) is None
        for wish in job.prefers
    )
    return 1000 * met // len(job.prefers)


def _freedom(factory: FactoryView, seats: Seats) -> int:
    """Return the mean of free seats and idle processors."""
    free = 1000 * seats.at_factory(factory.name) // max(1, factory.seats)
    return (free + 1000 - _thousandths(factory.load)) // 2


def _cheapness(factory: FactoryView) -> int:
    return 1000 * (DEAREST_COST_CLASS - min(factory.cost_class, DEAREST_COST_CLASS)) // DEAREST_COST_CLASS


def _warmth(job: JobClass, factory: FactoryView) -> int:
    mirrored = bool(job.repository_url) and job.repository_url in factory.warm_repositories
    return WARM_SHARE * mirrored + WARM_SHARE * (job.last_factory == factory.name)


def _fit(job: JobClass, factory: FactoryView) -> int:
    """Return the share of the factory's offers that the job asks for: rare tools stay free for those who need them."""
    return min(1000, 1000 * (len(job.requirements) + 1) // (len(factory.offers) + 1))


def _thousandths(share: Decimal) -> int:
    return int(min(max(share, Decimal(0)), Decimal(1)) * 1000)
