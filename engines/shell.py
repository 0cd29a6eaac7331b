"""The `shell` engine: the job's body is the script. *Pure.*

If the body has exactly one fenced ```` ```sh ```` block, that block is the script and the rest is for the reader;
otherwise the whole body is. It runs as `sh -eu FILE` in the worktree; no model is asked, so it costs nothing, and that
is known.
"""

from __future__ import annotations

from decimal import Decimal

from core.attempt import Usage
from core.errors import FieldProblem
from core.job import FailureKind
from engines.base import (
    Abilities,
    BaseEngine,
    Clock,
    Command,
    CommandFile,
    EngineOutcome,
    EngineRun,
    StreamEvent,
    describe_exit,
    last_line,
    signal_of,
    utc_now,
)
from engines.environment import engine_environment, temporary_directory
from engines.fences import fenced_blocks
from engines.json_lines import plain_line

FREE = Usage(input_tokens=0, output_tokens=0, total_tokens=0, cost_usd=Decimal(0), cost_source="reported")
"""No model was asked: this is known, not missing."""


def script_of(body: str) -> str:
    """Return the script in a job's body."""
    blocks = fenced_blocks(body, "sh")
    return blocks[0].text if len(blocks) == 1 else body


class Shell(BaseEngine):
    """The adapter."""

    name = "shell"
    title = "Shell script"
    engine_class = "script"
    abilities = Abilities(cost="reported", tokens=True)

    def probe_command(self) -> list[str]:
        """Ask whether there is a POSIX shell; it has no version to tell."""
        return ["sh", "-c", "echo 1.0"]

    def command(self, run: EngineRun) -> Command:
        """Return the call of the script, which lies outside the worktree."""
        script = run.attempt_dir / "script.sh"
        return Command(
            argv=("sh", "-eu", str(script)),
            env=engine_environment(self, run),
            files=(CommandFile(script, script_of(run.prompt), 0o700),),
            directories=(run.home, temporary_directory(run)),
        )

    def parser(self, run: EngineRun, clock: Clock = utc_now) -> ShellParser:  # noqa: ARG002 - the protocol's arguments
        """Return a reader that passes lines on."""
        return ShellParser()

    def check_body(self, body: str) -> tuple[FieldProblem, ...]:
        """Refuse a script without a single command."""
        commands = [line for line in script_of(body).splitlines() if line.strip() and not line.strip().startswith("#")]
        if commands:
            return ()
        return (FieldProblem("body", "holds no command", expected="a script for `sh`, plain or in one ```sh block"),)


class ShellParser:
    """Reads what a script prints: text, as it is."""

    def __init__(self) -> None:
        self._last = ""

    def feed(self, line: bytes) -> list[StreamEvent]:
        """Pass a line on."""
        text = plain_line(line)
        self._last = text or self._last
        return [StreamEvent("text", text)]

    def finish(self, exit_code: int | None, stderr_tail: str) -> EngineOutcome:
        """Judge by the exit code."""
        if exit_code == 0:
            return EngineOutcome(ok=True, usage=FREE, tool_calls=1, result_text=self._last)
        kind = FailureKind.CRASH if exit_code is None or signal_of(exit_code) else FailureKind.ENGINE_ERROR
        detail = f": {last_line(stderr_tail)}" if stderr_tail.strip() else ""
        message = f"{describe_exit('the script', exit_code)}{detail}"
        return EngineOutcome(ok=False, failure=kind, message=message, usage=FREE, tool_calls=1)
