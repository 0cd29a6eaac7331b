"""Bare Temporal doing the work of a job: the same activities, git commands and processes, and nothing of ours.

No ledger, no leases, no log shipping, no supervision, no HTTP. It runs as two processes, like ours: one for workflows
(`python -P -m tests.bench.bare control …`), one for activities (`… factory …`). Does I/O: Temporal, git, processes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

with workflow.unsafe.imports_passed_through():
    from activities import git
    from activities.fence import branch_ref, job_ref, opened, shipped, shipped_ref, wip_ref
    from activities.workspace import Worktree, clear, store, take_off

CONTROL, BUILD, WORKSPACE = "bare.control", "bare.build", "bare.workspace"
ONCE = RetryPolicy(maximum_attempts=1)
STEP = timedelta(minutes=5)


@dataclass
class Work:
    """One job: where it works; an empty `remote` is a directory without git."""

    job_id: str
    folder: str
    remote: str = ""
    mirror: str = ""
    base: str = ""
    gates: str = ""
    """File that is told when the job waits for its ship."""
    sha: str = ""


@workflow.defn
class BareWorkflow:
    """Three activities, three local ones, one update: the shape of a job that was granted its seat at once."""

    def __init__(self) -> None:
        self._ship = False

    @workflow.run
    async def run(self, work: Work) -> str:
        """Build, judge, wait for the ship, ship."""
        work.sha = await workflow.execute_activity(
            "bare_build", work, task_queue=BUILD, result_type=str, start_to_close_timeout=STEP, retry_policy=ONCE
        )
        await workflow.execute_activity(
            "bare_judge", work, task_queue=WORKSPACE, start_to_close_timeout=STEP, retry_policy=ONCE
        )
        await self._record(work, "testing")
        await workflow.wait_condition(lambda: self._ship)
        await self._record(work, "decision")
        await workflow.execute_activity(
            "bare_ship", work, task_queue=WORKSPACE, start_to_close_timeout=STEP, retry_policy=ONCE
        )
        await self._record(work, "shipped")
        return work.sha

    async def _record(self, work: Work, stage: str) -> None:
        await workflow.execute_local_activity("bare_record", args=[work, stage], start_to_close_timeout=STEP)

    @workflow.update
    async def ship(self) -> None:
        """Let it ship."""
        self._ship = True


@workflow.defn
class TwoActivities:
    """Two empty activities, one after the other: the yardstick of the dispatch benchmark."""

    @workflow.run
    async def run(self) -> None:
        """Run both."""
        for queue in (BUILD, WORKSPACE):
            await workflow.execute_activity("bare_nothing", task_queue=queue, start_to_close_timeout=STEP)


@activity.defn
async def bare_nothing() -> None:
    """Do nothing."""


@activity.defn
async def bare_record(work: Work, stage: str) -> None:
    """Tell the client about the gate; there is no ledger."""
    if stage == "testing":
        with Path(work.gates).open("a") as gates:  # noqa: ASYNC230 - one short line
            gates.write(f"{work.job_id}\n")


WORKTREES = asyncio.Lock()
"""`git worktree add` fails now and then beside another one in the same mirror (it reads half-made neighbours)."""


async def add_worktree(mirror: Path, place: Path, sha: str) -> Worktree:
    """Check out a commit, one at a time, as `activities.workspace` does."""
    async with WORKTREES:
        await git.add_worktree(mirror, place, sha)
    return Worktree(mirror, place, git.worktree_admin(place))


async def remove(worktree: Worktree) -> None:
    """Remove a worktree as `activities.workspace` does."""
    async with WORKTREES:
        gone = take_off(worktree)
    await asyncio.to_thread(clear, gone)
    await asyncio.to_thread(clear, worktree.path)


async def spawn(*command: str, cwd: str) -> None:
    """Run a process to its end, as the engine and the verify command are run."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")


@activity.defn
async def bare_build(work: Work) -> str:
    """Worktree, engine, commit, push: the git commands of `run_engine`."""
    script = f"echo {work.job_id} > out.txt"
    if not work.remote:
        await asyncio.to_thread(Path(work.folder).mkdir, parents=True, exist_ok=True)
        await spawn("sh", "-euc", script, cwd=work.folder)
        return ""
    mirror, place = Path(work.mirror), Path(work.folder) / "work"
    worktree = await add_worktree(mirror, place, work.base)
    await spawn("sh", "-euc", script, cwd=str(place))
    await git.run_git("add", "-A", "--ignore-errors", at=place)
    await git.run_git("diff-index", "--cached", "--raw", "-p", "-z", "-U0", "--no-renames", work.base, at=place)
    tree = (await git.run_git("write-tree", at=place)).text
    who, when = git.Identity(), datetime.now(UTC)
    sha = git.write_commit(mirror, tree, [work.base], message=work.job_id, who=who, when=when)
    fence = store(mirror, opened(work.job_id, 1))
    pushed = await git.push(
        mirror, work.remote, [f"{fence}:{job_ref(work.job_id)}", f"+{sha}:{wip_ref(work.job_id, 1)}"]
    )
    await remove(worktree)
    if not pushed.ok:
        raise RuntimeError(str(pushed))
    return sha


@activity.defn
async def bare_judge(work: Work) -> None:
    """Diff, and a clean checkout with `true`: the git commands of `judge`."""
    if not work.remote:
        await spawn("sh", "-c", "true", cwd=work.folder)
        return
    await asyncio.gather(_verify(work), git.difference(Path(work.mirror), work.base, work.sha))


async def _verify(work: Work) -> None:
    mirror, place = Path(work.mirror), Path(work.folder) / "verify"
    worktree = await add_worktree(mirror, place, work.sha)
    await spawn("sh", "-c", "true", cwd=str(place))
    await remove(worktree)


@activity.defn
async def bare_ship(work: Work) -> None:
    """One atomic push: the git command of `ship`."""
    if not work.remote:
        return
    mirror = Path(work.mirror)
    mark = store(mirror, shipped(work.job_id, 1))
    refs = [f"{work.sha}:{branch_ref(work.job_id)}", f"{mark}:{job_ref(work.job_id)}"]
    refs.append(f"{work.sha}:{shipped_ref(work.job_id)}")
    leases = {branch_ref(work.job_id): "", shipped_ref(work.job_id): ""}
    pushed = await git.push(mirror, work.remote, refs, leases=leases)
    if not pushed.ok:
        raise RuntimeError(str(pushed))


async def serve(role: str, address: str, seats: int) -> None:
    """Run one of the two processes until it is killed."""
    client = await Client.connect(address, data_converter=pydantic_data_converter)
    if role == "control":
        worker = Worker(
            client,
            task_queue=CONTROL,
            workflows=[BareWorkflow, TwoActivities],
            activities=[bare_record],
            no_remote_activities=True,
            workflow_runner=UnsandboxedWorkflowRunner(),
        )
        tell_ready()
        await worker.run()
        return
    build = Worker(
        client,
        task_queue=BUILD,
        activities=[bare_build, bare_nothing],
        max_concurrent_activities=seats,
        max_concurrent_activity_task_polls=1,
    )
    steps = Worker(
        client,
        task_queue=WORKSPACE,
        activities=[bare_judge, bare_ship, bare_nothing],
        max_concurrent_activities=seats + 2,
        max_concurrent_activity_task_polls=1,
    )
    tell_ready()
    await asyncio.gather(build.run(), steps.run())


def tell_ready() -> None:
    """Tell the benchmark that from now on work is taken."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def end_with_the_benchmark() -> None:
    """Wait until the benchmark closes our standard input, as it does when it is killed; end then."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_benchmark, daemon=True).start()
    try:
        asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    finally:
        os._exit(0)
