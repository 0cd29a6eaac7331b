"""What operators do with a job. *Does I/O: the ledger, the job's workflow.*"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Caller, OperatingCaller, requires
from api.backend import Parts, utc_now
from api.documents import ActionTaken
from api.ids import PATTERN
from api.routes.jobs import JobId
from core.errors import Forbidden
from core.roles import ACTION_PERMISSIONS, Permission

router = APIRouter(prefix="/fleet/jobs", tags=["jobs"])

ActingCaller = Annotated[Caller, Depends(requires(Permission.OPERATE_JOBS, Permission.DECIDE_JOBS))]


class ActionRequest(BaseModel):
    """One action."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    action: Literal["ship", "approve", "reject", "requeue", "cancel", "pause", "resume"]
    sha: str = Field(default="", max_length=64, pattern=r"^[0-9a-f]*$")
    """The candidate that is meant; `ship` and `approve` need it, so that nobody ships what they have not seen."""
    reason: str = Field(default="", max_length=2000)
    """Kept in the job's events; reject and requeue hand it to the next attempt."""


class UnblockRequest(BaseModel):
    """Jobs that are not to be waited for any more."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    drop: list[Annotated[str, Field(pattern=PATTERN)]] = Field(min_length=1, max_length=1000)
    """Ids of parents, or of child jobs, of the job: all of them, or none."""
    reason: str = Field(default="", max_length=2000)
    """Kept in the job's events."""


@router.post("/{job_id}/unblock")
async def unblock(parts: Parts, caller: OperatingCaller, job_id: JobId, request: UnblockRequest) -> ActionTaken:
    """Let a job wait no more for some jobs; 409 `illegal_action` when it does not wait for one of them any more."""
    await parts.ledger.drop_edges(job_id, request.drop, utc_now(), by=caller.name, reason=request.reason)
    parts.wakeups.notify(job_id)
    parts.dispatcher.wake()
    job = await parts.ledger.job(job_id)
    conditions = tuple(condition.message for condition in job.conditions)
    return ActionTaken(id=job_id, action="unblock", stage=job.stage, conditions=conditions)


@router.post("/{job_id}/actions")
async def act(parts: Parts, caller: ActingCaller, job_id: JobId, request: ActionRequest) -> ActionTaken:
    """Bring an action to a job; 409 `illegal_action` with the reason when it is not legal now."""
    needed = ACTION_PERMISSIONS[request.action]
    if not caller.access.allows(needed):
        raise Forbidden(f"{caller.name} may act on jobs, but to {request.action} needs the permission {needed}")
    job = await parts.ledger.job(job_id)
    reply = await parts.temporal.jobs.act(job, request.action, sha=request.sha, reason=request.reason, by=caller.name)
    if request.action == "cancel" and await parts.ledger.request_stop(job_id, utc_now()):
        parts.links.wake()  # the workflow has the activity cancelled; this is quicker
    parts.wakeups.notify(job_id)
    parts.dispatcher.wake()
    return ActionTaken(id=job_id, action=request.action, stage=reply.stage, conditions=reply.conditions)
