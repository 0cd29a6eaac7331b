"""What a machine's clocks say about the time between two looks at them. *Pure.*

A process that was not running (its machine was suspended, it was stopped) believes things that were true before. The
clocks give it away: what the boot-time clock counts and the running clock does not was a suspension, what came late
beyond that was a stop. The time of day may be set to anything; that is worth telling and changes no lease.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from core.job import Message

SUSPENDED_S: Final = 1.0
"""Suspensions shorter than this are as good as none; the two clocks are not read at the same instant."""
STOPPED_S: Final = 3.0
"""A look that comes this much too late was held up; a busy machine is late too, but by less."""
JUMPED_S: Final = 2.0
"""Steps of the time of day up to this size are ordinary corrections."""


class Clocks(NamedTuple):
    """One look at the clocks, each in seconds."""

    boot_s: float
    """Since the machine began, suspensions included."""
    running_s: float
    """The same without suspensions."""
    wall_s: float
    """The time of day, since 1970."""


class Absence(Message):
    """Something that happened to the machine or the process between two looks."""

    kind: Literal["suspended", "stopped", "clock_jumped"]
    by_s: float
    """Seconds that it was away; for a jump how far, negative for one into the past."""

    def __str__(self) -> str:
        """Return it as a phrase."""
        if self.kind == "clock_jumped":
            return f"its time of day jumped {'ahead' if self.by_s > 0 else 'back'} by {abs(self.by_s):.0f} s"
        subject = "the machine was suspended" if self.kind == "suspended" else "the agent was stopped"
        return f"{subject} for {self.by_s:.0f} s"


def absences(before: Clocks, after: Clocks, planned_s: float) -> tuple[Absence, ...]:
    """Return what happened between two looks that were to be `planned_s` apart; nothing when all was well."""
    boot_s, running_s, wall_s = (now - then for then, now in zip(before, after, strict=True))
    found: list[Absence] = []
    if boot_s - running_s >= SUSPENDED_S:
        found.append(Absence(kind="suspended", by_s=boot_s - running_s))
    if running_s - planned_s >= STOPPED_S:
        found.append(Absence(kind="stopped", by_s=running_s - planned_s))
    if abs(wall_s - boot_s) >= JUMPED_S:
        found.append(Absence(kind="clock_jumped", by_s=wall_s - boot_s))
    return tuple(found)
