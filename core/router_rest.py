"""Until when a job sleeps, because all engines that could do it rest. *Pure.*"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from core.router_explain import Rejection, RejectionCode, shortened
from core.router_fleet import Kinds
from core.router_match import Answer, Answers, as_clock
from core.router_policy import Limits
from core.router_snapshot import FactoryView, ReadyJob

_PASSING = (RejectionCode.STATION_FULL, RejectionCode.FACTORY_FULL, RejectionCode.COOLDOWN)
"""Reasons that end by themselves."""


class Rest(NamedTuple):
    """Nothing that could do the job may be asked now."""

    until: datetime
    """When the first place may be asked again."""
    message: str
    """Every place that rests, with its reason."""


class _Place(NamedTuple):
    until: datetime
    factory: str
    engine: str
    reason: str

    def __str__(self) -> str:
        return f"{self.engine} on {self.factory} until {as_clock(self.until)} ({self.reason})"


def rest_of(job: ReadyJob, factories: Iterable[FactoryView], limits: Limits) -> Rest | None:
    """Return until when the job has to sleep; None when a place that it could have is only taken, or none rests."""
    answers = Answers(job.job_class.needs, ())
    places: list[_Place] = []
    for standing in Kinds(limits).standings(factories).values():
        answer = answers.of(standing)
        if answer.able:
            return None
        places += _resting(standing.name, answer)
    if not places:
        return None
    places.sort()
    listed = shortened([str(place) for place in places])
    return Rest(places[0].until, f"every engine that could do it rests: {listed}")


def _resting(factory: str, answer: Answer) -> Iterator[_Place]:
    """Yield the places at which nothing but a cooldown is in the way, seats apart."""
    for engine in answer.engines:
        reasons = [reason for reason in answer.rejections if reason.engine in ("", engine)]
        cooldown = next((reason for reason in reasons if reason.until is not None), None)
        if cooldown is not None and all(_passes(reason) for reason in reasons):
            assert cooldown.until is not None
            yield _Place(cooldown.until, factory, engine, cooldown.observed)


def _passes(reason: Rejection) -> bool:
    return reason.code in _PASSING
