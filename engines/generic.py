"""Engines that are described by a YAML file only. *Pure.*

`docs/how-to/add-an-engine.md` shows the format by example; `EngineSpec` is its definition. A command is always a list
of arguments: text of a job fills whole arguments or parts of one, and can never become a second one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from core.attempt import Usage
from core.errors import FieldProblem, InvalidInput
from core.field_problems import path_of, shown
from core.field_types import nearest
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
    as_argument,
    describe_exit,
    kind_of_exit,
    last_line,
    shorten,
    utc_now,
)
from engines.environment import OWN_PREFIX, engine_environment, temporary_directory
from engines.json_lines import count_of, decode_object, member, plain_line, storable, text_of, usd_of
from engines.limits import reset_time

PLACEHOLDERS = ("prompt", "prompt_file", "workdir", "model", "session", "tools", "home", "attempt_dir")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_FROM_A_JOB = {"prompt", "model", "session", "tools"}
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}
TAIL = 4000
"""Characters of output that are kept to search for a failure's reason."""


# --- the format ------------------------------------------------------------------------------------------------------


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


def _known_placeholders(text: str) -> str:
    unknown = [name for name in _PLACEHOLDER.findall(text) if name not in PLACEHOLDERS]
    if unknown:
        listed = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ValueError(f"has the unknown placeholder {{{unknown[0]}}}; known are {listed}")
    return text


def _as_group(value: object) -> object:
    return {"args": [value]} if isinstance(value, str) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _no_text(value: object) -> object:
    if isinstance(value, str):
        raise ValueError("is a text; write a list with one item for each argument")  # noqa: TRY004 - pydantic's way
    return value


Regex = Annotated[str, AfterValidator(_compiles)]
Template = Annotated[str, AfterValidator(_known_placeholders)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
AllowedName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\*?$")]
Paths = Annotated[tuple[Annotated[str, Field(pattern=r"^[^.\s]+(\.[^.\s]+)*$")], ...], BeforeValidator(_as_list)]


class Strict(BaseModel):
    """Base of the parts of a description: unknown members are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Arguments(Strict):
    """One or more arguments, always there or only in some runs."""

    when: Literal["always", "model", "session", "tools", "yolo", "no-yolo"] = "always"
    """`model`, `session`, `tools`: only when the job has one; `yolo`, `no-yolo`: by the rights that it has."""
    args: Annotated[tuple[Template, ...], BeforeValidator(_no_text)] = Field(min_length=1)


ArgumentList = Annotated[tuple[Annotated[Arguments, BeforeValidator(_as_group)], ...], BeforeValidator(_no_text)]


class ProbeSpec(Strict):
    """How to find out whether the CLI is there, and in which version."""

    command: Annotated[tuple[str, ...], BeforeValidator(_no_text)] = Field(min_length=1)
    version: Regex = BaseEngine.VERSION.pattern
    """The first group, or the whole match, is the version."""


class EnvSpec(Strict):
    """The engine's own variables; everything else it gets is the same for all engines."""

    allow: tuple[AllowedName, ...] = ()
    """Pass from the factory's environment; `NAME*` stands for all that begin so."""
    set: dict[VariableName, str] = {}

    @model_validator(mode="after")
    def _none_of_ours(self) -> EnvSpec:
        ours = [name for name in (*self.allow, *self.set) if name.startswith(OWN_PREFIX) or name == "*"]
        if ours:
            raise ValueError(f"{ours[0]} never reaches an engine")
        return self


class OutputSpec(Strict):
    """What standard output says. For `jsonl` each value is one or more paths such as `part.tokens.0.input`."""

    format: Literal["text", "jsonl"] = "text"
    text: Paths = ()
    tool: Paths = ()
    session: Paths = ()
    error: Paths = ()
    """A text found here makes the run a failure, whatever the exit code."""
    input_tokens: Paths = ()
    output_tokens: Paths = ()
    total_tokens: Paths = ()
    cost_usd: Paths = ()
    counts: Literal["last", "sum"] = "last"
    """Whether a later count replaces an earlier one, or is added to it."""


class FailurePattern(Strict):
    """How to tell one kind of failure from what the CLI printed; the first that is found counts."""

    pattern: Regex
    kind: Literal["engine_error", "rate_limited", "engine_unavailable", "crash", "bad_result"]
    reset: Regex | None = None
    """For `rate_limited`: where the time stands; its first group, or the whole match, is read."""


class EngineSpec(Strict):
    """A whole description."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")
    title: str = ""
    engine_class: str = Field(default="agentic-coder", alias="class", pattern=r"^[a-z][a-z0-9-]{0,39}$")
    install: str = ""
    """What to do when the CLI is not there."""
    probe: ProbeSpec
    argv: ArgumentList = Field(min_length=1)
    resume: ArgumentList = ()
    """The arguments of a run that goes on with {session}; empty when the CLI cannot."""
    prompt: Literal["arg", "stdin", "file"]
    env: EnvSpec = EnvSpec()
    output: OutputSpec = OutputSpec()
    success_exit_codes: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field(default=(0,), min_length=1)
    failures: tuple[FailurePattern, ...] = ()


# --- reading a description -------------------------------------------------------------------------------------------


def read_engine(text: str, source: str) -> GenericEngine:
    """Return the engine that a YAML text describes; `source` names it in messages.

    Raises:
        InvalidInput: with every mistake.

    """
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{source} is no YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise InvalidInput(f"{source} must be a mapping", hint="see docs/how-to/add-an-engine.md")
    try:
        spec = EngineSpec.model_validate(loaded)
        problems = tuple(_contradictions(spec))
    except ValidationError as error:
        problems = tuple(_problem(item) for item in error.errors(include_url=False))
    else:
        if not problems:
            return GenericEngine(spec)
    raise InvalidInput(f"{source} has {len(problems)} mistake(s)", problems, hint="see docs/how-to/add-an-engine.md")


_MODELS: dict[str, type[Strict]] = {
    "probe": ProbeSpec,
    "env": EnvSpec,
    "output": OutputSpec,
    "failures": FailurePattern,
    "argv": Arguments,
    "resume": Arguments,
}


def _problem(item: Any) -> FieldProblem:
    location, kind = item["loc"], item["type"]
    if kind == "extra_forbidden":
        model = EngineSpec if len(location) == 1 else _MODELS.get(str(location[0]), EngineSpec)
        names = [info.alias or name for name, info in model.model_fields.items()]
        return FieldProblem(
            path_of(location), "unknown field", shown(item["input"]), suggestion=nearest(str(location[-1]), names)
        )
    if kind == "missing":
        return FieldProblem(path_of(location), "is missing")
    message = item["msg"].removeprefix("Value error, ")
    return FieldProblem(path_of(location), message[:1].lower() + message[1:], shown(item["input"]))


def _contradictions(spec: EngineSpec) -> Iterator[FieldProblem]:
    """Yield the mistakes that no single field shows."""
    needs = {"arg": "{prompt}", "file": "{prompt_file}"}.get(spec.prompt, "")
    for name, groups in (("argv", spec.argv), ("resume", spec.resume)):
        words = [word for group in groups for word in group.args]
        text = " ".join(words)
        if not groups:
            continue
        if groups[0].when != "always" or "{" in groups[0].args[0]:
            yield FieldProblem(f"{name}[0]", "must be the program, always", groups[0].args[0])
        if needs and needs not in text:
            yield FieldProblem(name, f"has no {needs}, though `prompt` is `{spec.prompt}`")
        for other in {"{prompt}", "{prompt_file}"} - {needs}:
            if other in text:
                yield FieldProblem(name, f"has {other}, though `prompt` is `{spec.prompt}`")
        if name == "resume" and "{session}" not in text:
            yield FieldProblem(name, "has no {session}")
        yield from _shell_lines(name, words)
    yield from _output_contradictions(spec.output)


def _shell_lines(name: str, words: list[str]) -> Iterator[FieldProblem]:
    if PurePosixPath(words[0]).name not in _SHELLS:
        return
    for word in words[1:]:
        inside = _FROM_A_JOB & set(_PLACEHOLDER.findall(word))
        if inside and not _PLACEHOLDER.fullmatch(word):
            yield FieldProblem(
                name, f"puts {{{min(inside)}}} into a shell line, where a job's text would run as commands", word,
                expected='`sh -c \'tool "$1"\' sh {prompt}`',
            )  # fmt: skip


def _output_contradictions(output: OutputSpec) -> Iterator[FieldProblem]:
    if output.format == "text":
        for name in OutputSpec.model_fields:
            if name not in {"format", "counts"} and getattr(output, name):
                yield FieldProblem(f"output.{name}", "needs `format: jsonl`; plain text has no fields")


# --- the engine ------------------------------------------------------------------------------------------------------


class GenericEngine(BaseEngine):
    """An engine made from a description."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.title = spec.title or spec.name
        self.engine_class = spec.engine_class
        self.env_allow = spec.env.allow
        self.install_hint = spec.install
        everything = " ".join(word for group in spec.argv for word in group.args)
        output = spec.output
        self.abilities = Abilities(
            resume=bool(spec.resume),
            cost="reported" if output.cost_usd else "unknown",
            tokens=bool(output.total_tokens or (output.input_tokens and output.output_tokens)),
            model="{model}" in everything,
            allowed_tools="{tools}" in everything,
        )

    def probe_command(self) -> list[str]:
        """Return the described command."""
        return list(self.spec.probe.command)

    def parse_version(self, text: str) -> str:
        """Return what the described pattern finds."""
        found = re.search(self.spec.probe.version, text[:TAIL])
        if not found:
            return ""
        return (found.group(1) if found.re.groups else found.group(0)) or ""

    def has_session(self, home: Path, session: str) -> bool:  # noqa: ARG002 - the protocol's arguments
        """Only the CLI itself knows; if it can resume at all, it is asked to."""
        return self.supports_resume

    def command(self, run: EngineRun) -> Command:
        """Fill the described argument list.

        Raises:
            InvalidInput: the prompt is too long for an argument.

        """
        prompt_file = run.attempt_dir / "prompt.md"
        values = {
            "prompt": run.prompt,
            "prompt_file": str(prompt_file),
            "workdir": str(run.workdir),
            "model": run.model or "",
            "session": run.resume_session or "",
            "tools": ",".join(run.allowed_tools),
            "home": str(run.home),
            "attempt_dir": str(run.attempt_dir),
        }
        groups = self.spec.resume if run.resume_session and self.spec.resume else self.spec.argv
        wanted = {
            "always",
            "yolo" if run.yolo else "no-yolo",
            *(name for name in ("model", "session", "tools") if values[name]),
        }
        argv = [self._fill(word, values) for group in groups if group.when in wanted for word in group.args]
        return Command(
            argv=tuple(argv),
            env=engine_environment(self, run) | self.spec.env.set,
            stdin_text=run.prompt if self.spec.prompt == "stdin" else None,
            files=(CommandFile(prompt_file, run.prompt),) if self.spec.prompt == "file" else (),
            directories=(run.home, temporary_directory(run)),
        )

    def _fill(self, template: str, values: dict[str, str]) -> str:
        filled = _PLACEHOLDER.sub(lambda found: values[found.group(1)], template)
        return as_argument(filled, f"the argument {shorten(template, 40)!r} of engine {self.name}")

    def parser(self, run: EngineRun, clock: Clock = utc_now) -> GenericParser:  # noqa: ARG002 - the protocol's arguments
        """Return the reader that the description asks for."""
        return GenericParser(self.spec, clock)


class GenericParser:
    """Reads text or JSON Lines by the description."""

    COUNTS = ("input_tokens", "output_tokens", "total_tokens")

    def __init__(self, spec: EngineSpec, clock: Clock = utc_now) -> None:
        self._spec = spec
        self._clock = clock
        self._session: str | None = None
        self._tool_calls = 0
        self._said = ""
        self._error = ""
        self._tail = ""
        self._counts: dict[str, int] = {}
        self._cost: Decimal | None = None

    def feed(self, line: bytes) -> list[StreamEvent]:
        """Read one line."""
        item = decode_object(line) if self._spec.output.format == "jsonl" else None
        if item is not None:
            return self._item(item)
        text = plain_line(line)
        self._keep(text)
        if self._spec.output.format == "jsonl":
            return [StreamEvent("notice", text)] if text.strip() else []
        self._said = text or self._said
        return [StreamEvent("text", text)]

    def _keep(self, text: str) -> None:
        self._tail = f"{self._tail}\n{text}"[-TAIL:]

    def _item(self, item: dict[str, Any]) -> list[StreamEvent]:
        output = self._spec.output
        events: list[StreamEvent] = []
        for text in _texts(item, output.session):
            if text != self._session:
                self._session = text[:200]
                events.append(StreamEvent("session", self._session))
        for text in _texts(item, output.text):
            self._said = text
            self._keep(text)
            events.append(StreamEvent("text", text))
        for text in _texts(item, output.tool):
            self._tool_calls += 1
            events.append(StreamEvent("tool_call", text, {"name": text}))
        for text in _texts(item, output.error):
            self._error = text
            self._keep(text)
            events.append(StreamEvent("notice", text))
        return [*events, *self._consumed(item)]

    def _consumed(self, item: dict[str, Any]) -> list[StreamEvent]:
        output, adding = self._spec.output, self._spec.output.counts == "sum"
        seen = False
        for name in self.COUNTS:
            for value in _values(item, getattr(output, name)):
                count = count_of(value)
                if count is not None:
                    self._counts[name] = count + (self._counts.get(name, 0) if adding else 0)
                    seen = True
        for value in _values(item, output.cost_usd):
            cost = usd_of(value)
            if cost is not None:
                self._cost = cost + (self._cost or 0 if adding else 0)
                seen = True
        return [StreamEvent("usage", "", self._usage().model_dump(mode="json"))] if seen else []

    def _usage(self) -> Usage:
        asked, answered, total = (self._counts.get(name) for name in self.COUNTS)
        if total is None and asked is not None and answered is not None:
            total = asked + answered
        source: Literal["reported", "unknown"] = "unknown" if self._cost is None else "reported"
        return Usage(
            input_tokens=asked, output_tokens=answered, total_tokens=total, cost_usd=self._cost, cost_source=source
        )

    def finish(self, exit_code: int | None, stderr_tail: str) -> EngineOutcome:
        """Judge by exit code, error field and the described failures."""
        if exit_code in self._spec.success_exit_codes and not self._error:
            return self._outcome(None, "", None)
        told = storable(f"{self._error}\n{stderr_tail[-TAIL:]}\n{self._tail}", 3 * TAIL)
        for failure in self._spec.failures:
            if re.search(failure.pattern, told):
                retry_at = self._reset(failure, told) if failure.kind == "rate_limited" else None
                return self._outcome(FailureKind(failure.kind), self._message(exit_code, stderr_tail), retry_at)
        return self._outcome(kind_of_exit(exit_code), self._message(exit_code, stderr_tail), None)

    def _message(self, exit_code: int | None, stderr_tail: str) -> str:
        if self._error:
            return self._error
        detail = last_line(stderr_tail if stderr_tail.strip() else self._tail)
        return f"{describe_exit(self._spec.name, exit_code)}: {detail}"

    def _reset(self, failure: FailurePattern, told: str) -> datetime | None:
        if failure.reset is None:
            return reset_time(told, self._clock())
        found = re.search(failure.reset, told)
        if not found:
            return None
        text = (found.group(1) if found.re.groups else found.group(0)) or ""
        now = self._clock()
        return (
            reset_time(text, now)
            or reset_time(f"|{text}", now)
            or reset_time(f"resets at {text}", now)
            or reset_time(f"in {text}", now)
        )

    def _outcome(self, failure: FailureKind | None, message: str, retry_at: datetime | None) -> EngineOutcome:
        return EngineOutcome(
            ok=failure is None,
            failure=failure,
            message=shorten(storable(message), TAIL),
            retry_at=retry_at,
            session_id=self._session,
            usage=self._usage(),
            tool_calls=self._tool_calls,
            result_text=self._said if failure is None else "",
        )


def _values(item: dict[str, Any], paths: tuple[str, ...]) -> Iterator[Any]:
    for path in paths:
        steps = [int(step) if step.isdecimal() else step for step in path.split(".")]
        value = member(item, *steps)
        if value is not None:
            yield value


def _texts(item: dict[str, Any], paths: tuple[str, ...]) -> Iterator[str]:
    yield from (text for value in _values(item, paths) if (text := text_of(value)))
