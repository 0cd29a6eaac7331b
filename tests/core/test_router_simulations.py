"""Fleets that live for a while: shares, starvation and preemption as the judges of `router_simulations` see them.

The same at length: `gf bench fairness`.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, islice

import pytest

from tests.core.router_simulations import adversaries, preempting_fleets, weighted_dispatches


@pytest.mark.req("R4", "R9")
def test_fair_shares_hold_over_time_whoever_floods() -> None:
    """Grants per share of any two products differ by no more than one step of each, though one floods the line."""
    got = weighted_dispatches(products=32, dispatches=8_000, flood=500, machines=4, seats=5, freed=5)

    had = {product: Fraction(got.grants[product], share) for product, share in got.shares.items()}
    for one, other in combinations(had, 2):
        steps = Fraction(1, got.shares[one]) + Fraction(1, got.shares[other])
        assert abs(had[one] - had[other]) <= steps, f"{one} and {other}"
    assert got.jain >= 0.99


@pytest.mark.req("R4", "R9")
def test_starvation_bound_holds_against_an_adversary() -> None:
    """Whatever he does, no job is overtaken beyond its bound for each seat; and he does come as far as the bound."""
    played = list(islice(adversaries(seed=1, moves=40), 30))

    assert sum(adversary.overtakings for adversary in played) > 100
    assert max(adversary.worst for adversary in played) == 1.0


@pytest.mark.req("R6", "R9")
def test_preemption_comes_to_rest_and_pauses_nobody_in_vain() -> None:
    """Between two disturbances every step brings the fleet nearer to rest; nobody is paused beyond the bound."""
    fleets = list(islice(preempting_fleets(seed=1, disturbances=25), 40))

    assert sum(fleet.preemptions for fleet in fleets) > 20
    assert [fleet.cycles for fleet in fleets] == [0] * 40
    assert sum(fleet.in_vain for fleet in fleets) == 0
