"""What waits for what, without a ledger."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dag import Cycle, WaitsFor, edge_state, outcome_of, refuse_cycle
from core.job import Stage


@pytest.mark.parametrize(
    ("stage", "shipped", "testing"),
    [
        (Stage.QUEUED, "open", "open"),
        (Stage.ASSIGNED, "open", "open"),
        (Stage.BUILDING, "open", "open"),
        (Stage.REVIEW, None, None),
        (Stage.TESTING, "open", "done"),
        (Stage.SHIPPED, "done", "done"),
        (Stage.FAILED, "failed", "failed"),
        (Stage.DEAD_LETTER, "failed", "failed"),
        (Stage.CANCELLED, "failed", "failed"),
    ],
)
def test_edge_state_of_each_stage(stage: Stage, shipped: str | None, testing: str | None) -> None:
    """Every stage of the job that is waited for says what becomes of the wait."""
    assert (edge_state(stage, "shipped"), edge_state(stage, "testing")) == (shipped, testing)


@pytest.mark.parametrize(
    ("any_open", "any_failed", "outcome"),
    [(False, False, "ready"), (True, False, "waiting"), (False, True, "failed"), (True, True, "failed")],
)
def test_outcome_of_several_edges(any_open: bool, any_failed: bool, outcome: str) -> None:
    """What failed is told before what is only not done yet."""
    assert outcome_of(any_open=any_open, any_failed=any_failed) == outcome


@pytest.mark.parametrize(
    ("waits", "jobs"),
    [
        ([WaitsFor("a", "a")], {"a"}),
        ([WaitsFor("a", "a", gate="ship")], {"a"}),
        ([WaitsFor("a", "b"), WaitsFor("b", "a")], {"a", "b"}),
        ([WaitsFor("a", "b"), WaitsFor("b", "c", "testing"), WaitsFor("c", "a")], {"a", "b", "c"}),
        ([WaitsFor("whole", "part", gate="ship"), WaitsFor("part", "whole")], {"part", "whole"}),
    ],
)
def test_cycle_is_named_all_the_way_round(waits: list[WaitsFor], jobs: set[str]) -> None:
    """A cycle begins and ends with the same job, and each waits for the one behind it."""
    with pytest.raises(Cycle) as caught:
        refuse_cycle([*waits, WaitsFor("x", "a"), WaitsFor("y", "x")])
    named = caught.value.jobs
    assert (named[0], set(named), len(named)) == (named[-1], jobs, len(jobs) + 1)
    known = {(one.job_id, one.waits_for) for one in waits}
    assert all(pair in known for pair in pairwise(named))


def test_child_may_wait_for_the_tested_candidate_of_its_whole() -> None:
    """Only the ship of a decomposed job waits for its children, so that they may begin once it was tested."""
    refuse_cycle([WaitsFor("whole", "part", gate="ship"), WaitsFor("part", "whole", "testing")])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_refuse_cycle_finds_one_exactly_when_there_is_one(pairs: list[tuple[int, int]]) -> None:
    """Compared with the plain definition: some job reaches itself."""
    reach = {(one, other) for one, other in pairs}
    while more := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
        reach |= more
    waits = [WaitsFor(f"j{one}", f"j{other}") for one, other in pairs]
    if any(one == other for one, other in reach):
        with pytest.raises(Cycle):
            refuse_cycle(waits)
    else:
        refuse_cycle(waits)
