"""Why a job runs where it runs, or why it waits: the complete answer as a value and as lines for people. *Pure.*

Nothing is left out: every factory has its report, with all reasons against it. The value is stored and shown; nobody
computes a reason a second time from something else.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from core.job import Message

RouteVerdict = Literal["granted", "not_now", "never"]


class RejectionCode(StrEnum):
    """Why a factory, or one of its stations, cannot take a job."""

    OFFLINE = "offline"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    PINNED = "pinned"
    CAPABILITY = "capability"
    ENGINE = "engine"
    NO_SEATS = "no_seats"
    DISK = "disk"
    FACTORY_FULL = "factory_full"
    ENGINE_UNUSABLE = "engine_unusable"
    STATION_FULL = "station_full"


PERMANENT = (RejectionCode.PINNED, RejectionCode.CAPABILITY, RejectionCode.ENGINE, RejectionCode.NO_SEATS)
"""Reasons that hold even when the whole fleet is online, repaired and idle."""


class Rejection(Message):
    """One reason against one factory, or against one engine there."""

    code: str
    """A `RejectionCode`; kept as text, so that an older version can read a newer one's."""
    observed: str
    required: str
    engine: str = ""
    """The station that this is about; empty: the factory as a whole."""
    repair: str = ""
    """What an operator can do about it there."""

    @property
    def permanent(self) -> bool:
        """Return whether the reason would hold on an idle fleet as well."""
        return self.code in PERMANENT


class ScorePart(NamedTuple):
    """One part of a score; it adds `value * weight` to the total."""

    name: str
    value: int
    """0 … 1000."""
    weight: int


class Score(Message):
    """How good a place is for a job; the total is in thousandths of weight."""

    total: int
    parts: tuple[ScorePart, ...]

    def __str__(self) -> str:
        """Return total and parts as one line: `142.5 = engine 60 + load 22.5 …`; parts without effect are left out."""
        terms = [f"{part.name} {_thousandths(part.value * part.weight)}" for part in self.parts if part.value]
        return f"{_thousandths(self.total)} = {' + '.join(terms)}" if terms else "0"


class Option(Message):
    """An engine on a factory that could take the job at once, locks apart."""

    engine: str
    score: Score


class FactoryReport(Message):
    """Everything about one factory as a place for one job."""

    factory: str
    possible: bool = False
    """It could run the job if everything were online, repaired and idle."""
    rejections: tuple[Rejection, ...] = ()
    """All reasons; those with an engine only exclude that station."""
    options: tuple[Option, ...] = ()
    """Engines that could run the job there now, best first."""
    avoided: bool = False
    """It lost this job before, so that any other factory with an option goes first."""


class Blocker(Message):
    """Something that another job holds and this one must have."""

    kind: Literal["lock", "scope"]
    name: str
    """Name of the lock, or the repository of the claimed paths."""
    held_by: str
    detail: str = ""

    def __str__(self) -> str:
        """Return the blocker as a phrase."""
        if self.kind == "lock":
            return f"lock {self.name} held by {self.held_by}"
        return f"paths of {self.name} claimed by {self.held_by} ({self.detail})"


class Step(Message):
    """One thing to do, or to wait for."""

    kind: str
    """`wait_lock`, `wait_scope`, `free_seat`, `drop_capability`, `add_engine`, `enrol` …"""
    text: str
    factory: str = ""
    engine: str = ""
    subject: str = ""
    """The lock, the repository, or the requirement that the step is about."""
    held_by: str = ""
    """The job to wait for."""


class Change(Message):
    """Steps that together let the job run, once no other job goes before it."""

    steps: tuple[Step, ...]
    also: tuple[str, ...] = ()
    """Further factories where the same kind of steps would do."""

    def __str__(self) -> str:
        """Return the steps as one sentence part."""
        text = " and ".join(step.text for step in self.steps)
        if not self.also:
            return text
        more = f" and {len(self.also) - 3} more" if len(self.also) > 3 else ""
        return f"{text} (or the same on {', '.join(self.also[:3])}{more})"


class Explanation(Message):
    """The router's complete answer about one job."""

    job_id: str
    verdict: RouteVerdict
    """`never`: no factory of this fleet could take it even if everything were online, repaired and idle."""
    requires: tuple[str, ...] = ()
    """All hard requirements on capabilities and host."""
    engine_request: str = ""
    """`engine codex`, `engine-class agentic-coder`."""
    engines: tuple[str, ...] = ()
    """Engines that may do the job, in order of preference: the fallback chain."""
    factory: str = ""
    """Where it was granted; empty while it waits."""
    engine: str = ""
    queued_at: datetime | None = None
    position: int = 0
    """Place in the line from 1; 0 when granted."""
    waiting: int = 0
    """Jobs in the line."""
    blockers: tuple[Blocker, ...] = ()
    reports: tuple[FactoryReport, ...] = ()
    """One for each factory of the fleet, by name."""
    change: Change | None = None
    """The smallest change that lets the job run; None when granted."""
    alternative: Change | None = None
    """Another way, where the smallest change asks for another job."""

    def compact_json(self) -> str:
        """Return the explanation as JSON without members that have their default."""
        return self.model_dump_json(exclude_defaults=True)

    def render(self) -> list[str]:
        """Return the explanation as lines of text, most important first."""
        lines = [_headline(self), f"  may run on {' → '.join(self.engines) or 'no engine'} ({self.engine_request})"]
        if self.requires:
            lines.append(f"  needs {', '.join(self.requires)}")
        lines += [f"  blocked by {blocker}" for blocker in self.blockers]
        for report in self.reports:
            lines += _report_lines(report)
        if self.change is not None:
            lines.append(f"  smallest change: {self.change}")
        if self.alternative is not None:
            lines.append(f"  or: {self.alternative}")
        return lines


def _headline(explanation: Explanation) -> str:
    if explanation.verdict == "granted":
        return f"{explanation.job_id} runs {explanation.engine} on {explanation.factory}"
    place = f"{explanation.position} of {explanation.waiting} in line"
    if explanation.verdict == "never":
        return f"{explanation.job_id} can never run on this fleet as it is ({place})"
    return f"{explanation.job_id} waits: not now ({place})"


def _report_lines(report: FactoryReport) -> list[str]:
    avoided = "; lost this job before, so only when no other can" if report.avoided else ""
    marks = [f"✓ {option.engine}: score {option.score}{avoided}" for option in report.options]
    marks += [f"✗ {_rejection_line(rejection)}" for rejection in report.rejections]
    return [f"  {report.factory}: {mark}" for mark in marks]


def _rejection_line(rejection: Rejection) -> str:
    about = f"{rejection.engine}: " if rejection.engine else ""
    repair = f"; {rejection.repair}" if rejection.repair else ""
    return f"{rejection.code}: {about}{rejection.observed}, needs {rejection.required}{repair}"


def _thousandths(amount: int) -> str:
    """Return `amount` / 1000 with as many decimals as it has."""
    whole, rest = divmod(amount, 1000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")
