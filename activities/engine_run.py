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
from activities.fence import job_ref, opened, wip_ref
from activities.heartbeat import keep_beating
from activities.output import LAST_WORDS_S, EngineOutput
from activities.supervision import GitPlan, RunExit, RunSpec, SupervisedRun, SupervisorDied
from activities.workspace import Worktree, clear, store
from core.attempt import BuildRequest, BuildResult
from core.errors import GigafactoryError, StaleEpoch, WorkspaceError
from core.job import FailureKind, RepositoryKind
from core.switch import Halt
from engines.base import Engine, EngineOutcome, EngineRun

LEASE_MARGIN: Final = 0.2
"""Part of the lease's life, three seconds at the most, by which a run ends before the lease does."""
PUSH_PAUSES_S: Final = (0.5, 2.0)
"""Waits before a push that did not reach the remote is tried again."""
STOP_FAILURES: Final = {
    "timeout": (FailureKind.TIMEOUT, "the wall time of {timeout_s} s ran out"),
    "cancelled": (FailureKind.CANCELLED, "cancelled"),
    "paused": (FailureKind.CANCELLED, "paused"),
    "drain": (FailureKind.INTERRUPTED, "factory drained"),
    "halted": (FailureKind.INTERRUPTED, "{halt}"),
    "fenced": (FailureKind.LEASE_LOST, "the lease ran out before it could be renewed"),
}

KEEP_CANDIDATE: Final = ("drain", "halted")
"""Ends that do not throw a candidate away which the engine has finished."""


class EngineActivities:
    """Runs engines on one factory."""

    def __init__(self, context: FactoryContext) -> None:
        self._context = context

    @activity.defn
    async def run_engine(self, request: BuildRequest) -> BuildResult:
        """Run one attempt; a cancel, whichever way it comes, ends the engine at once and keeps its work."""
        attempt = Attempt(self._context, request)
        with self._context.running.present(request.job_id, request.epoch, attempt):
            running = asyncio.create_task(attempt.run())
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                attempt.stop(_reason_of(activity.cancellation_details()))
                return await running


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the engine works."""

    workdir: Path
    worktree: Worktree | None = None
    plan: GitPlan | None = None


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
        self._acknowledged = self._began
        self._checkpoint = request.grant.checkpoint_sha

    async def run(self) -> BuildResult:
        """Live the attempt under its lease."""
        if (halt := self._context.orders.stopping(*self._work)) is not None:
            return self._failed(FailureKind.INTERRUPTED, str(halt))
        watches = (self._keep_lease(), self._watch_drain(), self._watch_hand_over(), self._watch_halts())
        watching = [asyncio.create_task(watch) for watch in watches]
        try:
            result = await self._guarded()
            if result.outcome == "failed":  # before the next epoch begins, after which nothing of this one is taken
                await self._reports.flush(LAST_WORDS_S)
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
        engine = self._context.engine(self._request.grant.engine)
        place = await self._prepare()
        outcome, ended = await self._run_engine(engine, place)
        result = await self._finish(engine, place, outcome, ended)
        await self._hand_in(result)
        if place.worktree is not None and result.outcome == "succeeded" and not ended.quarantined:
            await self._context.workspaces.remove(place.worktree)
        return result

    # --- stopping -----------------------------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Let the attempt end; the first reason counts."""
        if not self._stopping.done():
            self._stopping.set_result(reason)

    async def _first(self, work: asyncio.Future[Any]) -> None:
        """Wait for the end of `work` or for the wish to stop."""
        either: set[asyncio.Future[Any]] = {work, self._stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def _keep_lease(self) -> None:
        ended = await keep_beating(self._request.grant.beat_s, details=self._details, acknowledged=self._on_beat)
        self.stop("fenced" if ended == "lost" else ended)

    def _on_beat(self) -> None:
        self._acknowledged = time.monotonic()
        if self._run is not None:
            self._run.beat(self._lease_left())

    def _lease_left(self) -> float:
        """Return the seconds that the engine may run on without another acknowledged beat."""
        ttl = self._request.grant.lease_ttl_s
        return max(0.1, self._acknowledged + ttl - min(3.0, ttl * LEASE_MARGIN) - time.monotonic())

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
        worktree = await self._check_out()
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
        return _Place(worktree.path, worktree, plan)

    async def _check_out(self) -> Worktree:
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
        return await workspaces.check_out(url, self._base, self._folder / "work", ref=base_ref, tree=tree)

    async def _push(self, mirror: Path, refspecs: list[str]) -> None:
        """Push under the fence.

        Raises:
            StaleEpoch: the remote knows a newer epoch of this job.
            WorkspaceError: the remote is out of reach, or somebody else has the lock of a ref there.

        """
        url = self._repository.url
        for pause in PUSH_PAUSES_S:
            with suppress(WorkspaceError):
                pushed = await git.push(mirror, url, refspecs)
                if not pushed.locked:
                    break
            await asyncio.sleep(pause)
        else:
            pushed = await git.push(mirror, url, refspecs)
        where = git.strip_userinfo(url)
        reasons = "; ".join(f"{ref}: {reason}" for ref, reason in pushed.rejected.items())
        if pushed.locked:  # says nothing of epochs: the remote looks at locks first
            raise WorkspaceError(f"{where} cannot change a ref; a file ref.lock may have been left there: {reasons}")
        if not pushed.ok:
            raise StaleEpoch(f"{where} refuses epoch {self._request.epoch} of {self._request.job_id}: {reasons}")

    # --- the engine ---------------------------------------------------------------------------------------------------

    async def _run_engine(self, engine: Engine, place: _Place) -> tuple[EngineOutcome, RunExit]:
        """Run the engine to its end, whatever ends it."""
        run = self._engine_run(engine, place)
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

    def _engine_run(self, engine: Engine, place: _Place) -> EngineRun:
        home, resume = self._context.paths.home(engine.name), self._request.resume
        session = resume.session_id if resume.engine == engine.name and engine.supports_resume else None
        if session is not None and not engine.has_session(home, session):
            session = None
        return EngineRun(
            prompt=brief(self._request, engine, resumed=session is not None),
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
            lease_s=self._lease_left(),
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
        who = await self._context.workspaces.identity(self._repository.url)
        message = self._message(engine, "" if candidate else "Checkpoint: ")
        when = datetime.fromtimestamp(int(ended.ended_at), UTC)
        sha = git.write_commit(worktree.mirror, ended.clean_tree, [self._base], message=message, who=who, when=when)
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
        delivering = asyncio.create_task(self._reports.deliver(result))
        await self._first(delivering)
        if not delivering.done() and self._stopping.result() not in KEEP_CANDIDATE:
            delivering.cancel()
            with suppress(asyncio.CancelledError):
                await delivering
            raise StaleEpoch(f"the attempt was stopped ({self._stopping.result()}) before its result was taken")
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


def _reason_of(details: activity.ActivityCancellationDetails | None) -> str:
    """Return why the SDK wants the activity to end, in the words of `STOP_FAILURES`."""
    if details is None or details.cancel_requested:
        return "cancelled"
    if details.worker_shutdown:
        return "drain"
    return "paused" if details.paused else "fenced"


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
