"""A workflow task that is done again and meets more, or less, than the first time. *Pure.*

What a task wrote into the ledger stays there when its worker dies, while Temporal forgets the task: the ledger is
ahead of the history. The task is repeated with signals that came meanwhile, or without an update that Temporal forgot
too, and may decide otherwise. Whoever wrote first wins, for everybody outside has seen that: the workflow takes over
the state in which the ledger's newest record left it, and decides on what is left of its events from there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from core.job import Stage
from core.job_events import (
    Command,
    Event,
    Finish,
    Interrupt,
    JobState,
    ResolveParents,
    Route,
    Started,
    StopStep,
    step_command,
)

_FIXED = {"spec", "policy"}
"""What never changes within a life."""


def remembered(state: JobState) -> dict[str, Any]:
    """Return, as JSON, what changes of the state."""
    return state.model_dump(mode="json", exclude=_FIXED)


def recalled(state: JobState, known: dict[str, Any]) -> JobState:
    """Return the state of which `remembered` kept `known`, for the same job as `state`."""
    return JobState.model_validate({**known, "spec": state.spec, "policy": state.policy})


def fingerprint(event: Event) -> str:
    """Return what tells an event from any other."""
    content = f"{type(event).__name__} {event.model_dump_json()}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def split_taken(events: Iterable[Event], taken: Iterable[str]) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """Return which of the events the first task had taken in, and which are still to be decided on, both in order.

    The start of the life is behind it in any case. To interrupt a step changes no state, so it is done again.
    """
    known = Counter(taken)
    done: list[Event] = []
    left: list[Event] = []
    for event in events:
        mark = fingerprint(event)
        if isinstance(event, Started) or (known[mark] and not isinstance(event, Interrupt)):
            known[mark] -= 1
            done.append(event)
        else:
            left.append(event)
    return tuple(done), tuple(left)


def under_way(state: JobState) -> tuple[Command, ...]:
    """Return what runs, or is asked, for a job in that state; each of it may be begun although it runs already."""
    if state.ended:
        return (Finish(),)
    if state.step:
        return (step_command(state), *((StopStep(wait=True),) if state.stopping else ()))
    if state.stage == Stage.QUEUED and not state.paused and state.wake_at is None:
        return (ResolveParents() if state.spec.deps else Route(),)
    return ()
