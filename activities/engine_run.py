"""The `run_engine` activity: one attempt, from its fence on the remote to the sealed candidate. Does I/O: everything.

Idempotent: no; an attempt is one epoch, and Temporal never repeats it (`maximum_attempts=1`). What goes wrong is an
answer (`BuildResult` with a failure), never an exception, so that the work so far is always told.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from temporalio import activity

from activities import artifacts, git
from activities.briefing import SCRIPT_CLASSES, brief
from activities.factory import FactoryContext
from activities.fence import job_ref, opened, quarantine_ref, wip_ref
from activities.heartbeat import Lease, keep_beating
from activities.output import LAST_WORDS_S, EngineOutput
from activities.supervision import GitPlan, RunExit, RunSpec, SupervisedRun, SupervisorDied
from activities.workspace import Worktree, clear, store
from core.attempt import BuildRequest, BuildResult
from core.errors import GigafactoryError, StaleEpoch, WorkspaceError
from core.job import FailureKind, LeaseLoss, RepositoryKind
from core.switch import Halt
from engines.base import Engine, EngineOutcome, EngineRun

PUSH_PAUSES_S: Final = (0.5, 2.0)
"""Waits before a push that did not reach the remote is tried again."""
STOP_FAILURES: Final = {
    "timeout": (FailureKind.TIMEOUT, "the wall time of {timeout_s} s ran out"),
    "cancelled": (FailureKind.CANCELLED, "cancelled"),
    "paused": (FailureKind.CANCELLED, "paused"),
    "drain": (FailureKind.INTERRUPTED, "factory drained"),
    "halted": (FailureKind.INTERRUPTED, "{halt}"),
    "preempted": (FailureKind.INTERRUPTED, "paused for a more urgent job"),
    "fenced": (FailureKind.LEASE_LOST, "the lease ran out before it could be renewed"),
}

IN_QUARANTINE: Final = "the lease was lost; the engine finishes its work in quarantine"
CONFIRM_S: Final = 3.0
"""Longest wait for the ledger's word on whether an attempt still counts."""
KEEP_CANDIDATE: Final = ("drain", "halted", "preempted")
"""Ends that do not throw a candidate away which the engine has finished."""


class EngineActivities:
    """Runs engines on one factory."""

    def __init__(self, context: FactoryContext) -> None:
        self._context = context
        self._attempts: set[asyncio.Task[BuildResult]] = set()
        """All that run, also those which finish their work in quarantine, without an activity."""

    @activity.defn
    async def run_engine(self, request: BuildRequest) -> BuildResult:
        """Run one attempt; a cancel, whichever way it comes, ends the engine at once and keeps its work."""
        attempt = Attempt(self._context, request)
        running = asyncio.create_task(self._present(attempt, request))
        self._attempts.add(running)
        running.add_done_callback(self._attempts.discard)
        answer = asyncio.create_task(attempt.answer(running))
        while True:
            try:
                return await asyncio.shield(answer)
            except asyncio.CancelledError:
                if answer.done():
                    raise
                reason = _reason_of(activity.cancellation_details())
                if reason is not None:
                    attempt.stop(reason)

    async def _present(self, attempt: Attempt, request: BuildRequest) -> BuildResult:
        with self._context.running.present(request.job_id, request.epoch, attempt):
            return await attempt.run()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the engine works."""

    workdir: Path
    worktree: Worktree | None = None
    plan: GitPlan | None = None
    restored: bool = False
    """It holds the work of an earlier attempt."""


class Attempt:
    """One epoch of one job on this factory; the methods are in the order of its life."""

    def __init__(self, context: FactoryContext, request: BuildRequest) -> None:
        self._context = context
        self._request = request
        self._spec = request.spec
        self._repository = request.spec.repository
        self._base = request.grant.base_sha or self._repository.base_sha
        self._folder = context.paths.attempt(request.job_id, request.epoch)
        self._reports = context.reports.attempt(request.job_id, request.epoch)
        self._stopping: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._halt: Halt | None = None
        self._run: SupervisedRun | None = None
        self._output: EngineOutput | None = None
        self._began = time.monotonic()
        self._lease = Lease(request.grant.lease_ttl_s)
        self._lost = asyncio.Event()
        """Nothing of it counts any more, and it finishes its work in quarantine."""
        self._unknown_to_temporal = False
        """Temporal has given the activity up: what it returns reaches nobody."""
        self._checkpoint = request.grant.checkpoint_sha

    async def answer(self, running: asyncio.Task[BuildResult]) -> BuildResult:
        """Return the result; at once when the lease is lost, because then the seat is somebody else's."""
        losing = asyncio.create_task(self._lost.wait())
        await asyncio.wait({running, losing}, return_when=asyncio.FIRST_COMPLETED)
        losing.cancel()
        return running.result() if running.done() else self._failed(FailureKind.LEASE_LOST, IN_QUARANTINE)

    async def run(self) -> BuildResult:
        """Live the attempt under its lease."""
        if (halt := self._context.orders.stopping(*self._work)) is not None:
            return self._failed(FailureKind.INTERRUPTED, str(halt))
        watches = (
            self._keep_lease(),
            self._watch_lease(),
            self._watch_drain(),
            self._watch_hand_over(),
            self._watch_halts(),
        )
        watching = [asyncio.create_task(watch) for watch in watches]
        try:
            result = await self._guarded()
            if result.outcome == "failed":  # before the next epoch begins, after which nothing of this one is taken
                await self._tell_failure(result)
            return result
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _guarded(self) -> BuildResult:
        try:
            return await self._live()
        except StaleEpoch as error:
            return self._failed(FailureKind.LEASE_LOST, error.message)
        except WorkspaceError as error:
            self._reports.event("workspace", error.message)
            return self._failed(FailureKind.WORKSPACE, error.message)
        except SupervisorDied:
            return await self._rescued()
        except GigafactoryError as error:
            return self._failed(FailureKind.ENGINE_ERROR, error.message)
        except OSError as error:
            return self._failed(FailureKind.WORKSPACE, f"{type(error).__name__}: {error}")
        finally:
            if self._run is not None:
                self._run.close()

    async def _live(self) -> BuildResult:
        try:
            engine = self._context.engine(self._request.grant.engine)
        except GigafactoryError as error:
            return self._failed(FailureKind.ENGINE_UNAVAILABLE, error.message)
        place = await self._prepare()
        outcome, ended = await self._run_engine(engine, place)
        if self._lost.is_set():
            return await self._quarantine(engine, place, ended)
        try:
            result = await self._finish(engine, place, outcome, ended)
            await self._hand_in(result)
        except StaleEpoch:
            if not self._finishes:
                raise
            return await self._quarantine(engine, place, ended)
        if place.worktree is not None and result.outcome == "succeeded" and not ended.quarantined:
            await self._context.workspaces.remove(place.worktree)
        return result

    async def _tell_failure(self, result: BuildResult) -> None:
        if not self._unknown_to_temporal or result.failure == FailureKind.LEASE_LOST:
            await self._reports.flush(LAST_WORDS_S)
            return
        with suppress(GigafactoryError, TimeoutError):  # then the lease runs out, and the job goes on all the same
            async with asyncio.timeout(LAST_WORDS_S):
                await self._reports.deliver(result)

    # --- stopping -----------------------------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Let the attempt end; the first reason counts. For its lease it is not stopped when it may finish without."""
        if reason == "fenced" and self._run is not None and self._finishes:
            self._lost.set()
        elif not self._stopping.done():
            self._stopping.set_result(reason)

    @property
    def _finishes(self) -> bool:
        """Whether the engine may run to its end without a lease; work in a plain directory cannot be kept apart."""
        wanted = self._spec.on_lease_loss == LeaseLoss.FINISH_QUARANTINED
        return wanted and self._repository.kind != RepositoryKind.DIRECTORY

    async def _first(self, *work: asyncio.Future[Any]) -> None:
        """Wait for the end of any `work` or for the wish to stop."""
        await asyncio.wait({*work, self._stopping}, return_when=asyncio.FIRST_COMPLETED)

    async def _keep_lease(self) -> None:
        """Beat; where Temporal does not answer, or knows the activity no more, the ledger keeps the lease."""
        beat_s = self._request.grant.beat_s
        ended = await keep_beating(
            beat_s, details=self._details, lease=self._lease, renewed=self._renewed, unheard=self._confirm
        )
        if ended != "lost":
            self.stop(ended)
            return
        self._unknown_to_temporal = True
        while not (self._stopping.done() or self._lost.is_set()):
            confirmed = await self._confirm()
            await asyncio.sleep(beat_s if confirmed else min(beat_s, 0.5))

    async def _watch_lease(self) -> None:
        """End the attempt when its lease is over, unless it ran out unseen and the ledger says that it still counts."""
        await self._lease.over()
        while await self._confirm():
            await self._lease.over()
        self.stop("fenced")

    async def _confirm(self) -> bool:
        """Ask the ledger whether the attempt still counts; a yes renews the lease, no answer changes nothing."""
        asked_at = self._lease.asked()
        try:
            async with asyncio.timeout(CONFIRM_S):
                stop = await self._reports.confirm()
        except StaleEpoch:
            self.stop("fenced")
            return False
        except (GigafactoryError, TimeoutError):
            return False
        if stop:
            self.stop(stop)
        activity.heartbeat()  # only for the SDK's own timer
        self._lease.renew(asked_at)
        self._renewed()
        return True

    async def _assure(self) -> None:
        """Return when the attempt may write.

        Raises:
            StaleEpoch: its lease ran out, and the ledger does not say that it counts all the same.

        """
        if self._lease.left_s <= 0 and not await self._confirm():
            raise StaleEpoch(f"the lease of epoch {self._request.epoch} ran out before this could be written")

    def _renewed(self) -> None:
        if self._run is not None:
            self._run.beat(self._lease.until)

    def _details(self) -> Mapping[str, Any]:
        output = self._output
        return {
            "epoch": self._request.epoch,
            "checkpoint": self._checkpoint,
            "steps": output.steps if output else 0,
            "step": output.last_step if output else "",
        }

    async def _watch_drain(self) -> None:
        await self._context.draining.wait()
        await asyncio.sleep(self._context.settings.drain_grace_s)
        self.stop("drain")

    async def _watch_hand_over(self) -> None:
        await self._context.orders.hand_over.wait()
        self.stop("drain")

    async def _watch_halts(self) -> None:
        self._halt = await self._context.orders.stopped(*self._work)
        self.stop("halted")

    @property
    def _work(self) -> tuple[str, str, str, int]:
        """Return what a halt may cover: product, factory, engine, and since which kill epoch."""
        grant = self._request.grant
        return self._spec.product_id, self._context.name, grant.engine, grant.kill_epoch

    # --- before the engine --------------------------------------------------------------------------------------------

    async def _prepare(self) -> _Place:
        """Make the worktree and raise the fence; nothing of an older epoch can ship or checkpoint from here on."""
        await asyncio.to_thread(_fresh_folder, self._folder)
        if self._repository.kind == RepositoryKind.DIRECTORY:
            return _Place(_directory(self._repository.url))
        url, job_id, epoch = self._repository.url, self._request.job_id, self._request.epoch
        worktree, restored = await self._check_out()
        fence = store(worktree.mirror, opened(job_id, epoch, git.object_format_of(self._base)))
        if epoch > 1:  # the first epoch has nobody to fence off; its first push makes the ref
            await self._push(worktree.mirror, [f"{fence}:{job_ref(job_id)}"])
        start_index = self._folder / "start.index"
        shutil.copy2(worktree.index, start_index)
        plan = GitPlan(
            git_dir=str(worktree.admin),
            work_tree=str(worktree.path),
            base=self._base,
            url=url,
            wip_ref=wip_ref(job_id, epoch),
            fence=f"{fence}:{job_ref(job_id)}",
            start_index=str(start_index),
        )
        return _Place(worktree.path, worktree, plan, restored)

    async def _check_out(self) -> tuple[Worktree, bool]:
        """Return the worktree, and whether it holds what an earlier attempt did."""
        grant, workspaces, url = self._request.grant, self._context.workspaces, self._repository.url
        tree = ""
        if grant.checkpoint_sha:
            ref = wip_ref(self._request.job_id, grant.checkpoint_epoch)
            try:
                tree = await workspaces.with_commit(
                    url, grant.checkpoint_sha, ref, lambda mirror: git.tree_of(mirror, grant.checkpoint_sha)
                )
            except WorkspaceError as error:
                self._reports.event("workspace", f"the checkpoint is out of reach, starting from the base: {error}")
        base_ref = f"refs/heads/{self._repository.base}"
        worktree = await workspaces.check_out(url, self._base, self._folder / "work", ref=base_ref, tree=tree)
        return worktree, bool(tree)

    async def _push(self, mirror: Path, refspecs: list[str]) -> None:
        """Push under the fence.

        Raises:
            StaleEpoch: the remote knows a newer epoch of this job, or the lease ran out.
            WorkspaceError: the remote is out of reach, or somebody else has the lock of a ref there.

        """
        await self._assure()
        pushed = await self._pushed(mirror, refspecs)
        where = git.strip_userinfo(self._repository.url)
        reasons = "; ".join(f"{ref}: {reason}" for ref, reason in pushed.rejected.items())
        if pushed.locked:  # says nothing of epochs: the remote looks at locks first
            raise WorkspaceError(f"{where} cannot change a ref; a file ref.lock may have been left there: {reasons}")
        if not pushed.ok:
            raise StaleEpoch(f"{where} refuses epoch {self._request.epoch} of {self._request.job_id}: {reasons}")

    async def _pushed(self, mirror: Path, refspecs: list[str]) -> git.PushResult:
        """Push, again when the remote is out of reach or locked; raises WorkspaceError when it stays out of reach."""
        for pause in PUSH_PAUSES_S:
            with suppress(WorkspaceError):
                pushed = await git.push(mirror, self._repository.url, refspecs)
                if not pushed.locked:
                    return pushed
            await asyncio.sleep(pause)
        return await git.push(mirror, self._repository.url, refspecs)

    # --- the engine ---------------------------------------------------------------------------------------------------

    async def _run_engine(self, engine: Engine, place: _Place) -> tuple[EngineOutcome, RunExit]:
        """Run the engine to its end, whatever ends it."""
        run = self._engine_run(engine, place, await self._work_so_far(engine, place))
        parser = engine.parser(run)
        command = engine.command(run)
        command.lay_down()
        stdin = _stdin_file(self._folder, command.stdin_text)
        spec = self._run_spec(place, command.argv, stdin)
        supervised = self._run = await self._context.supervisors.launch(spec, command.env)
        tell_text = engine.engine_class not in SCRIPT_CLASSES
        output = self._output = EngineOutput(
            self._folder, parser, self._reports, self._context.redactor, tell_text=tell_text
        )
        following = asyncio.create_task(output.follow(supervised.ended))
        saving = asyncio.create_task(self._tell_checkpoints(supervised))
        try:
            self._tell_started(await supervised.started, engine, run)
            ended = await self._until_ended(supervised)
        finally:
            saving.cancel()
            await asyncio.gather(following, saving, return_exceptions=True)
        code = -ended.signal if ended.signal else ended.exit_code
        return parser.finish(code, output.stderr_tail), ended

    async def _work_so_far(self, engine: Engine, place: _Place) -> str:
        """Return the diff of what an earlier attempt left in the worktree, for an engine that reads prose."""
        if place.worktree is None or not place.restored or engine.engine_class in SCRIPT_CLASSES:
            return ""
        patch = await git.patch_text(place.worktree.mirror, self._base, self._request.grant.checkpoint_sha)
        return self._context.redactor.redact(patch.decode(errors="replace"))

    def _engine_run(self, engine: Engine, place: _Place, work: str) -> EngineRun:
        home, resume = self._context.paths.home(engine.name), self._request.resume
        session = resume.session_id if resume.engine == engine.name and engine.supports_resume else None
        if session is not None and not engine.has_session(home, session):
            session = None
        return EngineRun(
            prompt=brief(self._request, engine, resumed=session is not None, work=work),
            workdir=place.workdir,
            home=home,
            attempt_dir=self._folder,
            factory_env=self._context.environ,
            extra_env_allow=self._context.settings.engine_env,
            yolo=self._spec.yolo,
            model=self._spec.model,
            allowed_tools=self._spec.allowed_tools,
            resume_session=session,
        )

    def _run_spec(self, place: _Place, argv: tuple[str, ...], stdin: str | None) -> RunSpec:
        settings = self._context.settings
        return RunSpec(
            job_id=self._request.job_id,
            epoch=self._request.epoch,
            run_dir=str(self._folder),
            argv=argv,
            cwd=str(place.workdir),
            timeout_s=float(self._spec.timeout_s),
            grace_s=settings.stop_grace_s,
            stdin=stdin,
            lease_until=None if self._finishes else self._lease.until,
            checkpoint_s=settings.checkpoint_s,
            git=place.plan,
            api=self._context.api,
            certify=True,
        )

    def _tell_started(self, pid: int, engine: Engine, run: EngineRun) -> None:
        self._reports.started(
            pid=pid,
            engine_version=self._version(engine),
            workdir=str(run.workdir),
            resumed_session=run.resume_session or "",
        )

    def _version(self, engine: Engine) -> str:
        return self._context.engine_versions.get(engine.name, "")

    async def _tell_checkpoints(self, run: SupervisedRun) -> None:
        while True:
            self._checkpoint = await run.checkpoints.get()
            self._reports.checkpoint(self._checkpoint)

    async def _until_ended(self, run: SupervisedRun) -> RunExit:
        await self._first(run.ended)
        if not run.ended.done():
            reason = self._stopping.result()
            run.stop(reason, grace_s=self._context.settings.stop_grace_s if reason == "drain" else 0.0)
        return await run.ended

    async def _rescued(self) -> BuildResult:
        """Do what the supervisor would have done, after somebody killed it."""
        rescue = await self._context.rescue(self._folder)
        self._checkpoint = rescue.checkpoint_sha or self._checkpoint
        survivors = "" if rescue.group_dead else "; not all of its processes could be killed"
        return self._failed(FailureKind.CRASH, f"the supervisor of the engine was killed{survivors}")

    # --- after the engine ---------------------------------------------------------------------------------------------

    async def _finish(self, engine: Engine, place: _Place, outcome: EngineOutcome, ended: RunExit) -> BuildResult:
        """Turn the end of the engine into a result: a sealed candidate, or a failure with a checkpoint."""
        failure, message = self._judge_end(outcome, ended)
        await artifacts.capture(place.workdir, self._spec.artifacts, self._reports, self._context.redactor)
        sha = ""
        if place.worktree is not None and ended.reason != "fenced" and not ended.problem:
            sha = await self._seal(place.worktree, ended, engine, candidate=failure is None)
        if ended.quarantined:
            message = f"{message}\n{_quarantine_note(ended)}".strip()
            self._reports.event("workspace", _quarantine_note(ended), {"quarantined": list(ended.quarantined)})
        succeeded = failure is None
        return BuildResult(
            job_id=self._request.job_id,
            epoch=self._request.epoch,
            outcome="succeeded" if succeeded else "failed",
            candidate_sha=sha if succeeded else "",
            checkpoint_sha=(sha if ended.changed else "") or ended.checkpoint_sha or self._checkpoint,
            base_sha=self._base,
            changed=ended.changed,
            failure=failure,
            message=message[:4000],
            retry_at=outcome.retry_at,
            exit_code=ended.exit_code,
            duration_s=round(time.monotonic() - self._began, 3),
            session_id=outcome.session_id[:200] if outcome.session_id else None,
            engine_version=self._version(engine)[:200],
            tool_calls=outcome.tool_calls,
            usage=outcome.usage,
            log_tail=self._output.log_tail if self._output else "",
        )

    def _judge_end(self, outcome: EngineOutcome, ended: RunExit) -> tuple[FailureKind | None, str]:
        """Return why the attempt failed (None: it did not) and a sentence; the supervisor's word comes first."""
        redact = self._context.redactor.redact
        if ended.reason in STOP_FAILURES:
            failure, sentence = STOP_FAILURES[ended.reason]
            return failure, sentence.format(timeout_s=self._spec.timeout_s, halt=self._halt)
        if not outcome.ok:
            return outcome.failure or FailureKind.ENGINE_ERROR, redact(outcome.message)
        if ended.problem:
            return FailureKind.WORKSPACE, ended.problem
        return None, redact(outcome.result_text)[:2000]

    async def _seal(self, worktree: Worktree, ended: RunExit, engine: Engine, *, candidate: bool) -> str:
        """Commit the work on top of the base, squashed, and push it.

        Returns the commit, which is the base when nothing changed, and empty for a checkpoint that could not be pushed.
        """
        if not ended.changed:
            return self._base
        job_id, epoch = self._request.job_id, self._request.epoch
        sha = await self._commit(worktree, ended, engine, prefix="" if candidate else "Checkpoint: ")
        if self._run is not None:
            self._run.sealed(sha)
        fence = opened(job_id, epoch, git.object_format_of(self._base))[-1][0]
        try:
            await self._push(worktree.mirror, [f"{fence}:{job_ref(job_id)}", f"+{sha}:{wip_ref(job_id, epoch)}"])
        except WorkspaceError as error:
            await git.update_ref(worktree.mirror, wip_ref(job_id, epoch), sha)
            if candidate:
                raise
            self._reports.event("workspace", f"the work so far is only on {self._context.name}: {error.message}")
            return ""
        return sha

    async def _commit(self, worktree: Worktree, ended: RunExit, engine: Engine, *, prefix: str) -> str:
        who = await self._context.workspaces.identity(self._repository.url)
        message, when = self._message(engine, prefix), datetime.fromtimestamp(int(ended.ended_at), UTC)
        return git.write_commit(worktree.mirror, ended.clean_tree, [self._base], message=message, who=who, when=when)

    async def _quarantine(self, engine: Engine, place: _Place, ended: RunExit) -> BuildResult:
        """Keep what was finished without a lease where nothing looks for work, and tell of it."""
        self._lost.set()
        lost = self._failed(FailureKind.LEASE_LOST, IN_QUARANTINE)
        if place.worktree is None or not ended.changed or ended.problem:
            return lost
        ref = quarantine_ref(self._request.job_id, self._request.epoch)
        sha = await self._commit(place.worktree, ended, engine, prefix="Quarantined: ")
        await git.update_ref(place.worktree.mirror, ref, sha)  # should the remote not have it
        pushed = await self._pushed(place.worktree.mirror, [f"+{sha}:{ref}"])
        if not pushed.ok:
            raise WorkspaceError(f"the remote refuses {ref}: {pushed.rejected}")
        await self._reports.quarantined(ref, sha, f"the engine ended without a lease ({ended.reason})")
        return lost

    def _message(self, engine: Engine, prefix: str) -> str:
        trailers = [
            f"Gigafactory-Job: {self._request.job_id}",
            f"Gigafactory-Epoch: {self._request.epoch}",
            f"Gigafactory-Engine: {' '.join((engine.name, self._version(engine))).strip()}",
        ]
        return f"{prefix}{self._spec.title}\n\n" + "\n".join(trailers)

    async def _hand_in(self, result: BuildResult) -> None:
        """Give a candidate to the ledger; failures need no acceptance, the workflow writes them.

        Raises:
            StaleEpoch: the lease was lost meanwhile.

        """
        if result.outcome != "succeeded":
            return
        await self._assure()
        delivering = asyncio.create_task(self._reports.deliver(result))
        losing = asyncio.create_task(self._lost.wait())
        await self._first(delivering, losing)
        losing.cancel()
        reason = self._stopping.result() if self._stopping.done() else "fenced"
        if not delivering.done() and reason not in KEEP_CANDIDATE:
            delivering.cancel()
            with suppress(asyncio.CancelledError):
                await delivering
            raise StaleEpoch(f"the attempt was stopped ({reason}) before its result was taken")
        await delivering

    def _failed(self, failure: FailureKind, message: str) -> BuildResult:
        return BuildResult(
            job_id=self._request.job_id,
            epoch=self._request.epoch,
            outcome="failed",
            failure=failure,
            message=self._context.redactor.redact(message)[:4000],
            base_sha=self._base,
            checkpoint_sha=self._checkpoint,
            duration_s=round(time.monotonic() - self._began, 3),
            log_tail=self._output.log_tail if self._output else "",
        )


def _reason_of(details: activity.ActivityCancellationDetails | None) -> str | None:
    """Return why the SDK wants the activity to end, in the words of `STOP_FAILURES`.

    None: because Temporal does not know it any more, which our own heartbeat finds out, and asks the ledger.
    """
    if details is None or details.cancel_requested:
        return "cancelled"
    if details.worker_shutdown:
        return "drain"
    return "paused" if details.paused else None


def _fresh_folder(folder: Path) -> None:
    clear(folder)
    folder.mkdir(parents=True)


def _directory(url: str) -> Path:
    path = Path(url)
    if not path.is_dir():
        raise WorkspaceError(f"the directory {path} is gone")
    return path


def _stdin_file(folder: Path, text: str | None) -> str | None:
    if text is None:
        return None
    path = folder / "stdin"
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")
    return str(path)


def _quarantine_note(ended: RunExit) -> str:
    listed = "; ".join(f"{entry['path']}: {entry['reason']}" for entry in ended.quarantined[:20])
    return f"{len(ended.quarantined)} file(s) stay on the machine and are not part of the work: {listed}"
