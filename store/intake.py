"""Taking jobs in: idempotency, dependencies, the first event, the order to start the workflow. Does I/O: SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import Connection, insert, select

from core.attempt import content_hash
from core.errors import FieldProblem, IdempotencyConflict, InvalidInput
from core.job import Dependency, JobSpec, RepositoryKind, Stage
from core.router_snapshot import ReadyJob
from store.chain import GENESIS, event_hash
from store.dialects import insert_new
from store.messages import Submission
from store.outbox import enqueue_start
from store.parents import is_satisfied
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
    row = connection.execute(
        select(idempotency_keys).where(
            idempotency_keys.c.product_id == submission.spec.product_id, idempotency_keys.c.key == key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.sha256 == content_hash(submission.canonical):
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


# --- a new job ----------------------------------------------------------------------------------------------------


def _create(connection: Connection, submission: Submission, ids: Mapping[str, str], now: datetime) -> None:
    spec = submission.spec
    deps = [dep.model_copy(update={"job_id": ids.get(dep.job_id, dep.job_id)}) for dep in spec.deps]
    waits = not _all_satisfied(connection, deps, spec.product_id)
    event = _submitted_event(submission, now)
    connection.execute(insert(jobs).values(_job_row(submission, now), held="parents" if waits else None, **_head(event)))
    connection.execute(insert(events).values(event))
    if deps:
        rows = {d.job_id: {"child_id": submission.job_id, "parent_id": d.job_id, "until": d.until} for d in deps}
        connection.execute(insert(edges), [row | {"product_id": spec.product_id} for row in rows.values()])
    _keep_key(connection, submission, now)
    _keep_profile(connection, submission, now)
    enqueue_start(connection, job_id=submission.job_id, product_id=spec.product_id, life=1, now=now)
