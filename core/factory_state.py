"""What a factory is doing: idle, assigned, working, blocked or offline, worked out from what the ledger knows. *Pure.*

`doing` is the whole machine: nobody stores what a factory does, so nothing can disagree with the leases. `TRANSITIONS`
says how one fact after the other may change it: work begins only where it was assigned.
"""

from __future__ import annotations

from enum import StrEnum

from core.job import Message


class Doing(StrEnum):
    """What a factory is doing."""

    IDLE = "idle"
    """It could take a job."""
    ASSIGNED = "assigned"
    """It holds a grant; no engine has started yet."""
    WORKING = "working"
    """At least one engine, or a gate after it, is at work."""
    BLOCKED = "blocked"
    """It does nothing and can take nothing, for a reason that is named."""
    OFFLINE = "offline"
    """Its agent has left, or was not heard of."""


TRANSITIONS: dict[Doing, tuple[Doing, ...]] = {
    Doing.IDLE: (Doing.ASSIGNED, Doing.BLOCKED, Doing.OFFLINE),
    Doing.ASSIGNED: (Doing.WORKING, Doing.IDLE, Doing.BLOCKED, Doing.OFFLINE),
    Doing.WORKING: (Doing.IDLE, Doing.ASSIGNED, Doing.BLOCKED, Doing.OFFLINE),
    Doing.BLOCKED: (Doing.IDLE, Doing.ASSIGNED, Doing.OFFLINE),
    Doing.OFFLINE: (Doing.IDLE, Doing.ASSIGNED, Doing.WORKING, Doing.BLOCKED),
}
"""Every change that one event can bring about. A factory may come back to what it was working on."""


class FactoryFacts(Message):
    """What the ledger knows of a factory."""

    online: bool = True
    """Its agent was heard of, and has not left."""
    granted: int = 0
    """Attempts that hold a seat and have not started."""
    started: int = 0
    """Attempts that hold a seat and have started."""
    obstacles: tuple[str, ...] = ()
    """Everything that keeps it from taking any further job, as phrases: `draining`, `no engine works` …"""


class FactoryActivity(Message):
    """What a factory is doing, and why it can take nothing when that is so."""

    doing: Doing
    reason: str = ""


def doing(facts: FactoryFacts) -> FactoryActivity:
    """Return what a factory with these facts is doing; one that still works may be named obstacles too."""
    reason = "; ".join(facts.obstacles)
    if not facts.online:
        return FactoryActivity(doing=Doing.OFFLINE)
    if facts.started:
        return FactoryActivity(doing=Doing.WORKING, reason=reason)
    if facts.granted:
        return FactoryActivity(doing=Doing.ASSIGNED, reason=reason)
    if facts.obstacles:
        return FactoryActivity(doing=Doing.BLOCKED, reason=reason)
    return FactoryActivity(doing=Doing.IDLE)


def state_diagram() -> str:
    """Return the transitions as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> offline"]
    lines += [f"    {start} --> {finish}" for start, finishes in TRANSITIONS.items() for finish in finishes]
    return "\n".join(lines) + "\n"
