"""Which work a halt covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.router import plan
from core.switch import Halt, HaltScope, SwitchState, covering, without_halted
from tests.core.random_fleets import ENGINES, PRODUCTS, Dice, any_fleet
from tests.core.random_fleets import NAMES as NAMES_OF_FACTORIES

NAMES = st.sampled_from(["shop", "otter", "codex", ""])
SUBJECTS: dict[str, HaltScope] = {"shop": "product", "otter": "factory", "codex": "engine"}
HERE = {"product_id": "shop", "factory": "otter", "engine": "codex"}
ELSEWHERE = {"product_id": "web", "factory": "heron", "engine": "claude"}


@pytest.mark.parametrize(("name", "scope"), SUBJECTS.items())
def test_halt_covers_exactly_what_it_names(name: str, scope: HaltScope) -> None:
    """One product, factory or engine is halted, whatever the other two are."""
    halt = Halt(scope=scope, name=name)
    other = {"product": "product_id"}.get(scope, scope)
    assert halt.covers(**HERE)
    assert halt.covers(**(ELSEWHERE | {other: name}))
    assert not halt.covers(**(HERE | {other: "another"}))


@given(product_id=NAMES, factory=NAMES, engine=NAMES)
def test_halt_of_the_fleet_covers_everything(product_id: str, factory: str, engine: str) -> None:
    """There is no work that a halt of the fleet leaves alone."""
    assert Halt().covers(product_id=product_id, factory=factory, engine=engine)


@given(st.lists(st.sampled_from(sorted(SUBJECTS)), unique=True), NAMES, NAMES, NAMES)
def test_work_goes_on_exactly_when_no_halt_covers_it(
    halted: list[str], product_id: str, factory: str, engine: str
) -> None:
    """`covering` finds a halt if and only if one of the three names is halted in its own scope."""
    halts = [Halt(epoch=number, scope=SUBJECTS[name], name=name) for number, name in enumerate(halted, 1)]
    found = covering(halts, product_id=product_id, factory=factory, engine=engine)
    names = {"product": product_id, "factory": factory, "engine": engine}
    assert (found is not None) == any(names[SUBJECTS[name]] == name for name in halted)
    assert found is None or found in halts


def test_factory_is_told_of_everything_but_other_factories() -> None:
    """The state for one factory keeps the halts that its work may meet, and the kill epoch."""
    halts = (
        Halt(epoch=1),
        Halt(epoch=2, scope="product", name="shop"),
        Halt(epoch=3, scope="factory", name="otter"),
        Halt(epoch=4, scope="factory", name="heron"),
        Halt(epoch=5, scope="engine", name="codex"),
    )
    told = SwitchState(epoch=7, halts=halts).concerning("otter")
    assert told.epoch == 7
    assert [halt.epoch for halt in told.halts] == [1, 2, 3, 5]


def test_halt_reads_as_a_phrase() -> None:
    """Who halted what, and why, as far as it is known."""
    assert str(Halt(actor="ada", reason="bad prompt")) == "the fleet was halted by ada: bad prompt"
    assert str(Halt(scope="engine", name="codex")) == "engine codex was halted"


@given(st.integers(0, 10**6), st.sets(st.sampled_from(["fleet", *SUBJECTS.values()])))
def test_plan_without_halted_work_grants_only_what_no_halt_covers(seed: int, scopes: set[HaltScope]) -> None:
    """Whatever the fleet: the plan that admission gets to see has nothing in it that admission would refuse."""
    snapshot, dice = any_fleet(seed), Dice(seed)
    names: dict[HaltScope, tuple[str, ...]] = {"product": PRODUCTS, "factory": NAMES_OF_FACTORIES, "engine": ENGINES}
    halts = [Halt(scope=scope, name=dice.choice(names.get(scope, ("",)))) for scope in sorted(scopes)]
    products = {job.job_id: job.product_id for job in snapshot.jobs}
    for grant in plan(without_halted(snapshot, halts)).grants:
        at = {"factory": grant.factory, "engine": grant.engine}
        assert covering(halts, product_id=products[grant.job_id], **at) is None
