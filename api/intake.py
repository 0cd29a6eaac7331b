"""From job files to jobs: read, resolve, place, number, hand to the ledger; all of a request, or none. *Does I/O.*

The order is that of the cost: what is wrong with a file is found without touching a disk, then the repositories are
looked at, and only when every job of the request is sound does anything begin.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from activities.repository import resolve_repository
from api.backend import Backend, utc_now
from core.access import Access
from core.engine_classes import ENGINE_CLASSES
from core.errors import FieldProblem, Forbidden, InvalidInput, InvalidManifest
from core.field_problems import line_of, merged
from core.job import Dependency, JobSpec, Repository
from core.manifest import ParsedManifest, invalid, read_manifest, read_manifest_object
from core.profile import Profile
from core.resolution import Policy, Resolution, build_spec, resolve_by_name
from engines import Engine, body_problems, read_catalogue
from store.messages import Submission
from store.views import Submitted

KEY_PREFIX: Final = "key:"
"""A dependency may name another job by its idempotency key."""
MAX_JOBS: Final = 10_000
PARALLEL_PLACES: Final = 4
"""Repositories that are looked at side by side: each look starts git a few times."""


class JobInput(BaseModel):
    """One job to submit: a job file as text, or its fields and `body` as an object."""

    model_config = ConfigDict(extra="forbid")

    manifest: str | dict[str, Any] = Field(description="Text of the job file, or its fields and `body` as an object.")
    source: str = Field(default="", max_length=1000, description="Path of the file, for messages.")
    cwd_base: str = Field(default="", max_length=4096, description="Directory that a relative `cwd` is relative to.")
    include_dirty: bool = Field(default=False, description="Take uncommitted changes of a `cwd` along.")


@dataclass(frozen=True, slots=True)
class Draft:
    """A job on its way in."""

    job_id: str
    given: JobInput
    parsed: ParsedManifest
    resolution: Resolution
    repository: Repository

    @property
    def key(self) -> str | None:
        """Return the idempotency key."""
        return self.resolution.idempotency_key

    @property
    def product_id(self) -> str:
        """Return the product that the job belongs to."""
        return str(self.resolution.values["product_id"])

    @property
    def spec(self) -> JobSpec:
        """Return the snapshot, in which parents may still be named by their keys."""
        return build_spec(self.resolution, self.repository)


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that was taken in."""

    submitted: Submitted
    draft: Draft

    @property
    def notices(self) -> tuple[str, ...]:
        """Return what the submitter should know."""
        fields = (f"{notice.field} {notice.message}" for notice in self.draft.resolution.notices)
        return (*fields, *self.draft.repository.notes)


async def submit(
    backend: Backend,
    jobs: Sequence[JobInput],
    *,
    by: str,
    access: Access,
    key: str | None = None,
    child_of: str | None = None,
) -> tuple[Taken, ...]:
    """Take `jobs` in, all or none, and have them started; `child_of` is the running job that all of them are a part of.

    `key` is the idempotency key of the request's header; it stands for the same field of the (only) job. `access` is
    the reach of whoever submits.

    Raises:
        InvalidManifest: every mistake of every job.
        Forbidden: a job is of a product that `access` does not reach.
        IdempotencyConflict: a key is taken by other content.
        IllegalAction: the running job takes no child jobs any more.

    """
    looked_at = utc_now()
    drafts = await prepare(backend, jobs, access=access, key=key)
    known = await _jobs_of_keys(backend, drafts)
    common = {"submitted_by": by, "base_known_at": looked_at, "child_of": child_of}
    submissions = [_submission(backend, draft, known).model_copy(update=common) for draft in drafts]
    submitted = await backend.ledger.submit_all(submissions, now=utc_now())
    backend.dispatcher.wake()
    return tuple(Taken(answer, draft) for answer, draft in zip(submitted, drafts, strict=True))


async def prepare(
    backend: Backend, jobs: Sequence[JobInput], *, access: Access, key: str | None = None
) -> tuple[Draft, ...]:
    """Read, resolve and place `jobs` without starting anything.

    Raises:
        InvalidManifest: every mistake of every job.
        Forbidden: a job is of a product that `access` does not reach.

    """
    known = await _known(backend)
    found = await asyncio.to_thread(lambda: [_complaint_of(partial(_resolve, known, job)) for job in jobs])
    resolved = _all_or_raise(jobs, found)
    _check_products(resolved, access)
    if key is not None:
        resolved = [_with_key(resolved, key)]
    placed = _all_or_raise(jobs, await _places(backend, jobs, resolved))
    return tuple(
        Draft(backend.ids.next_id(), job, parsed, resolution, repository)
        for job, (parsed, resolution), repository in zip(jobs, resolved, placed, strict=True)
    )


# --- one job ------------------------------------------------------------------------------------------------------

Read = tuple[ParsedManifest, Resolution]
Place = Repository | BaseException


@dataclass(frozen=True, slots=True)
class Known:
    """What a job file may name."""

    profiles: Mapping[str, Profile]
    engines: Mapping[str, Engine]
    policy: Policy


async def _known(backend: Backend) -> Known:
    """Return what jobs may name; an engine is known by name, by its description, or because a factory offers it."""
    settings = backend.settings
    described = (await asyncio.to_thread(read_catalogue, settings.engines_dir or settings.home / "engines")).engines
    offered = {station.engine for factory in await backend.ledger.factories() for station in factory.stations}
    policy = Policy(
        allow_base=settings.allow_base,
        allow_yolo=settings.allow_yolo,
        engines=tuple(sorted(offered | described.keys())),
    )
    return Known(backend.shelf.profiles(), described, policy)


def _resolve(known: Known, job: JobInput) -> Read:
    """Read a job and lay it over its profile."""
    place = {"source": job.source, "base_dir": job.cwd_base, "home_dir": str(Path.home())}
    if isinstance(job.manifest, str):
        parsed = read_manifest(job.manifest, **place)
    else:
        parsed = read_manifest_object(job.manifest, **place)
    wrong_body = tuple(_wrong_body(known, parsed))
    try:
        resolution = resolve_by_name(parsed, known.profiles, known.policy)
    except InvalidManifest as error:
        raise invalid(job.source, merged(error.problems, wrong_body)) from None
    if wrong_body:
        raise invalid(job.source, wrong_body)
    return parsed, resolution


def _wrong_body(known: Known, parsed: ParsedManifest) -> Iterator[FieldProblem]:
    """Yield what the job's engine says against its body, where only one engine can be meant."""
    manifest = parsed.manifest
    profile = known.profiles.get(manifest.profile or "")
    engine_class = manifest.engine_class or (profile.engine_class if profile else None)
    names = (manifest.engine,) if manifest.engine else ENGINE_CLASSES.get(engine_class or "", ())
    meant = [known.engines[name] for name in names if name in known.engines]
    if len(meant) != 1 or not parsed.body.strip():
        return
    for problem in body_problems(meant[0], parsed.body):
        in_file = parsed.body_line is not None and problem.line is not None
        line = parsed.body_line + problem.line - 1 if in_file else problem.line  # type: ignore[operator]
        yield replace(problem, line=line)


async def _places(backend: Backend, jobs: Sequence[JobInput], resolved: Sequence[Read]) -> list[Place]:
    """Find out where each job starts; jobs that start at the same place are looked up once."""
    turns = asyncio.Semaphore(PARALLEL_PLACES)
    looks: dict[tuple[object, ...], asyncio.Task[Repository]] = {}
    of_jobs = []
    for job, read in zip(jobs, resolved, strict=True):
        _, found = read
        place = (found.cwd, found.repo, found.base, job.include_dirty)
        if place not in looks:
            looks[place] = asyncio.create_task(_look(backend, job, found, turns))
        of_jobs.append((job, read, looks[place]))
    await asyncio.wait(looks.values())
    return [_placed(job, read, look) for job, read, look in of_jobs]


def _placed(job: JobInput, read: Read, look: asyncio.Task[Repository]) -> Place:
    """Return what was found, or the complaint with this job's file and lines."""
    error = look.exception()
    if not isinstance(error, InvalidInput):
        return look.result() if error is None else error
    problems = tuple(replace(p, line=p.line or line_of(p.path, read[0].lines)) for p in error.problems)
    return invalid(job.source, problems)


async def _look(backend: Backend, job: JobInput, resolution: Resolution, turns: asyncio.Semaphore) -> Repository:
    """Find out where a job starts and where it goes to."""
    async with turns:
        return await resolve_repository(
            cwd=resolution.cwd,
            repo=resolution.repo,
            base=resolution.base,
            home=backend.settings.home,
            host=socket.gethostname(),
            include_dirty=job.include_dirty,
        )


def _with_key(read: Sequence[Read], key: str) -> Read:
    """Return the only job with the key of the request's header."""
    problem = ""
    own = read[0][1].idempotency_key
    if len(read) != 1:
        problem = "names one job, but the request has several: write `idempotency-key` into each file instead"
    elif own not in (None, key):
        problem = f"is not the job's own idempotency-key {own!r}"
    if problem:
        raise InvalidManifest(f"the idempotency key {problem}", (FieldProblem("idempotency-key", problem, key),))
    parsed, resolution = read[0]
    values = resolution.values | {"idempotency_key": key}
    return parsed, resolution.model_copy(update={"values": values})


def _check_products(resolved: Sequence[Read], access: Access) -> None:
    products = {str(resolution.values["product_id"]) for _, resolution in resolved}
    beyond = sorted(product_id for product_id in products if not access.reaches(product_id))
    if beyond:
        raise Forbidden(
            f"this token is not for product {', '.join(beyond)}",
            hint=f"it is for: {', '.join(access.products or ())}; `product` in the job file says which one is meant",
        )


def _submission(backend: Backend, draft: Draft, known: JobsOfKeys) -> Submission:
    """Return what the ledger keeps of the job: snapshot, manifest as written, where every value came from."""
    spec = draft.spec
    deps = tuple(_dependency(draft, index, known) for index in range(len(spec.deps)))
    profile = backend.shelf.profiles().get(spec.profile.name) if spec.profile else None
    documents = {
        "manifest": draft.given.manifest,
        "source": draft.given.source,
        "provenance": [row.model_dump(mode="json") for row in draft.resolution.provenance],
        "profile": profile.model_dump(mode="json", by_alias=True) if profile else None,
    }
    return Submission(
        job_id=draft.job_id,
        spec=spec.model_copy(update={"deps": deps}),
        canonical=draft.resolution.canonical,
        documents=documents,
        idempotency_key=draft.key,
        name=draft.key or draft.given.source,
    )


JobsOfKeys = Mapping[tuple[str, str], str]


async def _jobs_of_keys(backend: Backend, drafts: Sequence[Draft]) -> JobsOfKeys:
    """Return the jobs that dependencies name by (product, key): those of this request, else those of the ledger."""
    here: dict[tuple[str, str], str] = {}
    for draft in drafts:
        if draft.key is not None:
            here.setdefault((draft.product_id, draft.key), draft.job_id)
    named = {
        (draft.product_id, dependency.job_id.removeprefix(KEY_PREFIX))
        for draft in drafts
        for dependency in draft.resolution.dependencies
        if dependency.job_id.startswith(KEY_PREFIX)
    }
    unknown = sorted(named - here.keys())
    return here | (await backend.ledger.jobs_of_keys(unknown) if unknown else {})


def _dependency(draft: Draft, index: int, known: JobsOfKeys) -> Dependency:
    """Return a parent by its id, which `key:` may stand for."""
    dependency = draft.resolution.dependencies[index]
    if not dependency.job_id.startswith(KEY_PREFIX):
        return dependency
    key = dependency.job_id.removeprefix(KEY_PREFIX)
    found = known.get((draft.product_id, key))
    if found is None:
        path = f"deps[{index}]"
        problem = FieldProblem(
            path,
            "no job has this idempotency key",
            dependency.job_id,
            "the key of a job of the same product, in this request or submitted before",
            line=line_of(path, draft.parsed.lines),
        )
        raise invalid(draft.given.source, (problem,))
    return dependency.model_copy(update={"job_id": found})


# --- all mistakes of all jobs -------------------------------------------------------------------------------------

T = TypeVar("T")


def _complaint_of(work: Callable[[], T]) -> T | InvalidInput:
    """Return what `work` gives, or what it says against the job."""
    try:
        return work()
    except InvalidInput as error:
        return error


def _all_or_raise(jobs: Sequence[JobInput], answers: Sequence[T | BaseException]) -> list[T]:
    """Return all answers if none is an error.

    Complaints about several jobs are raised as one, and each path then begins with its file.
    """
    good: list[T] = []
    complaints: list[tuple[str, InvalidInput]] = []
    for index, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        if isinstance(answer, InvalidInput):
            complaints.append((job.source or f"jobs[{index}]", answer))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            good.append(answer)
    if complaints and len(jobs) == 1:
        raise complaints[0][1]
    if complaints:
        problems = tuple(replace(p, path=f"{name}: {p.path}") for name, error in complaints for p in error.problems)
        files = ", ".join(name for name, _ in complaints)
        raise InvalidManifest(f"nothing was started; not valid: {files}", problems, hint=complaints[0][1].hint)
    return good
