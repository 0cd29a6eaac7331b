"""The `judge` activity: scope and verify of one candidate. Does I/O: git, processes, the API.

Idempotent: it reads the candidate and writes nothing but logs and artifacts; repeated when its factory is lost, also on
another one that can reach the candidate.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from temporalio import activity

from activities import git
from activities.factory import AttemptReports, FactoryContext
from activities.fence import wip_ref
from activities.output import LAST_WORDS_S, RedactedStream, tail_of
from activities.stoppable import under_heartbeat
from activities.supervision import RunExit, RunSpec, SupervisedRun, SupervisorDied
from core.attempt import JudgeRequest, Verdict
from core.errors import GigafactoryError, WorkspaceError
from core.job import JobSpec, RepositoryKind
from core.scope import out_of_scope
from engines.base import EngineRun
from engines.environment import engine_environment

MOST_PATHS: Final = 200
"""A verdict names this many changes at the most."""
LARGEST_PATCH: Final = 1_000_000
LOOK_S: Final = 0.1


class JudgeActivities:
    """Judges candidates on one factory."""

    def __init__(self, context: FactoryContext) -> None:
        self._context = context

    @activity.defn
    async def judge(self, request: JudgeRequest) -> Verdict:
        """Compare the candidate with its base and the allowed scope, then verify it in a clean checkout."""
        return await under_heartbeat(
            self._judge_when_free(request), beat_s=self._context.settings.beat_s, draining=self._context.draining
        )

    async def _judge_when_free(self, request: JudgeRequest) -> Verdict:
        """Judge as soon as no halt forbids it; a halt that comes meanwhile ends verify, which then begins anew."""
        orders, work = self._context.orders, (request.spec.product_id, self._context.name)
        while True:
            await orders.free(*work)
            judging, halted = asyncio.create_task(self._judge(request)), asyncio.create_task(orders.stopped(*work))
            try:
                await asyncio.wait((judging, halted), return_when=asyncio.FIRST_COMPLETED)
                if judging.done():
                    return judging.result()
            finally:
                for task in (judging, halted):
                    task.cancel()
                await asyncio.gather(judging, halted, return_exceptions=True)

    async def _judge(self, request: JudgeRequest) -> Verdict:
        reports = self._context.reports.attempt(request.job_id, request.epoch)
        difference, verified = await asyncio.gather(
            self._compare(request, reports),
            Verification(self._context, request.job_id, request.epoch, request.spec).of(request.candidate_sha),
        )
        await reports.flush(LAST_WORDS_S)  # whoever sees the verdict finds diff and output beside it
        outside = out_of_scope(difference.changes, request.spec.allowed_scope) if difference.changes else ()
        return Verdict(
            job_id=request.job_id,
            epoch=request.epoch,
            candidate_sha=request.candidate_sha,
            changes=difference.changes[:MOST_PATHS],
            changed_paths=len(difference.changes),
            out_of_scope=outside[:MOST_PATHS],
            verify="none" if verified is None else "passed" if verified.passed else "failed",
            verify_command=verified.command[:2000] if verified else "",
            verify_exit_code=verified.exit_code if verified else None,
            verify_duration_s=verified.duration_s if verified else 0.0,
            log_tail=verified.log_tail if verified else "",
        )

    async def _compare(self, request: JudgeRequest, reports: AttemptReports) -> git.Difference:
        if request.candidate_sha == request.base_sha or not request.candidate_sha:
            return git.Difference((), b"")
        found = await self._context.workspaces.with_commit(
            request.spec.repository.url,
            request.candidate_sha,
            wip_ref(request.job_id, request.epoch),
            lambda mirror: git.difference(mirror, request.base_sha, request.candidate_sha),
        )
        text = self._context.redactor.redact(found.patch[:LARGEST_PATCH].decode(errors="replace"))
        try:
            await reports.upload("diff.patch", text.encode(), kind="diff", media_type="text/x-diff")
        except GigafactoryError as error:
            reports.event("artifact", f"the diff was not captured: {error}")
        return found


@dataclass(frozen=True, slots=True)
class Verified:
    """How the verify commands ended."""

    passed: bool
    command: str = ""
    """The one that failed."""
    exit_code: int | None = 0
    duration_s: float = 0.0
    log_tail: str = ""


class Verification:
    """Runs a job's verify commands under a supervisor of their own."""

    def __init__(self, context: FactoryContext, job_id: str, epoch: int, spec: JobSpec) -> None:
        self._context = context
        self._job_id = job_id
        self._epoch = epoch
        self._spec = spec
        self._reports = context.reports.attempt(job_id, epoch)

    async def of(self, sha: str) -> Verified | None:
        """Verify a commit in a clean checkout of it; a directory without git in place. None: there is no verify.

        Raises:
            WorkspaceError: the commands could not be run at all.

        """
        if not self._spec.verify:
            return None
        folder = await asyncio.to_thread(_new_folder, self._context.paths.attempt(self._job_id, self._epoch))
        repository = self._spec.repository
        try:
            if repository.kind == RepositoryKind.DIRECTORY:
                return await self._run(folder, Path(repository.url))
            ref = wip_ref(self._job_id, self._epoch)
            async with self._context.workspaces.visit(repository.url, sha, folder / "work", ref=ref) as worktree:
                return await self._run(folder, worktree.path)
        except SupervisorDied:
            await self._context.rescue(folder)
            raise WorkspaceError("the supervisor of verify was killed") from None
        except OSError as error:
            raise WorkspaceError(f"verify could not run: {error}") from error

    async def _run(self, folder: Path, workdir: Path) -> Verified:
        began = time.monotonic()
        run = await self._context.supervisors.launch(self._run_spec(folder, workdir), self._environment(folder))
        streams = [
            RedactedStream(folder / name, "verify", self._reports, self._context.redactor)
            for name in ("out.log", "err.log")
        ]
        try:
            ended = await _follow(run, streams)
        except asyncio.CancelledError:
            run.stop("cancelled")
            with suppress(SupervisorDied):
                await asyncio.shield(run.ended)
            raise
        finally:
            run.close()
        passed = ended.reason == "exited" and ended.exit_code == 0
        lines = [line for stream in streams for line in stream.tail]
        if ended.reason == "timeout":
            lines.append(f"(verify took longer than {self._spec.timeout_s} s)")
        return Verified(
            passed=passed,
            command="" if passed else _failed_command(self._spec.verify, folder / "step"),
            exit_code=-ended.signal if ended.signal else ended.exit_code,
            duration_s=round(time.monotonic() - began, 3),
            log_tail=tail_of(lines),
        )

    def _run_spec(self, folder: Path, workdir: Path) -> RunSpec:
        script = folder / "verify.sh"
        script.write_text(verify_script(self._spec.verify, folder / "step"), encoding="utf-8")
        return RunSpec(
            job_id=self._job_id,
            epoch=self._epoch,
            run_dir=str(folder),
            argv=("/bin/sh", str(script)),
            cwd=str(workdir),
            timeout_s=float(self._spec.timeout_s),
            grace_s=self._context.settings.stop_grace_s,
        )

    def _environment(self, folder: Path) -> dict[str, str]:
        run = EngineRun(
            prompt="",
            workdir=folder,
            home=self._context.paths.home("verify"),
            attempt_dir=folder,
            factory_env=self._context.environ,
            extra_env_allow=self._context.settings.engine_env,
        )
        env = engine_environment(_NoProvider(), run)
        for name in ("HOME", "TMPDIR"):
            Path(env[name]).mkdir(parents=True, exist_ok=True)
        return env


class _NoProvider:
    """Verify gets no variable of any provider."""

    env_allow: tuple[str, ...] = ()


async def _follow(run: SupervisedRun, streams: list[RedactedStream]) -> RunExit:
    while not run.ended.done():
        _pump(streams)
        await asyncio.wait({run.ended}, timeout=LOOK_S)
    while _pump(streams):
        pass
    for stream in streams:
        stream.close()
    return run.ended.result()


def _pump(streams: list[RedactedStream]) -> bool:
    moved = [stream.pump() for stream in streams]  # each of them, not only the first that has something
    return any(moved)


def verify_script(commands: tuple[str, ...], step: Path) -> str:
    """Return a script that runs the commands in order and leaves the number of the last one in `step`. *Pure.*"""
    lines = []
    for number, command in enumerate(commands):
        lines += [
            f"echo {number} > {shlex.quote(str(step))}",
            f"printf '%s\\n' {shlex.quote('$ ' + command)}",
            f"/bin/sh -c {shlex.quote(command)} || exit $?",
        ]
    return "\n".join(lines) + "\n"


def _failed_command(commands: tuple[str, ...], step: Path) -> str:
    try:
        return commands[int(step.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return commands[0]


def _new_folder(attempt: Path) -> Path:
    """Make a folder for one verification; a repeated one gets its own."""
    attempt.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            folder = attempt / f"verify-{number}"
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
