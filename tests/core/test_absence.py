"""What clocks tell about a machine that was away."""

from __future__ import annotations

import pytest

from core.absence import Absence, Clocks, absences

BEFORE = Clocks(boot_s=1000.0, running_s=900.0, wall_s=1_700_000_000.0)


def after(*, awake_s: float = 1.0, suspended_s: float = 0.0, jump_s: float = 0.0) -> Clocks:
    """Return the clocks after that much waking time, suspension, and setting of the time of day."""
    boot_s = awake_s + suspended_s
    return Clocks(BEFORE.boot_s + boot_s, BEFORE.running_s + awake_s, BEFORE.wall_s + boot_s + jump_s)


@pytest.mark.req("F4")
@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ({}, []),
        ({"awake_s": 3.0, "jump_s": 1.0}, []),
        ({"suspended_s": 312.0}, ["the machine was suspended for 312 s"]),
        ({"awake_s": 61.0}, ["the agent was stopped for 60 s"]),
        ({"jump_s": 3600.0}, ["its time of day jumped ahead by 3600 s"]),
        ({"jump_s": -90.0}, ["its time of day jumped back by 90 s"]),
        (
            {"suspended_s": 8.0, "awake_s": 21.0, "jump_s": 5.0},
            [
                "the machine was suspended for 8 s",
                "the agent was stopped for 20 s",
                "its time of day jumped ahead by 5 s",
            ],
        ),
    ],
)
def test_clocks_give_an_absence_away(passed: dict[str, float], said: list[str]) -> None:
    """Each of the three is told from the others, also when they come together; small differences are nothing."""
    assert [str(absence) for absence in absences(BEFORE, after(**passed), 1.0)] == said


def test_absence_says_by_how_much() -> None:
    """The number is there for machines, too."""
    assert absences(BEFORE, after(jump_s=-90.0), 1.0) == (Absence(kind="clock_jumped", by_s=-90.0),)
