"""Codex, the real CLI, against the scripted endpoint."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from core.job import FailureKind
from engines.base import EngineRun, read_probe
from engines.codex import Codex
from tests.engines.clis import PINNED
from tests.engines.conftest import Place
from tests.engines.endpoint import Answer, Failure, ScriptedEndpoint, Tool
from tests.engines.running import Ran, Running, keep_stream, run_to_end
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.cli_real

ENGINE = Codex()
NO_RETRIES = "[model_providers.gateway]\nrequest_max_retries = 0\nstream_max_retries = 0\n"


def with_endpoint(endpoint: ScriptedEndpoint, run: EngineRun, **env: str) -> EngineRun:
    """Return `run` with endpoint and dummy key, in a home whose `config.toml` turns the CLI's own retries off."""
    config = run.home / ".codex" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(NO_RETRIES)
    needed = {"OPENAI_BASE_URL": f"{endpoint.url}/v1", "OPENAI_API_KEY": "dummy-key"}
    return replace(run, factory_env={**run.factory_env, **needed, **env})


def run_against(endpoint: ScriptedEndpoint, run: EngineRun, name: str = "", **env: str) -> Ran:
    """Run Codex with a dummy key and this endpoint; keep the stream under `name` when recording."""
    run = with_endpoint(endpoint, run, **env)
    ran = run_to_end(ENGINE, run)
    if name:
        keep_stream(f"codex-{name}", ran, run, int(endpoint.url.rpartition(":")[2]))
    return ran


def command_call(command: str) -> Answer:
    """Return a turn that runs a command."""
    return Answer("I run it.", tools=(Tool("exec_command", {"cmd": command}),))


def test_probe_pinned_version_is_read(cli_place: Place) -> None:
    """The version that the adapter was tested with is the one that is installed."""
    command = ENGINE.command(cli_place.run(""))
    command.lay_down()
    done = subprocess.run(ENGINE.probe_command(), env=dict(command.env), capture_output=True, text=True, check=False)
    probe = read_probe(ENGINE, done.returncode, done.stdout)
    assert (probe.usable, probe.version) == (True, PINNED["@openai/codex"])
    assert probe.version == ENGINE.abilities.tested_with


def test_run_that_writes_a_file_succeeds(cli_place: Place) -> None:
    """Without yolo a command runs in the sandbox; text, tool, session and tokens are reported, cost is estimated."""
    run = cli_place.run("Write a greeting.", model="gpt-6.1-sol")
    with ScriptedEndpoint([command_call("echo Hello > hello.txt"), Answer("All done.")]) as endpoint:
        ran = run_against(endpoint, run, "success")
    assert (run.workdir / "hello.txt").read_text() == "Hello\n"
    outcome = ran.outcome
    assert (outcome.ok, outcome.failure, outcome.tool_calls, outcome.result_text) == (True, None, 1, "All done.")
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.usage.total_tokens) == (200, 40, 240)
    assert (outcome.usage.cost_usd, outcome.usage.cost_source) == (Decimal("0.0008"), "estimated")
    assert outcome.session_id
    assert outcome.model == "gpt-6.1-sol"
    assert ran.texts("text") == ["I run it.", "All done."]
    assert len(ran.texts("tool_call")) == len(ran.texts("tool_result")) == 1
    assert "Write a greeting." in endpoint.calls[0].transcript()
    assert endpoint.calls[0].body["model"] == "gpt-6.1-sol"


def test_model_of_the_cli_is_found_for_the_cost(cli_place: Place) -> None:
    """When the job names no model, the CLI's own choice is read from its session."""
    with ScriptedEndpoint([Answer("Hello.")]) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."))
    assert ran.outcome.model == endpoint.calls[0].body["model"]
    assert ran.outcome.usage.cost_source == "estimated"


def test_model_without_a_price_has_an_unknown_cost(cli_place: Place) -> None:
    """An unknown cost is unknown and not zero; the tokens are known all the same."""
    with ScriptedEndpoint([Answer("Hello.")]) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello.", model="house-model-1"), "unknown-model")
    assert (ran.outcome.usage.cost_usd, ran.outcome.usage.cost_source) == (None, "unknown")
    assert ran.outcome.usage.total_tokens == 120


def test_sandbox_keeps_a_command_in_the_worktree(cli_place: Place) -> None:
    """Without yolo nothing outside of worktree and temporary directories can be written, and there is no network."""
    outside = Path("/var/tmp") / f"gigafactory-test-{uuid.uuid4().hex}"
    with ScriptedEndpoint([command_call(f"touch in.txt; mkdir {outside}"), Answer("Tried.")]) as endpoint:
        run = cli_place.run("Try it.")
        ran = run_against(endpoint, run)
    try:
        assert ran.outcome.ok
        assert (run.workdir / "in.txt").exists()
        assert not outside.exists()
    finally:
        shutil.rmtree(outside, ignore_errors=True)


def test_yolo_leaves_the_sandbox(cli_place: Place) -> None:
    """With yolo a command may write outside of its worktree."""
    outside = Path("/var/tmp") / f"gigafactory-test-{uuid.uuid4().hex}"
    try:
        with ScriptedEndpoint([command_call(f"mkdir {outside}"), Answer("Done.")]) as endpoint:
            assert run_against(endpoint, cli_place.run("Do it.", yolo=True)).outcome.ok
        assert outside.exists()
    finally:
        shutil.rmtree(outside, ignore_errors=True)


def test_long_prompt_that_looks_like_an_option_arrives_whole(cli_place: Place) -> None:
    """A prompt of a megabyte that begins with dashes is text."""
    with ScriptedEndpoint([Answer("Read.")]) as endpoint:
        assert run_against(endpoint, cli_place.run("--help\n" + "word " * 200_000)).outcome.ok
    assert endpoint.calls[0].transcript().count("word ") >= 199_999


def test_wrong_key_makes_the_engine_unavailable(cli_place: Place) -> None:
    """A refused key ends the run and names the status."""
    with ScriptedEndpoint([Failure(401, "invalid_api_key", "Incorrect API key provided")]) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "api-error")
    assert (ran.outcome.ok, ran.outcome.failure) == (False, FailureKind.ENGINE_UNAVAILABLE)
    assert "401" in ran.outcome.message
    assert ran.outcome.usage.cost_usd is None


def test_overload_is_an_engine_error(cli_place: Place) -> None:
    """A provider without capacity fails the attempt; it is no limit of ours."""
    with ScriptedEndpoint([Failure(503, "server_is_overloaded", "slow down")]) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "overloaded")
    assert ran.outcome.failure == FailureKind.ENGINE_ERROR
    assert "capacity" in ran.outcome.message


@pytest.mark.parametrize("ahead", [timedelta(hours=2), timedelta(days=3)], ids=["hours", "days"])
def test_usage_limit_names_its_reset(cli_place: Place, ahead: timedelta) -> None:
    """A plan's limit gives the provider's reset time, at most a minute late and never early."""
    reset = datetime.fromtimestamp(int(time.time()), UTC) + ahead
    failure = Failure(
        429, "usage_limit_reached", "The usage limit has been reached", extra={"resets_at": int(reset.timestamp())}
    )
    with ScriptedEndpoint([failure]) as endpoint:
        run = cli_place.run("Hello.")
        ran = run_against(endpoint, run, "rate-limit" if ahead.days == 0 else "rate-limit-days", TZ="Asia/Tokyo")
    assert ran.outcome.failure == FailureKind.RATE_LIMITED
    assert ran.outcome.retry_at is not None
    assert reset <= ran.outcome.retry_at <= reset + timedelta(minutes=1)
    assert len(ran.texts("limit")) == 1


def test_rate_limit_has_no_reset(cli_place: Place) -> None:
    """The CLI does not tell when a key's rate limit ends; then nobody invents a time."""
    failure = Failure(
        429, "rate_limit_exceeded", "Rate limit reached. Please try again in 7.66s.", {"retry-after": "8"}
    )
    with ScriptedEndpoint([failure], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "key-limit")
    assert (ran.outcome.failure, ran.outcome.retry_at) == (FailureKind.RATE_LIMITED, None)


def test_quota_that_is_used_up_is_no_rate_limit(cli_place: Place) -> None:
    """Waiting does not bring money back: no reset is made up, and the job goes on elsewhere."""
    failure = Failure(429, "insufficient_quota", "You exceeded your current quota")
    with ScriptedEndpoint([failure], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "no-quota")
    assert ran.outcome.failure == FailureKind.ENGINE_UNAVAILABLE


def test_connection_cut_in_mid_answer_is_an_engine_error(cli_place: Place) -> None:
    """A provider that hangs up in the middle of an answer fails the attempt."""
    with ScriptedEndpoint([Answer("Half a sen", cut=True)], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "cut")
    assert (ran.outcome.ok, ran.outcome.failure) == (False, FailureKind.ENGINE_ERROR)
    assert "disconnected" in ran.outcome.message


def test_endless_run_is_cancelled_by_killing_its_group(cli_place: Place) -> None:
    """A run without end is gone at once when its group is killed; what it consumed before is known."""
    script = [command_call("true"), Answer("on and on ", endless=True)]
    with ScriptedEndpoint(script) as endpoint:
        run = with_endpoint(endpoint, cli_place.run("Never stop.", model="gpt-6.1-sol"))
        with Running(ENGINE, run) as running:
            while len(endpoint.calls) < 2 and running.process.poll() is None:
                endpoint.call_came.wait(PATIENCE_S)
                endpoint.call_came.clear()
            running.kill()
            ran = running.wait()
        assert endpoint.client_left.wait(PATIENCE_S)
        keep_stream("codex-killed", ran, run, int(endpoint.url.rpartition(":")[2]))
    assert ran.exit_code == -signal.SIGKILL
    assert (ran.outcome.failure, ran.outcome.ok) == (FailureKind.CRASH, False)
    assert ran.outcome.session_id
    assert ran.outcome.tool_calls == 1
    assert ran.outcome.usage.total_tokens == 120


def test_session_is_resumed_from_another_worktree(cli_place: Place) -> None:
    """The second attempt continues the session of the first, and pays only for itself."""
    with ScriptedEndpoint([Answer("I keep 4711 in mind.", input_tokens=1000)]) as endpoint:
        first = run_against(endpoint, cli_place.run("The number is 4711.", model="gpt-6.1-sol"))
    session = first.outcome.session_id
    assert session
    assert ENGINE.has_session(cli_place.home, session)
    second_run = cli_place.run("Which number?", resume_session=session, model="gpt-6.1-sol")
    with ScriptedEndpoint([Answer("4711.", input_tokens=3000)]) as endpoint:
        second = run_against(endpoint, second_run, "resumed")
    assert second.outcome.session_id == session
    sent = endpoint.calls[0].transcript()
    assert "The number is 4711." in sent
    assert "I keep 4711 in mind." in sent
    assert "Which number?" in sent
    assert (first.outcome.usage.input_tokens, second.outcome.usage.input_tokens) == (1000, 3000)
    assert second.outcome.usage.cost_usd == Decimal("0.0062")


def test_session_that_is_gone_fails_and_is_known_before(cli_place: Place) -> None:
    """A session of another factory is not there: `has_session` says so, and the CLI fails with its name."""
    session = "11111111-2222-3333-4444-555555555555"
    assert not ENGINE.has_session(cli_place.home, session)
    with ScriptedEndpoint() as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello.", resume_session=session), "no-session")
    assert ran.outcome.failure == FailureKind.ENGINE_ERROR
    assert session in ran.outcome.message
    assert endpoint.calls == []


def test_no_secret_of_the_factory_reaches_the_engine(cli_place: Place) -> None:
    """A command of the agent sees nothing of the factory's environment, and not even the model's key."""
    secrets = {
        "GIGAFACTORY_TOKEN": "canary-4f1c-factory",
        "ANTHROPIC_API_KEY": "canary-4f1c-anthropic",
        "AWS_SECRET_ACCESS_KEY": "canary-4f1c-aws",
        "GITHUB_TOKEN": "canary-4f1c-github",
        "SSH_AUTH_SOCK": "/canary-4f1c/agent.sock",
    }
    run = cli_place.run("Show it.", yolo=True, extra_env_allow=("MY_TOOL_CACHE", "GIGAFACTORY_TOKEN"))
    with ScriptedEndpoint([command_call("env"), Answer("Seen.")]) as endpoint:
        ran = run_against(endpoint, run, MY_TOOL_CACHE="/var/cache/tool", **secrets)
    assert ran.outcome.ok
    shown = endpoint.calls[1].tool_results()[0]
    names = {line.partition("=")[0] for line in shown.splitlines()}
    assert "canary-4f1c" not in json.dumps([(seen.headers, seen.body) for seen in endpoint.requests])
    assert "dummy-key" not in shown
    assert not names & (set(secrets) | {"OPENAI_API_KEY", "CODEX_API_KEY", "OPENAI_BASE_URL"})
    assert {"HOME", "PATH", "MY_TOOL_CACHE"} <= names
    assert {seen.headers.get("authorization") for seen in endpoint.calls} == {"Bearer dummy-key"}


def test_tool_on_the_path_of_the_factory_is_found(cli_place: Place, tmp_path: Path) -> None:
    """A command of the agent finds what the factory's probes found, also outside of the system's directories."""
    tool = tmp_path / "bin" / "tool-of-this-factory"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho found me\n")
    tool.chmod(0o755)
    cli_place.factory_env["PATH"] += f":{tool.parent}"
    with ScriptedEndpoint([command_call("tool-of-this-factory"), Answer("Seen.")]) as endpoint:
        assert run_against(endpoint, cli_place.run("Run it.", yolo=True)).outcome.ok
    assert "found me" in endpoint.calls[1].tool_results()[0]


def test_very_large_consumption_stays_exact(cli_place: Place) -> None:
    """Numbers far above any budget arrive as they are."""
    huge = 900_000_000_000
    with ScriptedEndpoint([Answer("Expensive.", input_tokens=huge, output_tokens=123_456_789)]) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello.", model="gpt-6.1-sol"), "large-usage")
    assert (ran.outcome.usage.input_tokens, ran.outcome.usage.output_tokens) == (huge, 123_456_789)
    assert ran.outcome.usage.cost_usd is not None
    assert ran.outcome.usage.cost_usd > 1_000_000
