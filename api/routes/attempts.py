"""What attempts write: reports, captured files, death certificates. *Does I/O: the ledger, files.*

Every write names job and epoch; 409 `stale_epoch` means that the attempt's lease is gone and it has to stop.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import AwareDatetime, Base64Bytes, Field

from api.artifacts import Draft, check_hash, checked_path, find_artifact, receive
from api.auth import requires
from api.backend import Backend, Parts, utc_now
from api.documents import ArtifactDocument, Document, artifact_document
from api.routes.jobs import JobId
from core.attempt import BuildResult, DeathCertificate
from core.errors import FieldProblem, InvalidInput
from core.roles import Permission
from store.messages import (
    ArtifactFile,
    AttemptReport,
    AttemptStep,
    HandedIn,
    LogBlock,
    LogLine,
    StartedInfo,
    StepBlock,
)

router = APIRouter(
    prefix="/fleet/attempts", tags=["attempts"], dependencies=[Depends(requires(Permission.ACT_AS_FACTORY))]
)

Epoch = Annotated[int, Path(ge=1, le=2**31 - 1, description="Epoch of the attempt.")]
Sha = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]*$")]
Seq = Annotated[int, Field(ge=1, le=2**31 - 1)]
MAX_LINES = 20_000
MAX_FILES = 1000
MAX_SMALL_FILE = 1024 * 1024
"""Bytes of a file that may travel in a report."""
ArtifactKind = Literal["file", "diff", "log"]
RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Started(Document):
    """The engine was started."""

    at: AwareDatetime
    pid: int | None = Field(default=None, ge=0, le=2**31 - 1)
    engine_version: str = Field(default="", max_length=200)
    workdir: str = Field(default="", max_length=4096)
    resumed_session: str = Field(default="", max_length=200)


class Line(Document):
    """One line of output."""

    at: AwareDatetime
    text: str


class Lines(Document):
    """Lines of one stream, numbered without gaps by attempt and stream, from 1."""

    stream: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    first_seq: Seq
    lines: tuple[Line, ...] = Field(max_length=MAX_LINES)


class Step(Document):
    """One thing that the engine did."""

    at: AwareDatetime
    type: str = Field(max_length=100)
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class Steps(Document):
    """Steps, numbered without gaps by attempt, from 1."""

    first_seq: Seq
    events: tuple[Step, ...] = Field(max_length=MAX_LINES)


class Checkpoint(Document):
    """The work so far was pushed."""

    sha: Sha


class Result(Document):
    """The attempt's last act: its candidate, and the whole answer of the engine activity."""

    sha: Sha = ""
    answer: BuildResult | None = None


class SmallFile(Document):
    """A captured file that is small enough to travel in a report; larger ones have a request of their own."""

    path: str = Field(min_length=1, max_length=1000, description="Relative path in the worktree.")
    kind: ArtifactKind = "file"
    media_type: str = Field(default="application/octet-stream", max_length=200)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    body: Base64Bytes = Field(max_length=MAX_SMALL_FILE, description="The bytes, in base64.")

    def entry(self, folder: FilePath, number: int) -> ArtifactFile:
        """Return what the ledger notes about the file, which is to lie under `folder`.

        Raises:
            InvalidInput: the path leaves its place, or the hash is that of other bytes.

        """
        place = checked_path(self.path, f"body.files.{number}.path")
        check_hash(hashlib.sha256(self.body).hexdigest(), self.sha256, f"body.files.{number}.sha256")
        return ArtifactFile(
            path=str(place),
            kind=self.kind,
            media_type=self.media_type,
            size=len(self.body),
            sha256=self.sha256,
            location=str(folder / place),
        )


class Report(Document):
    """Everything an attempt has to tell since its last report."""

    factory: str = Field(default="", max_length=200)
    instance: str = Field(default="", max_length=100)
    started: Started | None = None
    logs: tuple[Lines, ...] = Field(default=(), max_length=100)
    events: Steps | None = None
    files: tuple[SmallFile, ...] = Field(default=(), max_length=MAX_FILES)
    checkpoint: Checkpoint | None = None
    result: Result | None = None


class Accepted(Document):
    """Answer to what an attempt brings."""

    accepted: bool = True


class Confirmed(Document):
    """Answer to an attempt that says it lives: its lease is kept, for as long as a lease lasts."""

    stop: Literal["", "cancelled"] = ""
    """Why it is to end all the same; empty: it may go on."""


@router.post("/{job_id}/{epoch}/alive")
async def confirm_attempt(parts: Parts, job_id: JobId, epoch: Epoch) -> Confirmed:
    """Keep the lease of an attempt that Temporal cannot hear, or has given up; 409 `stale_epoch`: it has to stop."""
    wanted_to_stop = await parts.ledger.confirm_lease(job_id, epoch, utc_now())
    return Confirmed(stop="cancelled" if wanted_to_stop else "")


class Quarantined(Document):
    """Where the work lies that an attempt finished after it had lost its lease."""

    ref: str = Field(max_length=200, pattern=r"^refs/gigafactory/quarantine/[^\s]+$")
    sha: Sha
    message: str = Field(default="", max_length=2000)
    """How it ended."""


@router.post("/{job_id}/{epoch}/quarantined")
async def note_quarantined(parts: Parts, job_id: JobId, epoch: Epoch, kept: Quarantined) -> Accepted:
    """Note what an attempt finished without a lease, so that it can be seen; nothing of it is ever applied.

    A lease that it still has is given up with that. `accepted` is false when all that was known.
    """
    if await parts.ledger.mark_lost(job_id, epoch, "the attempt gave its lease up", "", now=utc_now()):
        parts.dispatcher.wake()
    noted = await parts.ledger.note_quarantined(
        job_id, epoch, ref=kept.ref, sha=kept.sha, message=kept.message, now=utc_now()
    )
    parts.wakeups.notify(job_id)
    return Accepted(accepted=noted)


@router.post("/{job_id}/{epoch}/report")
async def report_attempt(parts: Parts, job_id: JobId, epoch: Epoch, report: Report) -> Accepted:
    """Take in what an attempt tells. Sending the same report again changes nothing."""
    await take_report(parts, job_id, epoch, report)
    return Accepted()


async def take_report(parts: Backend, job_id: str, epoch: int, report: Report) -> None:
    """Take in what an attempt tells, by a request or over its factory's link."""
    folder = parts.artifacts_dir / job_id / str(epoch)
    files = tuple(file.entry(folder, number) for number, file in enumerate(report.files))
    drafts: list[Draft] = []
    try:
        for file, entry in zip(report.files, files, strict=True):
            drafts.append(await asyncio.to_thread(Draft.of, FilePath(entry.location), file.body))
        ack = await parts.ledger.report(job_id, epoch, _told(report, files), utc_now())
        for draft in drafts:  # not before the ledger took it: a stale attempt must not change a file
            await asyncio.to_thread(draft.publish)
    finally:
        for draft in drafts:
            draft.discard()
    parts.wakeups.notify(job_id)
    if ack.told:
        parts.dispatcher.wake()


def _told(report: Report, files: tuple[ArtifactFile, ...]) -> AttemptReport:
    """Return the report in the words of the ledger."""
    started, events, result = report.started, report.events, report.result
    return AttemptReport(
        started=None if started is None else StartedInfo(**started.model_dump(exclude={"at"})),
        logs=tuple(
            LogBlock(
                stream=block.stream,
                first_seq=block.first_seq,
                lines=tuple(LogLine(at=line.at, text=line.text) for line in block.lines),
            )
            for block in report.logs
        ),
        steps=None
        if events is None
        else StepBlock(
            first_seq=events.first_seq, steps=tuple(AttemptStep(**step.model_dump()) for step in events.events)
        ),
        files=files,
        checkpoint=None if report.checkpoint is None else report.checkpoint.sha,
        result=None if result is None else HandedIn(sha=result.sha, answer=result.answer),
    )


@router.post("/{job_id}/{epoch}/artifacts", status_code=201, openapi_extra=RAW_BODY)
async def add_artifact(
    *,
    request: Request,
    parts: Parts,
    job_id: JobId,
    epoch: Epoch,
    path: Annotated[str, Query(min_length=1, max_length=1000, description="Relative path in the worktree.")],
    sha256: Annotated[str, Query(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the body, in hex.")],
    kind: ArtifactKind = "file",
    content_type: Annotated[str, Header(max_length=200)] = "application/octet-stream",
) -> ArtifactDocument:
    """Take in a captured file; its bytes are the body. The same path again takes the place of the first."""
    place = checked_path(path)
    await parts.ledger.guard_epoch(job_id, epoch, kind="artifact", content=sha256, now=utc_now())
    target = parts.artifacts_dir / job_id / str(epoch) / place
    size = await receive(request.stream(), target, sha256=sha256)
    file = ArtifactFile(
        path=str(place), kind=kind, media_type=content_type, size=size, sha256=sha256, location=str(target)
    )
    await parts.ledger.report(job_id, epoch, AttemptReport(files=(file,)), utc_now())
    return artifact_document(await find_artifact(parts.ledger, job_id, str(place), epoch=epoch))


@router.post("/{job_id}/{epoch}/death")
async def certify_death(parts: Parts, job_id: JobId, epoch: Epoch, certificate: DeathCertificate) -> Accepted:
    """Take a supervisor's word that nothing of an attempt lives any more; `accepted` is false when it was known."""
    if (certificate.job_id, certificate.epoch) != (job_id, epoch):
        problem = FieldProblem(
            path="body.job_id",
            message="the certificate is for another attempt",
            value=f"{certificate.job_id} epoch {certificate.epoch}",
            expected=f"{job_id} epoch {epoch}",
        )
        raise InvalidInput("1 problem in the request", (problem,))
    lost = await parts.ledger.mark_lost(
        job_id, epoch, certificate.reason, certificate.checkpoint_sha, now=utc_now(), certificate=certificate
    )
    parts.wakeups.notify(job_id)
    parts.dispatcher.wake()
    return Accepted(accepted=lost)
