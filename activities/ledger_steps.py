"""The control side's short steps: each is one call of the ledger, and wakes the dispatcher where capacity came free.

*Does I/O: the ledger.* Most run as local activities beside the workflow task; `route` runs on `gf.io`, so that
Temporal's Web UI shows it as a step of its own. All are idempotent and are retried for as long as the ledger is away.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from temporalio import activity

from activities import git
from activities.stoppable import under_heartbeat
from activities.temporal_errors import raise_activity_error
from core.errors import GigafactoryError
from core.job import Repository, RepositoryKind
from core.job_messages import (
    ChildrenReply,
    HoldRequest,
    JobRef,
    ParentsReply,
    PlaceReply,
    PlaceRequest,
    ReclaimReply,
    ReclaimRequest,
    RouteReply,
    WriteReply,
    WriteRequest,
)
from store.ledger import Ledger

BEAT_S: Final = 5.0
"""Between two signs of life while a git remote is asked."""


class LedgerSteps:
    """Activities over one ledger; `wake` tells the dispatcher that seats or messages are waiting."""

    def __init__(self, ledger: Ledger, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._wake = wake

    @property
    def local(self) -> list[Callable[..., Any]]:
        """The activities that run beside workflow tasks."""
        return [self.write_record, self.resolve_children, self.hold, self.reclaim, self.place_step]

    @property
    def remote(self) -> list[Callable[..., Any]]:
        """The activities of the queue `gf.io`."""
        return [self.route, self.resolve_parents]

    @activity.defn
    async def write_record(self, request: WriteRequest) -> WriteReply:
        """Write one decision; idempotent by (job, seq): the first one under a number holds, and is told to the others.

        An illegal stage change is a bug and is not retried.
        """
        try:
            ack = await self._ledger.record(
                request.job_id, request.seq, request.record, _now(), decided=request.decided
            )
        except GigafactoryError as error:
            raise_activity_error(error)
        if ack.freed or ack.told:
            self._wake()
        return WriteReply(children=ack.children, ahead=ack.ahead)

    @activity.defn
    async def resolve_children(self, request: JobRef) -> ChildrenReply:
        """Say whether the job's child jobs are done, so that it may ship; reads only."""
        state = await self._ledger.children_state(request.job_id)
        return ChildrenReply(outcome=state.outcome, message=state.message)

    @activity.defn
    async def hold(self, request: HoldRequest) -> None:
        """Keep the job out of admission until it is routed again; idempotent."""
        await self._ledger.hold(request.job_id, request.reason, _now())

    @activity.defn
    async def resolve_parents(self, request: JobRef) -> ParentsReply:
        """Say whether the job's parents are done and, before its first attempt, where its base is then; reads only."""
        state = await self._ledger.parents_state(request.job_id)
        reply = ParentsReply(outcome=state.outcome, message=state.message)
        if state.outcome != "ready":
            return reply
        job = await self._ledger.job(request.job_id)
        repository = Repository.model_validate(job.repository)
        if job.attempts or repository.kind == RepositoryKind.DIRECTORY:
            return reply
        ref = f"refs/heads/{repository.base}"
        refs = await under_heartbeat(git.ls_remote(repository.url, ref), beat_s=BEAT_S)
        return reply.model_copy(update={"base_sha": refs.get(ref, "")})

    @activity.defn
    async def route(self, request: JobRef) -> RouteReply:
        """Ask for a seat; returns the living grant when there is one already, and otherwise until when to sleep."""
        grant = await self._ledger.route(request.job_id, _now())
        self._wake()
        rest = await self._ledger.rest(request.job_id, _now()) if grant is None else None
        return RouteReply(grant=grant) if rest is None else RouteReply(until=rest.until, message=rest.message)

    @activity.defn
    async def reclaim(self, request: ReclaimRequest) -> ReclaimReply:
        """Mark an epoch lost, unless its result was accepted before, or it lives on: then say so. Idempotent."""
        left = await self._ledger.adopt(request.job_id, request.epoch, _now(), stop=request.stop)
        if left is not None:
            return ReclaimReply(living_s=left.total_seconds())
        lost = await self._ledger.mark_lost(
            request.job_id, request.epoch, request.reason, "", _now(), tell_workflow=False
        )
        if lost:
            self._wake()
            return ReclaimReply()
        accepted = await self._ledger.accepted_result(request.job_id, request.epoch)
        return ReclaimReply(accepted=accepted)

    @activity.defn
    async def place_step(self, request: PlaceRequest) -> PlaceReply:
        """Name a living factory that can reach the job's candidate; reads only."""
        factory = await self._ledger.place_step(request.job_id, request.avoid, _now())
        return PlaceReply(factory=factory or "")


def _now() -> datetime:
    return datetime.now(UTC)
