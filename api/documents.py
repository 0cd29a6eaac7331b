"""The documents that the API answers with. *Pure.*

They are the ledger's views with what only makes sense over HTTP added (links, what a job waits for) and what is
nobody's business left out (where an artifact lies on disk).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from api.waiting import Waiting, waits_for
from core.attempt import workflow_id
from core.dag import EdgeState, Gate, Until
from core.factory_state import FactoryActivity
from core.job import JobSpec, Message, Stage
from store.messages import FactoryState
from store.views import (
    ArtifactView,
    DagView,
    DrainOrder,
    EventView,
    FactoryRow,
    JobExplanation,
    JobPage,
    JobView,
    LogView,
    PlaceExplanation,
    Quarantine,
    StationRow,
)


class Document(Message):
    """Base of what the API answers with; what stands below a field describes it in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Problem(Document):
    """What every error looks like (RFC 9457); the codes are listed in `docs/reference/errors.md`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    fault: Literal["caller", "environment", "provider"]
    retryable: bool
    hint: str = ""
    request_id: str = ""
    errors: tuple[dict[str, Any], ...] = ()
    """One entry for each wrong field: path, line, message, value, expected, suggestion."""


class JobSummary(Document):
    """A job in a list."""

    id: str
    product_id: str
    title: str
    stage: Stage
    conditions: tuple[dict[str, Any], ...]
    priority: str
    profile: str | None
    engine: str | None
    factory: str | None
    candidate_sha: str | None
    """The commit that a `ship` would have to name."""
    epoch: int
    waiting: Waiting | None
    tokens: int | None
    submitted_at: datetime
    updated_at: datetime
    ended_at: datetime | None


class JobDocument(JobView):
    """Everything about a job."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    waiting: Waiting | None = None
    """What it waits for; null when it has ended or something is running."""
    workflow_id: str
    links: dict[str, str] = Field(default_factory=dict)
    """`temporal`: the job in Temporal's own Web UI, when that runs."""


class JobList(Document):
    """One page of jobs, newest first."""

    jobs: tuple[JobSummary, ...]
    next_cursor: str | None = None
    """Pass it as `cursor` for the next page; null: there is none."""


class SubmittedJob(Document):
    """Answer to one submitted job."""

    id: str
    created: bool
    """False: the same content was submitted under the same idempotency key before; this is that job."""
    title: str
    stage: Stage
    notices: tuple[str, ...] = ()
    """What the submitter should know: fields without effect yet, uncommitted changes left out."""


class SubmittedJobs(Document):
    """Answer to a submit."""

    jobs: tuple[SubmittedJob, ...]


class EventDocument(Document):
    """One line of a job's hash-chained event log."""

    job_id: str
    seq: int
    at: datetime
    type: str
    epoch: int
    message: str
    data: dict[str, Any]
    prev_hash: str
    hash: str


class EventList(Document):
    """Events in order."""

    events: tuple[EventDocument, ...]
    next_after: int
    """Pass it as `after` to go on."""


class LogDocument(Document):
    """One line that an attempt printed."""

    id: int
    job_id: str
    epoch: int
    stream: str
    seq: int
    at: datetime
    text: str


class LogList(Document):
    """Log lines in order."""

    lines: tuple[LogDocument, ...]
    next_after: int
    """Pass it as `after` to go on."""


class ArtifactDocument(Document):
    """One captured file of an attempt."""

    epoch: int
    path: str
    kind: str
    media_type: str
    size: int = Field(description="Bytes.")
    sha256: str
    at: datetime
    href: str


class ArtifactList(Document):
    """The captured files of a job, oldest attempt first."""

    artifacts: tuple[ArtifactDocument, ...]


class ExplanationDocument(JobExplanation):
    """Why a job is where it is."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    waiting: Waiting | None = None
    lines: tuple[str, ...] = ()
    """The whole answer as lines for people."""


class PlaceDocument(PlaceExplanation):
    """Why a job does not run on a certain factory."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    lines: tuple[str, ...] = ()
    """The whole answer as lines for people."""


class FactoryDocument(Document):
    """One factory."""

    name: str
    state: FactoryState
    pid: int
    host: str
    version: str
    seats: int
    busy: int
    stations: tuple[StationRow, ...]
    capabilities: tuple[str, ...]
    """Detected by its agent."""
    declared: tuple[str, ...]
    """Claimed by the machine's settings."""
    attested: tuple[str, ...]
    """Vouched for by an operator."""
    unattested: tuple[str, ...]
    """Sensitive ones, detected or declared, that nobody vouched for: they do not count for routing."""
    status: dict[str, Any]
    details: dict[str, Any]
    registered_at: datetime
    last_beat_at: datetime
    drain: DrainOrder | None
    """An operator's order that is in force."""
    quarantine: Quarantine | None
    """Why it was set aside, with the evidence; an operator releases it."""
    activity: FactoryActivity
    """What it is doing now, and why it can take nothing when that is so."""


class FactoryList(Document):
    """All factories, by name."""

    factories: tuple[FactoryDocument, ...]


class ActionTaken(Document):
    """Answer to an action: where the job is now."""

    id: str
    action: str
    stage: Stage
    conditions: tuple[str, ...] = ()


class DagJob(Document):
    """A job in a graph of what waits for what."""

    id: str
    title: str
    stage: Stage


class DagEdge(Document):
    """One job waits for another: at its start, or, for its own child jobs, before its ship."""

    job_id: str
    waits_for: str
    gate: Gate
    until: Until
    state: EdgeState


class Dag(Document):
    """Jobs and what they wait for."""

    jobs: tuple[DagJob, ...]
    edges: tuple[DagEdge, ...]
    truncated: bool
    """There is more than this; the jobs that are nearest to the one that was asked for are shown."""


class SnapshotDocument(Document):
    """The immutable snapshot that a job was made of, and the documents that it was made from."""

    id: str
    spec: JobSpec
    documents: dict[str, Any]


def job_document(job: JobView, *, temporal_ui: str, namespace: str) -> JobDocument:
    """Return the full document of a job; `temporal_ui` is the address of Temporal's Web UI, or empty."""
    flow = workflow_id(job.product_id, job.id)
    links = {"temporal": f"{temporal_ui}/namespaces/{namespace}/workflows/{flow}"} if temporal_ui else {}
    return JobDocument(**dict(job), waiting=waits_for(job), workflow_id=flow, links=links)


def job_summary(job: JobView) -> JobSummary:
    """Return a job's line in a list."""
    last = job.attempts[-1] if job.attempts else None
    return JobSummary(
        id=job.id,
        product_id=job.product_id,
        title=job.title,
        stage=job.stage,
        conditions=tuple(condition.model_dump(mode="json") for condition in job.conditions),
        priority=str(job.priority),
        profile=job.profile,
        engine=last.engine if last else job.engine,
        factory=last.factory if last else None,
        candidate_sha=job.candidate_sha,
        epoch=job.epoch,
        waiting=waits_for(job),
        tokens=job.tokens,
        submitted_at=job.submitted_at,
        updated_at=job.updated_at,
        ended_at=job.ended_at,
    )


def dag_document(found: DagView) -> Dag:
    """Return a graph of jobs as the API shows it."""
    return Dag.model_validate(found.model_dump())


def job_list(page: JobPage) -> JobList:
    """Return one page of a list."""
    return JobList(jobs=tuple(job_summary(job) for job in page.items), next_cursor=page.next_cursor)


def event_document(event: EventView) -> EventDocument:
    """Return an event as the API shows it."""
    return EventDocument.model_validate(event.model_dump())


def log_document(line: LogView) -> LogDocument:
    """Return a log line as the API shows it."""
    return LogDocument.model_validate(line.model_dump())


def artifact_document(artifact: ArtifactView) -> ArtifactDocument:
    """Return a captured file as the API shows it, with where its bytes can be had."""
    href = f"/fleet/jobs/{artifact.job_id}/artifacts/{artifact.epoch}/{artifact.path}"
    return ArtifactDocument(**artifact.model_dump(), href=href)


def explanation_document(explanation: JobExplanation, job: JobView) -> ExplanationDocument:
    """Return why a job is where it is, also as lines for people."""
    waiting = waits_for(job)
    lines = explanation.explanation.render() if explanation.explanation is not None else []
    if explanation.message and explanation.message not in lines[:1]:
        lines.insert(0, explanation.message)
    if waiting is not None and waiting.kind != "capacity":
        lines.append(f"waits for {waiting.kind}: {waiting.message}")
        lines += [f"next: {waiting.command}"] if waiting.command else []
    return ExplanationDocument(**dict(explanation), waiting=waiting, lines=tuple(lines))


def place_document(place: PlaceExplanation) -> PlaceDocument:
    """Return why a job does not run on a factory, also as lines for people."""
    lines = tuple(place.answer.render()) if place.answer is not None else (place.message,)
    return PlaceDocument(**dict(place), lines=lines)


def factory_document(factory: FactoryRow) -> FactoryDocument:
    """Return a factory as the API shows it."""
    return FactoryDocument.model_validate(factory.model_dump())
