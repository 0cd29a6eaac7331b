"""The typed way from outside to job workflows: start, signal, act. *Does I/O: calls Temporal, reads the outbox.*

Used by the API and the control worker. What must reach a workflow because the ledger changed goes through the
ledger's outbox and is delivered here: tried at once by the process that caused it, retried by any.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from core.attempt import workflow_id
from core.dag import Wait
from core.errors import IllegalAction, NotFound, Unavailable
from core.job import Stage
from core.job_events import ACTIONS, Policy
from core.job_messages import CONTROL_QUEUE, LIFE_MEMO, ActReply, ActRequest, JobInput, RecoveredJob
from core.lifecycle import ENDED
from core.settings import Settings
from store.ledger import Ledger
from store.parents import WAITING
from store.views import JobView, OutboxRow, UnfinishedJob

log = structlog.get_logger(__name__)

RPC_TIMEOUT_S: Final = 10
CATCH_UP_S: Final = 15
"""Longest wait for a workflow that is behind the ledger; a lost workflow task is handed out again after ten seconds."""
CATCH_UP_PAUSE_S: Final = 0.25
DELIVERY_BATCH: Final = 100
PARALLEL_DELIVERIES: Final = 8
"""Messages sent at once; Temporal's start and signal calls take milliseconds each."""
RECOVERY_PAGE: Final = 1_000

GF_STAGE = SearchAttributeKey.for_keyword("GfStage")
GF_PRODUCT = SearchAttributeKey.for_keyword("GfProduct")
GF_REPO = SearchAttributeKey.for_keyword("GfRepo")
GF_FACTORY = SearchAttributeKey.for_keyword("GfFactory")
GF_PRIORITY = SearchAttributeKey.for_int("GfPriority")


class JobClient:
    """Starts job workflows, and brings grants, news and decisions to them."""

    def __init__(self, client: Client, ledger: Ledger, settings: Settings) -> None:
        self._client = client
        self._ledger = ledger
        self._policy = Policy(
            reclaim_limit=settings.reclaim_limit, scope_mode=settings.scope_mode, locks_until=settings.locks_until
        )

    async def deliver_due(self) -> int:
        """Deliver every outbox row that is due; returns how many were delivered.

        A row that cannot be delivered now stays for the next pass of any process.
        """
        delivered = 0
        while rows := await self._ledger.claim_outbox(_now(), DELIVERY_BATCH):
            gate = asyncio.Semaphore(PARALLEL_DELIVERIES)
            results = await asyncio.gather(*(self._try(row, gate) for row in rows))
            delivered += sum(results)
            if not all(results):
                break
        return delivered

    async def _try(self, row: OutboxRow, gate: asyncio.Semaphore) -> bool:
        async with gate:
            try:
                await self.deliver(row)
            except (RPCError, OSError, RuntimeError) as error:
                await self._ledger.outbox_failed(row.id, str(error), _now())
                log.warning("outbox.delivery_failed", job_id=row.job_id, kind=row.kind, error=str(error))
                return False
            await self._ledger.outbox_done(row.id)
            return True

    async def deliver(self, row: OutboxRow) -> None:
        """Carry out one outbox row; doing it twice has the effect of doing it once."""
        if row.kind == "start":
            await self._start(row.job_id)
        else:
            await self._signal(row)

    async def _start(self, job_id: str) -> None:
        """Start the job's workflow with the grant it already has; one that runs already is left alone."""
        payload = await self._ledger.start_payload(job_id)
        if payload.stage in ENDED:
            return
        spec, grant = payload.spec, payload.grant
        argument = JobInput(
            job_id=job_id,
            product_id=spec.product_id,
            spec=spec,
            grant=grant,
            policy=self._policy,
            life=payload.life,
            epoch=payload.epoch if grant is None else grant.epoch - 1,
            note=payload.note,
            failure=payload.failure,
            session_id=payload.session_id,
            engine=payload.engine,
            standing=payload.standing,
            children=None if payload.children.outcome == "ready" else Wait(**dict(payload.children)),
            ready=payload.ready,
        )
        attributes: list[SearchAttributePair[Any]] = [
            SearchAttributePair(GF_STAGE, (Stage.BUILDING if grant else Stage.QUEUED).value),
            SearchAttributePair(GF_PRODUCT, spec.product_id),
            SearchAttributePair(GF_REPO, spec.repository.url[-200:]),
            SearchAttributePair(GF_PRIORITY, spec.priority.rank),
        ]
        if grant:
            attributes.append(SearchAttributePair(GF_FACTORY, grant.factory))
        name = workflow_id(spec.product_id, job_id)
        try:
            await self._client.start_workflow(
                "JobWorkflow",
                argument,
                id=name,
                task_queue=CONTROL_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                search_attributes=TypedSearchAttributes(attributes),
                static_summary=f"{spec.title} · {job_id}"[:200],
                static_details=_details(argument),
                memo={LIFE_MEMO: payload.life},
            )
        except WorkflowAlreadyStartedError:
            await self._check_life(name, payload.life)
            log.info("workflow.already_started", job_id=job_id)

    async def _check_life(self, name: str, life: int) -> None:
        """Raise while the workflow of an earlier life still closes: the next life's start has to come again."""
        running: int = await (await self._client.get_workflow_handle(name).describe()).memo_value(LIFE_MEMO, life)
        if running < life:
            raise RuntimeError(f"{name} of life {running} has not closed yet")

    async def _signal(self, row: OutboxRow) -> None:
        """Signal the job's workflow; one that has ended needs nothing any more."""
        handle = self._client.get_workflow_handle(workflow_id(row.product_id, row.job_id))
        try:
            await handle.signal(row.name, row.payload)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            if row.name == "granted":
                epoch = int(row.payload["epoch"])
                await self._ledger.grant_undeliverable(row.job_id, epoch, _now())

    async def act(self, job: JobView, action: str, *, sha: str = "", reason: str = "", by: str = "") -> ActReply:
        """Bring an operator's action to the job and return where the job is afterwards.

        Raises:
            IllegalAction: the action does not exist or is not legal now; the message says why.
            Unavailable: Temporal or every control worker is away.

        """
        if action not in ACTIONS:
            raise IllegalAction(f"unknown action {action!r}; known: {', '.join(ACTIONS)}", action=action)
        if job.stage in ENDED:
            return await self._act_on_ended(job, action, reason=reason, by=by)
        if job.stage == Stage.QUEUED and await self._has_to_begin(job):
            await self.deliver_due()
        request = ActRequest.model_validate({"action": action, "sha": sha, "by": by, "reason": reason})
        patience = time.monotonic() + CATCH_UP_S
        starting = True
        while True:
            try:
                return await self._update(job, request)
            except WorkflowUpdateFailedError as error:
                if time.monotonic() > patience or not await self._is_behind(error, job.id):
                    raise _refusal(error, action, job.id) from error
            except NotFound:
                if time.monotonic() > patience or not starting:
                    raise
                # Another process may be starting it right now; once it did, the next try finds the workflow.
                starting = await self._ledger.start_pending(job.id)
            await asyncio.sleep(CATCH_UP_PAUSE_S)

    async def _has_to_begin(self, job: JobView) -> bool:
        """Have the workflow of a queued job started that waits for parents or a seat; return False when it has one."""
        if job.held == WAITING:
            return await self._ledger.begin_waiting(job.id, _now())
        return await self._ledger.hurry_start(job.id, _now())

    async def _is_behind(self, error: WorkflowUpdateFailedError, job_id: str) -> bool:
        """Return whether a workflow refused because it does not know yet what it wrote into the ledger itself.

        It wrote, and its worker or the Temporal server died before that was in its history: it will write the same
        again, to no effect, as soon as its task is handed to another worker.
        """
        cause = error.cause
        known = cause.details[0] if isinstance(cause, ApplicationError) and cause.details else ""
        return bool(known) and (await self._ledger.job(job_id)).stage != known

    async def _update(self, job: JobView, request: ActRequest) -> ActReply:
        """Ask the job's workflow once.

        Raises:
            WorkflowUpdateFailedError: it refuses.
            Unavailable: Temporal or every control worker is away.

        """
        action = request.action
        handle = self._client.get_workflow_handle(workflow_id(job.product_id, job.id))
        try:
            reply: ActReply = await asyncio.wait_for(
                handle.execute_update("act", request, result_type=ActReply), RPC_TIMEOUT_S
            )
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND and (ended := await self._ledger.job(job.id)).stage in ENDED:
                return await self._act_on_ended(ended, action, reason=request.reason, by=request.by)  # since we looked
            raise _rpc_problem(error, job.id) from error
        except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
            raise Unavailable(
                f"{action} of job {job.id} was not answered within {RPC_TIMEOUT_S} s",
                hint="look at `gf status`; it may still be taken when a control worker and the factory are back",
            ) from error
        return reply

    # --- after a loss ---------------------------------------------------------------------------------------------

    async def recover(self, after_id: str, limit: int, *, replace: bool) -> tuple[RecoveredJob, ...]:
        """Give up to `limit` unfinished jobs with an id above `after_id` the workflow that they lack; by id.

        `replace` ends workflows that belong to an earlier life too: the ledger was restored, and knows better now.

        Raises:
            Unavailable: Temporal is away. What was done is done; to begin again does no harm.

        """
        jobs = await self._ledger.unfinished_page(after_id, limit)
        gate = asyncio.Semaphore(PARALLEL_DELIVERIES)

        async def recover_one(job: UnfinishedJob) -> RecoveredJob:
            async with gate:
                return await self._recover(job, replace=replace)

        try:
            recovered = await asyncio.gather(*(recover_one(job) for job in jobs))
        except RPCError as error:
            raise Unavailable(f"Temporal does not answer: {error.message}", hint="look at `gf status`") from error
        await self.deliver_due()
        return tuple(recovered)

    async def _recover(self, job: UnfinishedJob, *, replace: bool) -> RecoveredJob:
        known = {"id": job.id, "product_id": job.product_id, "stage": job.stage}
        present = await self._present_workflow(job, replace=replace)
        if present == WorkflowExecutionStatus.RUNNING:
            return RecoveredJob.model_validate(known | {"found": "running"})
        if present is not None:  # the reconciler ends the job where people see it
            return RecoveredJob.model_validate(known | {"found": "closed"})
        if job.start_pending:
            return RecoveredJob.model_validate(known | {"found": "starting"})
        restarted = await self._ledger.enqueue_start(job.id, _now(), life=job.life)
        if restarted is None:  # somebody else did it, or the job ended, since we looked
            return RecoveredJob.model_validate(known | {"found": "starting"})
        told = {"found": "missing", "life": restarted.life, "at": restarted.at, "superseded": restarted.superseded}
        return RecoveredJob.model_validate(known | told)

    async def _present_workflow(self, job: UnfinishedJob, *, replace: bool) -> WorkflowExecutionStatus | None:
        """Return how the workflow of the job's present life is; None when there is none."""
        handle = self._client.get_workflow_handle(workflow_id(job.product_id, job.id))
        try:
            found = await handle.describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise
        life: int = await found.memo_value(LIFE_MEMO, job.life)
        if life >= job.life:
            return found.status
        if replace and found.status == WorkflowExecutionStatus.RUNNING:
            await self._end_workflow(found.id, "the ledger was restored from a backup")
        return None

    async def end_unknown(self) -> tuple[str, ...]:
        """End job workflows that the ledger has no unfinished job for; return their ids.

        For a ledger that was restored: jobs of after the backup run on without it. Asks visibility, since nobody else
        knows them; what it shows late is found when this runs again.

        Raises:
            Unavailable: Temporal is away.

        """
        query = "WorkflowType = 'JobWorkflow' AND ExecutionStatus = 'Running'"
        try:
            running = {found.id async for found in self._client.list_workflows(query)}
            unknown = tuple(sorted(running - await self._unfinished_workflows()))
            for name in unknown:
                await self._end_workflow(name, "the ledger has no such unfinished job")
        except RPCError as error:
            raise Unavailable(f"Temporal does not answer: {error.message}", hint="look at `gf status`") from error
        return unknown

    async def _unfinished_workflows(self) -> set[str]:
        names: set[str] = set()
        after = ""
        while page := await self._ledger.unfinished_page(after, RECOVERY_PAGE):
            names |= {workflow_id(job.product_id, job.id) for job in page}
            after = page[-1].id
        return names

    async def _end_workflow(self, name: str, reason: str) -> None:
        try:
            await self._client.get_workflow_handle(name).terminate(reason=reason)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:  # it closed meanwhile
                raise

    async def _act_on_ended(self, job: JobView, action: str, *, reason: str, by: str) -> ActReply:
        """An ended job takes one action: a failed one may be requeued, which begins its next life."""
        if action != "requeue" or job.stage not in (Stage.FAILED, Stage.DEAD_LETTER):
            raise IllegalAction(
                f"job {job.id} has ended in {job.stage}; {action} is not possible any more",
                action=action,
                job_id=job.id,
                stage=str(job.stage),
            )
        await self._ledger.requeue(job.id, _now(), by=by, note=reason)
        await self._ledger.dispatch(_now())
        await self.deliver_due()
        return ActReply(stage=(await self._ledger.job(job.id)).stage)


def _refusal(error: WorkflowUpdateFailedError, action: str, job_id: str) -> IllegalAction:
    cause = error.cause
    message = cause.message if isinstance(cause, ApplicationError) else str(cause)
    return IllegalAction(message, action=action, job_id=job_id)


def _rpc_problem(error: RPCError, job_id: str) -> NotFound | Unavailable:
    if error.status == RPCStatusCode.NOT_FOUND:
        return NotFound(
            f"job {job_id} has no running workflow",
            hint="the reconciler starts a missing one within a minute; look again with `gf job`",
        )
    return Unavailable(f"Temporal does not answer: {error.message}", hint="look at `gf status`")


def _details(argument: JobInput) -> str:
    """Return what Temporal's Web UI shows about the job before anything happened."""
    spec = argument.spec
    where = f"epoch {argument.grant.epoch}: {argument.grant.reason}" if argument.grant else "waiting for a seat"
    if argument.standing and argument.standing.grant:
        where = f"in {argument.standing.stage} again, with candidate `{argument.standing.candidate_sha}`"
    lines = [
        f"**{spec.title}**",
        f"- repository `{spec.repository.url}` · base `{spec.repository.base}` · ship: {spec.ship}",
        f"- profile {spec.profile.name if spec.profile else 'none'} · priority {spec.priority}",
        f"- verify: {'; '.join(spec.verify) or 'none'} · scope: {', '.join(spec.allowed_scope) or 'everything'}",
        f"- {where}",
    ]
    return "\n".join(lines)


def _now() -> datetime:
    return datetime.now(UTC)
