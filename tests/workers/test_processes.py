"""Runs whose supervisor was killed, beside a living agent or together with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.fence import wip_ref
from activities.supervision import CLOSED, GitPlan, SupervisedRun, SupervisorDied, Supervisors
from tests.repositories import Checkout
from tests.waiting import until, written
from tests.workers.test_supervisor import ENV, SCRIPT, escaping, place, spec
from workers import processes
from workers.process_table import birth_of

__all__ = ["place"]


@pytest.fixture
async def supervisors() -> AsyncIterator[Supervisors]:
    made = Supervisors(SCRIPT)
    yield made
    made.close()


async def kill_supervisor(run: SupervisedRun, *, knows: int) -> None:
    """SIGKILL the supervisor once it has written down that it knows `knows`."""
    state = run.folder / "state.json"
    await until(lambda: str(knows) in json.loads(state.read_text())["descendants"])
    os.kill(json.loads(state.read_text())["supervisor"]["pid"], signal.SIGKILL)
    with pytest.raises(SupervisorDied):
        await run.ended


async def test_supervisor_killed_agent_kills_and_saves(
    tmp_path: Path, supervisors: Supervisors, place: GitPlan, remote: Checkout
) -> None:
    """SIGKILL of the supervisor alone: engine and daemon are killed by the agent, the work is pushed."""
    daemon_file = tmp_path / "daemon.pid"
    script = f"echo work > new.txt; {escaping(daemon_file)}; sleep 600"
    run = await supervisors.launch(spec(tmp_path, script, git=place), ENV)
    daemon = int(await written(daemon_file))
    engine = await run.started
    await kill_supervisor(run, knows=daemon)
    rescue = await asyncio.to_thread(processes.rescue_run, run.folder)
    assert rescue.group_dead
    assert birth_of(daemon) is None
    assert birth_of(engine) is None
    assert remote.ref(wip_ref("j-1", 1)) == rescue.checkpoint_sha
    assert remote.git("show", f"{rescue.checkpoint_sha}:new.txt") == "work"
    run.close()


async def test_orphan_found_after_restart_is_certified_once(
    tmp_path: Path, supervisors: Supervisors, place: GitPlan, remote: Checkout
) -> None:
    """Agent and supervisor both gone: the next agent kills by pid and birth, saves and certifies; not a second time."""
    attempts = tmp_path / "attempts"
    daemon_file = tmp_path / "daemon.pid"
    script = f"echo work > new.txt; {escaping(daemon_file)}; sleep 600"
    given = spec(tmp_path, script, git=place, run_dir=str(attempts / "j-1.1"), certify=True)
    run = await supervisors.launch(given, ENV)
    daemon = int(await written(daemon_file))
    await kill_supervisor(run, knows=daemon)
    orphans = await asyncio.to_thread(lambda: list(processes.find_orphans(attempts)))
    (orphan,) = orphans
    assert orphan.certificate is not None
    assert (orphan.certificate.group_dead, orphan.certificate.reason) == (True, "orphan_found")
    assert remote.ref(wip_ref("j-1", 1)) == orphan.certificate.checkpoint_sha
    assert birth_of(daemon) is None
    orphan.close()
    assert list(processes.find_orphans(attempts)) == []
    run.close()


async def test_certificate_that_was_not_delivered_is_found(tmp_path: Path, supervisors: Supervisors) -> None:
    """A supervisor without an API leaves its letter; the next agent takes exactly that."""
    attempts = tmp_path / "attempts"
    given = spec(tmp_path, "sleep 600", run_dir=str(attempts / "j-1.1"), certify=True)
    run = await supervisors.launch(given, ENV)
    await run.started
    os.close(run._life_line)
    run._life_line = -1
    letter = json.loads(await written(run.folder / "death.json"))
    (orphan,) = await asyncio.to_thread(lambda: list(processes.find_orphans(attempts)))
    assert orphan.certificate is not None
    assert orphan.certificate.model_dump(mode="json") == letter


def test_pid_of_another_birth_is_left_alone(tmp_path: Path) -> None:
    """A pid that was given to somebody else meanwhile is not killed."""
    assert processes.kill_run(tmp_path, {"engine": {"pid": os.getpid(), "birth": "long ago"}, "descendants": {}})


def test_old_closed_attempts_are_forgotten(tmp_path: Path) -> None:
    """Only folders that were closed long ago go."""
    for name, closed in (("old.1", True), ("new.1", True), ("open.1", False)):
        (tmp_path / name).mkdir()
        if closed:
            (tmp_path / name / CLOSED).touch()
    os.utime(tmp_path / "old.1" / CLOSED, (0, 0))
    assert processes.forget_old_attempts(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.1", "open.1"]
