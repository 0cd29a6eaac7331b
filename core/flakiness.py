"""Whether one factory spoils work that others do well: the rule behind automatic quarantine. *Pure.*

A factory is flaky when, within a window,
  * it spoilt at least `failures` times: distinct jobs, and what was lost at the same time (one dead agent, three seats)
    counts once;
  * it spoilt at least as many jobs as it brought through;
  * the other factories together brought more jobs through than they spoilt, so that it is the machine, not the world.

A job that another factory spoilt as well says nothing about this one. An engine's own error may be the job's fault or
the provider's: it counts only once the same job got through elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from pydantic import Field

from core.job import FailureKind, Message

OF_THE_MACHINE: Final = frozenset(
    {FailureKind.LEASE_LOST, FailureKind.CRASH, FailureKind.WORKSPACE, FailureKind.BAD_RESULT}
)
"""Ends of an attempt that its factory answers for."""
AMBIGUOUS: Final = frozenset({FailureKind.ENGINE_ERROR})
"""Ends that count only when the same job got through on another factory."""
SPOILT: Final = OF_THE_MACHINE | AMBIGUOUS
SUCCEEDED: Final = "succeeded"
ONE_INCIDENT: Final = timedelta(seconds=30)
"""Leases that are lost within this time of the first one have one cause."""


class Ending(Message):
    """How one attempt ended."""

    job_id: str
    epoch: int
    factory: str
    engine: str
    outcome: str
    """`succeeded` or a FailureKind."""
    message: str = ""
    ended_at: datetime


class Tally(Message):
    """Distinct jobs that the other factories brought through and spoilt within the window."""

    succeeded: int = 0
    spoilt: int = 0


class FlakyPolicy(Message):
    """When a factory is taken for flaky."""

    failures: int = Field(default=3, ge=0)
    """Incidents; 0: never."""
    window_s: float = Field(default=3600.0, gt=0)


class FlakyEvidence(Message):
    """Why a factory was taken for flaky."""

    spoilt: tuple[Ending, ...]
    """One for each incident, oldest first."""
    succeeded: int
    """Jobs that it brought through within the window."""
    elsewhere: Tally
    window_s: float

    def __str__(self) -> str:
        """Return the evidence as one sentence."""
        kinds = ", ".join(sorted({ending.outcome for ending in self.spoilt}))
        return (
            f"it spoilt {len(self.spoilt)} and brought {self.succeeded} through within {self.window_s:g} s ({kinds}), "
            f"while the others brought {self.elsewhere.succeeded} through and spoilt {self.elsewhere.spoilt}"
        )


def judge_factory(
    factory: str, endings: Sequence[Ending], elsewhere: Tally, policy: FlakyPolicy
) -> FlakyEvidence | None:
    """Return the evidence against a factory; None when there is not enough.

    `endings` are those on the factory within the window, and those of the same jobs on other factories.
    """
    here = [ending for ending in endings if ending.factory == factory]
    others = [ending for ending in endings if ending.factory != factory]
    succeeded = len({ending.job_id for ending in here if ending.outcome == SUCCEEDED})
    spoilt = tuple(_incidents(_against(here, others)))
    if not policy.failures or len(spoilt) < policy.failures or len(spoilt) < succeeded:
        return None
    if elsewhere.succeeded <= elsewhere.spoilt:
        return None
    return FlakyEvidence(spoilt=spoilt, succeeded=succeeded, elsewhere=elsewhere, window_s=policy.window_s)


def _against(here: Iterable[Ending], others: Sequence[Ending]) -> list[Ending]:
    """Return the first spoilt attempt of each job that speaks against the factory, oldest first."""
    spoilt_elsewhere = {ending.job_id for ending in others if ending.outcome in SPOILT}
    got_through = {ending.job_id for ending in others if ending.outcome == SUCCEEDED}
    found: dict[str, Ending] = {}
    for ending in sorted(here, key=lambda ending: (ending.ended_at, ending.job_id, ending.epoch, ending.outcome)):
        proven = ending.outcome in OF_THE_MACHINE or (ending.outcome in AMBIGUOUS and ending.job_id in got_through)
        if proven and ending.job_id not in spoilt_elsewhere:
            found.setdefault(ending.job_id, ending)
    return list(found.values())


def _incidents(against: Iterable[Ending]) -> Iterable[Ending]:
    """Yield the endings without the leases that were lost together with an earlier one."""
    lost_until: datetime | None = None
    for ending in against:
        if ending.outcome == FailureKind.LEASE_LOST:
            if lost_until is not None and ending.ended_at <= lost_until:
                continue
            lost_until = ending.ended_at + ONE_INCIDENT
        yield ending
