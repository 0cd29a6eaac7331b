"""Taking jobs in, and saying beforehand what would become of them. *Does I/O: git, the ledger.*"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from api import intake
from api.auth import OperatingCaller, SubmittingCaller
from api.backend import Backend, Parts, utc_now
from api.documents import Document, SubmittedJob, SubmittedJobs
from api.intake import MAX_JOBS, JobInput, Taken
from api.preview import preview
from api.routes.jobs import JobId
from core.job import Repository, Stage
from core.manifest import Notice
from core.resolution import Provenance
from core.router_explain import Explanation

router = APIRouter(prefix="/fleet", tags=["submit"])


class Batch(BaseModel):
    """Several jobs: all of them are valid, or none starts."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[JobInput] = Field(min_length=1, max_length=MAX_JOBS)


def _kind(value: Any) -> str:
    return "batch" if isinstance(value, Batch) or (isinstance(value, dict) and "jobs" in value) else "job"


SubmitRequest = Annotated[
    Annotated[Batch, Tag("batch")] | Annotated[JobInput, Tag("job")],
    Discriminator(_kind),
    Body(description="One job, or several as `jobs`."),
]


class Explained(Document):
    """What would become of a job."""

    title: str
    fields: tuple[Provenance, ...]
    """Every field with its value and where that comes from."""
    notices: tuple[Notice, ...]
    repository: Repository
    """Where the job would start."""
    routing: Explanation
    """Where it would be routed to if it were submitted now."""
    routing_lines: tuple[str, ...]
    """The same as lines for people."""


@router.post("/jobs", status_code=201, responses={200: {"model": SubmittedJobs, "description": "All known before."}})
async def submit_jobs(
    parts: Parts,
    caller: SubmittingCaller,
    request: SubmitRequest,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> SubmittedJobs:
    """Submit jobs. Either all of them are valid, or nothing starts and every mistake of every job is told.

    The header `Idempotency-Key` stands for the field `idempotency-key` of a single job: the same content under the same
    key is the same job (200), other content is refused with the names of the fields that differ (409).
    """
    jobs = _jobs_of(request)
    taken = await intake.submit(parts, jobs, by=caller.name, access=caller.access, key=idempotency_key)
    return await _answers(parts, taken, response)


@router.post(
    "/jobs/{job_id}/children",
    status_code=201,
    responses={200: {"model": SubmittedJobs, "description": "All known before."}},
)
async def submit_children(
    *,
    parts: Parts,
    caller: OperatingCaller,
    job_id: JobId,
    request: SubmitRequest,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> SubmittedJobs:
    """Submit jobs that are a part of an unfinished job: it does not ship before all of them have.

    409 `illegal_action` when it has ended, or is being shipped right now.
    """
    await parts.ledger.product_of(job_id)  # 404 before anything else
    jobs = _jobs_of(request)
    taken = await intake.submit(parts, jobs, by=caller.name, access=caller.access, key=idempotency_key, child_of=job_id)
    parts.wakeups.notify(job_id)
    return await _answers(parts, taken, response)


def _jobs_of(request: Batch | JobInput) -> list[JobInput]:
    return request.jobs if isinstance(request, Batch) else [request]


async def _answers(parts: Backend, taken: Sequence[Taken], response: Response) -> SubmittedJobs:
    answers = [await _answer(parts, one) for one in taken]
    if not any(answer.created for answer in answers):
        response.status_code = 200
    return SubmittedJobs(jobs=tuple(answers))


async def _answer(parts: Backend, taken: Taken) -> SubmittedJob:
    """Return the answer to one job; one that was known before is where it is by now."""
    submitted = taken.submitted
    stage = Stage.QUEUED if submitted.created else (await parts.ledger.latest_ids(submitted.job_id)).stage
    return SubmittedJob(
        id=submitted.job_id,
        created=submitted.created,
        title=taken.draft.resolution.title,
        stage=stage,
        notices=taken.notices,
    )


@router.post("/explain")
async def explain(parts: Parts, caller: SubmittingCaller, job: JobInput) -> Explained:
    """Say what would become of a job: every field and where it comes from, repository, routing. Starts nothing."""
    draft = (await intake.prepare(parts, [job], access=caller.access))[0]
    routing = await preview(parts.ledger, draft.spec, now=utc_now())
    return Explained(
        title=draft.resolution.title,
        fields=draft.resolution.provenance,
        notices=draft.resolution.notices,
        repository=draft.repository,
        routing=routing,
        routing_lines=tuple(routing.render()),
    )
