"""Claude Code, the real CLI, against the scripted endpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from core.job import FailureKind
from engines.base import EngineRun, read_probe
from engines.claude import Claude
from tests.engines.clis import PINNED
from tests.engines.conftest import Place
from tests.engines.endpoint import Answer, Failure, ScriptedEndpoint, Tool
from tests.engines.running import Ran, Running, keep_stream, run_to_end
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.cli_real

ENGINE = Claude()


def run_against(endpoint: ScriptedEndpoint, run: EngineRun, name: str = "", **env: str) -> Ran:
    """Run Claude with a dummy key and this endpoint; keep the stream under `name` when recording."""
    run = with_endpoint(endpoint, run, **env)
    ran = run_to_end(ENGINE, run)
    if name:
        keep_stream(f"claude-{name}", ran, run, int(endpoint.url.rpartition(":")[2]))
    return ran


def with_endpoint(endpoint: ScriptedEndpoint, run: EngineRun, **env: str) -> EngineRun:
    """Return `run` with what Claude needs in the factory's environment."""
    needed = {"ANTHROPIC_BASE_URL": endpoint.url, "ANTHROPIC_API_KEY": "dummy-key", "CLAUDE_CODE_MAX_RETRIES": "1"}
    return replace(run, factory_env={**run.factory_env, **needed, **env})


def write_call(path: Path, text: str) -> Answer:
    """Return a turn that writes a file."""
    return Answer("I write the file.", tools=(Tool("Write", {"file_path": str(path), "content": text}),))


def bash_call(command: str) -> Answer:
    """Return a turn that runs a command."""
    return Answer("I run it.", tools=(Tool("Bash", {"command": command, "description": "as asked"}),))


def test_probe_pinned_version_is_read(cli_place: Place) -> None:
    """The version that the adapter was tested with is the one that is installed."""
    run = cli_place.run("")
    env = ENGINE.command(run).env
    done = subprocess.run(ENGINE.probe_command(), env=dict(env), capture_output=True, text=True, check=False)
    probe = read_probe(ENGINE, done.returncode, done.stdout)
    assert (probe.usable, probe.version) == (True, PINNED["@anthropic-ai/claude-code"])
    assert probe.version == ENGINE.abilities.tested_with


def test_run_that_writes_a_file_succeeds(cli_place: Place) -> None:
    """Without yolo an edit in the worktree is made, and text, tool, session, tokens and cost are reported."""
    run = cli_place.run("Write a greeting.")
    target = run.workdir / "hello.txt"
    with ScriptedEndpoint([write_call(target, "Hello\n"), Answer("All done.")]) as endpoint:
        ran = run_against(endpoint, run, "success")
    assert target.read_text() == "Hello\n"
    outcome = ran.outcome
    assert (outcome.ok, outcome.failure, outcome.tool_calls, outcome.result_text) == (True, None, 1, "All done.")
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.usage.total_tokens) == (200, 40, 240)
    assert outcome.usage.cost_source == "reported"
    assert outcome.usage.cost_usd is not None
    assert outcome.usage.cost_usd > 0
    assert outcome.session_id
    assert outcome.model
    assert ran.texts("text") == ["I write the file.", "All done."]
    assert ran.texts("tool_call") == [f"Write {target}"]
    assert len(ran.texts("tool_result")) == 1
    assert "Write a greeting." in endpoint.calls[0].transcript()


def test_command_without_yolo_is_denied_and_the_run_goes_on(cli_place: Place) -> None:
    """Without yolo and without `allowed-tools` no command runs; nobody is asked and nothing hangs."""
    run = cli_place.run("Run it.")
    with ScriptedEndpoint([bash_call("git init inner"), Answer("I may not.")]) as endpoint:
        ran = run_against(endpoint, run)
    assert ran.outcome.ok
    assert not (run.workdir / "inner").exists()
    assert "requires approval" in endpoint.calls[1].tool_results()[0]


def test_allowed_tool_runs_without_yolo(cli_place: Place) -> None:
    """`allowed-tools` lets exactly that command through."""
    run = cli_place.run("Run it.", allowed_tools=("Bash(git init *)", "Read"))
    with ScriptedEndpoint([bash_call("git init inner"), Answer("Done.")]) as endpoint:
        assert run_against(endpoint, run).outcome.ok
    assert (run.workdir / "inner" / ".git").exists()


def test_model_and_tools_cannot_become_options(cli_place: Place) -> None:
    """What looks like an option inside `allowed-tools` gives no further right."""
    run = cli_place.run("Run it.", allowed_tools=("--dangerously-skip-permissions",), model="claude-haiku-4-5")
    with ScriptedEndpoint([bash_call("git init inner"), Answer("I may not.")]) as endpoint:
        assert run_against(endpoint, run).outcome.ok
    assert not (run.workdir / "inner").exists()
    assert endpoint.calls[0].body["model"] == "claude-haiku-4-5"


def test_long_prompt_that_looks_like_a_command_arrives_whole(cli_place: Place) -> None:
    """A prompt of a megabyte that begins with a slash and with dashes is text, not a command or an option."""
    prompt = "/etc/hosts --help\n" + "word " * 200_000
    with ScriptedEndpoint([Answer("Read.")]) as endpoint:
        assert run_against(endpoint, cli_place.run(prompt)).outcome.ok
    assert endpoint.calls[0].transcript().count("word ") >= 199_999


def test_wrong_key_makes_the_engine_unavailable_with_a_hint(cli_place: Place) -> None:
    """A refused key ends the run, names the status, and says what to do."""
    with ScriptedEndpoint([Failure(401, "authentication_error", "invalid x-api-key")], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "api-error")
    assert (ran.outcome.ok, ran.outcome.failure) == (False, FailureKind.ENGINE_UNAVAILABLE)
    assert "ANTHROPIC_API_KEY" in ran.outcome.message
    assert any("401" in text for text in ran.texts("notice"))
    assert (ran.outcome.usage.total_tokens, ran.outcome.usage.cost_usd) == (0, Decimal(0))


def test_overload_that_lasts_is_an_engine_error(cli_place: Place) -> None:
    """A provider that stays overloaded fails the attempt; it is no limit of ours."""
    with ScriptedEndpoint([Failure(529, "overloaded_error", "Overloaded")], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "overloaded")
    assert ran.outcome.failure == FailureKind.ENGINE_ERROR
    assert "529" in ran.outcome.message


def test_overload_that_passes_is_retried_by_the_cli(cli_place: Place) -> None:
    """One overloaded answer is no failure."""
    with ScriptedEndpoint([Failure(529, "overloaded_error", "Overloaded"), Answer("Fine.")]) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "overloaded-once")
    assert (ran.outcome.ok, ran.outcome.result_text) == (True, "Fine.")
    assert any("529" in text for text in ran.texts("notice"))


def test_subscription_limit_names_its_reset(cli_place: Place) -> None:
    """A subscription's window that is used up gives the provider's own reset time, to the second."""
    reset = int(time.time()) + 3 * 3600
    headers = {
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-reset": str(reset),
        "anthropic-ratelimit-unified-representative-claim": "five_hour",
        "retry-after": str(3 * 3600),
    }
    failure = Failure(429, "rate_limit_error", "This request would exceed your rate limit", headers)
    with ScriptedEndpoint([failure], repeat_last=True) as endpoint:
        run = cli_place.run("Hello.")
        ran = run_against(endpoint, run, "rate-limit", ANTHROPIC_API_KEY="", CLAUDE_CODE_OAUTH_TOKEN="dummy-token")
    assert ran.outcome.failure == FailureKind.RATE_LIMITED
    assert ran.outcome.retry_at == datetime.fromtimestamp(reset, UTC)
    assert ran.texts("limit") == ["five_hour limit: rejected"]


def test_key_limit_has_no_reset(cli_place: Place) -> None:
    """The CLI does not tell when an API key's limit ends; then nobody invents a time."""
    failure = Failure(429, "rate_limit_error", "This request would exceed your rate limit", {"retry-after": "3600"})
    with ScriptedEndpoint([failure], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "key-limit")
    assert (ran.outcome.failure, ran.outcome.retry_at) == (FailureKind.RATE_LIMITED, None)


def test_credit_that_is_used_up_is_no_rate_limit(cli_place: Place) -> None:
    """Waiting does not bring money back: no reset is made up, and the job goes on elsewhere."""
    failure = Failure(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.")
    with ScriptedEndpoint([failure], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "no-credit")
    assert ran.outcome.failure == FailureKind.ENGINE_UNAVAILABLE
    assert "no credit left" in ran.outcome.message


def test_connection_cut_in_mid_answer_is_an_engine_error(cli_place: Place) -> None:
    """A provider that hangs up in the middle of every answer fails the attempt."""
    with ScriptedEndpoint([Answer("Half a sen", cut=True)], repeat_last=True) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "cut")
    assert (ran.outcome.ok, ran.outcome.failure) == (False, FailureKind.ENGINE_ERROR)


def test_endless_run_is_cancelled_by_killing_its_group(cli_place: Place) -> None:
    """A run without end is gone at once when its group is killed, and its session is known for a resume."""
    with ScriptedEndpoint([Answer("on and on ", endless=True)]) as endpoint:
        run = with_endpoint(endpoint, cli_place.run("Never stop."))
        with Running(ENGINE, run) as running:
            assert endpoint.first_call.wait(PATIENCE_S)
            running.kill()
            ran = running.wait()
        assert endpoint.client_left.wait(PATIENCE_S)
        keep_stream("claude-killed", ran, run, int(endpoint.url.rpartition(":")[2]))
    assert ran.exit_code == -signal.SIGKILL
    assert (ran.outcome.failure, ran.outcome.ok) == (FailureKind.CRASH, False)
    assert ran.outcome.session_id
    assert ran.outcome.usage.cost_usd is None


def test_session_is_resumed_from_another_worktree(cli_place: Place) -> None:
    """The second attempt continues the session of the first, and pays only for itself."""
    with ScriptedEndpoint([Answer("I keep 4711 in mind.", input_tokens=1000)]) as endpoint:
        first = run_against(endpoint, cli_place.run("The number is 4711."))
    session = first.outcome.session_id
    assert session
    assert ENGINE.has_session(cli_place.home, session)
    second_run = cli_place.run("Which number?", resume_session=session)
    with ScriptedEndpoint([Answer("4711.", input_tokens=3000)]) as endpoint:
        second = run_against(endpoint, second_run, "resumed")
    assert second.outcome.session_id == session
    sent = endpoint.calls[0].transcript()
    assert "The number is 4711." in sent
    assert "I keep 4711 in mind." in sent
    assert "Which number?" in sent
    assert second.outcome.usage.input_tokens == 3000
    assert first.outcome.usage.cost_usd is not None
    assert second.outcome.usage.cost_usd is not None
    assert first.outcome.usage.cost_usd < second.outcome.usage.cost_usd < 3 * first.outcome.usage.cost_usd


def test_session_that_is_gone_fails_and_is_known_before(cli_place: Place) -> None:
    """A session of another factory is not there: `has_session` says so, and the CLI fails with its name."""
    session = "11111111-2222-3333-4444-555555555555"
    assert not ENGINE.has_session(cli_place.home, session)
    with ScriptedEndpoint() as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello.", resume_session=session), "no-session")
    assert ran.outcome.failure == FailureKind.ENGINE_ERROR
    assert session in ran.outcome.message
    assert endpoint.calls == []


def test_killed_run_can_be_resumed(cli_place: Place) -> None:
    """What a killed run had said to the model is there for the next attempt."""
    with ScriptedEndpoint([bash_call("sleep 0"), Answer("on ", endless=True)]) as endpoint:
        run = with_endpoint(endpoint, cli_place.run("The number is 4711.", yolo=True))
        with Running(ENGINE, run) as running:
            while len(endpoint.calls) < 2 and running.process.poll() is None:
                endpoint.call_came.wait(PATIENCE_S)
                endpoint.call_came.clear()
            running.kill()
            session = running.wait().outcome.session_id
    assert session
    with ScriptedEndpoint([Answer("Going on.")]) as endpoint:
        assert run_against(endpoint, cli_place.run("Go on.", resume_session=session)).outcome.ok
    assert "The number is 4711." in endpoint.calls[0].transcript()


def test_no_secret_of_the_factory_reaches_the_engine(cli_place: Place) -> None:
    """A command of the agent sees the engine's own variables and nothing else of the factory's environment."""
    secrets = {
        "GIGAFACTORY_TOKEN": "canary-4f1c-factory",
        "OPENAI_API_KEY": "canary-4f1c-openai",
        "AWS_SECRET_ACCESS_KEY": "canary-4f1c-aws",
        "GITHUB_TOKEN": "canary-4f1c-github",
        "SSH_AUTH_SOCK": "/canary-4f1c/agent.sock",
    }
    run = cli_place.run("Show it.", yolo=True, extra_env_allow=("MY_TOOL_CACHE", "GIGAFACTORY_TOKEN"))
    with ScriptedEndpoint([bash_call("env"), Answer("Seen.")]) as endpoint:
        ran = run_against(endpoint, run, MY_TOOL_CACHE="/var/cache/tool", **secrets)
    assert ran.outcome.ok
    sent = json.dumps([(seen.headers, seen.body) for seen in endpoint.requests])
    shown = endpoint.calls[1].tool_results()[0]
    names = {line.partition("=")[0] for line in shown.splitlines()}
    assert "canary-4f1c" not in sent
    assert not names & set(secrets)
    assert {"HOME", "PATH", "MY_TOOL_CACHE"} <= names
    assert f"HOME={run.home}" in shown
    assert {seen.headers.get("x-api-key") for seen in endpoint.calls} == {"dummy-key"}
    assert os.environ.get("USER") is None or "USER" not in names


def test_tool_on_the_path_of_the_factory_is_found(cli_place: Place, tmp_path: Path) -> None:
    """A command of the agent finds what the factory's probes found, also outside of the system's directories."""
    tool = tmp_path / "bin" / "tool-of-this-factory"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho found me\n")
    tool.chmod(0o755)
    cli_place.factory_env["PATH"] += f":{tool.parent}"
    with ScriptedEndpoint([bash_call("tool-of-this-factory"), Answer("Seen.")]) as endpoint:
        assert run_against(endpoint, cli_place.run("Run it.", yolo=True)).outcome.ok
    assert "found me" in endpoint.calls[1].tool_results()[0]


def test_very_large_consumption_stays_exact(cli_place: Place) -> None:
    """Numbers far above any budget arrive as they are."""
    huge = 900_000_000_000
    with ScriptedEndpoint([Answer("Expensive.", input_tokens=huge, output_tokens=123_456_789)]) as endpoint:
        ran = run_against(endpoint, cli_place.run("Hello."), "large-usage")
    assert (ran.outcome.usage.input_tokens, ran.outcome.usage.output_tokens) == (huge, 123_456_789)
    assert ran.outcome.usage.cost_usd is not None
    assert ran.outcome.usage.cost_usd > 1000
