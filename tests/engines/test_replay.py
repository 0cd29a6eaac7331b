"""The replay engine: recorded steps, played like an agent."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidManifest
from core.job import FailureKind
from engines.base import body_problems, read_probe
from engines.replay import PLAYER, Replay, steps_of, validate_body
from tests.engines.conftest import Place
from tests.engines.running import Running, run_to_end
from tests.waiting import PATIENCE_S

ENGINE = Replay()

BODY = """Add a greeting.

```replay
- say: I will add a greeting.
- write: {path: docs/hello.txt, text: "Hello\\n"}
- run: cat docs/hello.txt && echo done
- wait: 0.01s
- write: {path: old.txt, text: ""}
- delete: old.txt
- say: There it is.
```
"""


def body_of(steps: str) -> str:
    """Return a body with these steps."""
    return f"```replay\n{steps}\n```\n"


def test_steps_are_played_in_the_worktree(place: Place) -> None:
    """Files are written, commands run, and every step is an event as it happens."""
    run = place.run(BODY)
    ran = run_to_end(ENGINE, run)
    assert ran.outcome.ok
    assert (run.workdir / "docs" / "hello.txt").read_text() == "Hello\n"
    assert not (run.workdir / "old.txt").exists()
    assert ran.texts("text") == ["I will add a greeting.", "There it is."]
    assert ran.texts("tool_call") == [
        "write docs/hello.txt", "run cat docs/hello.txt && echo done", "write old.txt", "delete old.txt",
    ]  # fmt: skip
    assert ran.texts("tool_result") == ["Hello\ndone\n"]
    assert (ran.outcome.tool_calls, ran.outcome.result_text) == (4, "There it is.")
    usage = ran.outcome.usage
    assert (usage.total_tokens, usage.cost_usd, usage.cost_source) == (0, Decimal(0), "reported")


def test_player_needs_nothing_but_python(place: Place) -> None:
    """It runs isolated and without site packages, from a file, with the steps outside of the worktree."""
    command = ENGINE.command(place.run(BODY))
    assert command.argv[:4] == (sys.executable, "-I", "-S", str(PLAYER))
    assert read_probe(ENGINE, 0, "Python 3.11.7\n").version == "3.11.7"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("- shout: hi", [("body.replay[0]", 2)]),
        ("- say: hi\n- say: 5\n- write: {path: a}\n- wait: long", [
            ("body.replay[1].say", 3), ("body.replay[2].write", 4), ("body.replay[3].wait", 5)]),
        ("- write: {path: ../a, text: x}", [("body.replay[0].write.path", 2)]),
        ("- write: {path: /etc/passwd, text: x}", [("body.replay[0].write.path", 2)]),
        ("- write: {path: .git/config, text: x}", [("body.replay[0].write.path", 2)]),
        ("- write: {path: sub/.GIT/config, text: x}", [("body.replay[0].write.path", 2)]),
        ("- write: {path: a, text: 5}", [("body.replay[0].write.text", 2)]),
        ("- delete: a/../../b", [("body.replay[0].delete", 2)]),
        ("- delete: .", [("body.replay[0].delete", 2)]),
        ("- wait: 3h", [("body.replay[0].wait", 2)]),
        ("- say: a\n  run: b", [("body.replay[0]", 2)]),
        ("- [say, a]", [("body.replay[0]", 2)]),
        ("say: a", [("body.replay", 2)]),
        ("[]", [("body.replay", 2)]),
        ("- say: 'a", [("body.replay", 3)]),
        ("", [("body.replay", 2)]),
    ],
)  # fmt: skip
def test_mistakes_in_steps_are_all_named_with_their_line(steps: str, expected: list[tuple[str, int]]) -> None:
    """Intake gets every mistake at once, each with its place in the body."""
    assert [(problem.path, problem.line) for problem in validate_body(body_of(steps))] == expected
    assert all(problem.message and problem.expected for problem in validate_body(body_of(steps)))


@pytest.mark.parametrize("body", ["no block", BODY + BODY, "```replay\n- say: a\n", "```sh\necho a\n```"])
def test_body_needs_exactly_one_closed_block(body: str) -> None:
    """None, two, or one without an end are refused, and the command is never built."""
    (problem,) = body_problems(ENGINE, body)
    assert problem.path == "body"
    with pytest.raises(InvalidManifest):
        steps_of(body)


@given(st.text(max_size=200))
def test_any_block_is_read_or_refused(text: str) -> None:
    """Nothing in a block raises anything else."""
    if not validate_body(body_of(text)):
        json.dumps(steps_of(body_of(text)))


def play(place: Place, steps: list[object]) -> tuple[Path, str]:
    """Play steps that intake would refuse; return the worktree and the message."""
    run = place.run(BODY)
    with Running(ENGINE, run) as first:
        first.wait()
    (run.attempt_dir / "replay.json").write_text(json.dumps(steps))
    done = subprocess.run(
        ENGINE.command(run).argv, cwd=run.workdir, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    return run.workdir, json.loads(done.stdout.splitlines()[-1])["message"]


def test_player_refuses_paths_that_leave_the_worktree(place: Place) -> None:
    """The player trusts nobody: upwards, absolute, through a link, into git's directory."""
    for path in ("../out.txt", "/tmp/out.txt", "a/../../out.txt", ".git", ".git/hooks/post-commit"):
        workdir, message = play(place, [{"write": {"path": path, "text": "x"}}])
        assert path in message
        assert not (workdir.parent / "out.txt").exists()


def test_player_does_not_follow_links(place: Place) -> None:
    """A link that a step made leads nowhere: not as a directory, not as the file itself."""
    link = {"run": "ln -s .. up && ln -s ../victim.txt file && mkdir -p .git && ln -s .git inside"}
    for path in ("up/victim.txt", "file", "inside/config"):
        steps = [{"run": "rm -rf up file inside .git"}, link, {"write": {"path": path, "text": "x"}}]
        workdir, message = play(place, steps)
        assert path in message
        assert not (workdir.parent / "victim.txt").exists()
        assert not (workdir / ".git" / "config").exists()


def test_command_that_fails_ends_the_replay(place: Place) -> None:
    """The steps after it are not played, and the message says which one it was."""
    run = place.run(body_of("- run: echo trouble; exit 4\n- write: {path: a, text: b}"))
    ran = run_to_end(ENGINE, run)
    assert ran.outcome.failure == FailureKind.ENGINE_ERROR
    assert ran.outcome.message == "step 1: `echo trouble; exit 4` ended with exit code 4"
    assert ran.texts("tool_result") == ["trouble\n"]
    assert not (run.workdir / "a").exists()


def test_steps_stream_as_they_are_played(place: Place) -> None:
    """The first step is told while a later one still waits; killing the group ends the run as a crash."""
    run = place.run(body_of("- say: first\n- run: touch started\n- wait: 1h"))
    with Running(ENGINE, run) as running:
        assert running.event_came("tool_call", PATIENCE_S)
        running.kill()
        ran = running.wait()
    assert ran.texts("text") == ["first"]
    assert (ran.outcome.failure, ran.outcome.usage.total_tokens) == (FailureKind.CRASH, 0)
