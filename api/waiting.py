"""What a job that does not move waits for, and the command that gets it going. *Pure.*"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal

from core.job import Condition, Message, Stage
from core.lifecycle import ENDED
from store.views import DependencyView, JobView

MAX_NAMED: Final = 20


class Waiting(Message):
    """Why a job stands still."""

    kind: Literal["human", "parents", "children", "capacity", "time"]
    message: str
    command: str = ""
    """What a person may type to go on; empty when nobody needs to do anything."""
    choices: tuple[str, ...] = ()
    """Commands of which one gets it going, when a person has to choose; `command` is the first of them."""
    until: datetime | None = None


def waits_for(job: JobView) -> Waiting | None:
    """Return what `job` waits for; None when it has ended or something is running for it."""
    if job.stage in ENDED:
        return None
    paused = next((condition for condition in job.conditions if condition.type == "paused"), None)
    if paused is not None:
        return Waiting(kind="human", message=paused.message, command=f"gf resume {job.id}")
    blocked = next((condition for condition in job.conditions if condition.type == "blocked"), None)
    if blocked is not None:
        return _blocked(job, blocked)
    if job.stage == Stage.QUEUED:
        return Waiting(kind="capacity", message="waits for a seat on a factory", command=f"gf why {job.id}")
    if gate_is_open(job) and not _ships_by_itself(job):
        checked = "verify passed" if job.stage == Stage.TESTING else "nothing was verified"
        return Waiting(kind="human", message=f"the ship gate: {checked}", command=f"gf ship {job.id}")
    return None


def gate_is_open(job: JobView) -> bool:
    """Return whether the gates have judged the present candidate, so that a human may decide on it."""
    if job.stage == Stage.TESTING:
        return True
    judged = (job.verdict or {}).get("candidate_sha")
    return job.stage == Stage.REVIEW and judged is not None and judged == job.candidate_sha


def _ships_by_itself(job: JobView) -> bool:
    """Return whether nobody needs to say yes: the policy does, once verify has passed."""
    return job.review_policy == "auto" and job.stage == Stage.TESTING


def _blocked(job: JobView, condition: Condition) -> Waiting:
    if condition.reason in ("backoff", "cooldown", "usage_limit"):
        return Waiting(kind="time", message=condition.message, command=f"gf requeue {job.id}", until=condition.until)
    if condition.reason in ("parents", "children"):
        kind: Literal["parents", "children"] = "parents" if condition.reason == "parents" else "children"
        return Waiting(kind=kind, message=condition.message, command=f"gf dag {job.id}")
    if condition.reason == "parent_failed":
        return _chosen("parents", job, job.deps, condition)
    if condition.reason == "child_failed":
        return _chosen("children", job, job.children, condition)
    if condition.reason == "capacity":
        return Waiting(kind="capacity", message=condition.message, command=f"gf why {job.id}")
    return Waiting(kind="human", message=condition.message, command=f"gf requeue {job.id} --reason '…'")


def _chosen(
    kind: Literal["parents", "children"], job: JobView, awaited: Sequence[DependencyView], condition: Condition
) -> Waiting:
    """Return a person's choices when a job that is waited for has failed: retry it, do without it, give up."""
    failed = [one for one in awaited if one.state == "failed"]
    again = [f"gf requeue {one.job_id}" for one in failed if one.stage != Stage.CANCELLED]
    without = f"gf unblock {job.id} " + " ".join(f"--drop {one.job_id}" for one in failed[:MAX_NAMED])
    choices = (*again[:MAX_NAMED], without, f"gf cancel {job.id}")
    return Waiting(kind=kind, message=condition.message, command=choices[0], choices=choices)
