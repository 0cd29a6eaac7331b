"""Taking jobs in: idempotency, dependencies, the first event, the order to start the workflow. Does I/O: SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import Connection, insert, select, update

from core.dag import edge_state
from core.errors import FieldProblem, IdempotencyConflict, InvalidInput
from core.job import Dependency, Stage
from core.router_snapshot import ready_job
from store.chain import GENESIS, digest, event_hash
from store.column_types import clean_text
from store.database import insert_new, serialise
from store.edges import blocked_by_parents, held_when_ready, take_turn
from store.messages import Submission
from store.outbox import enqueue_start
from store.parents import WAITING, wait_state
from store.tables import edges, events, idempotency_keys, jobs, profiles
from store.views import Submitted

MAX_DIFFERENCES = 20


def submit(connection: Connection, submissions: Sequence[Submission], now: datetime) -> tuple[Submitted, ...]:
    """Take all of `submissions` in, or none; they may depend on each other in any order.

    Raises:
        IdempotencyConflict: a key is taken by other content; `differs` names the fields.
        InvalidInput: an unknown parent, or a cycle, which is printed.

    """
    ordered = _parents_first(submissions)
    ids: dict[str, str] = {}
    created: dict[str, bool] = {}
    for submission in ordered:
        existing = _existing(connection, submission)
        ids[submission.job_id] = existing or submission.job_id
        created[submission.job_id] = existing is None
        if existing is None:
            _create(connection, submission, ids, now)
    return tuple(Submitted(job_id=ids[s.job_id], created=created[s.job_id]) for s in submissions)


def _parents_first(submissions: Sequence[Submission]) -> list[Submission]:
    """Return the submissions in an order in which every parent comes before its children."""
    by_id = {submission.job_id: submission for submission in submissions}
    graph = {s.job_id: [d.job_id for d in s.spec.deps if d.job_id in by_id] for s in submissions}
    try:
        return [by_id[job_id] for job_id in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        cycle = " → ".join(reversed(error.args[1]))
        problem = FieldProblem(path="deps", message=f"a job cannot wait for itself: {cycle}", value=cycle)
        raise InvalidInput(f"the dependencies form a cycle: {cycle}", (problem,)) from None


# --- idempotency --------------------------------------------------------------------------------------------------


def _existing(connection: Connection, submission: Submission) -> str | None:
    """Return the job that has this key and content already."""
    key = submission.idempotency_key
    if key is None:
        return None
    serialise(connection, f"key {submission.spec.product_id} {key}")
    row = connection.execute(
        select(idempotency_keys).where(
            idempotency_keys.c.product_id == submission.spec.product_id, idempotency_keys.c.key == key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.sha256 == digest(submission.canonical):
        return str(row.job_id)
    differs = differing(row.canonical, submission.canonical)
    raise IdempotencyConflict(
        f"idempotency key {key!r} belongs to job {row.job_id}, whose {', '.join(differs)} is different",
        hint="send the same content again, or use another key",
        differs=list(differs),
        job_id=row.job_id,
        key=key,
    )


def differing(before: object, after: object, path: str = "") -> tuple[str, ...]:
    """Return the dotted paths at which two JSON documents differ, at most `MAX_DIFFERENCES`."""
    if before == after:
        return ()
    pairs = _members(before, after)
    if pairs is None:
        return (path or "content",)
    found: list[str] = []
    for name, (one, other) in pairs.items():
        found += differing(one, other, f"{path}.{name}" if path else name)
    return tuple(found[:MAX_DIFFERENCES])


def _members(before: object, after: object) -> dict[str, tuple[object, object]] | None:
    """Return the members of two objects, or of two lists of equal length, side by side."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return {str(name): (before.get(name), after.get(name)) for name in sorted({*before, *after}, key=str)}
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return {str(index): pair for index, pair in enumerate(zip(before, after, strict=True))}
    return None


def job_of_key(connection: Connection, product_id: str, key: str) -> str | None:
    """Return the job that was submitted under `key`."""
    found: str | None = connection.execute(
        select(idempotency_keys.c.job_id).where(
            idempotency_keys.c.product_id == product_id, idempotency_keys.c.key == key
        )
    ).scalar_one_or_none()
    return found


# --- a new job ----------------------------------------------------------------------------------------------------


def _create(connection: Connection, submission: Submission, ids: Mapping[str, str], now: datetime) -> None:
    spec = submission.spec
    deps = {ids.get(dep.job_id, dep.job_id): dep for dep in spec.deps}
    if deps:
        take_turn(connection)
    parents = _parent_stages(connection, deps, spec.product_id)
    event = _submitted_event(submission, now)
    connection.execute(insert(jobs), _job_row(submission, now) | {"event_seq": 1, "event_hash": event["hash"]})
    connection.execute(insert(events), event)
    held = _wait_for(connection, submission, deps, parents)
    _keep_key(connection, submission, now)
    _keep_profile(connection, submission, now)
    if held != WAITING:
        enqueue_start(connection, job_id=submission.job_id, product_id=spec.product_id, life=1, now=now)


def _wait_for(
    connection: Connection, submission: Submission, deps: Mapping[str, Dependency], parents: Mapping[str, Stage]
) -> str | None:
    """Write the edges to the job's parents, and what holds it back because of them."""
    if not deps:
        return None
    edge = {"child_id": submission.job_id, "product_id": submission.spec.product_id}
    rows = [
        edge | {"parent_id": parent, "until": dep.until, "state": edge_state(parents[parent], dep.until) or "open"}
        for parent, dep in deps.items()
    ]
    connection.execute(insert(edges), rows)
    state = wait_state(connection, submission.job_id)
    if state.outcome == "ready":
        held, conditions = held_when_ready(0, submission.spec.repository.base_sha), []
    else:
        held, conditions = WAITING, [blocked_by_parents(state).model_dump(mode="json")]
    connection.execute(update(jobs).where(jobs.c.id == submission.job_id).values(held=held, conditions=conditions))
    return held


def _parent_stages(connection: Connection, deps: Mapping[str, Dependency], product_id: str) -> dict[str, Stage]:
    """Return the stage of each parent, which must be a job of the same product."""
    if not deps:
        return {}
    known = {
        row.id: Stage(row.stage)
        for row in connection.execute(
            select(jobs.c.id, jobs.c.stage).where(jobs.c.id.in_(list(deps)), jobs.c.product_id == product_id)
        )
    }
    problems = tuple(
        FieldProblem(path=f"deps.{index}", message="there is no such job", value=parent, expected="id of a job")
        for index, parent in enumerate(deps)
        if parent not in known
    )
    if problems:
        unknown = ", ".join(str(problem.value) for problem in problems)
        raise InvalidInput(f"deps names unknown jobs: {unknown}", problems, hint="`gf jobs` lists the jobs")
    return known


def _job_row(submission: Submission, now: datetime) -> dict[str, Any]:
    spec = submission.spec
    return {
        "id": submission.job_id,
        "product_id": spec.product_id,
        "title": spec.title,
        "stage": str(Stage.QUEUED),
        "priority": str(spec.priority),
        "spec": spec.model_dump(mode="json"),
        "documents": submission.documents,
        "routing": ready_job(submission.job_id, submission.spec, now).model_dump_json(exclude_defaults=True),
        "submitted_by": submission.submitted_by,
        "submitted_at": now,
        "updated_at": now,
        "queued_at": now,
        "conditions": [],
        "excluded_factories": [],
        "base_sha": spec.repository.base_sha,
        "commits": [],
    }


def _submitted_event(submission: Submission, now: datetime) -> dict[str, Any]:
    spec = submission.spec
    by = f" by {submission.submitted_by}" if submission.submitted_by else ""
    event = {
        "job_id": submission.job_id,
        "product_id": spec.product_id,
        "seq": 1,
        "at": now,
        "type": "job.submitted",
        "epoch": 0,
        "attempt_seq": None,
        "message": clean_text(f"submitted{by}: {spec.title}"),
        "data": {
            "by": submission.submitted_by,
            "manifest_sha256": spec.manifest_sha256,
            "spec_sha256": digest(spec.model_dump(mode="json")),
            "idempotency_key": submission.idempotency_key,
            "deps": [dep.job_id for dep in spec.deps],
        },
    }
    return event | {"prev_hash": GENESIS, "hash": event_hash(GENESIS, event)}


def _keep_key(connection: Connection, submission: Submission, now: datetime) -> None:
    if submission.idempotency_key is not None:
        connection.execute(
            insert(idempotency_keys),
            {
                "product_id": submission.spec.product_id,
                "key": submission.idempotency_key,
                "job_id": submission.job_id,
                "sha256": digest(submission.canonical),
                "canonical": submission.canonical,
                "at": now,
            },
        )


def _keep_profile(connection: Connection, submission: Submission, now: datetime) -> None:
    """Keep each version of a profile that a job ever used."""
    profile = submission.spec.profile
    if profile is not None:
        insert_new(
            connection,
            profiles,
            product_id=submission.spec.product_id,
            name=profile.name,
            version=profile.version,
            sha256=profile.sha256,
            document=submission.documents.get("profile") or {},
            first_used_at=now,
        )
