"""What the decisions of one plan rested on, written down once for all of them. *Pure.*

A decision is a function of what the fleet was like, of what the factories say to jobs of its class, and of how many
seats the plan had taken before. So the fleet is written down once for a plan, the answers and scores once for each
class of jobs, and a decision adds nothing but its own: the job, the place, that number. `members_after` puts the
members of an explanation together from these; the one of a job that waits comes the same way.

Both are facts, not inputs: answers are stored as they were given and scores as they were counted. A later version that
judges otherwise shows an old decision as it was made.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

from pydantic import Field

from core.job import Message
from core.router_classes import Needs
from core.router_explain import Explanation, FactoryReport, Option
from core.router_fleet import Closed, Standing
from core.router_match import Answer
from core.router_pass import Pass
from core.router_score import ENGINE, LOAD, PARTS, preference, tie, weigh
from core.router_snapshot import ReadyJob
from core.router_table import Scores, Table


class FleetGrounds(Message):
    """The factories while one plan was made, numbered from 0 in the order of their names."""

    factories: tuple[str, ...]
    costs: tuple[int, ...]
    """Their cost classes."""
    loads: tuple[int, ...]
    """The part `load` of a score, as it was at first."""
    taken: tuple[tuple[int, int], ...] = ()
    """For each seat that the plan took, in that order: the factory, and its load from then on."""
    seed: int = 0
    """Settles equal scores."""

    def loads_after(self, taken: int) -> list[int]:
        """Return the loads when so many seats had been taken."""
        loads = list(self.loads)
        for number, load in self.taken[:taken]:
            loads[number] = load
        return loads


class ClassGrounds(Message):
    """What the factories of a plan said to jobs of one class, and what they were worth to them."""

    requires: tuple[str, ...] = ()
    engine_request: str = ""
    engines: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    parts: tuple[str, ...]
    weights: tuple[int, ...]
    """Of each part."""
    weighed_by: dict[str, str] = Field(default_factory=dict)
    """Who gave the weights that are not the fleet's: `product` or `job`, by part."""
    answers: tuple[Answer, ...] = ()
    """All that were given, each once."""
    said: tuple[int, ...] = ()
    """The answer of each factory, as it was at first."""
    changed: tuple[tuple[int, int, int], ...] = ()
    """Answers that changed: how many seats had been taken, the factory, the answer from then on."""
    merits: tuple[tuple[int, ...], ...] = ()
    """For each factory with an open place its value in each part; 0 for those of the engine and of the load."""
    preference: tuple[int, ...] = ()
    """The part `engine` of a score, for each of `engines`."""

    def said_after(self, taken: int) -> list[int]:
        """Return the answer of each factory when so many seats had been taken."""
        said = list(self.said)
        for after, number, answer in self.changed:
            if after > taken:
                break
            said[number] = answer
        return said


class Decision(Message):
    """What one granted job adds to the grounds of its plan; the grounds are named by their digest."""

    job_id: str
    factory: str
    engine: str
    queued_at: datetime | None = None
    taken: int
    """Seats that the plan had taken before."""
    fleet: str
    """Digest of the `FleetGrounds`."""
    job_class: str
    """Digest of the `ClassGrounds`."""


def explanation_of(decision: Decision, fleet: FleetGrounds, job_class: ClassGrounds) -> Explanation:
    """Return the complete explanation of a decision, the same one as when it was taken."""
    return Explanation.model_construct(  # every member is of its type already
        job_id=decision.job_id,
        verdict="granted",
        factory=decision.factory,
        engine=decision.engine,
        queued_at=decision.queued_at,
        **members_after(fleet, job_class, decision.taken),
    )


def members_after(fleet: FleetGrounds, job_class: ClassGrounds, taken: int) -> dict[str, Any]:
    """Return what an explanation says about the fleet and a class when so many seats had been taken."""
    said = job_class.said_after(taken)
    options = _options(fleet, job_class, said, taken)
    return {
        "requires": job_class.requires,
        "engine_request": job_class.engine_request,
        "engines": job_class.engines,
        "avoided": job_class.avoided,
        "reports": _reports(fleet, job_class, said),
        "weights": dict(zip(job_class.parts, job_class.weights, strict=True)) if options else {},
        "weighed_by": job_class.weighed_by if options else {},
        "options": options,
    }


def _reports(fleet: FleetGrounds, job_class: ClassGrounds, said: Sequence[int]) -> tuple[FactoryReport, ...]:
    """Return what every factory said; those that said the same share a report."""
    alike: dict[int, list[str]] = {}
    for name, answer in zip(fleet.factories, said, strict=True):
        alike.setdefault(answer, []).append(name)
    reports = [
        FactoryReport.model_construct(  # every member is of its type already
            factories=tuple(names),
            engines=job_class.answers[number].engines,
            possible=job_class.answers[number].possible,
            rejections=job_class.answers[number].rejections,
        )
        for number, names in alike.items()
    ]
    return tuple(sorted(reports, key=lambda report: report.factories))


def _options(fleet: FleetGrounds, job_class: ClassGrounds, said: Sequence[int], taken: int) -> tuple[Option, ...]:
    """Return the score table, best first."""
    engine_part, load_part = job_class.parts.index(PARTS[ENGINE]), job_class.parts.index(PARTS[LOAD])
    preference = dict(zip(job_class.engines, job_class.preference, strict=True))
    loads = fleet.loads_after(taken)
    rows: list[tuple[tuple[bool, int, int, int, str, str], Option]] = []
    for number, name in enumerate(fleet.factories):
        for engine in job_class.answers[said[number]].open_engines:
            values = list(job_class.merits[number])
            values[engine_part], values[load_part] = preference[engine], loads[number]
            option = Option(name, engine, weigh(values, job_class.weights), tuple(values))
            order = (name in job_class.avoided, -option.total, fleet.costs[number])
            rows.append(((*order, tie(fleet.seed, name, engine), name, engine), option))
    return tuple([option for _, option in sorted(rows)])


class Notes:
    """Writes down what one plan rested on, once its walk is done; of each class, when it is first asked for."""

    def __init__(self, walk: Pass) -> None:
        self._walk = walk
        self._classes: dict[Table, _ClassNotes] = {}

    @cached_property
    def fleet(self) -> FleetGrounds:
        """Return the fleet while the plan was made."""
        fleet = self._walk.fleet
        return FleetGrounds.model_construct(  # every member is of its type already
            factories=tuple([standing.name for standing in fleet.first]),
            costs=tuple([standing.view.cost_class for standing in fleet.first]),
            loads=tuple([standing.load for standing in fleet.first]),
            taken=tuple([(self._numbers[seat.now.name], seat.now.load) for seat in fleet.taken]),
            seed=fleet.seed,
        )

    def job_class(self, job: ReadyJob) -> ClassGrounds:
        """Return what the factories said to jobs of that class."""
        return self._class(job).grounds

    def places(self, job: ReadyJob, taken: int) -> int:
        """Return how many places were open to the job when so many seats had been taken."""
        counted = self._class(job).places
        return counted[bisect_right(counted, taken, key=itemgetter(0)) - 1][1]

    @cached_property
    def written_fleet(self) -> Document:
        """Return the fleet as it is stored."""
        return _document(self.fleet)

    def written_class(self, job: ReadyJob) -> Document:
        """Return what the factories said to jobs of that class, as it is stored."""
        notes = self._class(job)
        if notes.document is None:
            notes.document = _document(notes.grounds)
        return notes.document

    def _class(self, job: ReadyJob) -> _ClassNotes:
        table = self._walk.table(job)
        if table not in self._classes:
            self._classes[table] = self._note(job.job_class.needs, table.scores)
        return self._classes[table]

    def _note(self, needs: Needs, scores: Scores) -> _ClassNotes:
        fleet, numbered = self._walk.fleet, _Numbered()
        answers = self._walk.answers(needs, fleet.first_closed)
        said = [numbered.number(answers.of(standing)) for standing in fleet.first]
        now, changed = list(said), []
        for turn in self._turns:
            answers = self._walk.answers(needs, turn.closed)
            for number, standing in turn.standings:
                answer = numbered.number(answers.of(standing))
                if answer != now[number]:
                    now[number] = answer
                    changed.append((turn.taken, number, answer))
        given = tuple(numbered.answers)
        opened = [given[answer].open_engines for answer in said]
        requires = [need.text for need in needs.requirements + needs.own_requirements]
        grounds = ClassGrounds.model_construct(  # every member is of its type already
            requires=tuple(requires + ([f"host:{needs.host}"] if needs.host else [])),
            engine_request=needs.engine_label,
            engines=needs.engines,
            avoided=tuple([name for name in scores.job.excluded if name in fleet.standings]),
            parts=PARTS,
            weights=scores.factors,
            weighed_by=scores.weighed_by,
            answers=given,
            said=tuple(said),
            changed=tuple(changed),
            merits=tuple([_merits(scores, *place) for place in zip(fleet.first, opened, strict=True)]),
            preference=tuple([preference(place) for place in range(len(needs.engines))]),
        )
        return _ClassNotes(grounds, _places(grounds))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {standing.name: number for number, standing in enumerate(self._walk.fleet.first)}

    @cached_property
    def _turns(self) -> list[_Turn]:
        """Return the seats with which an answer to some class may have changed."""
        fleet, turns = self._walk.fleet, []
        standings, closed = list(fleet.first), fleet.first_closed
        for taken, seat in enumerate(fleet.taken, start=1):
            number = self._numbers[seat.now.name]
            standings[number] = seat.now
            if seat.closed != closed:
                closed = seat.closed
                turns.append(_Turn(taken, closed, list(enumerate(standings))))
            elif seat.now.kind is not seat.before.kind:
                turns.append(_Turn(taken, closed, [(number, seat.now)]))
        return turns


class Document(NamedTuple):
    """A part of the grounds as it is stored."""

    digest: str
    text: str


def _document(content: FleetGrounds | ClassGrounds) -> Document:
    text = content.model_dump_json(exclude_defaults=True)
    return Document(hashlib.sha256(text.encode()).hexdigest(), text)


class _Turn(NamedTuple):
    """A seat that was taken, and the factories that may say something else from then on, as they stood."""

    taken: int
    closed: tuple[Closed, ...]
    standings: Sequence[tuple[int, Standing]]


@dataclass
class _ClassNotes:
    """What was written down for one class."""

    grounds: ClassGrounds
    places: Sequence[tuple[int, int]]
    """Open places, each time that their number changed: how many seats had been taken, and how many there were."""
    document: Document | None = None


class _Numbered:
    """Numbers answers by content, in the order in which they come."""

    def __init__(self) -> None:
        self.answers: dict[Answer, int] = {}
        self._known: dict[int, int] = {}

    def number(self, answer: Answer) -> int:
        """Return the number of an answer; the caller keeps each object that it asks about."""
        known = self._known.get(id(answer))
        if known is None:
            known = self._known[id(answer)] = self.answers.setdefault(answer, len(self.answers))
        return known


def _merits(scores: Scores, standing: Standing, engines: Sequence[str]) -> tuple[int, ...]:
    return scores.merits(standing, engines[0]) if engines else ()


def _places(grounds: ClassGrounds) -> list[tuple[int, int]]:
    """Return how many places were open, each time that this changed."""
    engines = [len(answer.open_engines) for answer in grounds.answers]
    now, count = list(grounds.said), sum(engines[answer] for answer in grounds.said)
    counted = [(0, count)]
    for taken, number, answer in grounds.changed:
        count += engines[answer] - engines[now[number]]
        now[number] = answer
        counted.append((taken, count))
    return counted
