"""What attempts write: reports, captured files, death certificates. *Does I/O: the ledger, files.*

Every write names job and epoch; 409 `stale_epoch` means that the attempt's lease is gone and it has to stop.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import AwareDatetime, Field

from api.artifacts import checked_path, receive
from api.auth import Role, requires
from api.backend import Backend, Parts, utc_now
from api.documents import ArtifactDocument, Document, artifact_document
from api.routes.jobs import JobId
from core.attempt import BuildResult, DeathCertificate
from core.errors import FieldProblem, InvalidInput
from store.messages import ArtifactFile, AttemptStep, LogLine, StartedInfo

router = APIRouter(prefix="/fleet/attempts", tags=["attempts"], dependencies=[Depends(requires(Role.FACTORY))])

Epoch = Annotated[int, Path(ge=1, le=2**31 - 1, description="Epoch of the attempt.")]
Sha = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]*$")]
Seq = Annotated[int, Field(ge=1, le=2**31 - 1)]
MAX_LINES = 20_000
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


class Report(Document):
    """Everything an attempt has to tell since its last report."""

    factory: str = Field(default="", max_length=200)
    instance: str = Field(default="", max_length=100)
    started: Started | None = None
    logs: tuple[Lines, ...] = Field(default=(), max_length=100)
    events: Steps | None = None
    checkpoint: Checkpoint | None = None
    result: Result | None = None


class Accepted(Document):
    """Answer to what an attempt brings."""

    accepted: bool = True


@router.post("/{job_id}/{epoch}/report")
async def report_attempt(parts: Parts, job_id: JobId, epoch: Epoch, report: Report) -> Accepted:
    """Take in what an attempt tells. Sending the same report again changes nothing."""
    await _apply(parts, job_id, epoch, report)
    parts.wakeups.notify(job_id)
    return Accepted()


async def _apply(parts: Backend, job_id: str, epoch: int, report: Report) -> None:
    ledger, now = parts.ledger, utc_now()
    if report.started is not None:
        info = StartedInfo(**report.started.model_dump(exclude={"at"}))
        await ledger.attempt_started(job_id, epoch, info, now=now)
    for block in report.logs:
        lines = [LogLine(at=line.at, text=line.text) for line in block.lines]
        await ledger.append_logs(job_id, epoch, block.stream, block.first_seq, lines, now=now)
    if report.events is not None:
        steps = [AttemptStep(**step.model_dump()) for step in report.events.events]
        await ledger.append_attempt_events(job_id, epoch, report.events.first_seq, steps, now=now)
    if report.checkpoint is not None:
        await ledger.checkpoint(job_id, epoch, report.checkpoint.sha, now=now)
    if report.result is not None:
        await ledger.accept_result(job_id, epoch, report.result.sha, result=report.result.answer, now=now)


@router.post("/{job_id}/{epoch}/artifacts", status_code=201, openapi_extra=RAW_BODY)
async def add_artifact(
    *,
    request: Request,
    parts: Parts,
    job_id: JobId,
    epoch: Epoch,
    path: Annotated[str, Query(min_length=1, max_length=1000, description="Relative path in the worktree.")],
    sha256: Annotated[str, Query(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the body, in hex.")],
    kind: Literal["file", "diff", "log"] = "file",
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
    return artifact_document(await parts.ledger.add_artifact(job_id, epoch, file, now=utc_now()))


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
