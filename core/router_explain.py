"""Why a job runs where it runs, or why it waits: the complete answer as a value and as lines for people. *Pure.*

Nothing is left out: every factory is in a report, with all reasons against it, and every open place has its score. The
value is stored and shown; nobody computes a reason a second time from something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import Field

from core.job import Message

RouteVerdict = Literal["granted", "not_now", "never"]


class RejectionCode(StrEnum):
    """Why a factory, or one of its stations, cannot take a job."""

    OFFLINE = "offline"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    HALTED = "halted"
    PINNED = "pinned"
    CAPABILITY = "capability"
    NOT_ATTESTED = "not_attested"
    ENGINE = "engine"
    NO_SEATS = "no_seats"
    DISK = "disk"
    MEMORY = "memory"
    FACTORY_FULL = "factory_full"
    ENGINE_UNUSABLE = "engine_unusable"
    COOLDOWN = "cooldown"
    ENGINE_LIMIT = "engine_limit"
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
    excess: int = 0
    """Of seats and limits: how many jobs there are beyond what may be."""
    until: datetime | None = None
    """Of a cooldown: when it ends by itself."""

    @property
    def permanent(self) -> bool:
        """Return whether the reason would hold on an idle fleet as well."""
        return self.code in PERMANENT


class Option(NamedTuple):
    """One row of the score table: an engine on a factory that could take the job at once, locks apart."""

    factory: str
    engine: str
    total: int
    """The score, in thousandths of weight."""
    values: tuple[int, ...]
    """Its parts, 0 … 1000, in the order of `Explanation.weights`."""


def score_line(total: int, weights: Mapping[str, int], values: Sequence[int]) -> str:
    """Return a score with its parts as one line, `142.5 = engine 60 + load 22.5`; parts without effect are left out."""
    parts = ((part, weight * value) for (part, weight), value in zip(weights.items(), values, strict=True))
    terms = [f"{part} {in_units(amount)}" for part, amount in parts if amount]
    return f"{in_units(total)} = {' + '.join(terms)}" if terms else "0"


def in_units(amount: int) -> str:
    """Return `amount` / 1000 with as many decimals as it has."""
    whole, rest = divmod(abs(amount), 1000)
    return ("-" if amount < 0 else "") + f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


class FactoryReport(Message):
    """What factories that are alike said to the job."""

    factories: tuple[str, ...]
    engines: tuple[str, ...] = ()
    """Their engines that may do the job, in its order of preference."""
    possible: bool = False
    """They could run the job if everything were online, repaired and idle."""
    rejections: tuple[Rejection, ...] = ()
    """All reasons; those with an engine only exclude that station."""


class Blocker(Message):
    """Something that other jobs hold and this one must have, wherever it runs."""

    kind: Literal["lock", "scope", "product"]
    name: str
    """Name of the lock, the repository of the claimed paths, or the product that has reached its limit."""
    held_by: str = ""
    """The other job; empty for a limit."""
    detail: str = ""

    def __str__(self) -> str:
        """Return the blocker as a phrase."""
        if self.kind == "lock":
            return f"lock {self.name} held by {self.held_by}"
        if self.kind == "product":
            return f"the limit of product {self.name}, {self.detail}"
        return f"paths of {self.name} claimed by {self.held_by} ({self.detail})"


class Step(Message):
    """One thing to do, or to wait for."""

    kind: str
    """`wait_lock`, `wait_scope`, `wait_product`, `free_seat`, `drop_capability`, `add_engine`, `enrol` …"""
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
        return f"{text} (or the same on {shortened(self.also)})"


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
    """Every factory of the fleet is in one of them; those that say the same share one."""
    weights: dict[str, int] = Field(default_factory=dict)
    """Parts of a score, with what each counts."""
    weighed_by: dict[str, str] = Field(default_factory=dict)
    """Who gave the weights that are not the fleet's: `product` or `job`, by part."""
    options: tuple[Option, ...] = ()
    """The score table, best first: every place that could take the job at once, locks apart."""
    avoided: tuple[str, ...] = ()
    """Factories that lost this job before, so that any other one with an option goes first."""
    change: Change | None = None
    """The smallest change that lets the job run; None when granted."""
    alternative: Change | None = None
    """Another way, where the smallest change asks for another job."""

    def compact_json(self) -> str:
        """Return the explanation as JSON without members that have their default."""
        return self.model_dump_json(exclude_defaults=True)

    def report(self, factory: str) -> FactoryReport | None:
        """Return what a factory said; None when the fleet had none of that name."""
        return next((report for report in self.reports if factory in report.factories), None)

    def render(self) -> list[str]:
        """Return the explanation as lines of text, most important first."""
        lines = [_headline(self), f"  may run on {' → '.join(self.engines) or 'no engine'} ({self.engine_request})"]
        if self.requires:
            lines.append(f"  needs {', '.join(self.requires)}")
        lines += [f"  blocked by {blocker}" for blocker in self.blockers]
        lines += _weight_lines(self.weights, self.weighed_by)
        for report in self.reports:
            lines += _report_lines(self, report)
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


def _weight_lines(weights: Mapping[str, int], weighed_by: Mapping[str, str]) -> list[str]:
    """Return what product and job weigh otherwise than the fleet, a line for each of them."""
    own: dict[str, list[str]] = {}
    for part, weight in weights.items():
        if part in weighed_by:
            own.setdefault(weighed_by[part], []).append(f"{part} {weight}")
    return [f"  the {who} weighs {', '.join(own[who])}" for who in ("product", "job") if who in own]


def _report_lines(explanation: Explanation, report: FactoryReport) -> list[str]:
    lines = [
        f"  {option.factory}: {option_line(explanation.weights, option, avoided=option.factory in explanation.avoided)}"
        for option in explanation.options
        if option.factory in report.factories
    ]
    return lines + [f"  {shortened(report.factories)}: {rejection_line(reason)}" for reason in report.rejections]


def option_line(weights: Mapping[str, int], option: Option, *, avoided: bool) -> str:
    """Return one row of the score table as a line for people."""
    mark = "; lost this job before, so only when no other can" if avoided else ""
    return f"✓ {option.engine}: score {score_line(option.total, weights, option.values)}{mark}"


def rejection_line(rejection: Rejection) -> str:
    """Return one reason as a line for people."""
    about = f"{rejection.engine}: " if rejection.engine else ""
    repair = f"; {rejection.repair}" if rejection.repair else ""
    return f"✗ {rejection.code}: {about}{rejection.observed}, needs {rejection.required}{repair}"


def shortened(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
