"""What the reconciler mends, on a whole stack: workflows that were ended or deleted behind our back, lost messages.

The faults are made from outside: with the `temporal` command line, with Temporal's own API, and with triggers in the
ledger's database that lose a message in the very transaction that wrote it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from core.attempt import workflow_id
from tests.conftest import TOPOLOGY
from tests.e2e.conftest import Remote, Stack, wait_for

pytestmark = [pytest.mark.stack, pytest.mark.chaos]

SCHEDULE = "gf-reconcile"
T = TypeVar("T")


def locked_job(remote: Remote, lock: str, script: str, *fields: str) -> str:
    """Return a shell job that holds `lock`."""
    head = "\n".join(["engine: shell", f"repo: {remote.path}", "base: main", f"lock: {lock}", *fields])
    return f"---\n{head}\n---\n# A job\n\n```sh\n{script}\n```\n"


def when_told(flag: Path) -> str:
    """Return a script that works only once `flag` is there, and until then has descendants of every kind."""
    family = "setsid sh -c 'sleep 987601' & sh -c 'sleep 987602' & sleep 987603"
    return f"if [ ! -e {flag} ]; then {family}; fi; date > made"


def temporal(stack: Stack, act: Callable[[Client], Awaitable[T]]) -> T:
    """Do something as a client of the stack's Temporal server."""

    async def connected() -> T:
        return await act(await Client.connect(stack.state()["urls"]["temporal"]))

    return asyncio.run(connected())


def wait_for_workflow(stack: Stack, job_id: str) -> None:
    """Wait until a job that has no seat has a workflow all the same."""
    wait_for("its workflow", lambda: temporal(stack, lambda client: knows(client, workflow_id("default", job_id))))


def terminate(stack: Stack, binary: Path, job_id: str) -> None:
    """End the job's workflow as an operator does: no code of ours runs in it any more."""
    command = [str(binary), "workflow", "terminate", "--address", stack.state()["urls"]["temporal"]]
    command += ["--workflow-id", workflow_id("default", job_id), "--reason", "a slip of the hand"]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    subprocess.run(command, check=True, capture_output=True, env=environ)


def delete(stack: Stack, job_id: str) -> None:
    """Delete the job's workflow and wait until Temporal knows nothing of it; nobody reconciles meanwhile."""
    name = workflow_id("default", job_id)

    async def delete_it(client: Client) -> None:
        schedule = client.get_schedule_handle(SCHEDULE)
        await schedule.pause()
        try:
            async with asyncio.timeout(30):  # a pass that is under way would find it missing, and start it again
                while (await schedule.describe()).info.running_actions:
                    await asyncio.sleep(0.05)
            request = DeleteWorkflowExecutionRequest(
                namespace="default", workflow_execution=WorkflowExecution(workflow_id=name)
            )
            await client.workflow_service.delete_workflow_execution(request)
            async with asyncio.timeout(30):
                while await knows(client, name):
                    await asyncio.sleep(0.05)
        finally:
            await schedule.unpause()

    temporal(stack, delete_it)


async def knows(client: Client, name: str) -> bool:
    """Return whether there is such a workflow."""
    try:
        await client.get_workflow_handle(name).describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


LOSE = "INSERT INTO lost VALUES (NEW.id); DELETE FROM outbox WHERE id = NEW.id;"
TRIGGERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "embedded": (
        (f"CREATE TRIGGER lose AFTER INSERT ON outbox WHEN {{condition}} BEGIN {LOSE} END",),
        ("DROP TRIGGER lose",),
    ),
    "production": (
        (
            f"CREATE FUNCTION lose() RETURNS trigger AS $$ BEGIN {LOSE} RETURN NULL; END $$ LANGUAGE plpgsql",
            "CREATE TRIGGER lose AFTER INSERT ON outbox FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION lose()",
        ),
        ("DROP TRIGGER lose ON outbox", "DROP FUNCTION lose"),
    ),
}
"""How each topology's database begins to lose messages, and how it ends."""


@contextmanager
def losing(stack: Stack, kind: str, name: str, job_id: str = "") -> Iterator[Callable[[], int]]:
    """Lose every outbox message of that kind and name inside the block; yields how many were lost so far.

    With `job_id`, only those to that job.
    """
    begin, end = TRIGGERS[TOPOLOGY]
    condition = f"NEW.kind = '{kind}' AND NEW.name = '{name}'" + (f" AND NEW.job_id = '{job_id}'" if job_id else "")
    stack.ledger("CREATE TABLE lost (id INTEGER)", *(statement.format(condition=condition) for statement in begin))
    try:
        yield lambda: int(stack.ledger("SELECT count(*) FROM lost")[0][0])
    finally:
        stack.ledger(*end, "DROP TABLE lost")


def assert_nothing_is_held(stack: Stack) -> None:
    """No factory counts a seat as taken."""

    def free() -> bool:
        rows: list[dict[str, Any]] = stack.patiently("GET", "/fleet/factories").json()["factories"]
        return all(row["busy"] == 0 and all(station["busy"] == 0 for station in row["stations"]) for row in rows)

    wait_for("all seats to be free", free)


def assert_failed_visibly(stack: Stack, job_id: str) -> None:
    """The job says that its workflow was terminated, and what to do, where people look."""
    stack.until(job_id, "failed")
    end = next(event for event in stack.events(job_id) if event["type"] == "job.failed")
    why = stack.gf("why", job_id).stdout
    for told in (end["message"], why):
        assert "its workflow was terminated" in told
        assert f"gf requeue {job_id}" in told


@pytest.mark.parametrize("where", ["building", "review"])
def test_job_whose_workflow_was_terminated_fails_visibly_and_lives_again(
    stack: Stack, remote: Remote, tmp_path: Path, temporal_binary: Path, where: str
) -> None:
    """Engine dead, seat and lock free for the next job, the reason shown; a requeue begins a life that ships."""
    flag = tmp_path / "flag"
    if where == "review":
        flag.touch()
    job_id = stack.submit(locked_job(remote, f"door-{where}", when_told(flag)))
    stack.until(job_id, where)
    if where == "building":
        wait_for("the whole family", lambda: len(stack.attempt_processes(job_id)) >= 3)
    next_id = stack.submit(locked_job(remote, f"door-{where}", "date > next"))
    terminate(stack, temporal_binary, job_id)
    assert_failed_visibly(stack, job_id)
    wait_for("the engine's end", lambda: not stack.attempt_processes(job_id))
    stack.ship(next_id)
    assert_nothing_is_held(stack)
    flag.touch()
    assert stack.act(job_id, "requeue").status_code == 200
    document = stack.ship(job_id)
    assert remote.ref(f"gigafactory/{job_id}") == document["commits"][0]


def test_queued_job_whose_workflow_was_terminated_fails_and_takes_no_seat(
    stack: Stack, remote: Remote, tmp_path: Path, temporal_binary: Path
) -> None:
    """It never builds when its lock comes free, before or after it is found; a requeue begins a life that ships."""
    flag = tmp_path / "flag"
    first = stack.submit(locked_job(remote, "queue", when_told(flag)))
    stack.until(first, "building")
    job_id = stack.submit(locked_job(remote, "queue", "date > made"))
    wait_for_workflow(stack, job_id)
    terminate(stack, temporal_binary, job_id)
    assert stack.act(first, "cancel").status_code == 200
    assert_failed_visibly(stack, job_id)
    stack.until(first, "cancelled")
    assert_nothing_is_held(stack)
    assert stack.act(job_id, "requeue").status_code == 200
    stack.ship(job_id)


def test_job_whose_workflow_was_deleted_is_started_again_and_ships_once(
    stack: Stack, remote: Remote, tmp_path: Path
) -> None:
    """Deleted in mid-build: the old engine dies, the next life goes on from the checkpoint."""
    told = tmp_path / "told"
    script = f"[ -e one ] || {{ echo 1 > one; echo one >> {told}; sleep 987604; }}; echo 2 > two"
    fields = ("profile: solo", "ship: base", "verify: test -f one -a -f two")
    job_id = stack.submit(locked_job(remote, "deleted", script, *fields))
    wait_for("step one", told.exists)
    wait_for("its checkpoint", lambda: stack.job(job_id)["checkpoint_sha"])
    old = stack.attempt_processes(job_id)
    delete(stack, job_id)
    document = stack.ship(job_id)
    assert remote.count("main") == 2
    assert document["commits"] == [remote.ref("main")]
    assert told.read_text() == "one\n"
    assert not set(old) & set(stack.attempt_processes(job_id))
    assert "job.restarted" in {event["type"] for event in stack.events(job_id)}
    assert_nothing_is_held(stack)


def test_job_whose_start_was_lost_is_started(stack: Stack, remote: Remote) -> None:
    """The job is in the ledger, its start message is gone and no workflow exists: it starts all the same, once."""
    with losing(stack, "start", "start") as lost:
        job_id = stack.submit(locked_job(remote, "lost-start", "date > made", "verify: test -s made"))
        assert lost() >= 1
        assert not temporal(stack, lambda client: knows(client, workflow_id("default", job_id)))
    document = stack.ship(job_id)
    assert remote.ref(f"gigafactory/{job_id}") == document["commits"][0]
    assert sum(event["type"] == "job.shipped" for event in stack.events(job_id)) == 1


def test_job_whose_grant_was_lost_gets_it_again(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """A workflow that never heard of its seat is told again, and the seat is the same one."""
    first = stack.submit(locked_job(remote, "lost-grant", when_told(tmp_path / "flag")))
    stack.until(first, "building")
    job_id = stack.submit(locked_job(remote, "lost-grant", "date > made"))
    wait_for_workflow(stack, job_id)
    with losing(stack, "signal", "granted", job_id) as lost:
        assert stack.act(first, "cancel").status_code == 200
        wait_for("the loss", lost)
    document = stack.ship(job_id)
    assert [attempt["epoch"] for attempt in document["attempts"]] == [1]
    assert "grant.resent" in {event["type"] for event in stack.events(job_id)}


def test_requeue_while_the_old_workflow_still_closes_begins_the_next_life(stack: Stack, remote: Remote) -> None:
    """A rejected job is `failed` before its workflow has closed the fence and ended; a requeue then is not lost."""
    job_id = stack.submit(locked_job(remote, "quick-requeue", "date > made"))
    factory = stack.gate(job_id)["attempts"][-1]["factory"]
    name, pid = workflow_id("default", job_id), stack.factory_pid(factory)
    os.kill(pid, signal.SIGSTOP)  # nobody closes the fence, so the workflow cannot end
    try:
        temporal(stack, lambda client: client.get_workflow_handle(name).signal("reject", {"reason": "not like this"}))
        stack.until(job_id, "failed")
        assert stack.act(job_id, "requeue", reason="like that").status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    document = stack.ship(job_id)
    assert [attempt["epoch"] for attempt in document["attempts"]][:2] == [1, 2]
