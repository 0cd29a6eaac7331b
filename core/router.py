"""Which waiting job runs where: a snapshot of the fleet in, a plan with complete reasons out. *Pure.*

    plan(snapshot) -> Plan
        jobs in lines, by priority     core.router_queue
        the walk through them          core.router_pass      fair shares: core.router_shares, locks: core.router_claims
        seats, kinds of factories      core.router_fleet     (each grant takes from what the next one finds)
        reasons, scores, places        core.router_match, core.router_score, core.router_table
        explanation, advice            core.router_explain, core.router_advice   (written down when asked for)
        who was passed over            core.router_overtaking
        who is paused                  core.router_preemption

The same snapshot gives the same plan, byte for byte, in whatever order its members come, and whatever the cache knows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from functools import cached_property
from typing import Any

from core.job import Priority
from core.router_advice import Advice, advise, after_waits, change_at
from core.router_cache import RouterCache
from core.router_classes import JobClass
from core.router_explain import (
    Blocker,
    Change,
    Explanation,
    FactoryReport,
    Option,
    Rejection,
    RejectionCode,
    RouteVerdict,
    Step,
)
from core.router_match import Answer, limit_reasons
from core.router_overtaking import overtaken_by, passed_over
from core.router_pass import Pass, PlannedGrant
from core.router_policy import Limits, ProductPolicy, RoutingPolicy, Weights
from core.router_preemption import Preemption, preemptions
from core.router_queue import PRIORITIES, RANK
from core.router_score import PARTS, Score
from core.router_shares import remember
from core.router_snapshot import (
    FactoryView,
    FleetSnapshot,
    LockView,
    ProductView,
    ReadyJob,
    RunningJob,
    StationView,
    Turns,
)
from core.router_table import Grounds, Table
from core.router_why_not import WhyNot, why_not

__all__ = [
    "Blocker",
    "Change",
    "Explanation",
    "FactoryReport",
    "FactoryView",
    "FleetSnapshot",
    "Grounds",
    "JobClass",
    "Limits",
    "LockView",
    "Option",
    "Plan",
    "PlannedGrant",
    "Preemption",
    "ProductPolicy",
    "ProductView",
    "ReadyJob",
    "Rejection",
    "RejectionCode",
    "RouteVerdict",
    "RouterCache",
    "RoutingPolicy",
    "RunningJob",
    "Score",
    "StationView",
    "Step",
    "Turns",
    "Weights",
    "WhyNot",
    "plan",
]


class Plan:
    """What one pass decided. Grants are there at once; what else a plan can say costs only what is asked for.

    A plan that was made with a cache answers until that cache makes the next one.
    """

    def __init__(self, walk: Pass) -> None:
        """Walk through the line; `walk` is used up by it."""
        self._walk = walk
        self.snapshot = walk.snapshot
        self.grants = tuple(walk.run())

    # --- what was decided ---------------------------------------------------------------------------------------------

    @cached_property
    def waiting(self) -> tuple[str, ...]:
        """Return the jobs that wait, in order of service."""
        return tuple(job.job_id for job in self._state.line())

    @cached_property
    def preemptions(self) -> tuple[Preemption, ...]:
        """Return the jobs to be paused for more urgent ones; empty, until the limits allow it."""
        return preemptions(self._state)

    @cached_property
    def overtaken(self) -> dict[str, int]:
        """Return for each waiting job by how many of the grants it was overtaken; jobs with none are left out."""
        return overtaken_by(self._state, self.grants)

    def turns_after(self, admitted: Collection[str]) -> Turns:
        """Return what the next plan has to remember, if these of the granted jobs were really let in."""
        walk, turns = self._state, self.snapshot.turns
        levels = {priority: dict(known) for priority, known in turns.levels.items()}
        latest = {priority: dict(reversed(known)) for priority, known in turns.latest.items()}
        for rank, lines in walk.queue.ranks.items():
            known = levels.setdefault(PRIORITIES[rank], {})
            new = [product for product in lines.by_product if product not in known]
            known.update((product, walk.shares.started(rank, product)) for product in new)
        for grant in self.grants:
            if grant.job_id not in admitted:
                continue
            job = walk.granted[grant.job_id]
            product, known = job.product_id, levels[job.priority]
            level = max(known[product], walk.shares.started(RANK[job.priority], product))
            known[product] = level + walk.shares.step(product)
            if grant.fair:
                places = latest.setdefault(job.priority, {})
                places.pop(grant.factory, None)
                places[grant.factory] = level
        return Turns(
            levels={priority: self._worth_keeping(priority, known, latest) for priority, known in levels.items()},
            latest={priority: tuple(reversed(known.items())) for priority, known in latest.items()},
            passed_over=passed_over(walk, self.grants, admitted),
        )

    def _worth_keeping(
        self, priority: Priority, levels: dict[str, int], latest: dict[Priority, dict[str, int]]
    ) -> dict[str, int]:
        lines = self._state.queue.ranks.get(RANK[priority])
        waiting = lines.by_product.keys() if lines else ()
        return remember(levels, waiting, floor=min(latest.get(priority, {}).values(), default=0))

    # --- why ----------------------------------------------------------------------------------------------------------

    def explain(self, job_id: str) -> Explanation:
        """Return the complete explanation of one job of the snapshot.

        Raises:
            KeyError: the snapshot has no such job.

        """
        if job_id in self._granted:
            return self._explain_grant(self._granted[job_id])
        return self._explain_waiting(self._state.queue.jobs[job_id])

    def why_not(self, job_id: str, factory: str) -> WhyNot | None:
        """Return why a job does not run on a factory; None when the fleet has none of that name.

        Raises:
            KeyError: the snapshot has no such job.

        """
        explanation = self.explain(job_id)
        report = explanation.report(factory)
        if report is None or job_id in self._granted:
            return why_not(explanation, factory)
        needs = self._state.queue.jobs[job_id].job_class.needs
        alone = report.model_copy(update={"factories": (factory,)})
        change = change_at(needs, alone, limit_reasons(self._state.fleet.closed))
        return why_not(explanation, factory, change and after_waits(change, explanation.blockers))

    def as_json(self) -> str:
        """Return everything that the plan says as canonical JSON, with the explanation of every job."""
        document: dict[str, Any] = {
            "decided_at": self.snapshot.now.isoformat(),
            "grants": [[grant.job_id, grant.factory, grant.engine, grant.reason] for grant in self.grants],
            "explanations": [self.explain(job.job_id).model_dump(mode="json") for job in self._by_id()],
            "preemptions": self.preemptions,
            "overtaken": self.overtaken,
            "turns": self.turns_after(self._granted).model_dump(mode="json"),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def _by_id(self) -> list[ReadyJob]:
        return sorted(self.snapshot.jobs, key=lambda job: job.job_id)

    @property
    def _state(self) -> Pass:
        """Return the state after the walk.

        Raises:
            RuntimeError: the cache was used for another plan since.

        """
        if not self._walk.is_current:
            raise RuntimeError("this plan is out of date: its cache has made another one since")
        return self._walk

    @cached_property
    def _granted(self) -> dict[str, PlannedGrant]:
        return {grant.job_id: grant for grant in self.grants}

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {job_id: place for place, job_id in enumerate(self.waiting, start=1)}

    @cached_property
    def _written(self) -> dict[Table, tuple[dict[str, Any], Advice]]:
        """What was written down already for the classes of jobs that wait."""
        return {}

    def _explain_waiting(self, job: ReadyJob) -> Explanation:
        walk = self._state
        table = walk.table(job)
        if table not in self._written:
            members = members_of(table.grounds())
            advice = advise(job.job_class.needs, members["reports"], limit_reasons(walk.fleet.closed))
            self._written[table] = members, advice
        members, advice = self._written[table]
        blockers = walk.blockers(job)
        return Explanation.model_construct(  # every member is of its type already
            job_id=job.job_id,
            verdict="not_now" if any(report.possible for report in members["reports"]) else "never",
            position=self._positions[job.job_id],
            waiting=len(self._positions),
            blockers=blockers,
            change=after_waits(advice.change, blockers),
            alternative=after_waits(advice.alternative, blockers) if advice.alternative else None,
            **members,
            **_request(job),
        )

    def _explain_grant(self, grant: PlannedGrant) -> Explanation:
        return Explanation.model_construct(  # every member is of its type already
            job_id=grant.job_id,
            verdict="granted",
            factory=grant.factory,
            engine=grant.engine,
            **members_of(grant.grounds),
            **_request(self._state.granted[grant.job_id]),
        )


def plan(snapshot: FleetSnapshot, cache: RouterCache | None = None, *, limit: int | None = None) -> Plan:
    """Decide which of the waiting jobs start now, and where; at most `limit` of them.

    Every grant satisfies all hard requirements, and together they take no seat and no lock twice. A job that could be
    seated is never left out for a later one: it is looked at first.

    Raises:
        ValueError: two jobs, two factories, or two stations of a factory have the same name.

    """
    _check_names(snapshot)
    return Plan(Pass(snapshot, cache or RouterCache(), limit))


def members_of(grounds: Grounds) -> dict[str, Any]:
    """Write grounds down as members of an explanation: factories that say the same share a report."""
    alike: dict[int, tuple[Answer, list[str]]] = {}
    for answer, members in grounds.groups:
        alike.setdefault(id(answer), (answer, []))[1].extend(standing.view.name for standing in members)
    reports = [
        FactoryReport(
            factories=tuple(sorted(names)),
            engines=answer.engines,
            possible=answer.possible,
            rejections=answer.rejections,
        )
        for answer, names in alike.values()
    ]
    options = grounds.options()
    there = {name for _, names in alike.values() for name in names}
    return {
        "reports": tuple(sorted(reports, key=lambda report: report.factories)),
        "weights": dict(zip(PARTS, grounds.scores.factors, strict=True)) if options else {},
        "options": options,
        "avoided": tuple(name for name in grounds.scores.job.excluded if name in there),
    }


def _request(job: ReadyJob) -> dict[str, Any]:
    """Return the members of an explanation that repeat what the job asked for."""
    needs = job.job_class.needs
    requires = [need.text for need in needs.requirements + needs.own_requirements]
    return {
        "requires": tuple(requires + ([f"host:{needs.host}"] if needs.host else [])),
        "engine_request": needs.engine_label,
        "engines": needs.engines,
        "queued_at": job.queued_at,
    }


def _check_names(snapshot: FleetSnapshot) -> None:
    _check_distinct("the snapshot has the same job", [job.job_id for job in snapshot.jobs])
    _check_distinct("the snapshot has the same factory", [factory.name for factory in snapshot.factories])
    for factory in snapshot.factories:
        engines = [station.engine for station in factory.stations]
        if len(set(engines)) != len(engines):
            _check_distinct(f"factory {factory.name} has a station for the same engine", engines)


def _check_distinct(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{what} twice: {', '.join(twice)}")
