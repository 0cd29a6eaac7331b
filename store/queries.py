"""Reads: the job document, lists, events, what the reconciler compares. Does I/O: SQL, read only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, exists, func, literal, or_, select, tuple_

from core.attempt import Usage
from core.errors import InvalidInput
from core.job import JobSpec, Stage
from store.admission import living_grant
from store.chain import check_chain
from store.column_types import UtcDateTime
from store.database import AnyRow
from store.open_job import no_such_job
from store.parents import WAITING, Waits, wait_state, waits_of
from store.recovery import standing
from store.tables import events, jobs, leases, logs, outbox, runs
from store.views import (
    AttemptView,
    ChainReport,
    Cost,
    EventView,
    JobDocuments,
    JobPage,
    JobView,
    LatestIds,
    StartPayload,
    UnfinishedJob,
)

MAX_PAGE = 500
CHAIN_PAGE = 1_000

_SHOWN = [column for column in jobs.c if column.name not in ("documents", "routing")]


# --- jobs ---------------------------------------------------------------------------------------------------------


def job(connection: Connection, job_id: str) -> JobView:
    """Return the job's document.

    Raises:
        NotFound: there is no such job.

    """
    row = connection.execute(select(*_SHOWN).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    return _views(connection, [row])[0]


def product_of(connection: Connection, job_id: str) -> str:
    """Return the product that the job belongs to.

    Raises:
        NotFound: there is no such job.

    """
    product: str | None = connection.execute(select(jobs.c.product_id).where(jobs.c.id == job_id)).scalar_one_or_none()
    if product is None:
        raise no_such_job(job_id)
    return product


def page(
    connection: Connection, products: Sequence[str] | None, stages: Sequence[Stage], cursor: str | None, limit: int
) -> JobPage:
    """Return jobs, newest first."""
    limit = max(1, min(limit, MAX_PAGE))
    query = select(*_SHOWN)
    if products is not None:
        query = query.where(jobs.c.product_id.in_(products))
    if stages:
        query = query.where(jobs.c.stage.in_([str(stage) for stage in stages]))
    if cursor is not None:
        at, job_id = _read_cursor(cursor)
        query = query.where(tuple_(jobs.c.submitted_at, jobs.c.id) < tuple_(literal(at, UtcDateTime), literal(job_id)))
    order = jobs.c.submitted_at.desc(), jobs.c.id.desc()
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    shown = rows[:limit]
    return JobPage(
        items=_views(connection, shown),
        next_cursor=_cursor(shown[-1]) if len(rows) > limit else None,
    )


def _views(connection: Connection, rows: Sequence[AnyRow]) -> tuple[JobView, ...]:
    """Return the documents of the jobs, with their attempts and what they wait for."""
    job_ids = [row.id for row in rows]
    found, waits = attempts(connection, job_ids), waits_of(connection, job_ids)
    return tuple(_view(row, found.get(row.id, ()), waits.get(row.id, Waits())) for row in rows)


def _cursor(row: AnyRow) -> str:
    return base64.urlsafe_b64encode(f"{row.submitted_at.isoformat()} {row.id}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        at, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ", 1)
        moment = datetime.fromisoformat(at)
    except (ValueError, binascii.Error):
        raise InvalidInput(f"{cursor[:100]!r} is no cursor of a list of jobs") from None
    if moment.tzinfo is None:
        raise InvalidInput(f"{cursor[:100]!r} is no cursor of a list of jobs")
    return moment, job_id


def _view(row: AnyRow, found: Sequence[AttemptView], waits: Waits) -> JobView:
    spec = row.spec
    profile = spec.get("profile")
    shown = row._asdict() | {
        "profile": profile and profile["name"],
        "attempts": tuple(found),
        "tokens": _tokens(found),
        "cost": _cost(found),
        "refused_writes": row.refused_writes + sum(attempt.refused_writes for attempt in found),
    }
    shown |= waits._asdict()
    copied = ("engine", "repository", "ship", "review_policy", "tracker_item")
    return JobView.model_validate(shown | {name: spec.get(name) for name in copied})


def _tokens(found: Iterable[AttemptView]) -> int | None:
    known = [total for attempt in found if (total := _total_tokens(attempt.usage)) is not None]
    return sum(known) if known else None


def _total_tokens(usage: Usage) -> int | None:
    if usage.total_tokens is not None:
        return usage.total_tokens
    parts = [part for part in (usage.input_tokens, usage.output_tokens) if part is not None]
    return sum(parts) if parts else None


def _cost(found: Iterable[AttemptView]) -> Cost:
    ended = [attempt.usage for attempt in found if attempt.outcome is not None]
    known = [usage for usage in ended if usage.cost_usd is not None]
    if not known:
        return Cost()
    total = sum((usage.cost_usd for usage in known if usage.cost_usd is not None), Decimal(0))
    estimated = any(usage.cost_source != "reported" for usage in known)
    return Cost(usd=total, source="estimated" if estimated else "reported", complete=len(known) == len(ended))


def attempts(connection: Connection, job_ids: Sequence[str]) -> dict[str, tuple[AttemptView, ...]]:
    """Return the attempts of each job, oldest first."""
    if not job_ids:
        return {}
    rows = connection.execute(
        select(runs, leases.c.state.label("lease"))
        .join(leases, (leases.c.job_id == runs.c.job_id) & (leases.c.epoch == runs.c.epoch))
        .where(runs.c.job_id.in_(job_ids))
        .order_by(runs.c.job_id, runs.c.epoch)
    )
    found: dict[str, list[AttemptView]] = {}
    for row in rows:
        found.setdefault(row.job_id, []).append(_attempt(row))
    return {job_id: tuple(views) for job_id, views in found.items()}


def _attempt(row: AnyRow) -> AttemptView:
    result = row.result or {}
    known = {"exit_code": result.get("exit_code"), "session_id": result.get("session_id"), "usage": row.usage or {}}
    return AttemptView.model_validate(row._asdict() | known)


def documents(connection: Connection, job_id: str) -> JobDocuments:
    """Return the immutable snapshot of the job.

    Raises:
        NotFound: there is no such job.

    """
    row = connection.execute(select(jobs.c.spec, jobs.c.documents).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    return JobDocuments(job_id=job_id, spec=JobSpec.model_validate(row.spec), documents=row.documents)


# --- events -------------------------------------------------------------------------------------------------------


def event_log(connection: Connection, job_id: str, after_seq: int, limit: int) -> tuple[EventView, ...]:
    """Return events with a number above `after_seq`, oldest first.

    Raises:
        NotFound: there is no such job.

    """
    found = _events(connection, job_id, after_seq, limit)
    if not found:
        latest_ids(connection, job_id)
    return found


def _events(connection: Connection, job_id: str, after_seq: int, limit: int) -> tuple[EventView, ...]:
    rows = connection.execute(
        select(events).where(events.c.job_id == job_id, events.c.seq > after_seq).order_by(events.c.seq).limit(limit)
    )
    return tuple(EventView.model_validate(row._asdict()) for row in rows)


def latest_ids(connection: Connection, job_id: str) -> LatestIds:
    """Return how far log and events of the job reach, from the ends of two indexes.

    Raises:
        NotFound: there is no such job.

    """
    newest = select(func.max(logs.c.id)).where(logs.c.job_id == job_id).scalar_subquery()
    row = connection.execute(
        select(jobs.c.event_seq, jobs.c.stage, newest.label("log_id")).where(jobs.c.id == job_id)
    ).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    return LatestIds(event_seq=row.event_seq, log_id=row.log_id or 0, stage=row.stage)


def verify_chain(connection: Connection, job_id: str) -> ChainReport:
    """Return whether the job's event log is whole and unchanged.

    Raises:
        NotFound: there is no such job.

    """
    row = connection.execute(select(jobs.c.event_seq, jobs.c.event_hash).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    return check_chain(job_id, _all_events(connection, job_id), last_seq=row.event_seq, last_hash=row.event_hash)


def _all_events(connection: Connection, job_id: str) -> Iterator[EventView]:
    after = 0
    while found := _events(connection, job_id, after, CHAIN_PAGE):
        yield from found
        after = found[-1].seq


# --- for workflows and the reconciler -----------------------------------------------------------------------------


def start_payload(connection: Connection, job_id: str) -> StartPayload:
    """Return what the job's workflow starts with, as of now.

    Raises:
        NotFound: there is no such job.

    """
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    stands = standing(connection, row)
    grant = None if stands is not None and stands.grant is not None else living_grant(connection, job_id)
    before = row.epoch if grant is None else grant.epoch - 1
    last = connection.execute(
        select(runs.c.engine, runs.c.outcome, runs.c.message, runs.c.result)
        .where(runs.c.job_id == job_id, runs.c.epoch <= before)
        .order_by(runs.c.epoch.desc())
        .limit(1)
    ).one_or_none()
    told = {} if last is None else _last_attempt(last)
    return StartPayload(
        job_id=job_id,
        product_id=row.product_id,
        stage=row.stage,
        spec=JobSpec.model_validate(row.spec),
        grant=grant,
        life=row.life,
        epoch=before,
        ready=row.stage == Stage.QUEUED and row.held is None,
        children=wait_state(connection, job_id, "ship"),
        priority=row.priority,
        submitted_at=row.submitted_at,
        note=row.note,
        standing=stands,
        **told,
    )


def _last_attempt(last: AnyRow) -> dict[str, Any]:
    session = (last.result or {}).get("session_id")
    failed = last.outcome not in (None, "succeeded")
    failure = f"{last.outcome}: {last.message}" if failed else ""
    return {"failure": failure, "session_id": session, "engine": last.engine}


def unfinished(
    connection: Connection, updated_before: datetime, limit: int, after: UnfinishedJob | None
) -> tuple[UnfinishedJob, ...]:
    """Return jobs whose workflow should be alive, the one that was written to longest ago first."""
    later = () if after is None else (_after(after),)
    query = _UNFINISHED.where(jobs.c.updated_at < updated_before, *later).order_by(jobs.c.updated_at, jobs.c.id)
    return _unfinished(connection, query.limit(limit))


def unfinished_page(connection: Connection, after_id: str, limit: int) -> tuple[UnfinishedJob, ...]:
    """Return jobs whose workflow should be alive, by id: an order that writing to them does not change."""
    return _unfinished(connection, _UNFINISHED.where(jobs.c.id > after_id).order_by(jobs.c.id).limit(limit))


_UNFINISHED = (
    select(
        jobs.c.id,
        jobs.c.product_id,
        jobs.c.stage,
        jobs.c.life,
        jobs.c.epoch,
        jobs.c.updated_at,
        leases.c.state.label("lease"),
        exists().where(outbox.c.job_id == jobs.c.id, outbox.c.kind == "start").label("start_pending"),
    )
    .join(leases, (leases.c.job_id == jobs.c.id) & (leases.c.epoch == jobs.c.epoch), isouter=True)
    .where(jobs.c.ended_at.is_(None), or_(jobs.c.held.is_(None), jobs.c.held != WAITING, jobs.c.stage != "queued"))
)
"""A job that waits for its parents has no workflow yet."""


def _unfinished(connection: Connection, query: Select[Any]) -> tuple[UnfinishedJob, ...]:
    return tuple(UnfinishedJob.model_validate(row._asdict()) for row in connection.execute(query))


def _after(job: UnfinishedJob) -> ColumnElement[bool]:
    place = tuple_(literal(job.updated_at, UtcDateTime), literal(job.id))
    return tuple_(jobs.c.updated_at, jobs.c.id) > place
