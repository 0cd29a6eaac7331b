"""From job files to jobs: read, resolve, place, number, hand to the ledger; all of a request, or none. *Does I/O.*

The order is that of the cost: what is wrong with a file is found without touching a disk, then the repositories are
looked at, and only when every job of the request is sound does anything begin.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from activities.repository import resolve_repository
from api.backend import Backend, utc_now
from core.errors import FieldProblem, GigafactoryError, InvalidInput, InvalidManifest
from core.field_problems import line_of
from core.job import Dependency, JobSpec, Repository
from core.manifest import ParsedManifest, read_manifest, read_manifest_object
from core.resolution import Policy, Resolution, build_spec, resolve_by_name
from engines import check_body
from store.messages import Submission
from store.views import Submitted

KEY_PREFIX: Final = "key:"
"""A dependency may name another job by its idempotency key."""
MAX_JOBS: Final = 500


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


async def submit(backend: Backend, jobs: Sequence[JobInput], *, by: str, key: str | None = None) -> tuple[Taken, ...]:
    """Take `jobs` in, all or none, and have them started.

    `key` is the idempotency key of the request's header; it stands for the same field of the (only) job.

    Raises:
        InvalidManifest: every mistake of every job.
        IdempotencyConflict: a key is taken by other content.

    """
    drafts = await prepare(backend, jobs, key=key)
    submissions = [await _submission(backend, draft, drafts, by) for draft in drafts]
    submitted = await backend.ledger.submit_all(submissions, now=utc_now())
    backend.dispatcher.wake()
    return tuple(Taken(answer, draft) for answer, draft in zip(submitted, drafts, strict=True))


async def prepare(backend: Backend, jobs: Sequence[JobInput], *, key: str | None = None) -> tuple[Draft, ...]:
    """Read, resolve and place `jobs` without starting anything.

    Raises:
        InvalidManifest: every mistake of every job.

    """
    policy = await policy_of(backend)
    checked = [_attempt(lambda job=job: _resolve(backend, job, policy)) for job in jobs]  # type: ignore[misc]
    _raise_all(jobs, [error for _, error in checked])
    resolved = [value for value, _ in checked if value is not None]
    if key is not None:
        resolved = [_with_key(resolved, key)]
    placed = await asyncio.gather(
        *(_place(backend, job, found) for job, (_, found) in zip(jobs, resolved, strict=True)), return_exceptions=True
    )
    _raise_all(jobs, [_expected(answer) for answer in placed])
    return tuple(
        Draft(backend.ids.next_id(), job, parsed, resolution, repository)
        for job, (parsed, resolution), repository in zip(jobs, resolved, placed, strict=True)
        if isinstance(repository, Repository)
    )


async def policy_of(backend: Backend) -> Policy:
    """Return what jobs may do here; engines are known by name, by a YAML file, or because a factory offers them."""
    settings = backend.settings
    directory = settings.engines_dir or settings.home / "engines"
    described = {path.stem for path in directory.glob("*.yaml")}
    offered = {station.engine for factory in await backend.ledger.factories() for station in factory.stations}
    return Policy(
        allow_base=settings.allow_base, allow_yolo=settings.allow_yolo, engines=tuple(sorted(described | offered))
    )
