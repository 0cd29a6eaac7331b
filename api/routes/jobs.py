"""Looking at jobs: documents, lists, events, logs, the live stream, explanations, files. *Does I/O: the ledger.*"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import FileResponse, StreamingResponse

from api.artifacts import DIFF_PATH, find_artifact
from api.auth import Caller, ReadingCaller, requires
from api.backend import Backend, Parts, utc_now
from api.documents import (
    ArtifactList,
    Dag,
    EventList,
    ExplanationDocument,
    JobDocument,
    JobList,
    LogList,
    PlaceDocument,
    SnapshotDocument,
    artifact_document,
    dag_document,
    event_document,
    explanation_document,
    job_document,
    job_list,
    log_document,
    place_document,
)
from api.ids import PATTERN
from api.sse import JobStream, Position
from core.errors import NotFound
from core.job import Stage
from core.roles import Permission
from store.views import ChainReport

router = APIRouter(prefix="/fleet/jobs", tags=["jobs"], dependencies=[Depends(requires(Permission.READ_JOBS))])

JobId = Annotated[str, Path(pattern=PATTERN, description="Id of the job.")]
FactoryName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name of a factory.")]
After = Annotated[int, Query(ge=0, le=2**53, description="Give what follows this number.")]
Limit = Annotated[int, Query(ge=1, le=1000)]

Responses = dict[int | str, dict[str, Any]]
SSE_RESPONSE: Responses = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
BYTES_RESPONSE: Responses = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
DIFF_RESPONSE: Responses = {200: {"content": {"text/x-diff": {"schema": {"type": "string"}}}}}


@router.get("")
async def list_jobs(
    *,
    parts: Parts,
    caller: ReadingCaller,
    stage: Annotated[list[Stage] | None, Query(description="Only jobs in one of these stages.")] = None,
    product: Annotated[str | None, Query(max_length=200, description="Only jobs of this product.")] = None,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobList:
    """List jobs, newest first; of the products that the token reaches."""
    if product is not None:
        caller.check_product(product)
    products = caller.access.products if product is None else (product,)
    page = await parts.ledger.jobs(products=products, stages=tuple(stage or ()), cursor=cursor, limit=limit)
    return job_list(page)


waits_router = APIRouter(prefix="/fleet", tags=["jobs"], dependencies=[Depends(requires(Permission.READ_JOBS))])


@waits_router.get("/dag")
async def list_waits(parts: Parts, caller: ReadingCaller) -> Dag:
    """Return all jobs that wait for others now, and those others; of the products that the token reaches."""
    return dag_document(await parts.ledger.waiting_graph(caller.access.products))


@router.get("/{job_id}")
async def get_job(parts: Parts, job_id: JobId) -> JobDocument:
    """Return everything about a job."""
    job = await parts.ledger.job(job_id)
    return job_document(job, temporal_ui=parts.temporal_ui(), namespace=parts.settings.temporal_namespace)


@router.get("/{job_id}/dag")
async def get_dag(parts: Parts, job_id: JobId) -> Dag:
    """Return the jobs that are connected with a job by waits: parents, child jobs, and those that wait for it."""
    return dag_document(await parts.ledger.graph(job_id))


@router.get("/{job_id}/snapshot")
async def get_snapshot(parts: Parts, job_id: JobId) -> SnapshotDocument:
    """Return the immutable snapshot of a job: manifest as written, provenance, resolved values."""
    found = await parts.ledger.documents(job_id)
    return SnapshotDocument(id=found.job_id, spec=found.spec, documents=found.documents)


@router.get("/{job_id}/events")
async def list_events(parts: Parts, job_id: JobId, after: After = 0, limit: Limit = 500) -> EventList:
    """Return the job's event log, from the beginning or after an event."""
    events = await parts.ledger.events(job_id, after_seq=after, limit=limit)
    documents = tuple(event_document(event) for event in events)
    return EventList(events=documents, next_after=documents[-1].seq if documents else after)


@router.get("/{job_id}/events/check")
async def check_events(parts: Parts, job_id: JobId) -> ChainReport:
    """Check the hash chain of the job's event log."""
    return await parts.ledger.verify_chain(job_id)


@router.get("/{job_id}/logs")
async def list_logs(
    parts: Parts,
    job_id: JobId,
    after: After = 0,
    limit: Limit = 1000,
    epoch: Annotated[int | None, Query(ge=1, description="Only this attempt.")] = None,
) -> LogList:
    """Return what the attempts printed, from the beginning or after a line."""
    await parts.ledger.latest_ids(job_id)
    lines = await parts.ledger.read_logs(job_id, after_id=after, limit=limit, epoch=epoch)
    documents = tuple(log_document(line) for line in lines)
    return LogList(lines=documents, next_after=documents[-1].id if documents else after)


@router.get("/{job_id}/stream", response_class=StreamingResponse, responses=SSE_RESPONSE)
async def stream_job(
    parts: Parts,
    caller: ReadingCaller,
    job_id: JobId,
    follow: Annotated[bool, Query(description="Stay open until the job has ended.")] = True,
    last_event_id: Annotated[str | None, Header(description="Go on behind this event.")] = None,
) -> StreamingResponse:
    """Stream events and log lines as server-sent events `event`, `stage`, `log`, and `end` when the job has ended.

    A stream whose token is revoked or expires is closed.

    Each id says how far the reader is (`e12-l345`); sent back as `Last-Event-ID`, nothing is lost or repeated.
    """
    start = Position.parse(last_event_id)
    await parts.ledger.latest_ids(job_id)
    stream = JobStream(parts.ledger, parts.wakeups, parts.stopping, allowed=partial(_still_opens, parts, caller))
    return StreamingResponse(
        stream.frames(job_id, start, follow=follow),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _still_opens(parts: Backend, caller: Caller) -> bool:
    return await parts.book.still_opens(caller.token, utc_now())


@router.get("/{job_id}/explanation")
async def explain_job(parts: Parts, job_id: JobId) -> ExplanationDocument:
    """Say why a job is where it is: the routing decision, and what it waits for."""
    explanation = await parts.ledger.explanation(job_id, now=utc_now())
    return explanation_document(explanation, await parts.ledger.job(job_id))


@router.get("/{job_id}/explanation/{factory}")
async def explain_place(parts: Parts, job_id: JobId, factory: FactoryName) -> PlaceDocument:
    """Say why a job does not run on a certain factory: every reason, what decided, and what would let it run there."""
    return place_document(await parts.ledger.place_explanation(job_id, factory, now=utc_now()))


@router.get("/{job_id}/artifacts")
async def list_artifacts(parts: Parts, job_id: JobId) -> ArtifactList:
    """List the captured files of a job."""
    await parts.ledger.latest_ids(job_id)
    found = await parts.ledger.artifacts(job_id)
    return ArtifactList(artifacts=tuple(artifact_document(artifact) for artifact in found))


@router.get("/{job_id}/artifacts/{epoch}/{path:path}", response_class=FileResponse, responses=BYTES_RESPONSE)
async def get_artifact(
    parts: Parts,
    job_id: JobId,
    epoch: Annotated[int, Path(ge=1, le=2**31 - 1)],
    path: Annotated[str, Path(min_length=1, max_length=1000)],
) -> FileResponse:
    """Return the bytes of a captured file, always as a download."""
    artifact = await find_artifact(parts.ledger, job_id, path, epoch=epoch)
    file = FilePath(artifact.location)
    if not await asyncio.to_thread(file.is_file):
        raise NotFound(f"the bytes of artifact {path} of job {job_id} epoch {epoch} are gone from {file}")
    return FileResponse(file, media_type="application/octet-stream", filename=file.name)


@router.get("/{job_id}/diff", response_class=Response, responses=DIFF_RESPONSE)
async def get_diff(parts: Parts, job_id: JobId) -> Response:
    """Return the unified diff base..candidate of the newest attempt that reached the gates."""
    artifact = await find_artifact(parts.ledger, job_id, DIFF_PATH)
    return FileResponse(artifact.location, media_type="text/x-diff; charset=utf-8")
