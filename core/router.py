"""Which waiting job runs where: a snapshot of the fleet in, a plan with complete reasons out. *Pure.*

    plan(snapshot) -> Plan
        jobs in lines, by priority     core.router_queue
        the walk through them          core.router_pass      fair shares: core.router_shares, locks: core.router_claims
        seats, kinds of factories      core.router_fleet     (each grant takes from what the next one finds)
        reasons, scores, places        core.router_match, core.router_score, core.router_table
        what decisions rest on         core.router_grounds   (written down once for a plan, and once for a class)
        explanation, advice            core.router_explain, core.router_advice   (put together when asked for)
        who was passed over            core.router_overtaking
        who is paused                  core.router_preemption

The same snapshot gives the same plan, byte for byte, in whatever order its members come, and whatever the cache knows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
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
from core.router_grounds import ClassGrounds, Decision, FleetGrounds, Notes, explanation_of, members_after
from core.router_match import limit_reasons
from core.router_overtaking import overtaken_by, passed_over
from core.router_pass import Pass, PlannedGrant
from core.router_policy import Limits, ProductPolicy, RoutingPolicy, Weights
from core.router_preemption import Preemption, preemptions
from core.router_queue import PRIORITIES, RANK
from core.router_score import Score
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
from core.router_table import Table
from core.router_why_not import WhyNot, why_not

__all__ = [
    "Blocker",
    "Change",
    "ClassGrounds",
    "Decision",
    "Explanation",
    "FactoryReport",
    "FactoryView",
    "FleetGrounds",
    "FleetSnapshot",
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
    "explanation_of",
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
        return self.overtaken_if(self._granted)

    def overtaken_if(self, admitted: Collection[str]) -> dict[str, int]:
        """Return the same, if only these of the granted jobs were really let in."""
        return overtaken_by(self._state, self.grants, admitted)

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

    def reason(self, grant: PlannedGrant) -> str:
        """Return why the job goes there, as one line for people."""
        places = self._notes.places(self._state.granted[grant.job_id], self._taken[grant.job_id])
        choice = f"best of {places} places" if places > 1 else "the only place that can take it now"
        return f"{grant.engine} on {grant.factory}: {choice}, score {grant.score}"

    def decision(self, job_id: str) -> Decision:
        """Return what is stored of a grant beside its grounds; `explanation_of` makes its explanation of both.

        Raises:
            KeyError: the plan does not grant that job.

        """
        grant, job = self._granted[job_id], self._state.granted[job_id]
        return Decision.model_construct(  # every member is of its type already
            job_id=job_id,
            factory=grant.factory,
            engine=grant.engine,
            queued_at=job.queued_at,
            taken=self._taken[job_id],
            fleet=self._notes.written_fleet.digest,
            job_class=self._notes.written_class(job).digest,
        )

    def grounds(self, job_ids: Iterable[str]) -> dict[str, str]:
        """Return what the decisions about these granted jobs rest on, as it is stored: texts by their digest."""
        granted = [self._state.granted[job_id] for job_id in job_ids]
        return dict([self._notes.written_fleet, *map(self._notes.written_class, granted)]) if granted else {}

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
            "grants": [[grant.job_id, grant.factory, grant.engine, self.reason(grant)] for grant in self.grants],
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
    def _taken(self) -> dict[str, int]:
        """Return for each granted job how many seats were taken before."""
        return {grant.job_id: taken for taken, grant in enumerate(self.grants)}

    @cached_property
    def _notes(self) -> Notes:
        return Notes(self._state)

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
            members = members_after(self._notes.fleet, self._notes.job_class(job), len(self.grants))
            advice = advise(job.job_class.needs, members["reports"], limit_reasons(walk.fleet.closed))
            self._written[table] = members, advice
        members, advice = self._written[table]
        blockers = walk.blockers(job)
        return Explanation.model_construct(  # every member is of its type already
            job_id=job.job_id,
            verdict="not_now" if any(report.possible for report in members["reports"]) else "never",
            queued_at=job.queued_at,
            position=self._positions[job.job_id],
            waiting=len(self._positions),
            blockers=blockers,
            change=after_waits(advice.change, blockers),
            alternative=after_waits(advice.alternative, blockers) if advice.alternative else None,
            **members,
        )

    def _explain_grant(self, grant: PlannedGrant) -> Explanation:
        job_class = self._notes.job_class(self._state.granted[grant.job_id])
        return explanation_of(self.decision(grant.job_id), self._notes.fleet, job_class)


def plan(snapshot: FleetSnapshot, cache: RouterCache | None = None, *, limit: int | None = None) -> Plan:
    """Decide which of the waiting jobs start now, and where; at most `limit` of them.

    Every grant satisfies all hard requirements, and together they take no seat and no lock twice. A job that could be
    seated is never left out for a later one: it is looked at first.

    Raises:
        ValueError: two jobs, two factories, or two stations of a factory have the same name.

    """
    _check_names(snapshot)
    return Plan(Pass(snapshot, cache or RouterCache(), limit))


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
