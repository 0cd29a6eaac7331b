"""What an attempt brings in, numbered by it so that nothing doubles: log lines, steps, files. Does I/O: SQL."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from store.attempts import fence
from store.chain import digest
from store.column_types import canonical_json, clean_text
from store.messages import (
    MAX_LOG_CHARS,
    MAX_STEP_DATA_CHARS,
    MAX_STEP_MESSAGE_CHARS,
    ArtifactFile,
    AttemptStep,
    LogLine,
)
from store.tables import artifacts, events, logs, runs
from store.views import Appended, ArtifactView, LogView


def append_logs(
    connection: Connection,
    job_id: str,
    epoch: int,
    *,
    stream: str,
    first_seq: int,
    lines: Sequence[LogLine],
    now: datetime,
) -> Appended:
    """Store the lines of one stream, numbered from `first_seq`, that are not stored yet.

    The job's row is locked meanwhile, so that for one job ids grow in the order in which readers get to see them.
    """
    content = [line.text for line in lines]
    fenced = fence(connection, job_id, epoch, kind="log", content=content, now=now)
    end = first_seq + len(lines)
    stored = set(
        connection.execute(
            select(logs.c.seq).where(
                logs.c.job_id == job_id,
                logs.c.epoch == epoch,
                logs.c.stream == stream,
                logs.c.seq >= first_seq,
                logs.c.seq < end,
            )
        ).scalars()
    )
    fresh = [(seq, line) for seq, line in enumerate(lines, start=first_seq) if seq not in stored]
    if fresh:
        common = {"product_id": fenced.job.product_id, "job_id": job_id, "epoch": epoch, "stream": stream}
        texts = [_bounded(line.text) for _, line in fresh]
        rows = [
            common | {"seq": seq, "at": line.at, "text": text} for (seq, line), text in zip(fresh, texts, strict=True)
        ]
        connection.execute(insert(logs), rows)
        _digest_logs(connection, job_id, epoch, texts)
    return Appended(stored=len(fresh), next_seq=end)


def _bounded(text: str) -> str:
    text = clean_text(text)
    if len(text) <= MAX_LOG_CHARS:
        return text
    return f"{text[:MAX_LOG_CHARS]}… ({len(text) - MAX_LOG_CHARS} characters cut off)"


def _digest_logs(connection: Connection, job_id: str, epoch: int, texts: Sequence[str]) -> None:
    """Carry the running digest of the attempt's log on; the event that ends the attempt holds it."""
    this_run = (runs.c.job_id == job_id, runs.c.epoch == epoch)
    known = connection.execute(select(runs.c.log_sha256, runs.c.log_lines).where(*this_run)).one()
    carried = known.log_sha256
    for text in texts:
        carried = hashlib.sha256(f"{carried}{text}".encode()).hexdigest()
    connection.execute(update(runs).where(*this_run).values(log_sha256=carried, log_lines=known.log_lines + len(texts)))


def read_logs(
    connection: Connection, job_id: str, *, after_id: int, limit: int, stream: str | None, epoch: int | None
) -> tuple[LogView, ...]:
    """Return stored lines of the job with an id above `after_id`, oldest first."""
    query = select(logs).where(logs.c.job_id == job_id, logs.c.id > after_id)
    if stream is not None:
        query = query.where(logs.c.stream == stream)
    if epoch is not None:
        query = query.where(logs.c.epoch == epoch)
    rows = connection.execute(query.order_by(logs.c.id).limit(limit))
    return tuple(LogView.model_validate(row._asdict()) for row in rows)


def append_steps(
    connection: Connection, job_id: str, epoch: int, *, first_seq: int, steps: Sequence[AttemptStep], now: datetime
) -> Appended:
    """Write the attempt's steps, numbered from `first_seq`, that are not written yet, as `attempt.step` events."""
    content = [step.model_dump(mode="json") for step in steps]
    job = fence(connection, job_id, epoch, kind="event", content=content, now=now).job
    end = first_seq + len(steps)
    stored = set(
        connection.execute(
            select(events.c.attempt_seq).where(
                events.c.job_id == job_id,
                events.c.epoch == epoch,
                events.c.attempt_seq >= first_seq,
                events.c.attempt_seq < end,
            )
        ).scalars()
    )
    fresh = [(seq, step) for seq, step in enumerate(steps, start=first_seq) if seq not in stored]
    for seq, step in fresh:
        message = step.message[:MAX_STEP_MESSAGE_CHARS]
        data = {"step": step.type} | _bounded_data(step.data)
        job.event("attempt.step", message, data, epoch=epoch, attempt_seq=seq, at=step.at)
    if fresh:
        job.save()
    return Appended(stored=len(fresh), next_seq=end)


def _bounded_data(data: dict[str, Any]) -> dict[str, Any]:
    size = len(canonical_json(data))
    return data if size <= MAX_STEP_DATA_CHARS else {"chars": size, "sha256": digest(data)}


def add_artifact(connection: Connection, job_id: str, epoch: int, file: ArtifactFile, now: datetime) -> ArtifactView:
    """Note a captured file; the same path again replaces nothing when it is the same file, else the entry."""
    job = fence(connection, job_id, epoch, kind="artifact", content=file.model_dump(mode="json"), now=now).job
    this_file = (artifacts.c.job_id == job_id, artifacts.c.epoch == epoch, artifacts.c.path == file.path)
    known = connection.execute(select(artifacts).where(*this_file)).one_or_none()
    if known is not None and known.sha256 == file.sha256 and known.location == file.location:
        return ArtifactView.model_validate(known._asdict())
    values = file.model_dump() | {"at": now}
    if known is None:
        key = {"product_id": job.product_id, "job_id": job_id, "epoch": epoch}
        connection.execute(insert(artifacts), values | key)
    else:
        connection.execute(update(artifacts).where(*this_file).values(values))
    told = {"path": file.path, "kind": file.kind, "size": file.size, "sha256": file.sha256}
    job.event("artifact.added", file.path, told, epoch=epoch)
    job.save()
    return ArtifactView.model_validate(connection.execute(select(artifacts).where(*this_file)).one()._asdict())


def read_artifacts(connection: Connection, job_id: str) -> tuple[ArtifactView, ...]:
    """Return all captured files of the job, newest attempt first."""
    rows = connection.execute(
        select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.epoch.desc(), artifacts.c.path)
    )
    return tuple(ArtifactView.model_validate(row._asdict()) for row in rows)
