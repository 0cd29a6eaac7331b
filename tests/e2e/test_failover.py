"""Failover with the real agent CLIs on a whole stack: their providers are two scripted endpoints that set limits."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Remote, Stack, running_stack, wait_for
from tests.engines.clis import REQUIRED, ClisMissing, installed_clis
from tests.engines.endpoint import Answer, Failure, ScriptedEndpoint, Tool
from tests.engines.running import NoWayOut

pytestmark = [pytest.mark.stack, pytest.mark.cli_real]
PATIENCE_S = 240.0
REST_S = 15
"""How long the first of four limits lasts: until the last of them has been met and the job was looked at."""


@dataclass
class Shop:
    """A stack of two factories, and the providers of its engines."""

    stack: Stack
    claude: ScriptedEndpoint
    codex: ScriptedEndpoint

    def submit(self, remote: Remote, *lines: str) -> str:
        """Submit a job that asks for two files."""
        head = [*lines, f"repo: {remote.path}", "base: main", "profile: solo", "ship: base", "timeout: 5m"]
        head += ["yolo: true", 'verify: "test -f one.txt && test -f two.txt"']
        return self.stack.submit("\n".join(["---", *head, "---", "# Write two files", "", "Write them.", ""]))

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Return the attempts of a job, oldest first."""
        found: list[dict[str, Any]] = self.stack.job(job_id)["attempts"]
        return found


def claude_limit(reset: float) -> Failure:
    """Return how a subscription's limit is told."""
    headers = {
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-reset": str(int(reset)),
        "anthropic-ratelimit-unified-representative-claim": "five_hour",
    }
    return Failure(429, "rate_limit_error", "This request would exceed your rate limit", headers)


def codex_limit(reset: float) -> Failure:
    """Return how a plan's limit is told."""
    extra = {"resets_at": int(reset)}
    return Failure(429, "usage_limit_reached", "The usage limit has been reached", extra=extra)


def command(program: str, text: str) -> Answer:
    """Return a turn that runs a command, in the words of a CLI."""
    tools = {
        "claude": Tool("Bash", {"command": text, "description": "as asked"}),
        "codex": Tool("exec_command", {"cmd": text}),
    }
    return Answer("I run it.", tools=(tools[program],))


@pytest.fixture(scope="module")
def stack_of_two(tmp_path_factory: pytest.TempPathFactory, temporal_binary: Path) -> Iterator[Shop]:
    """Return the stack; its engines can reach the two endpoints and nothing else."""
    try:
        programs = installed_clis()
    except ClisMissing as reason:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(str(reason))
    with ScriptedEndpoint() as claude, ScriptedEndpoint() as codex, NoWayOut() as proxy:
        environ = {
            **proxy.environment,
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
            "ANTHROPIC_BASE_URL": claude.url,
            "CLAUDE_CODE_OAUTH_TOKEN": "dummy-token",
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "OPENAI_BASE_URL": f"{codex.url}/v1",
            "OPENAI_API_KEY": "dummy-key",
        }
        home = tmp_path_factory.mktemp("failover") / "home"
        with running_stack(home, lease_ttl_s=60, environ=environ) as stack:
            yield Shop(stack, claude, codex)


@pytest.fixture
def shop(stack_of_two: Shop) -> Iterator[Shop]:
    """Return the stack, and let no engine rest afterwards."""
    yield stack_of_two
    for factory in stack_of_two.stack.http.get("/fleet/factories").json()["factories"]:
        stack_of_two.stack.gf("release", factory["name"], check=False)


@pytest.mark.req("F6", "L5", "E4", "R10")
def test_job_of_a_limited_engine_goes_on_with_the_next_one(shop: Shop, remote: Remote) -> None:
    """Claude meets its limit in mid-work on every factory; Codex goes on from there, and one commit has both halves."""
    reset = int(time.time()) + 3600
    shop.claude.begin([command("claude", "echo first half > one.txt"), claude_limit(reset), claude_limit(reset)])
    shop.codex.begin([command("codex", "echo second half > two.txt"), Answer("Both are there.")])
    job_id = shop.submit(remote, "engine-class: agentic-coder")

    document = shop.stack.until(job_id, "testing", "failed", "dead_letter", patience_s=PATIENCE_S)
    assert document["stage"] == "testing", document
    *turned_away, last = document["attempts"]
    assert {(a["engine"], a["outcome"]) for a in turned_away} == {("claude", "rate_limited")}
    assert {datetime.fromisoformat(a["cooldown_until"]) for a in turned_away} == {datetime.fromtimestamp(reset, UTC)}
    assert (last["engine"], last["outcome"]) == ("codex", "succeeded")

    told = shop.codex.calls[0].transcript()
    assert "+first half" in told, "the diff so far is in the brief"
    assert "rate_limited" in told
    shown = shop.stack.gf("job", job_id).stdout
    assert "not asked there again before" in shown
    assert "rests until" in shop.stack.gf("factories").stderr

    shop.stack.ship(job_id)
    assert remote.count("main") == 2
    assert {"one.txt", "two.txt"} <= remote.files("main")
    requeued = [e for e in shop.stack.events(job_id) if e["type"] == "job.requeued"]
    assert len(requeued) == len(turned_away)
    assert all(event["data"]["failures"] == 0 for event in requeued)


@pytest.mark.req("F6", "L5")
def test_job_goes_on_with_the_same_engine_where_another_account_is(shop: Shop, remote: Remote) -> None:
    """A limit on one factory: the other one, whose provider answers, goes on from the checkpoint."""
    shop.claude.begin(
        [
            command("claude", "echo first half > one.txt"),
            claude_limit(time.time() + 3600),
            command("claude", "test -f one.txt && echo second half > two.txt"),
            Answer("Both are there."),
        ]
    )
    job_id = shop.submit(remote, "engine: claude")
    document = shop.stack.until(job_id, "testing", "failed", "dead_letter", patience_s=PATIENCE_S)
    first, second = document["attempts"]
    assert (first["outcome"], second["outcome"]) == ("rate_limited", "succeeded")
    assert first["factory"] != second["factory"]
    assert first["session_id"] != second["session_id"], "a session lives on its machine"
    shop.stack.ship(job_id)
    assert {"one.txt", "two.txt"} <= remote.files("main")


@pytest.mark.req("L5", "R5")
def test_job_rests_until_the_first_reset_when_all_are_limited(shop: Shop, remote: Remote) -> None:
    """It is shown as waiting, with the time; then it goes on by itself and finishes."""
    late, told = time.time() + 7200, []

    def first_reset() -> Failure:
        told.append(int(time.time()) + REST_S)
        return claude_limit(told[-1])

    shop.claude.begin([claude_limit(late), first_reset])
    shop.codex.begin([codex_limit(late), codex_limit(late)])
    job_id = shop.submit(remote, "engine-class: agentic-coder")

    def resting() -> dict[str, Any] | None:
        document = shop.stack.job(job_id)
        return document if any(c["reason"] == "cooldown" for c in document["conditions"]) else None

    document = wait_for("a rest", resting, PATIENCE_S)
    (soon,) = told
    assert len(document["attempts"]) == 4
    assert document["waiting"]["kind"] == "time"
    assert datetime.fromisoformat(document["waiting"]["until"]) == datetime.fromtimestamp(soon, UTC)
    why = shop.stack.gf("why", job_id).stdout
    assert "every engine that could do it rests" in why
    assert "cooldown" in why

    shop.claude.begin([command("claude", "touch one.txt two.txt"), Answer("Done.")])
    document = shop.stack.until(job_id, "testing", "failed", "dead_letter", patience_s=PATIENCE_S)
    assert document["stage"] == "testing", document
    last = document["attempts"][-1]
    assert (last["engine"], last["outcome"], len(document["attempts"])) == ("claude", "succeeded", 5)
    assert datetime.fromisoformat(last["granted_at"]) >= datetime.fromtimestamp(soon, UTC)
    shop.stack.ship(job_id)
