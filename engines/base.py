"""What an engine is: it builds a command and reads what the command prints. *Pure* data and protocols.

An engine never starts a process. The factory asks it for a `Command`, hands that to the supervisor, feeds every line
of standard output to the engine's `StreamParser` and asks that for the `EngineOutcome` when the process is gone:

    engine.command(run)  →  Command           argument list, whole environment, stdin, files to lay down first
    engine.parser(run)   →  StreamParser      feed(line) → events …, finish(exit code, end of stderr) → outcome

Make the parser before the process starts: a session's earlier consumption is read then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from core.attempt import Usage
from core.errors import FieldProblem, InvalidInput
from core.job import FailureKind

EventKind = Literal["text", "tool_call", "tool_result", "usage", "session", "limit", "notice", "result"]

MAX_ARGUMENT_BYTES = 120_000
"""Longest single argument that we pass. Linux takes 131,072 bytes (MAX_ARG_STRLEN), with the closing NUL."""

_PLAIN_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+\[\]-]{0,199}")


def utc_now() -> datetime:
    """Return the present moment; the default clock of the parsers."""
    return datetime.now(UTC)


Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One run of an engine: what it shall do, where, and with which rights."""

    prompt: str
    """Everything the engine is told, also when it resumes a session."""
    workdir: Path
    """Where the command runs: the attempt's worktree."""
    home: Path
    """The engine's private HOME on this factory; sessions live there."""
    attempt_dir: Path
    """Where scripts and temporary files of this attempt lie; outside the worktree."""
    factory_env: Mapping[str, str] = field(default_factory=dict)
    """The factory's own environment; only allow-listed variables of it reach the engine."""
    extra_env_allow: tuple[str, ...] = ()
    """Further variables to let through (setting `engine_env`)."""
    yolo: bool = False
    """Every action of the engine is approved; without it only edits in the worktree are."""
    model: str | None = None
    allowed_tools: tuple[str, ...] = ()
    resume_session: str | None = None
    """Session to continue; the caller has asked `Engine.has_session` first."""

    def __post_init__(self) -> None:
        """Refuse what could be taken for an option on a command line."""
        for name, value in (("model", self.model), ("session", self.resume_session)):
            if value is not None and not _PLAIN_WORD.fullmatch(value):
                raise InvalidInput(
                    f"the {name} {value[:80]!r} cannot be passed to an engine: "
                    "letters, digits and . _ : / @ + - [ ] only, the first a letter or digit"
                )


@dataclass(frozen=True, slots=True)
class CommandFile:
    """A file that has to lie there before the command starts."""

    path: Path
    text: str
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Command:
    """What the supervisor starts: never a shell line, never an inherited environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The whole environment."""
    stdin_text: str | None = None
    """Text for standard input, which is closed after it; None: standard input is empty."""
    files: tuple[CommandFile, ...] = ()
    directories: tuple[Path, ...] = ()
    """Directories that must exist, mode 0700."""

    def lay_down(self) -> None:
        """Make the directories and write the files; harmless when repeated."""
        for directory in self.directories:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for item in self.files:
            item.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            item.path.touch(item.mode)
            item.path.chmod(item.mode)
            item.path.write_text(item.text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """Something the engine said while it ran."""

    kind: EventKind
    text: str = ""
    """For people; shortened when long."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """For programs; JSON values only."""


@dataclass(frozen=True, slots=True)
class EngineOutcome:
    """How a run ended, as far as the engine itself can tell; the supervisor knows of timeouts and cancels."""

    ok: bool
    failure: FailureKind | None = None
    message: str = ""
    retry_at: datetime | None = None
    """For `rate_limited`: when work is possible again (aware); None when the provider did not say."""
    session_id: str | None = None
    usage: Usage = field(default_factory=Usage)
    tool_calls: int = 0
    result_text: str = ""
    model: str = ""
    """Model that answered, when the engine says it."""


class StreamParser(Protocol):
    """Reads one run's standard output. No input makes it raise."""

    def feed(self, line: bytes) -> list[StreamEvent]:
        """Read one line (with or without its end) and return what it says."""
        ...

    def finish(self, exit_code: int | None, stderr_tail: str) -> EngineOutcome:
        """Judge the run; `exit_code` is negative for a signal and None when it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can do, for the capability matrix."""

    headless: bool = True
    resume: bool = False
    cost: Literal["reported", "estimated", "unknown"] = "unknown"
    tokens: bool = False
    sandbox: bool = False
    """Brings a sandbox of its own for the commands that it runs."""
    model: bool = False
    allowed_tools: bool = False
    tested_with: str = ""
    """Version that the tests ran against, empty for engines without a version."""


@dataclass(frozen=True, slots=True)
class EngineProbe:
    """Whether an engine can be used on this machine."""

    engine: str
    usable: bool
    version: str = ""
    problem: str = ""
    """Why it cannot be used, with the next step."""


class Engine(Protocol):
    """One agent CLI, as Gigafactory sees it. Plugins may subclass `BaseEngine` for the defaults."""

    @property
    def name(self) -> str:
        """What a job calls it."""
        ...

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    @property
    def engine_class(self) -> str:
        """The class that it belongs to: `agentic-coder`, `script`, `demo` or one of a plugin's own."""
        ...

    @property
    def env_allow(self) -> tuple[str, ...]:
        """Variables of the provider that pass from the factory's environment to this engine, and to no other."""
        ...

    @property
    def supports_resume(self) -> bool:
        """Whether a session can be continued."""
        ...

    @property
    def abilities(self) -> Abilities:
        """Its row of the capability matrix."""
        ...

    def probe_command(self) -> list[str]:
        """Return the command that prints the version; it must end within seconds and need no network."""
        ...

    def parse_version(self, text: str) -> str:
        """Return the version in what `probe_command` printed; empty when there is none."""
        ...

    def command(self, run: EngineRun) -> Command:
        """Return what to start for `run`."""
        ...

    def parser(self, run: EngineRun, clock: Clock = utc_now) -> StreamParser:
        """Return the reader of what that command prints."""
        ...

    def has_session(self, home: Path, session: str) -> bool:
        """Tell whether `home` holds `session`, so that a run can resume it."""
        ...

    def check_body(self, body: str) -> tuple[FieldProblem, ...]:
        """Return what is wrong with a job's body for this engine; intake refuses the job then."""
        ...


class BaseEngine:
    """Defaults for what an engine may leave out."""

    name: str
    title: str
    engine_class: str = "agentic-coder"
    env_allow: tuple[str, ...] = ()
    abilities: Abilities = Abilities()
    install_hint: str = ""

    VERSION: ClassVar[re.Pattern[str]] = re.compile(r"\d+\.\d+(?:\.\d+)?[A-Za-z0-9.+-]*")

    @property
    def supports_resume(self) -> bool:
        """Whether a session can be continued."""
        return self.abilities.resume

    def parse_version(self, text: str) -> str:
        """Return the first thing in `text` that looks like a version."""
        found = self.VERSION.search(text[:2000])
        return found.group(0) if found else ""

    def has_session(self, home: Path, session: str) -> bool:  # noqa: ARG002 - the protocol's arguments
        """No session is ever found."""
        return False

    def check_body(self, body: str) -> tuple[FieldProblem, ...]:
        """Only an empty body is wrong: there would be nothing to do."""
        return () if body.strip() else (FieldProblem("body", "is empty", expected="what the engine shall do"),)


def read_probe(engine: Engine, exit_code: int | None, output: str) -> EngineProbe:
    """Judge what `engine.probe_command()` gave; `exit_code` None means that it could not be started."""
    hint = getattr(engine, "install_hint", "")
    program = engine.probe_command()[0]
    if exit_code is None:
        return EngineProbe(engine.name, usable=False, problem=_with_hint(f"{program} is not on PATH", hint))
    if exit_code != 0:
        detail = f"`{' '.join(engine.probe_command())}` ended with exit code {exit_code}: {last_line(output)}"
        return EngineProbe(engine.name, usable=False, problem=_with_hint(detail, hint))
    version = engine.parse_version(output)
    if not version:
        problem = f"`{' '.join(engine.probe_command())}` printed no version: {last_line(output)}"
        return EngineProbe(engine.name, usable=False, problem=problem)
    return EngineProbe(engine.name, usable=True, version=version)


def _with_hint(problem: str, hint: str) -> str:
    return f"{problem}; {hint}" if hint else problem


def body_problems(engine: Engine, body: str) -> tuple[FieldProblem, ...]:
    """Return what `engine` says against a job's body; an engine without a check takes every body."""
    check: Callable[[str], tuple[FieldProblem, ...]] | None = getattr(engine, "check_body", None)
    return check(body) if check else ()


def as_argument(text: str, what: str) -> str:
    """Return `text` if it can be one argument of a command.

    Raises:
        InvalidInput: it is too long for the system, or holds a NUL.

    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT_BYTES:
        raise InvalidInput(f"{what} is longer than {MAX_ARGUMENT_BYTES} bytes, the most that one argument can hold")
    if "\0" in text:
        raise InvalidInput(f"{what} holds a NUL character, which no argument can")
    return text


def last_line(text: str, limit: int = 500) -> str:
    """Return the last line of `text` that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shorten(lines[-1], limit) if lines else "(no output)"


def shorten(text: str, limit: int) -> str:
    """Return `text`, cut with an ellipsis when it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe_exit(argv0: str, exit_code: int | None) -> str:
    """Return how a process ended, for a message."""
    if exit_code is None:
        return f"{argv0} ended and its exit code is not known"
    signal = signal_of(exit_code)
    return f"{argv0} was killed by signal {signal}" if signal else f"{argv0} ended with exit code {exit_code}"


def signal_of(exit_code: int | None) -> int:
    """Return the signal that ended the process: itself (negative) or as a shell tells it (128 + n); 0 for none."""
    if exit_code is None:
        return 0
    if exit_code < 0:
        return -exit_code
    return exit_code - 128 if 128 < exit_code <= 192 else 0


CANNOT_START = (126, 127)
"""Exit codes of a program that is not there, or that this machine cannot run."""


def kind_of_exit(exit_code: int | None) -> FailureKind:
    """Return what an exit code alone says about a run that failed."""
    if exit_code is None or signal_of(exit_code):
        return FailureKind.CRASH
    return FailureKind.ENGINE_UNAVAILABLE if exit_code in CANNOT_START else FailureKind.ENGINE_ERROR


def ended_without_result(program: str, exit_code: int | None, stderr_tail: str) -> tuple[FailureKind, str]:
    """Return kind and message for a run that never said how it ended.

    One that ended well all the same speaks another protocol than the one that its adapter knows.
    """
    kind = FailureKind.ENGINE_UNAVAILABLE if exit_code == 0 else kind_of_exit(exit_code)
    detail = f": {last_line(stderr_tail)}" if stderr_tail.strip() else ""
    return kind, f"{describe_exit(program, exit_code)} before it gave a result{detail}"
