"""The stage machine: what is legal, what is refused, what the docs draw."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from core.errors import IllegalTransition
from core.job import Stage
from core.lifecycle import ENDED, TERMINAL, TRANSITIONS, check_transition, state_diagram

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("start", "finish"), list(product(Stage, Stage)))
def test_transition_is_legal_exactly_when_the_table_has_it(start: Stage, finish: Stage) -> None:
    """An illegal change names both ends; a legal one passes."""
    if finish in TRANSITIONS[start]:
        check_transition(start, finish)
        return
    with pytest.raises(IllegalTransition) as caught:
        check_transition(start, finish)
    assert str(start) in caught.value.message
    assert str(finish) in caught.value.message


def test_every_stage_is_reachable_and_terminal_stages_have_no_way_out() -> None:
    """From queued every stage can be reached; shipped and cancelled are left by nothing."""
    seen, todo = {Stage.QUEUED}, [Stage.QUEUED]
    while todo:
        for stage in TRANSITIONS[todo.pop()]:
            if stage not in seen:
                seen.add(stage)
                todo.append(stage)
    assert seen == set(Stage)
    assert all(TRANSITIONS[stage] == () for stage in TERMINAL)
    assert all(TRANSITIONS[stage] == (Stage.QUEUED,) for stage in ENDED if stage not in TERMINAL)


def test_the_diagram_in_the_docs_is_drawn_from_the_table() -> None:
    """`docs/reference/lifecycle.md` contains exactly the diagram that the data gives."""
    assert state_diagram() in (ROOT / "docs/reference/lifecycle.md").read_text()
