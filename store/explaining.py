"""Why a job is where it is: the stored decision, or the router's answer from the fleet as it is now. Does I/O: SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from core.job import Condition, Stage
from core.router import (
    ClassGrounds,
    Decision,
    Explanation,
    FleetGrounds,
    FleetSnapshot,
    WhyNot,
    explanation_of,
    plan,
)
from core.router_why_not import why_not
from core.switch import Halt
from store import switch
from store.database import AnyRow
from store.fleet_snapshot import FleetReader
from store.open_job import no_such_job
from store.tables import events, grounds, jobs, runs
from store.views import JobExplanation, PlaceExplanation


class Inputs(NamedTuple):
    """What an explanation is made of."""

    job: AnyRow
    decision: Explanation | None
    """Why the newest attempt is where it is."""
    decided_at: datetime | None
    snapshot: FleetSnapshot | None
    """When the job waits for a seat."""
    halt: Halt | None = None
    """What keeps every job of its product from having a seat, when it waits for one."""
    end: str = ""
    """How the job failed, when it did: the words of its event."""


def read(connection: Connection, fleet: FleetReader, job_id: str, now: datetime) -> Inputs:
    """Read what an explanation needs.

    Raises:
        NotFound: there is no such job.

    """
    job = connection.execute(
        select(jobs.c.id, jobs.c.product_id, jobs.c.stage, jobs.c.held, jobs.c.conditions, jobs.c.epoch).where(
            jobs.c.id == job_id
        )
    ).one_or_none()
    if job is None:
        raise no_such_job(job_id)
    run = connection.execute(
        select(runs.c.decision, runs.c.granted_at).where(runs.c.job_id == job_id, runs.c.epoch == job.epoch)
    ).one_or_none()
    waits = job.stage == Stage.QUEUED
    halt = switch.over_job(connection, job.product_id) if waits else None
    snapshot = fleet.read(connection, now, including=job_id) if waits and halt is None else None
    end = _end(connection, job) if job.stage in FAILED else ""
    if waits or run is None or not run.decision:
        return Inputs(job, None, None, snapshot, halt, end)
    return Inputs(job, _decision(connection, run.decision), run.granted_at, snapshot, halt, end)


def _decision(connection: Connection, stored: dict[str, Any]) -> Explanation:
    """Put a decision together from its own part and what it rests on."""
    decision = Decision.model_validate(stored)
    found = connection.execute(
        select(grounds.c.sha256, grounds.c.document).where(grounds.c.sha256.in_([decision.fleet, decision.job_class]))
    )
    documents = {row.sha256: row.document for row in found}
    return explanation_of(
        decision,
        FleetGrounds.model_validate_json(documents[decision.fleet]),
        ClassGrounds.model_validate_json(documents[decision.job_class]),
    )


def _end(connection: Connection, job: AnyRow) -> str:
    """Return the words of the event with which the job failed, or was rejected."""
    kinds = f"job.{job.stage}", "decision.reject"
    told: str | None = connection.execute(
        select(events.c.message)
        .where(events.c.job_id == job.id, events.c.type.in_(kinds))
        .order_by(events.c.seq.desc())
        .limit(1)
    ).scalar_one_or_none()
    return told or ""


def explain(inputs: Inputs) -> JobExplanation:
    """Return the explanation: computed for a job that waits, the stored decision for any other."""
    job = inputs.job
    explanation, decided_at = None, None
    if inputs.snapshot is not None:
        explanation = plan(inputs.snapshot).explain(job.id)
    elif inputs.decision is not None:
        explanation, decided_at = inputs.decision, inputs.decided_at
    conditions = tuple(Condition.model_validate(condition) for condition in job.conditions)
    return JobExplanation(
        job_id=job.id,
        stage=job.stage,
        held=job.held,
        conditions=conditions,
        decided_at=decided_at,
        explanation=explanation,
        message=_message(inputs, conditions, explanation),
    )


def explain_place(inputs: Inputs, factory: str) -> PlaceExplanation:
    """Return why the job does not run on a factory of the fleet: computed for a job that waits, else as decided."""
    job = inputs.job
    answer, decided_at = None, None
    if inputs.snapshot is not None:
        answer = plan(inputs.snapshot).why_not(job.id, factory)
    elif inputs.decision is not None:
        answer, decided_at = why_not(inputs.decision, factory), inputs.decided_at
    return PlaceExplanation(
        job_id=job.id,
        factory=factory,
        stage=job.stage,
        decided_at=decided_at,
        answer=answer,
        message=_place_message(inputs, factory, answer),
    )


def _place_message(inputs: Inputs, factory: str, answer: WhyNot | None) -> str:
    """Return one sentence."""
    if answer is not None:
        return answer.render()[0]
    if inputs.decision is not None:
        return f"{factory} was not in the fleet when {inputs.job.id} was placed; {inputs.decision.render()[0]}"
    conditions = tuple(Condition.model_validate(condition) for condition in inputs.job.conditions)
    return _message(inputs, conditions, None)


FAILED = (Stage.FAILED, Stage.DEAD_LETTER)

_HELD = {
    "parents": "waits for its parents",
    "workflow": "is about to be routed by its workflow",
    "undelivered": "its workflow could not be reached; the reconciler looks after it",
}


def _message(inputs: Inputs, conditions: Sequence[Condition], explanation: Explanation | None) -> str:
    """Return one sentence."""
    job = inputs.job
    if inputs.end:
        return f"{job.id} is {job.stage}: {inputs.end}"
    if job.stage == Stage.QUEUED and conditions:
        return "; ".join(condition.message for condition in conditions)
    if job.stage == Stage.QUEUED and job.held:
        return f"{job.id} {_HELD.get(job.held, f'is held back ({job.held})')}"
    if inputs.halt is not None:
        return f"{job.id} waits until the halt is released: {inputs.halt}"
    if explanation is not None:
        return explanation.render()[0]
    return f"{job.id} is {job.stage}"
