"""What an attempt tells, taken in by one transaction: start, lines, steps, files, checkpoint, result. Does I/O: SQL.

Everything is numbered by the attempt itself, so that a report that is sent again changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, insert, select, update

from core.job import Stage
from store.attempts import Fenced, fence, refusal
from store.chain import digest
from store.column_types import canonical_json, clean_text
from store.database import AnyRow
from store.messages import (
    MAX_LOG_CHARS,
    MAX_STEP_DATA_CHARS,
    MAX_STEP_MESSAGE_CHARS,
    ArtifactFile,
    AttemptReport,
    HandedIn,
    LogBlock,
    StartedInfo,
    StepBlock,
)
from store.outbox import enqueue_signal
from store.tables import artifacts, events, leases, logs, runs
from store.views import ReportAck


def take(connection: Connection, job_id: str, epoch: int, report: AttemptReport, now: datetime) -> ReportAck:
    """Take in everything that the report brings; what is known already is left as it is.

    The job's row is locked meanwhile, so that for one job ids grow in the order in which readers get to see them.

    Raises:
        NotFound: there is no such job.
        Refused: with `StaleEpoch`, after noting the refusal; a result that comes too late is refused by itself.

    """
    content = report.model_dump(mode="json", exclude_defaults=True)
    fenced = fence(connection, job_id, epoch, kind=report.kind, content=content, now=now)
    taking = _Taking(connection, fenced, now)
    if report.started is not None:
        taking.started(report.started)
    lines = taking.logs(report.logs)
    steps = taking.steps(report.steps) if report.steps is not None else 0
    for file in report.files:
        taking.file(file)
    if report.checkpoint is not None:
        taking.checkpoint(report.checkpoint)
    accepted = report.result is None or taking.result(report.result)
    taking.save()
    if not accepted:
        raise refusal(fenced.job, epoch, fenced.lease, kind="result", content=content["result"])
    if fenced.job.changed:
        fenced.job.save()
    return ReportAck(lines=lines, steps=steps, told=taking.told)


class _Taking:
    """One report on its way in; job and run are each written once, at the end."""

    def __init__(self, connection: Connection, fenced: Fenced, now: datetime) -> None:
        self._connection = connection
        self._job = fenced.job
        self._lease = fenced.lease
        self._epoch = fenced.epoch
        self._now = now
        self._values: dict[str, Any] = {}
        self.told = False

    @cached_property
    def _run(self) -> AnyRow:
        known = select(runs.c.started_at, runs.c.log_sha256, runs.c.log_lines)
        return self._connection.execute(
            known.where(runs.c.job_id == self._job.id, runs.c.epoch == self._epoch).with_for_update()
        ).one()

    def save(self) -> None:
        """Write what changes about the run."""
        if self._values:
            self._connection.execute(
                update(runs).where(runs.c.job_id == self._job.id, runs.c.epoch == self._epoch).values(self._values)
            )

    def started(self, info: StartedInfo) -> None:
        """Note that the engine runs; with a living lease the job is now building.

        A short attempt may be over before its first word arrives: then that is kept, and moves nothing.
        """
        if self._run.started_at is not None:
            return
        self._values |= {
            "started_at": self._now,
            "engine_version": info.engine_version,
            "info": info.model_dump(mode="json"),
        }
        factory, engine = self._lease.factory, self._lease.engine
        data = {"factory": factory, "engine": engine, "engine_version": info.engine_version}
        self._job.event("attempt.started", f"{engine} on {factory}", data, epoch=self._epoch)
        if self._job.stage == Stage.ASSIGNED and self._lease.state == "living":
            self._job.move(Stage.BUILDING, epoch=self._epoch)

    def logs(self, blocks: Sequence[LogBlock]) -> int:
        """Store the lines that are not stored yet and carry on the attempt's digest; return how many there were."""
        owner = {"product_id": self._job.product_id, "job_id": self._job.id, "epoch": self._epoch}
        rows = [
            owner | {"stream": block.stream, "seq": seq, "at": line.at, "text": _bounded(line.text)}
            for block in blocks
            for seq, line in self._fresh_lines(block)
        ]
        if rows:
            self._connection.execute(insert(logs), rows)
            carried = self._run.log_sha256
            for row in rows:
                carried = hashlib.sha256(f"{carried}{row['text']}".encode()).hexdigest()
            self._values |= {"log_sha256": carried, "log_lines": self._run.log_lines + len(rows)}
        return len(rows)

    def _fresh_lines(self, block: LogBlock) -> list[tuple[int, Any]]:
        end = block.first_seq + len(block.lines)
        stored = set(
            self._connection.execute(
                select(logs.c.seq).where(
                    logs.c.job_id == self._job.id,
                    logs.c.epoch == self._epoch,
                    logs.c.stream == block.stream,
                    logs.c.seq >= block.first_seq,
                    logs.c.seq < end,
                )
            ).scalars()
        )
        return [(seq, line) for seq, line in enumerate(block.lines, start=block.first_seq) if seq not in stored]

    def steps(self, block: StepBlock) -> int:
        """Write the steps that are not written yet as `attempt.step` events; return how many there were."""
        end = block.first_seq + len(block.steps)
        stored = set(
            self._connection.execute(
                select(events.c.attempt_seq).where(
                    events.c.job_id == self._job.id,
                    events.c.epoch == self._epoch,
                    events.c.attempt_seq >= block.first_seq,
                    events.c.attempt_seq < end,
                )
            ).scalars()
        )
        fresh = [(seq, step) for seq, step in enumerate(block.steps, start=block.first_seq) if seq not in stored]
        for seq, step in fresh:
            message = step.message[:MAX_STEP_MESSAGE_CHARS]
            data = {"step": step.type} | _bounded_data(step.data)
            self._job.event("attempt.step", message, data, epoch=self._epoch, attempt_seq=seq, at=step.at)
        return len(fresh)

    def file(self, file: ArtifactFile) -> None:
        """Note a captured file; the same path again replaces nothing when it is the same file, else the entry."""
        this_file = (
            artifacts.c.job_id == self._job.id,
            artifacts.c.epoch == self._epoch,
            artifacts.c.path == file.path,
        )
        known = self._connection.execute(select(artifacts).where(*this_file)).one_or_none()
        if known is not None and (known.sha256, known.location) == (file.sha256, file.location):
            return
        values = file.model_dump() | {"at": self._now}
        if known is None:
            key = {"product_id": self._job.product_id, "job_id": self._job.id, "epoch": self._epoch}
            self._connection.execute(insert(artifacts), values | key)
        else:
            self._connection.execute(update(artifacts).where(*this_file).values(values))
        told = {"path": file.path, "kind": file.kind, "size": file.size, "sha256": file.sha256}
        self._job.event("artifact.added", file.path, told, epoch=self._epoch)

    def checkpoint(self, sha: str) -> None:
        """Note where the work of the attempt is kept; the next attempt goes on from there."""
        if (self._job.row.checkpoint_sha, self._job.row.checkpoint_epoch) == (sha, self._epoch):
            return
        self._job.set(checkpoint_sha=sha, checkpoint_epoch=self._epoch)
        self._job.event("attempt.checkpoint", sha, {"sha": sha}, epoch=self._epoch)

    def result(self, handed_in: HandedIn) -> bool:
        """Take the result if the lease lives: a compare-and-swap from `living` to `accepted`; the job is in review.

        An adopted attempt hands in a failure as well, since its activity can answer nobody: the workflow, which hears
        of the result by a signal, decides what follows. Return False when it is refused; the same again is fine.
        """
        if self._lease.accepted_at is not None and self._lease.accepted_sha == handed_in.sha:
            return True
        swapped = self._connection.execute(
            update(leases)
            .where(leases.c.job_id == self._job.id, leases.c.epoch == self._epoch, leases.c.state == "living")
            .values(state="accepted", accepted_sha=handed_in.sha, accepted_at=self._now)
        )
        if swapped.rowcount != 1:
            return False
        self._tell_workflow()
        answer = handed_in.answer
        failed = answer is not None and answer.outcome == "failed"
        if not failed:
            self._job.event("attempt.accepted", handed_in.sha, {"sha": handed_in.sha}, epoch=self._epoch)
        if answer is None:
            return True
        self._values |= {"result": answer.model_dump(mode="json"), "usage": answer.usage.model_dump(mode="json")}
        if answer.engine_version:
            self._values["engine_version"] = answer.engine_version
        if failed:
            return True
        self._job.set(candidate_sha=answer.candidate_sha, base_sha=answer.base_sha)
        if answer.checkpoint_sha:
            self._job.set(checkpoint_sha=answer.checkpoint_sha, checkpoint_epoch=self._epoch)
        for stage in (Stage.BUILDING, Stage.REVIEW):
            if (self._job.stage, stage) in _ONWARD:
                self._job.move(stage, epoch=self._epoch)
        return True

    def _tell_workflow(self) -> None:
        """Have the workflow look for the result when no activity of its own will tell it."""
        if self._lease.adopted_at is None:
            return
        job = self._job
        payload = {"epoch": self._epoch}
        enqueue_signal(
            self._connection, "handed_in", job_id=job.id, product_id=job.product_id, payload=payload, now=self._now
        )
        self.told = True


_ONWARD = {(Stage.ASSIGNED, Stage.BUILDING), (Stage.BUILDING, Stage.REVIEW)}
"""Where a taken result brings a job; its first word may have been lost, so that it is only assigned."""


def _bounded(text: str) -> str:
    text = clean_text(text)
    if len(text) <= MAX_LOG_CHARS:
        return text
    return f"{text[:MAX_LOG_CHARS]}… ({len(text) - MAX_LOG_CHARS} characters cut off)"


def _bounded_data(data: dict[str, Any]) -> dict[str, Any]:
    size = len(canonical_json(data))
    return data if size <= MAX_STEP_DATA_CHARS else {"chars": size, "sha256": digest(data)}
