"""What a factory is doing, worked out from facts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.factory_state import TRANSITIONS, Doing, FactoryActivity, FactoryFacts, doing, state_diagram

ROOT = Path(__file__).resolve().parents[2]
FACTS = st.builds(
    FactoryFacts,
    online=st.booleans(),
    granted=st.integers(0, 3),
    started=st.integers(0, 3),
    obstacles=st.lists(st.sampled_from(["draining", "no engine works"]), max_size=2, unique=True).map(tuple),
)


def changed(facts: FactoryFacts, **changes: object) -> FactoryFacts:
    """Return the facts after something happened."""
    return facts.model_copy(update=changes)


EVENTS: dict[str, Callable[[FactoryFacts], FactoryFacts | None]] = {
    "granted": lambda f: changed(f, granted=f.granted + 1),
    "started": lambda f: changed(f, granted=f.granted - 1, started=f.started + 1) if f.granted else None,
    "taken back": lambda f: changed(f, granted=f.granted - 1) if f.granted else None,
    "ended": lambda f: changed(f, started=f.started - 1) if f.started else None,
    "silent": lambda f: changed(f, online=False),
    "heard": lambda f: changed(f, online=True),
    "obstructed": lambda f: changed(f, obstacles=("draining",)),
    "freed": lambda f: changed(f, obstacles=()),
}
"""Everything that can happen, each with what it changes; None: it cannot happen now."""


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (FactoryFacts(), Doing.IDLE),
        (FactoryFacts(granted=1), Doing.ASSIGNED),
        (FactoryFacts(granted=1, started=2), Doing.WORKING),
        (FactoryFacts(started=1, obstacles=("draining",)), Doing.WORKING),
        (FactoryFacts(granted=1, obstacles=("draining",)), Doing.ASSIGNED),
        (FactoryFacts(obstacles=("draining",)), Doing.BLOCKED),
        (FactoryFacts(online=False, started=1, obstacles=("draining",)), Doing.OFFLINE),
    ],
)
def test_doing_follows_from_the_facts(facts: FactoryFacts, expected: Doing) -> None:
    """Silence goes before work, work before obstacles."""
    assert doing(facts).doing == expected


@given(FACTS, st.sampled_from(sorted(EVENTS)))
def test_every_change_is_in_the_table(facts: FactoryFacts, event: str) -> None:
    """One event leads from a state to itself or along an arrow of the table; nothing works before it was assigned."""
    after = EVENTS[event](facts)
    if after is not None:
        start, finish = doing(facts).doing, doing(after).doing
        assert start == finish or finish in TRANSITIONS[start]


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=30))
def test_every_story_stays_in_the_table(story: list[str]) -> None:
    """From a first registration on, whatever happens."""
    facts = FactoryFacts(online=False)
    for event in story:
        after = EVENTS[event](facts)
        if after is not None:
            start, finish = doing(facts).doing, doing(after).doing
            assert start == finish or finish in TRANSITIONS[start]
            facts = after


def test_every_arrow_of_the_table_can_happen() -> None:
    """The table promises nothing that no event brings about."""
    seen: set[tuple[Doing, Doing]] = set()
    for online in (True, False):
        for granted in range(2):
            for started in range(2):
                for obstacles in ((), ("draining",)):
                    facts = FactoryFacts(online=online, granted=granted, started=started, obstacles=obstacles)
                    happened = (event(facts) for event in EVENTS.values())
                    seen |= {(doing(facts).doing, doing(after).doing) for after in happened if after is not None}
    assert {(start, finish) for start, finishes in TRANSITIONS.items() for finish in finishes} == {
        pair for pair in seen if pair[0] != pair[1]
    }


def test_obstacles_are_named_beside_the_work() -> None:
    """A draining factory that still works says both."""
    found = doing(FactoryFacts(started=1, obstacles=("draining", "no engine works")))
    assert found == FactoryActivity(doing=Doing.WORKING, reason="draining; no engine works")


def test_the_diagram_in_the_docs_is_drawn_from_the_table() -> None:
    """The picture shows what the code does."""
    assert state_diagram() in (ROOT / "docs/operations/factories.md").read_text()
