"""Which waiting job runs where: a snapshot of the fleet in, a plan with complete reasons out. *Pure.*

    plan(snapshot) -> Plan
        order of service        core.router_order
        seats and locks         core.router_capacity    (each grant takes from what the next one finds)
        reasons and places      core.router_match
        score of a place        core.router_score
        explanation, advice     core.router_explain, core.router_advice   (made when asked for)

The same snapshot gives the same plan, byte for byte, in whatever order its members come.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from functools import cached_property
from typing import Any

from core.job import Message
from core.router_advice import Advice, advise, after_waits
from core.router_capacity import Claims, Seats, open_seats
from core.router_explain import (
    Blocker,
    Change,
    Explanation,
    FactoryReport,
    Option,
    Rejection,
    RejectionCode,
    RouteVerdict,
    Score,
    ScorePart,
    Step,
)
from core.router_match import Matcher, Place, Places
from core.router_order import Usage, positions, service_order
from core.router_snapshot import (
    FactoryView,
    FleetSnapshot,
    JobClass,
    Limits,
    LockView,
    ProductView,
    ReadyJob,
    StationView,
    Weights,
)

__all__ = [
    "Blocker",
    "Change",
    "Explanation",
    "FactoryReport",
    "FactoryView",
    "FleetSnapshot",
    "JobClass",
    "Limits",
    "LockView",
    "Option",
    "Park",
    "Plan",
    "PlannedGrant",
    "ProductView",
    "ReadyJob",
    "Rejection",
    "RejectionCode",
    "RouteVerdict",
    "Score",
    "ScorePart",
    "StationView",
    "Step",
    "Weights",
    "plan",
]


class PlannedGrant(Message):
    """One job that may start, and where."""

    job_id: str
    factory: str
    engine: str
    reason: str
    """One line for people."""
    score: Score

    @property
    def scores(self) -> tuple[ScorePart, ...]:
        """Return the parts of the score."""
        return self.score.parts


class Park:
    """One job that waits; its explanation is made when it is asked for."""

    __slots__ = ("_plan", "job_id")

    def __init__(self, job_id: str, plan: Plan) -> None:
        self.job_id = job_id
        self._plan = plan

    @property
    def explanation(self) -> Explanation:
        """Return why the job waits."""
        return self._plan.explain(self.job_id)


class Plan:
    """What one pass decided. Grants are there at once; parks and explanations cost only what is asked for."""

    def __init__(self, snapshot: FleetSnapshot, grants: tuple[PlannedGrant, ...]) -> None:
        self.snapshot = snapshot
        self.grants = grants
        self.preemptions: tuple[()] = ()
        """Jobs to be paused for more urgent ones; empty, until a policy allows it."""

    @property
    def decided_at(self) -> datetime:
        """Return the time of the snapshot."""
        return self.snapshot.now

    @cached_property
    def parks(self) -> tuple[Park, ...]:
        """Return the jobs that wait, in order of service."""
        return tuple(Park(job_id, self) for job_id in self._positions)

    def explain(self, job_id: str) -> Explanation:
        """Return the complete explanation of one job of the snapshot.

        Raises:
            KeyError: the snapshot has no such job.

        """
        if job_id in self._granted:
            return self._explain_grant(self._granted[job_id])
        return self._explain_park(self._jobs[job_id])

    def as_json(self) -> str:
        """Return the whole plan as canonical JSON, with the explanation of every job."""
        document: dict[str, Any] = {
            "decided_at": self.decided_at.isoformat(),
            "grants": [grant.model_dump(mode="json") for grant in self.grants],
            "explanations": [self.explain(job_id).model_dump(mode="json") for job_id in sorted(self._jobs)],
            "preemptions": [],
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @cached_property
    def _jobs(self) -> dict[str, ReadyJob]:
        return {job.job_id: job for job in self.snapshot.jobs}

    @cached_property
    def _factories(self) -> tuple[FactoryView, ...]:
        return _by_name(self.snapshot)

    @cached_property
    def _granted(self) -> dict[str, int]:
        return {grant.job_id: index for index, grant in enumerate(self.grants)}

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Return the place in the line of each job that waits."""
        usage = Usage(self.snapshot.products)
        for grant in self.grants:
            usage.add(self._jobs[grant.job_id].product_id)
        waiting = (job for job in self.snapshot.jobs if job.job_id not in self._granted)
        return positions(waiting, usage, self.snapshot.limits.starvation_bound)

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self.snapshot)

    def _after(self, grants: int) -> tuple[Seats, Claims]:
        """Return seats and claims as they are after the first `grants` grants."""
        seats, claims = Seats(self._factories), Claims(self.snapshot)
        for grant in self.grants[:grants]:
            seats.take(grant.factory, grant.engine)
            claims.take(self._jobs[grant.job_id])
        return seats, claims

    @cached_property
    def _at_end(self) -> tuple[Seats, Claims]:
        return self._after(len(self.grants))

    @cached_property
    def _answers(self) -> dict[JobClass, tuple[tuple[FactoryReport, ...], Advice]]:
        return {}

    def _answer(self, needs: JobClass) -> tuple[tuple[FactoryReport, ...], Advice]:
        """Return reports and advice for the jobs of that class that wait."""
        if needs not in self._answers:
            seats, _ = self._at_end
            reports = tuple(self._matcher.report(needs, factory, seats) for factory in self._factories)
            self._answers[needs] = reports, advise(needs, self._factories, reports)
        return self._answers[needs]

    def _explain_park(self, job: ReadyJob) -> Explanation:
        _, claims = self._at_end
        blockers = claims.blockers(job)
        reports, advice = self._answer(job.job_class)
        return Explanation(
            job_id=job.job_id,
            verdict="not_now" if any(report.possible for report in reports) else "never",
            position=self._positions[job.job_id],
            waiting=len(self._positions),
            blockers=blockers,
            reports=reports,
            change=after_waits(advice.change, blockers),
            alternative=after_waits(advice.alternative, blockers) if advice.alternative else None,
            **_request(job),
        )

    def _explain_grant(self, index: int) -> Explanation:
        grant = self.grants[index]
        job = self._jobs[grant.job_id]
        seats, _ = self._after(index)
        return Explanation(
            job_id=job.job_id,
            verdict="granted",
            factory=grant.factory,
            engine=grant.engine,
            reports=tuple(self._matcher.report(job.job_class, f, seats) for f in self._factories),
            **_request(job),
        )


def plan(snapshot: FleetSnapshot) -> Plan:
    """Decide which of the waiting jobs start now, and where.

    Every grant satisfies all hard requirements, and together they take no seat and no lock twice. A job that could be
    seated is never left out for a later one: it is looked at first.

    Raises:
        ValueError: two jobs, two factories, or two stations of a factory have the same name.

    """
    _check_names(snapshot)
    return Plan(snapshot, tuple(_Pass(snapshot).grants()))


class _Pass:
    """One walk through the line, as long as there are open seats."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        floor = snapshot.limits.disk_floor_gb
        self._snapshot = snapshot
        self._matcher = Matcher(snapshot)
        self._seats = Seats(snapshot.factories)
        room = {factory.name: open_seats(factory, self._seats, floor) for factory in snapshot.factories}
        self._open = [factory for factory in _by_name(snapshot) if room[factory.name] > 0]
        self._room = sum(room.values())
        self._places: dict[JobClass, Places] = {}

    def grants(self) -> list[PlannedGrant]:
        """Return the grants, in order of service."""
        granted: list[PlannedGrant] = []
        if self._room == 0:
            return granted
        usage, claims = Usage(self._snapshot.products), Claims(self._snapshot)
        for job in service_order(self._snapshot.jobs, usage, self._snapshot.limits.starvation_bound):
            places = self._places_of(job.job_class)
            place = places.best(self._seats)
            if place is None or claims.blocks(job):
                continue
            self._seats.take(place.factory.name, place.engine)
            claims.take(job)
            usage.add(job.product_id)
            granted.append(_grant(job, place, places))
            self._room -= 1
            if self._room == 0:
                break
        return granted

    def _places_of(self, needs: JobClass) -> Places:
        if needs not in self._places:
            self._places[needs] = self._matcher.places(needs, self._open, self._seats)
        return self._places[needs]


def _grant(job: ReadyJob, place: Place, places: Places) -> PlannedGrant:
    choice = f"best of {places.at_first} places" if places.at_first > 1 else "the only place that can take it now"
    return PlannedGrant(
        job_id=job.job_id,
        factory=place.factory.name,
        engine=place.engine,
        reason=f"{place.engine} on {place.factory.name}: {choice}, score {place.score}",
        score=place.score,
    )


def _request(job: ReadyJob) -> dict[str, Any]:
    """Return the members of an explanation that repeat what the job asked for."""
    needs = job.job_class
    requires = [need.text for need in needs.requirements + needs.own_requirements]
    return {
        "requires": tuple(requires + ([f"host:{job.host}"] if job.host else [])),
        "engine_request": needs.engine_label,
        "engines": needs.engines,
        "queued_at": job.queued_at,
    }


def _by_name(snapshot: FleetSnapshot) -> tuple[FactoryView, ...]:
    return tuple(sorted(snapshot.factories, key=lambda factory: factory.name))


def _check_names(snapshot: FleetSnapshot) -> None:
    _check_distinct("the snapshot has the same job", [job.job_id for job in snapshot.jobs])
    _check_distinct("the snapshot has the same factory", [factory.name for factory in snapshot.factories])
    for factory in snapshot.factories:
        engines = [station.engine for station in factory.stations]
        _check_distinct(f"factory {factory.name} has a station for the same engine", engines)


def _check_distinct(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{what} twice: {', '.join(twice)}")
