"""Engines described by YAML: the format refuses what is wrong, and what it accepts runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import InvalidInput
from core.job import FailureKind
from engines.base import read_probe
from engines.generic import EngineSpec, GenericEngine, OutputSpec, read_engine
from tests.engines.conftest import Place
from tests.engines.endpoint import Answer, Failure, ScriptedEndpoint, Tool
from tests.engines.running import run_to_end

EXAMPLE = Path(__file__).parents[2] / "examples" / "engines" / "claude-described.yaml"
NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def described(**changes: Any) -> dict[str, Any]:
    """Return a small valid description with some members changed."""
    base = {"name": "any", "probe": {"command": ["any", "--version"]}, "argv": ["any", "{prompt}"], "prompt": "arg"}
    return {**base, **changes}


def engine_of(**changes: Any) -> GenericEngine:
    """Return an engine with that description."""
    return read_engine(yaml.safe_dump(described(**changes)), "any.yaml")


def python_engine(code: str, **changes: Any) -> GenericEngine:
    """Return an engine that is a line of Python."""
    return engine_of(argv=[sys.executable, "-c", code, *changes.pop("args", [])], **changes)


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"argv": "any {prompt}"}, "argv", "list"),
        ({"argv": []}, "argv", "at least 1"),
        ({"argv": ["any"]}, "argv", "{prompt}"),
        ({"argv": ["any", "{promt}"]}, "argv[1].args[0]", "{promt}"),
        ({"argv": ["{model}", "{prompt}"]}, "argv[0]", "program"),
        ({"argv": [{"when": "yolo", "args": ["any"]}, "{prompt}"]}, "argv[0]", "program"),
        ({"argv": ["any", {"when": "sometimes", "args": ["{prompt}"]}]}, "argv[1].when", "always"),
        ({"argv": ["any", {"when": "yolo", "args": "--yes {prompt}"}]}, "argv[1].args", "list"),
        ({"argv": ["sh", "-c", "agent {prompt}"]}, "argv", "shell line"),
        ({"argv": ["/bin/bash", "-c", 'agent --model={model} "$1"', "sh", "{prompt}"]}, "argv", "shell line"),
        ({"prompt": "stdin"}, "argv", "{prompt}"),
        ({"prompt": "file"}, "argv", "{prompt_file}"),
        ({"prompt": "carrier-pigeon"}, "prompt", "arg"),
        ({"resume": ["any", "{prompt}"]}, "resume", "{session}"),
        ({"name": "Not A Name"}, "name", "pattern"),
        ({"colour": "red"}, "colour", "unknown"),
        ({"probe": {"command": "any --version"}}, "probe.command", "list"),
        ({"probe": {"command": ["any"], "version": "("}}, "probe.version", "regular expression"),
        ({"probe": {}}, "probe.command", "missing"),
        ({"env": {"allow": ["GIGAFACTORY_TOKEN"]}}, "env", "never reaches"),
        ({"env": {"allow": ["A-B"]}}, "env.allow[0]", "pattern"),
        ({"env": {"set": {"GIGAFACTORY_X": "1"}}}, "env", "never reaches"),
        ({"output": {"format": "text", "session": "id"}}, "output.session", "jsonl"),
        ({"output": {"format": "jsonl", "text": "a..b"}}, "output.text[0]", "pattern"),
        ({"success_exit_codes": []}, "success_exit_codes", "at least 1"),
        ({"failures": [{"pattern": "x", "kind": "bored"}]}, "failures[0].kind", "rate_limited"),
    ],
)  # fmt: skip
def test_mistake_in_a_description_is_named(changes: dict[str, Any], path: str, words: str) -> None:
    """Every mistake has its place and says what is wrong."""
    with pytest.raises(InvalidInput) as refused:
        engine_of(**changes)
    assert any(problem.path == path and words in problem.message for problem in refused.value.problems), (
        refused.value.problems
    )


def test_all_mistakes_are_named_at_once() -> None:
    """Three mistakes are three problems, with the spelling that may have been meant."""
    with pytest.raises(InvalidInput) as refused:
        engine_of(promt="arg", name="X Y", success_exit_codes=[0, 300])
    assert {problem.path for problem in refused.value.problems} == {"promt", "name", "success_exit_codes[1]"}
    assert {problem.suggestion for problem in refused.value.problems} >= {"prompt"}


@pytest.mark.parametrize("text", ["- a list", "just text", "a: [", "", "!!python/object:os.system {}"])
def test_text_that_is_no_mapping_is_refused(text: str) -> None:
    """YAML that cannot be read, or is something else, is one clear error."""
    with pytest.raises(InvalidInput, match=r"any\.yaml"):
        read_engine(text, "any.yaml")


def test_shell_line_with_the_prompt_as_its_argument_is_accepted() -> None:
    """A wrapper in shell is fine as long as a job's text stays an argument."""
    assert engine_of(argv=["sh", "-c", 'agent "$1"', "sh", "{prompt}"]).name == "any"


def test_text_of_a_job_stays_one_argument(place: Place) -> None:
    """Quotes, semicolons, options and placeholders in a prompt are text."""
    prompt = "a 'b' \"c\"; touch pwned $(touch pwned) {session} --help\nnext {model}"
    engine = python_engine("import sys,json;print(json.dumps(sys.argv[1:]))", args=["--", "{prompt}", "x={prompt}"])
    run = place.run(prompt)
    ran = run_to_end(engine, run)
    assert json.loads(ran.outcome.result_text) == ["--", prompt, f"x={prompt}"]
    assert list(run.workdir.iterdir()) == []


def test_prompt_too_long_for_an_argument_is_refused(place: Place) -> None:
    """The system's limit is named before anything is started."""
    with pytest.raises(InvalidInput, match="120000 bytes"):
        engine_of().command(place.run("x" * 120_001))
    with pytest.raises(InvalidInput, match="NUL"):
        engine_of().command(place.run("a\0b"))


@pytest.mark.parametrize("way", ["stdin", "file"])
def test_long_prompt_goes_by_stdin_or_file(place: Place, way: str) -> None:
    """These ways have no limit."""
    source = "sys.stdin" if way == "stdin" else "open(sys.argv[1])"
    args = [] if way == "stdin" else ["{prompt_file}"]
    engine = python_engine(f"import sys;print(len({source}.read()))", args=args, prompt=way)
    assert run_to_end(engine, place.run("x" * 500_000)).outcome.result_text == "500000"


def test_groups_appear_when_they_are_wanted(place: Place) -> None:
    """Conditional arguments follow model, tools, rights and session."""
    engine = engine_of(
        argv=[
            "any",
            {"when": "model", "args": ["--model", "{model}"]},
            {"when": "tools", "args": ["--tools={tools}"]},
            {"when": "yolo", "args": ["--yes"]},
            {"when": "no-yolo", "args": ["--ask-nobody"]},
            "{prompt}",
        ],
        resume=["any", "--resume", "{session}", "{prompt}"],
    )
    run = place.run("p")
    assert engine.command(run).argv == ("any", "--ask-nobody", "p")
    full = replace(run, model="m", allowed_tools=("A", "B"), yolo=True)
    assert engine.command(full).argv == ("any", "--model", "m", "--tools=A,B", "--yes", "p")
    assert engine.command(replace(run, resume_session="s-1")).argv == ("any", "--resume", "s-1", "p")
    assert engine.supports_resume
    assert engine.has_session(run.home, "s-1")
    assert not engine_of().supports_resume


def test_environment_is_as_described(place: Place) -> None:
    """Allowed variables pass, fixed ones are set, nothing else is there."""
    engine = engine_of(env={"allow": ["ANY_KEY", "ANY_MORE_*"], "set": {"ANY_QUIET": "1"}})
    place.factory_env.update({"ANY_KEY": "k", "ANY_MORE_X": "x", "OTHER_KEY": "o"})
    env = engine.command(place.run("p")).env
    assert (env["ANY_KEY"], env["ANY_MORE_X"], env["ANY_QUIET"]) == ("k", "x", "1")
    assert "OTHER_KEY" not in env


def test_json_lines_are_read_by_their_paths(place: Place) -> None:
    """Text, tools, session, counts and cost come from wherever the description says."""
    lines = [
        {"session": {"id": "s-1"}},
        {"part": {"text": "Thinking."}, "usage": {"in": 10, "out": 5}, "cost": 0.25},
        {"calls": [{"name": "edit"}]},
        {"part": {"text": "Done."}, "usage": {"in": 20, "out": 6}, "cost": 0.5},
    ]
    engine = python_engine(
        f"import sys\nfor line in {[json.dumps(line) for line in lines]!r}: print(line)\nprint('not json')",
        prompt="stdin",
        output={
            "format": "jsonl",
            "text": "part.text",
            "tool": "calls.0.name",
            "session": ["session.id"],
            "input_tokens": "usage.in",
            "output_tokens": "usage.out",
            "cost_usd": "cost",
            "counts": "sum",
        },
    )
    ran = run_to_end(engine, place.run("p"))
    assert ran.texts("text") == ["Thinking.", "Done."]
    assert ran.texts("notice") == ["not json"]
    outcome = ran.outcome
    assert (outcome.session_id, outcome.tool_calls, outcome.result_text) == ("s-1", 1, "Done.")
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.usage.total_tokens) == (30, 11, 41)
    assert (outcome.usage.cost_usd, outcome.usage.cost_source) == (Decimal("0.75"), "reported")


def test_plain_text_engine_has_unknown_consumption(place: Place) -> None:
    """Nothing is claimed about tokens and cost when the CLI does not tell."""
    outcome = run_to_end(python_engine("print('hello')", prompt="stdin"), place.run("p")).outcome
    assert (outcome.ok, outcome.result_text) == (True, "hello")
    assert (outcome.usage.total_tokens, outcome.usage.cost_usd, outcome.usage.cost_source) == (None, None, "unknown")


FAILURES = [
    {"pattern": "quota", "kind": "rate_limited", "reset": r"until (\S+)"},
    {"pattern": "too fast", "kind": "rate_limited"},
    {"pattern": "no key", "kind": "engine_unavailable"},
]


@pytest.mark.parametrize(
    ("printed", "code", "failure", "retry_at"),
    [
        ("fine", 0, None, None),
        ("fine", 7, None, None),
        ("bad", 1, FailureKind.ENGINE_ERROR, None),
        ("quota is used until 2026-11-21T12:00:00Z", 1, FailureKind.RATE_LIMITED, NOW + timedelta(hours=2)),
        ("quota is used until 1795258800 maybe", 1, FailureKind.RATE_LIMITED, NOW + timedelta(hours=1)),
        ("quota is used until 90s passed", 1, FailureKind.RATE_LIMITED, NOW + timedelta(seconds=90)),
        ("quota is used", 1, FailureKind.RATE_LIMITED, None),
        ("too fast, try again in 2 minutes", 1, FailureKind.RATE_LIMITED, NOW + timedelta(minutes=2)),
        ("no key", 1, FailureKind.ENGINE_UNAVAILABLE, None),
        ("no key", -11, FailureKind.ENGINE_UNAVAILABLE, None),
        ("cannot start any", 127, FailureKind.ENGINE_UNAVAILABLE, None),
        ("", -11, FailureKind.CRASH, None),
        ("quota is used", 0, None, None),
    ],
)
@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_failure_has_the_kind_that_its_words_say(
    printed: str, code: int, failure: FailureKind | None, retry_at: datetime | None, where: str
) -> None:
    """Exit codes decide whether a run failed, words decide how."""
    engine = engine_of(failures=FAILURES, success_exit_codes=[0, 7])
    parser = engine.parser(_nowhere(), lambda: NOW)
    if where == "stdout":
        parser.feed(f"{printed}\n".encode())
    outcome = parser.finish(code, printed if where == "stderr" else "")
    assert (outcome.failure, outcome.retry_at) == (failure, retry_at)


def _nowhere() -> Any:
    from engines.base import EngineRun

    return EngineRun(prompt="p", workdir=Path("/w"), home=Path("/h"), attempt_dir=Path("/a"))


def test_error_field_fails_a_run_with_exit_code_zero() -> None:
    """Some CLIs say an error in their output and end as if all were well."""
    engine = engine_of(output={"format": "jsonl", "error": "error.message"})
    parser = engine.parser(_nowhere())
    parser.feed(b'{"error": {"message": "model is away"}}')
    outcome = parser.finish(0, "")
    assert (outcome.failure, outcome.message) == (FailureKind.ENGINE_ERROR, "model is away")


def test_probe_reads_the_version_as_described() -> None:
    """The first group is the version, or the whole match; without a match the engine cannot be used."""
    grouped = engine_of(probe={"command": ["any"], "version": r"v(\d+)"})
    whole = engine_of(probe={"command": ["any"], "version": r"\d+"})
    assert grouped.parse_version("any v12") == whole.parse_version("any v12") == "12"
    assert not read_probe(grouped, 0, "no number here").usable
    missing = read_probe(engine_of(install="get it from its makers"), None, "")
    assert (missing.usable, missing.problem) == (False, "any is not on PATH; get it from its makers")
    assert "exit code 2: boom" in read_probe(grouped, 2, "boom\n").problem


# --- the example, with the real CLI -----------------------------------------------------------------------------------


def test_example_is_valid_and_shows_every_part_of_the_format() -> None:
    """What the how-to points to is complete."""
    loaded = yaml.safe_load(EXAMPLE.read_text())
    assert read_engine(EXAMPLE.read_text(), EXAMPLE.name).abilities.resume
    assert set(loaded) == {info.alias or name for name, info in EngineSpec.model_fields.items()}
    assert set(OutputSpec.model_fields) - set(loaded["output"]) == {"total_tokens"}


@pytest.mark.cli_real
def test_example_runs_the_real_cli(cli_place: Place) -> None:
    """A description alone is enough to run a real agent: a file is written, a session resumed, a limit recognised."""
    engine = read_engine(EXAMPLE.read_text(), EXAMPLE.name)
    run = cli_place.run("Write a greeting.")
    target = run.workdir / "hello.txt"
    write = Answer("I write.", tools=(Tool("Write", {"file_path": str(target), "content": "Hello\n"}),))
    reset = {"anthropic-ratelimit-unified-reset": "1795258800"}
    limit = Failure(429, "rate_limit_error", "usage limit reached · resets in 2 hours", reset)
    with ScriptedEndpoint([write, Answer("Done."), Answer("Yes."), limit], repeat_last=True) as endpoint:
        cli_place.factory_env.update({"ANTHROPIC_BASE_URL": endpoint.url, "ANTHROPIC_API_KEY": "dummy-key"})
        first = run_to_end(engine, run)
        second = run_to_end(engine, cli_place.run("Really?", resume_session=first.outcome.session_id))
        cli_place.factory_env["CLAUDE_CODE_MAX_RETRIES"] = "0"
        third = run_to_end(_with_variable(engine, "CLAUDE_CODE_MAX_RETRIES"), cli_place.run("Again."))
    assert first.outcome.ok
    assert target.read_text() == "Hello\n"
    assert (first.outcome.usage.total_tokens, first.outcome.usage.cost_source) == (240, "reported")
    assert first.outcome.tool_calls == 1
    assert second.outcome.session_id == first.outcome.session_id
    assert "Write a greeting." in endpoint.calls[2].transcript()
    assert third.outcome.failure == FailureKind.RATE_LIMITED
    assert third.outcome.retry_at is not None


def _with_variable(engine: GenericEngine, name: str) -> GenericEngine:
    env = engine.spec.env.model_copy(update={"allow": (*engine.spec.env.allow, name)})
    return GenericEngine(engine.spec.model_copy(update={"env": env}))
