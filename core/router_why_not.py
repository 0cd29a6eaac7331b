"""Why a job does not run on one certain factory. *Pure.*"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.job import Message
from core.router_explain import (
    Blocker,
    Change,
    Explanation,
    Option,
    Rejection,
    in_units,
    option_line,
    rejection_line,
)

WhyNotVerdict = Literal["runs_there", "scored_less", "blocked", "not_now", "never"]


class Difference(Message):
    """By how much one part of the score decided against the factory."""

    part: str
    here: int
    """Weighted, in thousandths."""
    there: int
    """At the place that was chosen."""


class WhyNot(Message):
    """The router's answer about one job and one factory."""

    job_id: str
    factory: str
    verdict: WhyNotVerdict
    """`scored_less`: it could have, but another place was better. `blocked`: it could, once no other job or limit is
    in the way. `never`: not even if everything there were online, repaired and idle."""
    rejections: tuple[Rejection, ...] = ()
    """All reasons against the factory; those with an engine only exclude that station."""
    options: tuple[Option, ...] = ()
    """Engines there that could take the job at once, locks apart."""
    weights: dict[str, int] = Field(default_factory=dict)
    avoided: bool = False
    """It lost this job before, so that any other one with an option goes first."""
    blockers: tuple[Blocker, ...] = ()
    """What is in the way of the job everywhere."""
    chosen: Option | None = None
    """The place that was granted."""
    differences: tuple[Difference, ...] = ()
    """Parts of the score in which the best option there differs from the chosen place."""
    change: Change | None = None
    """The smallest change that lets the job run there; None where nothing would, or where it was granted a place."""

    def render(self) -> list[str]:
        """Return the answer as lines of text, most important first."""
        lines = [_headline(self)]
        lines += [f"  blocked by {blocker}" for blocker in self.blockers]
        lines += [f"  {option_line(self.weights, option, avoided=self.avoided)}" for option in self.options]
        lines += [f"  {rejection_line(rejection)}" for rejection in self.rejections]
        lines += [
            f"  {item.part}: {in_units(item.here)} here, {in_units(item.there)} on {self.chosen.factory}"
            for item in self.differences
            if self.chosen is not None
        ]
        if self.change is not None:
            lines.append(f"  smallest change: {self.change}")
        return lines


def why_not(explanation: Explanation, factory: str, change: Change | None = None) -> WhyNot | None:
    """Return what an explanation says about one factory; None when the fleet had none of that name.

    `change` is the smallest one that would let the job run there.
    """
    report = explanation.report(factory)
    if report is None:
        return None
    options = tuple(option for option in explanation.options if option.factory == factory)
    granted = (explanation.factory, explanation.engine)
    chosen = next((o for o in explanation.options if (o.factory, o.engine) == granted), None)
    passed_by = chosen is not None and chosen.factory != factory
    return WhyNot(
        job_id=explanation.job_id,
        factory=factory,
        verdict=_verdict(explanation, factory, possible=report.possible, open_now=bool(options)),
        rejections=report.rejections,
        options=options,
        weights=explanation.weights if options else {},
        avoided=factory in explanation.avoided,
        blockers=explanation.blockers,
        chosen=chosen if passed_by else None,
        differences=_differences(explanation, options[0], chosen) if passed_by and options and chosen else (),
        change=change,
    )


def _verdict(explanation: Explanation, factory: str, *, possible: bool, open_now: bool) -> WhyNotVerdict:
    if explanation.factory == factory:
        return "runs_there"
    if open_now:
        return "scored_less" if explanation.verdict == "granted" else "blocked"
    return "not_now" if possible else "never"


def _differences(explanation: Explanation, here: Option, there: Option) -> tuple[Difference, ...]:
    parts = zip(explanation.weights.items(), here.values, there.values, strict=True)
    return tuple(
        Difference(part=part, here=weight * mine, there=weight * other)
        for (part, weight), mine, other in parts
        if weight * mine != weight * other
    )


_HEADLINES: dict[WhyNotVerdict, str] = {
    "runs_there": "{job} was granted to {factory}",
    "scored_less": "{factory} could have taken {job}, but {chosen} was better",
    "blocked": "{factory} could take {job} if nothing else were in its way",
    "not_now": "{factory} cannot take {job} now",
    "never": "{factory} can never take {job} as it is",
}
_WHEN_DECIDED = "{factory} could not take {job} when that was decided"


def _headline(answer: WhyNot) -> str:
    chosen = f"{answer.chosen.engine} on {answer.chosen.factory}" if answer.chosen else "another place"
    went_elsewhere = answer.chosen is not None and answer.verdict in ("not_now", "never")
    headline = _WHEN_DECIDED if went_elsewhere and answer.verdict == "not_now" else _HEADLINES[answer.verdict]
    text = headline.format(job=answer.job_id, factory=answer.factory, chosen=chosen)
    return f"{text}; it went to {chosen}" if went_elsewhere else text
