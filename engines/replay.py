r"""The `replay` engine: plays a recorded list of steps, without any model and any account. *Pure.*

It shows what Gigafactory does with an agent, on a machine that has none, and says so wherever it appears. The job's
body holds one fenced ```` ```replay ```` block with a YAML list:

    - say: I will add a greeting.
    - write: {path: hello.txt, text: "Hello\n"}
    - run: git status --short
    - wait: 0.2s
    - delete: old.txt
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from core.errors import FieldProblem, InvalidManifest
from core.job import FailureKind
from core.quantities import DURATION_EXPECTED, QuantityError, parse_duration
from engines.base import (
    Abilities,
    BaseEngine,
    Clock,
    Command,
    CommandFile,
    EngineOutcome,
    EngineRun,
    StreamEvent,
    ended_without_result,
    utc_now,
)
from engines.environment import engine_environment, temporary_directory
from engines.fences import FencedBlock, fenced_blocks
from engines.json_lines import count_of, decode_object, json_safe, plain_line, text_of
from engines.shell import FREE

PLAYER = Path(__file__).with_name("replay_player.py")
LONGEST_WAIT_S = 3600
EXPECTED_BLOCK = "one fenced ```replay block with a YAML list of steps"
EXPECTED_STEP = "one of `say`, `write`, `run`, `wait`, `delete`"

Step = dict[str, Any]


def validate_body(body: str) -> tuple[FieldProblem, ...]:
    """Return every mistake in the steps of a job's body, with its line in the body."""
    return _read(body)[1]


def steps_of(body: str) -> list[Step]:
    """Return the steps in a job's body, waits in seconds.

    Raises:
        InvalidManifest: with every mistake.

    """
    steps, problems = _read(body)
    if problems:
        raise InvalidManifest(f"the replay has {len(problems)} mistake(s)", problems)
    return steps


def _read(body: str) -> tuple[list[Step], tuple[FieldProblem, ...]]:
    blocks = fenced_blocks(body, "replay")
    if len(blocks) != 1:
        return [], (FieldProblem("body", f"has {len(blocks)} ```replay blocks", expected=EXPECTED_BLOCK),)
    block = blocks[0]
    if not block.closed:
        problem = FieldProblem(
            "body", "the ```replay block is not closed", expected="a line ```", line=block.first_line - 1
        )
        return [], (problem,)
    try:
        loaded, lines = yaml.safe_load(block.text), _lines_of(block)
    except yaml.YAMLError as error:
        return [], (_yaml_problem(error, block),)
    except (ValueError, RecursionError) as error:
        return [], (FieldProblem("body.replay", f"cannot be read: {error}", line=block.first_line),)
    if not isinstance(loaded, list) or not loaded:
        return [], (FieldProblem("body.replay", "is no list", expected=EXPECTED_BLOCK, line=block.first_line),)
    problems: list[FieldProblem] = []
    steps = [_step(item, f"body.replay[{at}]", lines[at], problems) for at, item in enumerate(loaded)]
    return steps, tuple(problems)


def _lines_of(block: FencedBlock) -> list[int]:
    node = yaml.compose(block.text, Loader=yaml.SafeLoader)
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    return [block.first_line + child.start_mark.line for child in children]


def _yaml_problem(error: yaml.YAMLError, block: FencedBlock) -> FieldProblem:
    mark = getattr(error, "problem_mark", None)
    line = block.first_line + (mark.line if mark else 0)
    reason = getattr(error, "problem", None) or "cannot be read"
    return FieldProblem("body.replay", f"is no YAML: {reason}", expected=EXPECTED_BLOCK, line=line)


def _step(item: object, path: str, line: int, problems: list[FieldProblem]) -> Step:
    if not isinstance(item, dict) or len(item) != 1 or next(iter(item)) not in _READERS:
        problems.append(FieldProblem(path, "is no step", json_safe(item), EXPECTED_STEP, line=line))
        return {}
    kind, value = next(iter(item.items()))
    found = _READERS[kind](value)
    if isinstance(found, FieldProblem):
        where = f"{path}.{kind}{found.path}"
        problems.append(FieldProblem(where, found.message, json_safe(found.value), found.expected, line=line))
        return {}
    return {kind: found}


def _text(value: object) -> object:
    if isinstance(value, str) and value.strip():
        return value
    return FieldProblem("", "is no text", value, "text (quote numbers and words such as yes)")


def _path(value: object) -> object:
    if not isinstance(value, str) or not value.strip("/. "):
        return FieldProblem("", "is no path", value, "a path of a file in the worktree")
    parts = value.replace("\\", "/").split("/")
    if value.startswith("/") or ".." in parts:
        return FieldProblem("", "leaves the worktree", value, "a path of a file in the worktree")
    if any(part.lower() == ".git" for part in parts):
        return FieldProblem("", "lies in git's own directory", value, "a path of a file in the worktree")
    return value


def _write(value: object) -> object:
    if not isinstance(value, dict) or set(value) != {"path", "text"}:
        return FieldProblem("", "is no file", value, "a mapping with `path` and `text`")
    path = _path(value["path"])
    if isinstance(path, FieldProblem):
        return FieldProblem(".path", path.message, path.value, path.expected)
    if not isinstance(value["text"], str):
        return FieldProblem(".text", "is no text", value["text"], "text (quote numbers and words such as yes)")
    return {"path": path, "text": value["text"]}


def _wait(value: object) -> object:
    try:
        seconds = parse_duration(value)
    except QuantityError as error:
        return FieldProblem("", error.message, value, error.expected)
    if seconds > LONGEST_WAIT_S:
        return FieldProblem("", "is too long", value, f"{DURATION_EXPECTED}, one hour at most")
    return float(seconds)


_READERS: dict[str, Callable[[object], object]] = {
    "say": _text,
    "write": _write,
    "run": _text,
    "wait": _wait,
    "delete": _path,
}


class Replay(BaseEngine):
    """The adapter."""

    name = "replay"
    title = "Replay of recorded steps"
    engine_class = "demo"
    abilities = Abilities(cost="reported", tokens=True)

    def probe_command(self) -> list[str]:
        """Ask the Python that plays the steps."""
        return [sys.executable, "-I", "-S", "--version"]

    def command(self, run: EngineRun) -> Command:
        """Return the call of the player.

        Raises:
            InvalidManifest: the body's steps are wrong; intake has refused such a job already.

        """
        steps = run.attempt_dir / "replay.json"
        return Command(
            argv=(sys.executable, "-I", "-S", str(PLAYER), str(steps)),
            env=engine_environment(self, run),
            files=(CommandFile(steps, json.dumps(steps_of(run.prompt))),),
            directories=(run.home, temporary_directory(run)),
        )

    def parser(self, run: EngineRun, clock: Clock = utc_now) -> ReplayParser:  # noqa: ARG002 - the protocol's arguments
        """Return the reader of the player's lines."""
        return ReplayParser()

    def check_body(self, body: str) -> tuple[FieldProblem, ...]:
        """Refuse a body whose steps cannot be played."""
        return validate_body(body)


class ReplayParser:
    """Reads the player's JSON lines."""

    def __init__(self) -> None:
        self._tool_calls = 0
        self._said = ""
        self._done = False
        self._failed = ""

    def feed(self, line: bytes) -> list[StreamEvent]:
        """Read one line."""
        item = decode_object(line)
        if item is None:
            text = plain_line(line)
            return [StreamEvent("notice", text)] if text.strip() else []
        kind = text_of(item.get("type"), 100)
        if kind == "say":
            self._said = text_of(item.get("text"))
            return [StreamEvent("text", self._said)]
        if kind in {"write", "delete", "run"}:
            self._tool_calls += 1
            told = text_of(item.get("path")) or text_of(item.get("command"))
            return [StreamEvent("tool_call", f"{kind} {told}", {"name": kind})]
        if kind == "ran":
            code = count_of(item.get("exit_code"))
            return [StreamEvent("tool_result", text_of(item.get("output")), {"exit_code": code, "is_error": code != 0})]
        return self._end(kind, item)

    def _end(self, kind: str, item: dict[str, Any]) -> list[StreamEvent]:
        if kind == "failed":
            self._failed = f"step {count_of(item.get('step')) or '?'}: {text_of(item.get('message'))}"
            return [StreamEvent("notice", self._failed)]
        if kind == "done":
            self._done = True
            return [StreamEvent("result", self._said)]
        return []

    def finish(self, exit_code: int | None, stderr_tail: str) -> EngineOutcome:
        """Judge the replay: all steps played, one failed, or the player was killed."""
        if self._done and exit_code == 0:
            return EngineOutcome(ok=True, usage=FREE, tool_calls=self._tool_calls, result_text=self._said)
        kind, message = ended_without_result("the player", exit_code, stderr_tail)
        if self._failed:
            kind, message = FailureKind.ENGINE_ERROR, self._failed
        return EngineOutcome(ok=False, failure=kind, message=message, usage=FREE, tool_calls=self._tool_calls)
