"""The whole stack on PostgreSQL: from file to commit, and through the death of an agent."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest_postgres import PostgresServer, postgres_server
from tests.e2e.conftest import Remote, Stack, running_stack, wait_for
from tests.e2e.test_kills import assert_shipped_once, building, let_go, slow_job, steps_of

__all__ = ["postgres_server"]

pytestmark = [pytest.mark.stack, pytest.mark.postgres, pytest.mark.chaos]

DATABASE = "whole_stack"


@pytest.fixture(scope="module")
def postgres_stack(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, temporal_binary: Path
) -> Iterator[Stack]:
    """Return a stack of two factories whose ledger is an empty database of a PostgreSQL server."""
    postgres_server.run(f"CREATE DATABASE {DATABASE}")
    home = tmp_path_factory.mktemp("postgres") / "home"
    with running_stack(home, factories=2, database_url=postgres_server.url(DATABASE)) as stack:
        yield stack
        assert not list(home.glob("ledger.db*")), "something was written to SQLite"


def test_hello_ships_on_postgres(postgres_stack: Stack) -> None:
    """`gf run --ship` of the first example, on a ledger that the stack itself brought to its schema."""
    done = postgres_stack.gf("run", "examples/hello.md", "--ship", "--json")
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert document["stage"] == "shipped"
    assert document["commits"] == [Remote(postgres_stack.home / "scratch" / "hello.git").ref("main")]
    assert json.loads(postgres_stack.gf("doctor", "--json").stdout)["ok"] is True
    assert postgres_stack.patiently("GET", f"/fleet/jobs/{document['id']}/events/check").json()["ok"] is True


def test_agent_killed_in_mid_build_goes_on_elsewhere_on_postgres(
    postgres_stack: Stack, remote: Remote, tmp_path: Path
) -> None:
    """The other factory continues from the checkpoint, the job ships once, and no seat stays taken."""
    stack, ledger = postgres_stack, tmp_path / "ledger"
    job_id = stack.submit(slow_job(remote, ledger))
    first = building(stack, job_id, ledger)["attempts"][-1]["factory"]
    wait_for("a checkpoint", lambda: stack.job(job_id)["checkpoint_sha"])
    old = stack.attempt_processes(job_id)
    os.kill(stack.factory_pid(first), signal.SIGKILL)
    wait_for("the old engine's end", lambda: not set(old) & set(stack.attempt_processes(job_id)))
    let_go(ledger)
    document = assert_shipped_once(stack, remote, job_id)
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["lease_lost", "succeeded"]
    assert document["attempts"][-1]["factory"] != first
    assert [line[1] for line in steps_of(ledger)].count("1") == 1, "the second attempt began from nothing"
    rows = stack.patiently("GET", "/fleet/factories").json()["factories"]
    assert [row["busy"] for row in rows] == [0, 0]
