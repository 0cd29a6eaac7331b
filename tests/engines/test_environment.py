"""The environment of an engine, and the command lines: nothing is inherited, nothing can be smuggled in."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidInput
from engines.base import BaseEngine, EngineRun
from engines.claude import Claude
from engines.codex import Codex
from engines.environment import GIT_IDENTITY, PROXY_AND_TRUST, engine_environment
from engines.registry import catalogue
from engines.shell import Shell
from tests.engines.conftest import Place

ALWAYS = {"PATH", "LANG", "TERM", "NO_COLOR", "HOME", "TMPDIR", "GIT_TERMINAL_PROMPT", *GIT_IDENTITY}


def run_of(factory_env: dict[str, str], **changes: Any) -> EngineRun:
    """Return a run with that environment of the factory."""
    values: dict[str, Any] = {"prompt": "Hello.", "factory_env": factory_env, **changes}
    return EngineRun(workdir=Path("/w"), home=Path("/h"), attempt_dir=Path("/a"), **values)


class OneVariable(BaseEngine):
    name = "one"
    title = "One variable"
    env_allow = ("ONE_KEY", "ONE_MORE_*")


NAMES = st.sampled_from(
    ["PATH", "HOME", "USER", "LD_PRELOAD", "PYTHONPATH", "NODE_OPTIONS", "BASH_ENV", "GIT_DIR", "GIT_CONFIG_GLOBAL",
     "GIGAFACTORY_HOME", "GIGAFACTORY_TOKEN", "ONE_KEY", "ONE_MORE_A", "ONE_OTHER", "AWS_SECRET_ACCESS_KEY",
     "HTTPS_PROXY", "SSL_CERT_FILE", "XDG_CONFIG_HOME", "TMPDIR", "SSH_AUTH_SOCK"]
) | st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=20)  # fmt: skip


@given(st.dictionaries(NAMES, st.just("from-the-factory")), st.lists(NAMES, max_size=3))
def test_only_what_is_allowed_passes(factory_env: dict[str, str], extra: list[str]) -> None:
    """Of the factory's variables an engine sees its own, the operator's, the network's, PATH and LANG; no others."""
    env = engine_environment(OneVariable(), run_of(factory_env), extra_allow=tuple(extra))
    allowed = {"ONE_KEY", *PROXY_AND_TRUST, *extra, "PATH", "LANG"}
    passed = {name for name, value in env.items() if value == "from-the-factory"}
    assert all(name in allowed or name.startswith("ONE_MORE_") for name in passed)
    assert not any(name.startswith("GIGAFACTORY_") for name in env)
    assert set(env) - passed <= ALWAYS
    assert (env["HOME"], env["TMPDIR"], env["TERM"]) == ("/h", "/a/tmp", "dumb")


def test_network_settings_pass_to_every_engine() -> None:
    """Behind a proxy with its own certificate an engine works without a further setting."""
    factory_env = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "localhost", "NODE_EXTRA_CA_CERTS": "/etc/ca.pem"}
    for engine in catalogue().values():
        assert factory_env.items() <= engine_environment(engine, run_of(factory_env)).items()


def test_key_of_one_provider_does_not_reach_another_engine() -> None:
    """Each allow-list names its own provider's variables."""
    factory_env = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    seen = {name: set(engine_environment(engine, run_of(factory_env))) & set(factory_env)
            for name, engine in catalogue().items()}  # fmt: skip
    assert seen == {
        "claude": {"ANTHROPIC_API_KEY"},
        "codex": {"OPENAI_API_KEY", "OPENAI_BASE_URL"},
        "shell": set(),
        "replay": set(),
    }


def test_operator_cannot_let_control_plane_variables_through() -> None:
    """`engine_env: [GIGAFACTORY_TOKEN]` has no effect, and neither has a star."""
    run = run_of({"GIGAFACTORY_TOKEN": "t", "GIGAFACTORY_HOME": "/x"}, extra_env_allow=("GIGAFACTORY_TOKEN", "G*"))
    assert not any(name.startswith("GIGAFACTORY_") for name in engine_environment(OneVariable(), run))


@pytest.mark.parametrize("value", ["--dangerously-skip-permissions", "-x", "a b", "", "a\nb", "x" * 300, "a\0b", "é"])
def test_model_and_session_that_could_be_options_are_refused(value: str) -> None:
    """What a job names as model or session is one plain word."""
    with pytest.raises(InvalidInput, match="model"):
        run_of({}, model=value)
    with pytest.raises(InvalidInput, match="session"):
        run_of({}, resume_session=value)


def test_claude_rights_follow_yolo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without yolo edits are accepted and no more; with it everything is, and root says that this is a sandbox."""
    plain, yolo = Claude().command(run_of({})), Claude().command(run_of({}, yolo=True))
    assert "--permission-mode=acceptEdits" in plain.argv
    assert "--dangerously-skip-permissions" not in plain.argv
    assert "--dangerously-skip-permissions" in yolo.argv
    assert "--permission-mode=acceptEdits" not in yolo.argv
    for user, word in ((0, "1"), (1000, None)):
        monkeypatch.setattr("os.geteuid", lambda user=user: user)
        assert Claude().command(run_of({}, yolo=True)).env.get("IS_SANDBOX") == word


def test_claude_command_line_is_complete() -> None:
    """Model, tools and session are the second half of their options; the prompt is on standard input."""
    session = "11111111-2222-3333-4444-555555555555"
    run = run_of({}, model="opus", allowed_tools=("Read", "Bash(git log *)"), resume_session=session)
    command = Claude().command(run)
    assert command.argv == (
        *("claude", "-p", "--output-format=stream-json", "--verbose", "--permission-mode=acceptEdits", "--model=opus"),
        *("--allowedTools=Read,Bash(git log *)", f"--resume={session}"),
    )
    assert command.stdin_text == "Hello."
    assert command.env["DISABLE_AUTOUPDATER"] == "1"


def settings_of(argv: tuple[str, ...]) -> dict[str, str]:
    """Return the `-c name=value` settings of a Codex command line."""
    given = [argv[at + 1] for at, word in enumerate(argv) if word == "-c"]
    return dict(setting.split("=", 1) for setting in given)


def test_codex_endpoint_and_key_come_from_the_usual_variables() -> None:
    """With a base URL a provider is described; without one the key goes where Codex looks for it."""
    own = Codex().command(run_of({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": 'http://h/v1"\n'}))
    settings = settings_of(own.argv)
    assert settings["model_provider"] == '"gateway"'
    assert settings["model_providers.gateway.base_url"] == '"http://h/v1\\"\\n"'
    assert settings["model_providers.gateway.env_key"] == '"OPENAI_API_KEY"'
    assert "OPENAI_BASE_URL" not in own.env
    assert "CODEX_API_KEY" not in own.env
    builtin = Codex().command(run_of({"OPENAI_API_KEY": "k"}))
    assert "model_provider" not in settings_of(builtin.argv)
    assert builtin.env["CODEX_API_KEY"] == "k"
    keyless = Codex().command(run_of({"OPENAI_BASE_URL": "http://h/v1"}))
    assert "model_providers.gateway.env_key" not in settings_of(keyless.argv)
    codex_key = Codex().command(run_of({"OPENAI_BASE_URL": "http://h/v1", "CODEX_API_KEY": "c"}))
    assert settings_of(codex_key.argv)["model_providers.gateway.env_key"] == '"CODEX_API_KEY"'


def test_codex_rights_follow_yolo() -> None:
    """Without yolo commands are kept in the worktree; with it there is no sandbox."""
    plain, yolo = Codex().command(run_of({})), Codex().command(run_of({}, yolo=True))
    assert settings_of(plain.argv)["sandbox_mode"] == '"workspace-write"'
    assert "--dangerously-bypass-approvals-and-sandbox" in yolo.argv
    assert "sandbox_mode" not in settings_of(yolo.argv)


def test_command_lays_down_its_files_and_directories(place: Place) -> None:
    """Scripts lie outside the worktree, readable by their owner only; laying them down twice is harmless."""
    run = place.run("echo hello\n")
    command = Shell().command(run)
    (file,) = command.files
    for _ in range(2):
        command.lay_down()
        assert file.path.read_text() == "echo hello\n"
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o700
    assert not file.path.is_relative_to(run.workdir)
    assert all(directory.is_dir() for directory in command.directories)
