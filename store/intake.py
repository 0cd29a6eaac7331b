"""Taking jobs in: idempotency, dependencies, the first event, the order to start the workflow. Does I/O: SQL.

A request of ten thousand jobs is one transaction of a dozen statements: everything that it needs to know is read at
first, everything that it writes is written at the end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, insert, select, tuple_

from core.dag import Cycle, WaitsFor, edge_state, refuse_cycle
from core.errors import FieldProblem, IdempotencyConflict, InvalidInput
from core.job import Dependency, ProfileRef, Stage
from core.router_snapshot import ready_job
from store.chain import GENESIS, digest, event_hash
from store.children import hold_gates
from store.column_types import clean_text
from store.database import AnyRow, batches, insert_new, serialise
from store.edges import blocked_by_parents, held_when_ready
from store.messages import Submission
from store.outbox import Starting, enqueue_starts
from store.parents import MAX_SHOWN, WAITING, Awaited, wait_state_of
from store.tables import edges, events, idempotency_keys, jobs, profiles
from store.views import Submitted, WaitState

MAX_DIFFERENCES = 20
KEY_LOCKS: Final = 64
"""Locks that guard idempotency keys; one for each key would be too many for a large request."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A new job on its way in, with its parents as the ledger knows them."""

    submission: Submission
    deps: tuple[Dependency, ...]
    awaited: tuple[Awaited, ...]
    parents: WaitState
    held: str | None

    @property
    def job_id(self) -> str:
        return self.submission.job_id

    @property
    def starting(self) -> Starting:
        return Starting(self.job_id, self.submission.spec.product_id, 1)


def submit(
    connection: Connection, submissions: Sequence[Submission], now: datetime, seat_wait: timedelta
) -> tuple[Submitted, ...]:
    """Take all of `submissions` in, or none; they may depend on each other in any order.

    The workflow of one that can have a seat is started with the grant, or after `seat_wait` without.

    Raises:
        IdempotencyConflict: a key is taken by other content; `differs` names the fields.
        InvalidInput: an unknown parent, or a cycle, which is printed.
        IllegalAction: a job is to be a child of one that has ended, or that is being shipped right now.

    """
    ids = _ids(connection, submissions)
    new = [one for one in submissions if ids[one.job_id] == one.job_id]
    _check_cycles(new, ids)
    known = _known_parents(connection, new, ids)
    entries = [_entry(one, ids, known) for one in new]
    _write(connection, entries, now, seat_wait)
    hold_gates(connection, [one for one in new if one.child_of is not None], now)
    return tuple(Submitted(job_id=ids[one.job_id], created=ids[one.job_id] == one.job_id) for one in submissions)


def _check_cycles(new: Sequence[Submission], ids: Mapping[str, str]) -> None:
    """Refuse jobs that wait for each other; one that exists already waits for none of them."""
    by_id = {one.job_id: one for one in new}
    waits = (
        WaitsFor(one.job_id, parent, dep.until)
        for one in new
        for dep, parent in zip(one.spec.deps, _parent_ids(one, ids), strict=True)
        if parent in by_id
    )
    try:
        refuse_cycle(waits)
    except Cycle as error:
        cycle = " → ".join(by_id[job_id].name or job_id for job_id in error.jobs)
        problem = FieldProblem(path="deps", message=f"a job cannot wait for itself: {cycle}", value=cycle)
        raise InvalidInput(f"the dependencies form a cycle: {cycle}", (problem,)) from None


# --- idempotency --------------------------------------------------------------------------------------------------


def _ids(connection: Connection, submissions: Sequence[Submission]) -> dict[str, str]:
    """Return the id that each submission is known by: its own, or that of the job with its key and content."""
    keyed = [one for one in submissions if one.idempotency_key is not None]
    taken = _taken_keys(connection, keyed)
    ids = {one.job_id: one.job_id for one in submissions}
    for one in keyed:
        owner = taken.setdefault(_key_of(one), _KeyOwner(one.job_id, digest(one.canonical), one.canonical))
        if owner.sha256 != digest(one.canonical):
            raise _conflict(one, owner)
        ids[one.job_id] = owner.job_id
    return ids


@dataclass(frozen=True, slots=True)
class _KeyOwner:
    """The job that has a key, and the content that it was submitted with."""

    job_id: str
    sha256: str
    canonical: Mapping[str, Any]


def _key_of(submission: Submission) -> tuple[str, str]:
    return submission.spec.product_id, submission.idempotency_key or ""


def _taken_keys(connection: Connection, keyed: Sequence[Submission]) -> dict[tuple[str, str], _KeyOwner]:
    """Return the keys that have a job already; nobody else gives one of them away until the transaction ends."""
    pairs = sorted({_key_of(one) for one in keyed})
    for lock in sorted({zlib.crc32(" ".join(pair).encode()) % KEY_LOCKS for pair in pairs}):
        serialise(connection, f"key {lock}")
    found: dict[tuple[str, str], _KeyOwner] = {}
    for some in batches(pairs):
        wanted = tuple_(idempotency_keys.c.product_id, idempotency_keys.c.key).in_(some)
        for row in connection.execute(select(idempotency_keys).where(wanted)):
            found[row.product_id, row.key] = _KeyOwner(row.job_id, row.sha256, row.canonical)
    return found


def _conflict(submission: Submission, owner: _KeyOwner) -> IdempotencyConflict:
    key, differs = submission.idempotency_key, differing(owner.canonical, submission.canonical)
    return IdempotencyConflict(
        f"idempotency key {key!r} belongs to job {owner.job_id}, whose {', '.join(differs)} is different",
        hint="send the same content again, or use another key",
        differs=list(differs),
        job_id=owner.job_id,
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


def jobs_of_keys(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the jobs that were submitted under (product, key) pairs, as far as there are any."""
    found: dict[tuple[str, str], str] = {}
    for some in batches(keys):
        wanted = tuple_(idempotency_keys.c.product_id, idempotency_keys.c.key).in_(some)
        for row in connection.execute(select(idempotency_keys).where(wanted)):
            found[row.product_id, row.key] = row.job_id
    return found


# --- parents ------------------------------------------------------------------------------------------------------


def _known_parents(connection: Connection, new: Sequence[Submission], ids: Mapping[str, str]) -> dict[str, AnyRow]:
    """Return the parents that are jobs already; their stage does not change until the transaction ends.

    Raises:
        InvalidInput: there is no such job in the product of its child; all that are unknown are named.

    """
    own = {one.job_id for one in new}
    wanted = sorted({parent for one in new for parent in _parent_ids(one, ids)} - own)
    known: dict[str, AnyRow] = {}
    for some in batches(wanted):
        columns = (jobs.c.id, jobs.c.product_id, jobs.c.stage, jobs.c.ended_at)
        locked = select(*columns).where(jobs.c.id.in_(some)).order_by(jobs.c.id).with_for_update(read=True)
        known |= {row.id: row for row in connection.execute(locked)}
    products = {one.job_id: one.spec.product_id for one in new} | {row.id: row.product_id for row in known.values()}
    problems = tuple(
        FieldProblem(path=path, message="there is no such job", value=parent, expected="id of a job")
        for one in new
        for path, parent in _unknown_parents(one, ids, products, several=len(new) > 1)
    )
    if problems:
        unknown = ", ".join(dict.fromkeys(str(problem.value) for problem in problems))
        raise InvalidInput(f"deps names unknown jobs: {unknown}", problems, hint="`gf jobs` lists the jobs")
    return known


def _parent_ids(submission: Submission, ids: Mapping[str, str]) -> Iterator[str]:
    return (ids.get(dep.job_id, dep.job_id) for dep in submission.spec.deps)


def _unknown_parents(
    submission: Submission, ids: Mapping[str, str], products: Mapping[str, str], *, several: bool
) -> Iterator[tuple[str, str]]:
    """Yield place and id of each parent that is no job of the same product."""
    of_job = f"{submission.name or submission.job_id}: " if several else ""
    for index, parent in enumerate(_parent_ids(submission, ids)):
        if products.get(parent) != submission.spec.product_id:
            yield f"{of_job}deps.{index}", parent


def _entry(submission: Submission, ids: Mapping[str, str], known: Mapping[str, AnyRow]) -> _Entry:
    """Return a new job with what it waits for."""
    named = {ids.get(dep.job_id, dep.job_id): dep for dep in submission.spec.deps}
    deps = tuple(dep.model_copy(update={"job_id": parent}) for parent, dep in named.items())
    awaited = tuple(_awaited(dep, known) for dep in deps)
    parents = wait_state_of(awaited, "start")
    held = None
    if parents.outcome != "ready":
        held = WAITING
    elif any(_moved_since(submission, known[dep.job_id]) for dep in deps):
        held = held_when_ready(0, submission.spec.repository.base_sha)
    return _Entry(submission, deps, awaited, parents, held)


def _awaited(dep: Dependency, known: Mapping[str, AnyRow]) -> Awaited:
    stage = Stage(known[dep.job_id].stage) if dep.job_id in known else Stage.QUEUED
    return Awaited(dep.job_id, stage, dep.until, edge_state(stage, dep.until) or "open")


def _moved_since(submission: Submission, parent: AnyRow) -> bool:
    """Return whether the job's base may lack what the parent shipped, because it was looked up before that."""
    known_at = submission.base_known_at
    return parent.ended_at is not None and (known_at is None or parent.ended_at > known_at)


# --- new jobs -----------------------------------------------------------------------------------------------------


def _write(connection: Connection, entries: Sequence[_Entry], now: datetime, seat_wait: timedelta) -> None:
    if not entries:
        return
    first_events = [_submitted_event(entry, now) for entry in entries]
    connection.execute(insert(jobs), [_job_row(*pair, now) for pair in zip(entries, first_events, strict=True)])
    connection.execute(insert(events), first_events)
    waits = [row for entry in entries for row in _edge_rows(entry)]
    if waits:
        connection.execute(insert(edges), waits)
    keys = [_key_row(entry.submission, now) for entry in entries if entry.submission.idempotency_key is not None]
    if keys:
        connection.execute(insert(idempotency_keys), keys)
    _keep_profiles(connection, entries, now)
    enqueue_starts(connection, [entry.starting for entry in entries if entry.held is None], now, wait=seat_wait)
    enqueue_starts(connection, [entry.starting for entry in entries if entry.held not in (None, WAITING)], now)


def _job_row(entry: _Entry, event: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    submission, spec = entry.submission, entry.submission.spec.model_copy(update={"deps": entry.deps})
    waits = entry.parents.outcome != "ready"
    return {
        "id": submission.job_id,
        "product_id": spec.product_id,
        "title": spec.title,
        "stage": str(Stage.QUEUED),
        "held": entry.held,
        "priority": str(spec.priority),
        "spec": spec.model_dump(mode="json"),
        "documents": submission.documents,
        "routing": ready_job(submission.job_id, spec, now).model_dump_json(exclude_defaults=True),
        "submitted_by": submission.submitted_by,
        "submitted_at": now,
        "updated_at": now,
        "queued_at": now,
        "conditions": [blocked_by_parents(entry.parents).model_dump(mode="json")] if waits else [],
        "excluded_factories": [],
        "base_sha": spec.repository.base_sha,
        "commits": [],
        "event_seq": 1,
        "event_hash": event["hash"],
    }


def _edge_rows(entry: _Entry) -> Iterator[dict[str, Any]]:
    common = {"child_id": entry.job_id, "product_id": entry.submission.spec.product_id, "gate": "start"}
    for one in entry.awaited:
        yield common | {"parent_id": one.job_id, "until": one.until, "state": one.state}


def _submitted_event(entry: _Entry, now: datetime) -> dict[str, Any]:
    submission, spec = entry.submission, entry.submission.spec
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
            "deps": [dep.job_id for dep in entry.deps[:MAX_SHOWN]],
        },
    }
    return event | {"prev_hash": GENESIS, "hash": event_hash(GENESIS, event)}


def _key_row(submission: Submission, now: datetime) -> dict[str, Any]:
    return {
        "product_id": submission.spec.product_id,
        "key": submission.idempotency_key,
        "job_id": submission.job_id,
        "sha256": digest(submission.canonical),
        "canonical": submission.canonical,
        "at": now,
    }


def _keep_profiles(connection: Connection, entries: Sequence[_Entry], now: datetime) -> None:
    """Keep each version of a profile that a job ever used."""
    used: dict[tuple[str, ProfileRef], Any] = {}
    for one in (entry.submission for entry in entries):
        if one.spec.profile is not None:
            used[one.spec.product_id, one.spec.profile] = one.documents.get("profile") or {}
    for (product_id, profile), document in used.items():
        insert_new(
            connection,
            profiles,
            product_id=product_id,
            name=profile.name,
            version=profile.version,
            sha256=profile.sha256,
            document=document,
            first_used_at=now,
        )
