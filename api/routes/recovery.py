"""Recovery after Temporal's data was lost, or the ledger came back from a backup. *Does I/O: the ledger, Temporal.*"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Caller, requires
from api.backend import Parts, utc_now
from api.documents import Document
from core.job_messages import RecoveredJob
from core.roles import Permission

router = APIRouter(prefix="/fleet", tags=["system"])

OperatingCaller = Annotated[Caller, Depends(requires(Permission.OPERATE_FACTORIES))]


class RecoverRequest(BaseModel):
    """Which unfinished jobs to look at; begin without `after`, and go on with the `next` of each answer."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    ledger_restored: bool = False
    """The ledger came back from a backup: nothing that was granted or started up to now may write any more."""
    after: str = Field(default="", max_length=100)
    """Only jobs with an id above this one."""
    limit: int = Field(default=200, ge=1, le=1000)
    """How many jobs at the most."""


class Recovered(Document):
    """One page of what was found and done."""

    generation: int | None = None
    """Number of the generation that begins: with the first page, when the ledger was restored."""
    jobs: tuple[RecoveredJob, ...]
    """The unfinished jobs that were looked at, by id."""
    ended_workflows: tuple[str, ...] = ()
    """Workflows that ran without an unfinished job in the restored ledger, and were ended; with the last page."""
    next: str | None = None
    """`after` of the next page; null: this was the last one."""


@router.post("/recover")
async def recover(parts: Parts, caller: OperatingCaller, request: RecoverRequest) -> Recovered:
    """Give unfinished jobs whose workflow is gone a new one, where they stand. To do it again does no harm."""
    jobs = parts.temporal.jobs
    generation = None
    if request.ledger_restored and not request.after:
        generation = await parts.ledger.raise_generation(caller.name, utc_now())
    page = await jobs.recover(request.after, request.limit, replace=request.ledger_restored)
    last = len(page) < request.limit
    ended = await jobs.end_unknown() if last and request.ledger_restored else ()
    parts.dispatcher.wake()
    return Recovered(generation=generation, jobs=page, ended_workflows=ended, next=None if last else page[-1].id)
