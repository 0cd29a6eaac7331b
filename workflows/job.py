"""The life of one job, from accepted manifest to its end.

Purpose: receives what happens to a job, asks `core.decision.decide` what to do, and performs it; it takes no
decision of its own. One workflow per life of a job, id `gf-job-<product>-<job>`.

Messages in:
  signals `granted`, `lease_lost`, `handed_in`, `interrupt`, `parents_changed`, `children_changed` come from the outbox;
  `ship`, `approve`, `reject`, `requeue`, `cancel`, `pause`, `resume` from people (Temporal's Web UI, the `temporal`
  CLI). All signals go through one dynamic handler that takes raw values: what cannot be understood is recorded as
  refused, never dropped and never able to wedge the workflow.
  update `act` carries the same actions from the API; its validator refuses what is not legal, which leaves no trace
  in the history.
  query `state` answers with the whole `JobState`.

Lifetime: minutes to months (a human decides when to ship); some 40 history events on the way that goes well.

Versioning: every released shape leaves a recorded history in `tests/replay/`, which CI replays; a change that
breaks one needs `workflow.patched`.
"""

from __future__ import annotations

import asyncio
import builtins
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy, SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TimeoutType
from temporalio.exceptions import TimeoutError as ActivityTimeout

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from core.attempt import (
        BuildRequest,
        BuildResult,
        Grant,
        JudgeRequest,
        Resume,
        ShipRequest,
        ShipResult,
        Verdict,
        factory_queue,
        parse_answer,
    )
    from core.dag import Wait
    from core.decision import decide, refusal
    from core.errors import IllegalAction
    from core.job import FailureKind, Message, Stage
    from core.job_events import (
        ACTIONS,
        Act,
        Build,
        Built,
        ChildrenChanged,
        ChildrenResolved,
        Command,
        Event,
        Finish,
        Granted,
        Hold,
        Interrupt,
        JobState,
        Judge,
        Judged,
        LeaseLost,
        ParentsChanged,
        ParentsResolved,
        Parked,
        Refused,
        ResolveChildren,
        ResolveParents,
        Retract,
        Route,
        Ship,
        ShipEnded,
        Started,
        Step,
        StepBroken,
        StopStep,
        Tick,
        Write,
    )
    from core.job_messages import (
        IO_QUEUE,
        IO_SILENCE,
        RECORDS_PER_LIFE,
        WORKER_GONE,
        ActReply,
        ActRequest,
        ChildrenReply,
        HandedInSignal,
        HoldRequest,
        InterruptSignal,
        JobInput,
        JobOutcome,
        JobRef,
        LostSignal,
        ParentsReply,
        PlaceReply,
        PlaceRequest,
        ReclaimReply,
        ReclaimRequest,
        RouteReply,
        WriteReply,
        WriteRequest,
    )
    from core.lifecycle import Decided, Record
    from core.repeated import fingerprint, recalled, remembered, split_taken, under_way

LEDGER_TIMEOUT = timedelta(seconds=10)
"""One ledger transaction; the database answers in milliseconds or is away."""
REMOTE_TIMEOUT = timedelta(minutes=2)
"""A step that may ask a git remote."""
LEDGER_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(seconds=10), maximum_attempts=0
)
"""The ledger may be away for long; a job waits for it rather than fail."""
ONCE = RetryPolicy(maximum_attempts=1)
"""Engine and workspace steps are never retried by Temporal: each retry is a decision of ours, with a new place."""
BUILD_SLACK = timedelta(minutes=10)
"""Time beyond the job's own timeout (which the supervisor enforces) for worktree, seal and hand-over."""
STEP_LIMIT = timedelta(hours=2)
"""Longest verify or ship step."""
STEP_PICKUP = timedelta(seconds=15)
"""A living factory takes a workspace step at once; after this time another is asked."""
PLACE_PAUSE = timedelta(seconds=2)
"""Wait before a workspace step is tried again; doubles up to a minute."""
PLACE_PAUSE_LIMIT = timedelta(minutes=1)
RETRACT_LIMIT = timedelta(seconds=30)
"""Closing the fence behind a rejected candidate must not keep the job from ending."""
BROKEN_STEP_LIMIT = 5
"""A workspace step that itself fails (not its machine) this often is given up."""

GF_STAGE = SearchAttributeKey.for_keyword("GfStage")
GF_FACTORY = SearchAttributeKey.for_keyword("GfFactory")

AnswerT = TypeVar("AnswerT", Verdict, ShipResult)


class LedgerIsAhead(Exception):
    """Another decision had been written in the place of this one, by a workflow task that was forgotten."""

    def __init__(self, decided: Decided, children: Wait | None) -> None:
        super().__init__(f"the ledger has record {decided.seq} already")
        self.decided = decided
        self.children = children


@workflow.defn(name="JobWorkflow")
class JobWorkflow:
    """One life of a job."""

    @workflow.init
    def __init__(self, arg: JobInput) -> None:
        """Set up the state from the accepted snapshot."""
        self._input = arg
        self._state = JobState(
            job_id=arg.job_id,
            spec=arg.spec,
            policy=arg.policy,
            epoch=arg.epoch,
            resume=Resume(note=arg.note, failure=arg.failure, session_id=arg.session_id, engine=arg.engine),
        )
        started = Started(grant=arg.grant, standing=arg.standing, children=arg.children, ready=arg.ready)
        self._inbox: deque[Event] = deque([started])
        self._writes = arg.life * RECORDS_PER_LIFE
        self._step: workflow.ActivityHandle[Any] | None = None
        self._stop_requested = False
        self._handed_in = 0
        """Newest epoch whose result the ledger has although no activity of ours told."""
        self._tasks: dict[tuple[type[Command], int], asyncio.Task[None]] = {}
        """Steps that were begun, by kind and epoch."""
        self._unrecorded: list[Event] = []
        """What was decided on since the newest record."""
        self._taken: list[str] = []
        """Fingerprints of what was decided on in the workflow task that began with the history so long."""
        self._taken_at = 0
        self._commits: tuple[str, ...] = ()
        self._finished = False
        self._replies: dict[int, str | None] = {}
        self._shown = Stage.BUILDING if arg.grant else Stage.QUEUED

    @workflow.run
    async def run(self, arg: JobInput) -> JobOutcome:
        """Live until the job ends; a cancellation of the workflow becomes the action `cancel`."""
        life = asyncio.create_task(self._live())
        while not life.done():
            try:
                await asyncio.shield(life)
            except asyncio.CancelledError:
                act = Act(action="cancel", by="temporal", reason="the workflow was cancelled")
                if refusal(self._state, act) is None:
                    self._inbox.append(act)
        life.result()
        await workflow.wait_condition(workflow.all_handlers_finished)
        state = self._state
        return JobOutcome(job_id=arg.job_id, stage=state.stage, epoch=state.epoch, commits=self._commits)

    # --- messages -------------------------------------------------------------------------------------------------

    @workflow.update
    async def act(self, request: ActRequest) -> ActReply:
        """Take an operator's action; answers when it has been taken in."""
        event = Act(action=request.action, by=request.by, sha=request.sha, reason=request.reason)
        self._replies[id(event)] = None
        self._inbox.append(event)
        await workflow.wait_condition(lambda: self._replies[id(event)] is not None)
        problem = self._replies.pop(id(event))
        if problem:
            raise ApplicationError(problem, type="illegal_action", non_retryable=True)
        return ActReply(stage=self._state.stage, conditions=tuple(c.message for c in self._state.conditions))

    @act.validator
    def validate_act(self, request: ActRequest) -> None:
        """Refuse what is not legal now, with the reason."""
        message = refusal(self._state, Act(action=request.action, by=request.by, sha=request.sha))
        if message:
            raise ApplicationError(message, self._state.stage.value, type="illegal_action", non_retryable=True)

    @workflow.signal(dynamic=True)
    def on_signal(self, name: str, args: Sequence[RawValue]) -> None:
        """Take any signal: from the outbox, from Temporal's Web UI, or garbage."""
        try:
            if name == "handed_in":
                self._handed_in = max(self._handed_in, _as(HandedInSignal, _plain(args)).epoch)
            else:
                self._inbox.append(self._event_of(name, _plain(args)))
        except (ValueError, IllegalAction) as error:
            self._inbox.append(Refused(action=name[:200], message=str(error)[:1000], by="signal"))

    @workflow.query
    def state(self) -> JobState:
        """Return what the workflow knows about the job."""
        return self._state

    def _event_of(self, name: str, value: Any) -> Event:
        """Translate a signal; raises ValueError with what was expected."""
        if name == "granted":
            return Granted(grant=_as(Grant, value))
        if name == "lease_lost":
            lost = _as(LostSignal, value)
            return LeaseLost(epoch=lost.epoch, reason=lost.reason, checkpoint_sha=lost.checkpoint_sha)
        if name == "interrupt":
            interrupt = _as(InterruptSignal, value)
            return Interrupt(epoch=interrupt.epoch, reason=interrupt.reason)
        if name == "parents_changed":
            return ParentsChanged()
        if name == "children_changed":
            return ChildrenChanged()
        if name not in ACTIONS:
            raise ValueError(f"unknown signal; known: {', '.join(ACTIONS)}")
        fields = {"sha": value} if isinstance(value, str) else value or {}
        if not isinstance(fields, dict):
            raise ValueError("expected the candidate's SHA, or an object with sha, by and reason")  # noqa: TRY004
        act = _as(Act, {"by": "signal", **fields, "action": name})
        message = refusal(self._state, act)
        if message:
            raise IllegalAction(message)
        return act

    # --- the loop -------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        while not self._finished:
            while self._inbox and not self._finished:
                await self._handle(self._inbox.popleft())
            if not self._finished:
                await self._wait()
        for event in self._inbox:
            self._answer(event, refusal(self._state, event) if isinstance(event, Act) else "")

    async def _wait(self) -> None:
        """Sleep until something happens, or until the state wants to look again."""
        wake_at = self._state.wake_at
        if wake_at is None:
            await workflow.wait_condition(lambda: bool(self._inbox))
            return
        try:
            pause = max(wake_at - workflow.now(), timedelta(0))
            await workflow.wait_condition(lambda: bool(self._inbox), timeout=pause)
        except builtins.TimeoutError:
            self._inbox.append(Tick())

    async def _handle(self, event: Event) -> None:
        try:
            decision = decide(self._state, event, workflow.now())
        except IllegalAction as error:
            self._refused(event, error.message)
            return
        self._state = decision.state
        self._take(event)
        try:
            await self._perform_all(decision.commands)
        except LedgerIsAhead as ahead:
            await self._catch_up(ahead.decided, ahead.children)
        else:
            self._answer(event)
        self._show()

    def _take(self, event: Event) -> None:
        """Note an event that is decided on, should this workflow task have to be done again."""
        began = workflow.info().get_current_history_length()
        if began != self._taken_at:
            self._taken, self._taken_at = [], began
        self._taken.append(fingerprint(event))
        self._unrecorded.append(event)
        if isinstance(event, ShipEnded):
            self._commits = event.result.commits

    async def _catch_up(self, decided: Decided, children: Wait | None) -> None:
        """Go on from where the ledger is: it was told of other decisions by a workflow task that was forgotten."""
        workflow.logger.warning("the ledger is ahead: going on from its record %d", decided.seq)
        done, left = split_taken((*self._unrecorded, *self._inbox), decided.taken)
        self._state = recalled(self._state, decided.state)
        self._writes = decided.seq
        self._inbox = deque(left)
        for event in done:
            self._take(event)
            self._answer(event)
        self._unrecorded = []
        if not self._state.step and any(epoch <= self._state.epoch for _kind, epoch in self._running()):
            self._stop_step(wait=False)
        await self._perform_all(under_way(self._state), children)

    async def _perform_all(self, commands: Sequence[Command], children: Wait | None = None) -> None:
        """Perform commands in order; no ship begins when the ledger says of its record that child jobs forbid it."""
        for command in commands:
            if children is None or not isinstance(command, Ship):
                children = await self._perform(command) or children
        if children is not None:
            held_ship = any(isinstance(command, Ship) for command in commands)
            self._inbox.appendleft(ChildrenResolved(**dict(children), held_ship=held_ship))

    def _answer(self, event: Event, problem: str | None = None) -> None:
        """Tell who waits for the event that it was taken, or why not."""
        if id(event) in self._replies:
            self._replies[id(event)] = problem or ""

    def _refused(self, event: Event, message: str) -> None:
        """An action was legal when it arrived and no longer is: tell who waits for it, or the job's log."""
        if id(event) in self._replies:
            self._answer(event, message)
        elif isinstance(event, Act):
            self._inbox.append(Refused(action=event.action, message=message, by=event.by))

    def _show(self) -> None:
        """Keep Temporal's own Web UI telling the story: search attributes and current details."""
        state = self._state
        stage = state.stage
        workflow.set_current_details(_details(state))
        if stage == self._shown or state.step == "judge":
            return
        self._shown = stage
        updates = [GF_STAGE.value_set(stage.value)]
        if stage == Stage.BUILDING and state.grant:
            updates.append(GF_FACTORY.value_set(state.grant.factory))
        workflow.upsert_search_attributes(updates)

    async def _perform(self, command: Command) -> Wait | None:
        """Perform one command; return what child jobs keep the job from shipping, when its record has the answer."""
        match command:
            case Write(record=record):
                return await self._write(record)
            case Hold():
                await self._ledger("hold", HoldRequest(job_id=self._input.job_id), None, "hold")
            case ResolveParents():
                await self._resolve_parents()
            case ResolveChildren():
                reply = await self._ledger("resolve_children", self._ref(), ChildrenReply, "are the child jobs done?")
                self._inbox.append(ChildrenResolved(**dict(reply)))
            case Route():
                await self._route()
            case Retract():
                await self._retract(command)
            case StopStep(wait=wait):
                self._stop_step(wait)
            case Finish():
                self._finished = True
            case Build() | Judge() | Ship():
                self._begin(command)
        return None

    def _begin(self, command: Build | Judge | Ship) -> None:
        """Run a step beside the loop, unless it runs already; it ends with an event in the inbox."""
        key = (type(command), command.grant.epoch)
        if key in self._running():
            return
        self._stop_requested = False
        if isinstance(command, Build):
            step = self._build(command)
        elif isinstance(command, Judge):
            step = self._judge(command)
        else:
            step = self._ship(command)
        self._tasks[key] = asyncio.create_task(step)

    def _running(self) -> tuple[tuple[type[Command], int], ...]:
        return tuple(key for key, task in self._tasks.items() if not task.done())

    def _stop_step(self, wait: bool) -> None:
        """Cancel the running activity; without `wait` its answer belongs to a lost epoch and is ignored."""
        self._stop_requested = wait
        if self._step is not None:
            self._step.cancel()

    def _stopped_at_once(self, epoch: int, step: Step) -> bool:
        """Return whether the word to stop a step came before it had begun; that ends it."""
        if not self._stop_requested or not workflow.patched("stop-at-once"):
            return False
        self._broken(epoch, step, FailureKind.CANCELLED, "stopped before it began")
        return True

    # --- control side ---------------------------------------------------------------------------------------------

    def _ref(self) -> JobRef:
        return JobRef(job_id=self._input.job_id, product_id=self._input.product_id)

    async def _ledger(self, name: str, argument: Message, reply: type[Any] | None, summary: str) -> Any:
        """Run a small ledger transaction beside the workflow task (one history event, no queue)."""
        return await workflow.execute_local_activity(
            name,
            argument,
            result_type=reply,
            start_to_close_timeout=LEDGER_TIMEOUT,
            retry_policy=LEDGER_RETRY,
            summary=summary[:200],
        )

    async def _write(self, record: Record) -> Wait | None:
        self._writes += 1
        job, seq = self._input, self._writes
        decided = Decided(seq=seq, state=remembered(self._state), taken=tuple(self._taken))
        reply: WriteReply | None = await self._ledger(
            "write_record",
            WriteRequest(job_id=job.job_id, product_id=job.product_id, seq=seq, record=record, decided=decided),
            WriteReply,
            f"ledger: {' → '.join(record.path) or ', '.join(entry.type for entry in record.entries)}",
        )
        if reply is not None and reply.ahead is not None:
            raise LedgerIsAhead(reply.ahead, reply.children)
        self._unrecorded = []
        return None if reply is None else reply.children  # histories of before have no answer

    async def _resolve_parents(self) -> None:
        reply = await workflow.execute_activity(
            "resolve_parents",
            self._ref(),
            task_queue=IO_QUEUE,
            result_type=ParentsReply,
            start_to_close_timeout=REMOTE_TIMEOUT,
            heartbeat_timeout=IO_SILENCE,
            retry_policy=LEDGER_RETRY,
            summary="are the parents done?",
        )
        answer = ParentsResolved(outcome=reply.outcome, message=reply.message, base_sha=reply.base_sha)
        self._inbox.append(answer)

    async def _route(self) -> None:
        reply = await workflow.execute_activity(
            "route",
            self._ref(),
            task_queue=IO_QUEUE,
            result_type=RouteReply,
            start_to_close_timeout=LEDGER_TIMEOUT,
            retry_policy=LEDGER_RETRY,
            summary="find a factory",
        )
        parked = Parked(until=reply.until, message=reply.message)
        self._inbox.append(Granted(grant=reply.grant) if reply.grant else parked)

    # --- factory side ---------------------------------------------------------------------------------------------

    async def _build(self, command: Build) -> None:
        grant = command.grant
        job = self._input
        if self._stopped_at_once(grant.epoch, "build"):
            return
        request = BuildRequest(
            job_id=job.job_id,
            product_id=job.product_id,
            epoch=grant.epoch,
            spec=job.spec,
            grant=grant,
            resume=command.resume,
        )
        ttl = timedelta(seconds=grant.lease_ttl_s)
        self._step = workflow.start_activity(
            "run_engine",
            request,
            task_queue=grant.engine_queue,
            result_type=RawValue,
            start_to_close_timeout=timedelta(seconds=job.spec.timeout_s) + BUILD_SLACK,
            schedule_to_start_timeout=ttl,
            heartbeat_timeout=ttl,
            retry_policy=ONCE,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"epoch {grant.epoch}: {grant.engine} on {grant.factory} · {grant.reason}"[:200],
        )
        try:
            answer = parse_answer(BuildResult, _bytes(await self._step), job_id=job.job_id, epoch=grant.epoch)
        except ActivityError as error:
            await self._build_broken(grant.epoch, error)
            return
        if isinstance(answer, str):
            self._broken(grant.epoch, "build", FailureKind.BAD_RESULT, answer)
        else:
            moves_on = answer.failure != FailureKind.RATE_LIMITED or workflow.patched("failover")
            self._inbox.append(Built(result=answer, moves_on=moves_on))

    async def _build_broken(self, epoch: int, error: ActivityError) -> None:
        """Find out from the ledger whether a lost attempt had delivered, or lives on, before it counts as lost."""
        failure, message = _failure_of(error)
        while failure == FailureKind.LEASE_LOST and self._builds(epoch):
            stopping = self._stop_requested
            request = ReclaimRequest(job_id=self._input.job_id, epoch=epoch, reason=message, stop=stopping)
            reply = await self._ledger("reclaim", request, ReclaimReply, f"reclaim epoch {epoch}")
            if reply.accepted is not None:
                self._inbox.append(Built(result=reply.accepted))
                return
            if reply.living_s is None:
                break
            await self._outlived(epoch, timedelta(seconds=reply.living_s), stopping=stopping)
        self._broken(epoch, "build", failure, message, began=_began(error))

    async def _outlived(self, epoch: int, living: timedelta, *, stopping: bool) -> None:
        """Wait until there may be news of an attempt that lives on without its activity."""
        with suppress(builtins.TimeoutError):
            await workflow.wait_condition(
                lambda: self._handed_in >= epoch or (self._stop_requested and not stopping) or not self._builds(epoch),
                timeout=living,
            )

    def _builds(self, epoch: int) -> bool:
        return self._state.step == "build" and self._state.epoch == epoch

    async def _judge(self, command: Judge) -> None:
        job = self._input
        request = JudgeRequest(
            job_id=job.job_id,
            product_id=job.product_id,
            epoch=command.grant.epoch,
            spec=job.spec,
            base_sha=command.base_sha,
            candidate_sha=command.candidate_sha,
        )
        summary = f"scope and verify {command.candidate_sha[:10]}"
        verdict = await self._workspace_step("judge", request, Verdict, command.grant, summary)
        if verdict is not None:
            self._inbox.append(Judged(verdict=verdict))

    async def _ship(self, command: Ship) -> None:
        request = self._ship_request(command, approved_by=command.approved_by)
        summary = (
            f"ship {command.candidate_sha[:10]} ({request.spec.ship}), approved by {command.approved_by or 'nobody'}"
        )
        result = await self._workspace_step("ship", request, ShipResult, command.grant, summary)
        if result is not None:
            self._inbox.append(ShipEnded(result=result))

    def _ship_request(self, command: Ship | Retract, *, approved_by: str = "") -> ShipRequest:
        job = self._input
        return ShipRequest(
            job_id=job.job_id,
            product_id=job.product_id,
            epoch=command.grant.epoch,
            spec=job.spec,
            base_sha=command.base_sha,
            candidate_sha=command.candidate_sha,
            approved_by=approved_by,
        )

    async def _retract(self, command: Retract) -> None:
        """Close the fence behind a rejected candidate; the ledger refuses its ship anyway, so once is enough."""
        request = self._ship_request(command)
        try:
            await workflow.execute_activity(
                "retract",
                request,
                task_queue=command.grant.workspace_queue,
                schedule_to_close_timeout=RETRACT_LIMIT,
                retry_policy=ONCE,
                summary=f"close the fence behind {command.candidate_sha[:10]}",
            )
        except ActivityError as error:
            workflow.logger.warning("the rejected candidate's fence was not closed: %s", error.cause)

    async def _workspace_step(
        self, step: Step, request: Message, model: type[AnswerT], grant: Grant, summary: str
    ) -> AnswerT | None:
        """Run `step` where the worktree is, or on another factory that can reach the candidate.

        Returns None when the step was stopped or given up (a `StepBroken` event is in the inbox then).
        """
        if self._stopped_at_once(grant.epoch, step):
            return None
        factory, pause, failures = grant.factory, PLACE_PAUSE, 0
        while True:
            try:
                raw = await self._try_step(step, request, factory, grant, summary)
                answer = parse_answer(model, _bytes(raw), job_id=grant.job_id, epoch=grant.epoch)
                if not isinstance(answer, str):
                    return answer
                failure, message = FailureKind.BAD_RESULT, answer
                failures += 1
            except ActivityError as error:
                failure, message = _failure_of(error)
                failures += not _through_no_fault(error)
            if self._stop_requested or failures >= BROKEN_STEP_LIMIT:
                self._broken(grant.epoch, step, failure, message)
                return None
            factory = await self._place(step, grant, factory)
            await workflow.sleep(pause)
            pause = min(pause * 2, PLACE_PAUSE_LIMIT)
            if self._stop_requested:
                self._broken(grant.epoch, step, FailureKind.CANCELLED, "stopped by an operator")
                return None

    async def _try_step(self, step: Step, request: Message, factory: str, grant: Grant, summary: str) -> RawValue:
        self._step = workflow.start_activity(
            step,
            request,
            task_queue=factory_queue(factory),
            result_type=RawValue,
            start_to_close_timeout=STEP_LIMIT,
            schedule_to_start_timeout=STEP_PICKUP,
            heartbeat_timeout=timedelta(seconds=grant.lease_ttl_s),
            retry_policy=ONCE,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"{summary} on {factory}"[:200],
        )
        raw: RawValue = await self._step
        return raw

    async def _place(self, step: Step, grant: Grant, avoid: str) -> str:
        request = PlaceRequest(job_id=grant.job_id, epoch=grant.epoch, step=step, avoid=avoid)
        reply = await self._ledger("place_step", request, PlaceReply, f"place {step}")
        return reply.factory or avoid

    def _broken(self, epoch: int, step: Step, failure: FailureKind, message: str, *, began: bool = True) -> None:
        broken = StepBroken(epoch=epoch, step=step, failure=failure, message=message[:2000], began=began)
        self._inbox.append(broken)


TIMEOUT_SENTENCES = {
    TimeoutType.HEARTBEAT: "no heartbeat within the lease",
    TimeoutType.SCHEDULE_TO_START: "the factory did not take the work within the lease",
}
FAILURE_OF_TYPE = {
    "stale_epoch": FailureKind.LEASE_LOST,
    WORKER_GONE: FailureKind.LEASE_LOST,
    "workspace": FailureKind.WORKSPACE,
}


def _failure_of(error: ActivityError) -> tuple[FailureKind, str]:
    """Translate how an activity ended into a failure kind and a sentence."""
    cause = error.cause
    if isinstance(cause, ActivityTimeout):
        sentence = TIMEOUT_SENTENCES.get(cause.type) if cause.type else None
        return FailureKind.LEASE_LOST, sentence or f"the step did not end in time ({cause})"
    if isinstance(cause, CancelledError):
        return FailureKind.CANCELLED, "cancelled"
    if isinstance(cause, ApplicationError):
        return FAILURE_OF_TYPE.get(cause.type or "", FailureKind.CRASH), cause.message
    return FailureKind.CRASH, str(cause or error)


def _began(error: ActivityError) -> bool:
    """Return whether a factory had taken the step."""
    cause = error.cause
    return not (isinstance(cause, ActivityTimeout) and cause.type == TimeoutType.SCHEDULE_TO_START)


def _through_no_fault(error: ActivityError) -> bool:
    """Return whether a step ended with its factory, or was interrupted: it is tried again for as long as it takes."""
    cause = error.cause
    shut_down = isinstance(cause, ApplicationError) and cause.type == WORKER_GONE
    return isinstance(cause, ActivityTimeout | CancelledError) or shut_down


def _plain(args: Sequence[RawValue]) -> Any:
    """Return the first signal argument as plain JSON data; None when there is none."""
    if not args:
        return None
    try:
        return workflow.payload_converter().from_payload(args[0].payload)
    except Exception as error:  # whatever a stranger sent must not stop the job
        raise ValueError(f"the signal's value cannot be read: {error}") from error


MessageT = TypeVar("MessageT", bound=Message)


def _as(model: type[MessageT], value: Any) -> MessageT:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'value'}: {first['msg']}") from None


def _bytes(raw: RawValue | None) -> bytes:
    """Return the answer's JSON; an empty answer gives b"" (and so a clear complaint)."""
    return raw.payload.data if raw is not None else b""


def _details(state: JobState) -> str:
    """Return the job's story as Markdown for Temporal's Web UI."""
    lines = [f"**{state.stage}**" + (f" · {state.step} is running" if state.step else "")]
    if state.grant:
        lines.append(
            f"epoch {state.epoch} on `{state.grant.factory}` with `{state.grant.engine}`: {state.grant.reason}"
        )
    if state.candidate_sha:
        lines.append(f"candidate `{state.candidate_sha}` · verify: {state.verify or 'running'}")
    lines += [f"- {condition.type} ({condition.reason}): {condition.message}" for condition in state.conditions]
    lines += [f"- {line}" for line in state.story]
    return "\n".join(lines)
