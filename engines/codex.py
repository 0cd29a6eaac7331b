"""Codex: `codex exec --json`. *Pure*, but for reading Codex's own session file in its HOME.

Endpoint and key. Codex does not read OPENAI_BASE_URL, and its built-in provider takes a key only from CODEX_API_KEY
(and tries a WebSocket first). So when the factory's environment has OPENAI_BASE_URL, a provider named `gateway` is
described on the command line; without it an OPENAI_API_KEY is handed on as CODEX_API_KEY. `config.toml` in the
engine's HOME is read as always and may add to `[model_providers.gateway]`.

Consumption. The stream has tokens, no cost and no model name, and for a resumed session the tokens of the whole
session. The session file has the rest: the model, the running totals (for a run that is killed), and where a resumed
session stood before.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from core.attempt import Usage
from core.job import FailureKind
from engines.base import (
    Abilities,
    BaseEngine,
    Clock,
    Command,
    EngineOutcome,
    EngineRun,
    StreamEvent,
    describe_exit,
    ended_without_result,
    shorten,
    utc_now,
)
from engines.codex_session import SessionRecord, Tokens, find_session_file, read_session
from engines.environment import engine_environment, temporary_directory
from engines.json_lines import decode_object, json_safe, member, plain_line, text_of
from engines.limits import reset_time
from engines.prices import estimate_usd

GATEWAY = "gateway"
HIDDEN_FROM_COMMANDS = ("OPENAI_*", "CODEX_API_KEY", "CODEX_ACCESS_TOKEN")
"""Variables that the commands which the agent runs do not see."""

QUIET = ("analytics.enabled=false", "check_for_update_on_startup=false", "features.plugins=false")
"""The CLI talks to its model endpoint and to nothing else; plugins would have it fetch a catalogue at each start."""

SAME_TOOLS = "allow_login_shell=false"
"""Commands run with the PATH that was probed; a login shell would replace it by the system's own."""

TOOL_ITEMS = {
    "command_execution": "command",
    "file_change": "changes",
    "mcp_tool_call": "tool",
    "web_search": "query",
    "collab_tool_call": "tool",
    "image_generation": "prompt",
}
"""Item types that are an action of the agent, with the member that says which."""

_LIMIT_TEXT = re.compile(r"\b429\b|usage limit|rate limit|too many requests", re.IGNORECASE)
_LOGIN_TEXT = re.compile(r"\b401 unauthorized|\b403 forbidden|not logged in|log in again", re.IGNORECASE)
_NO_LIMIT_TEXT = re.compile(r"quota exceeded|exceeded your current quota|out of credits", re.IGNORECASE)


class Codex(BaseEngine):
    """The adapter."""

    name = "codex"
    title = "Codex CLI"
    engine_class = "agentic-coder"
    env_allow = (
        *("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORGANIZATION", "OPENAI_PROJECT"),
        *("CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "CODEX_CA_CERTIFICATE"),
    )
    abilities = Abilities(resume=True, cost="estimated", tokens=True, sandbox=True, model=True, tested_with="0.169.0")
    install_hint = "install it with `npm install -g @openai/codex`"

    def probe_command(self) -> list[str]:
        """Ask for the version; this makes no request."""
        return ["codex", "--version"]

    def command(self, run: EngineRun) -> Command:
        """Return the headless call; the sandbox follows `yolo`."""
        env = engine_environment(self, run) | {"TZ": "UTC"}  # reset times come as clock times of this zone
        argv = ["codex", "exec", "--json", "--skip-git-repo-check"]
        settings = [*QUIET, SAME_TOOLS, f"shell_environment_policy.exclude={json.dumps(HIDDEN_FROM_COMMANDS)}"]
        if run.yolo:
            argv.append("--dangerously-bypass-approvals-and-sandbox")
        else:
            settings += ['sandbox_mode="workspace-write"', 'approval_policy="never"']
        settings += self._endpoint(env)
        argv += [part for setting in settings for part in ("-c", setting)]
        if run.model:
            argv.append(f"--model={run.model}")
        if run.resume_session:
            argv += ["resume", "--", run.resume_session]
        argv.append("-")
        return Command(
            argv=tuple(argv), env=env, stdin_text=run.prompt, directories=(run.home, temporary_directory(run))
        )

    def _endpoint(self, env: dict[str, str]) -> list[str]:
        """Return the settings for the endpoint in `env`, and bring the key to where Codex looks for it."""
        base_url = env.pop("OPENAI_BASE_URL", "")
        key = "OPENAI_API_KEY" if env.get("OPENAI_API_KEY") else "CODEX_API_KEY"
        if not base_url:
            if env.get("OPENAI_API_KEY"):
                env.setdefault("CODEX_API_KEY", env["OPENAI_API_KEY"])
            return []
        members = {"name": GATEWAY, "base_url": base_url, "wire_api": "responses"}
        if env.get(key):
            members["env_key"] = key
        described = [f"model_providers.{GATEWAY}.{name}={json.dumps(value)}" for name, value in members.items()]
        return [f"model_provider={json.dumps(GATEWAY)}", *described]

    def parser(self, run: EngineRun, clock: Clock = utc_now) -> CodexParser:
        """Return the reader of the JSON stream; a resumed session's earlier tokens are read here."""
        before = None
        if run.resume_session:
            path = find_session_file(run.home, run.resume_session)
            before = (read_session(path).tokens or Tokens(0, 0)) if path else None
        return CodexParser(run, before, clock)

    def has_session(self, home: Path, session: str) -> bool:
        """Look for the session's file."""
        return find_session_file(home, session) is not None


class CodexParser:
    """Reads the stream of one run."""

    def __init__(self, run: EngineRun, before: Tokens | None = None, clock: Clock = utc_now) -> None:
        self._run = run
        self._before = before
        self._clock = clock
        self._session: str | None = None
        self._started: set[str] = set()
        self._tool_calls = 0
        self._said = ""
        self._tokens: Tokens | None = None
        self._record: SessionRecord | None = None
        self._completed = False
        self._error = ""

    def feed(self, line: bytes) -> list[StreamEvent]:
        """Read one line of standard output."""
        item = decode_object(line)
        if item is None:
            text = plain_line(line)
            return [StreamEvent("notice", text)] if text.strip() else []
        kind = text_of(item.get("type"), 100)
        if kind == "thread.started":
            self._session = text_of(item.get("thread_id"), 200) or None
            return [StreamEvent("session", self._session or "")]
        if kind in {"item.started", "item.updated", "item.completed"}:
            return self._item(item.get("item"), completed=kind == "item.completed")
        if kind == "turn.completed":
            return self._turn_completed(item)
        if kind in {"turn.failed", "error"}:
            return self._failure(item, final=kind == "turn.failed")
        return []

    def _item(self, item: object, *, completed: bool) -> list[StreamEvent]:
        kind = text_of(member(item, "type"), 100)
        if kind in TOOL_ITEMS:
            return self._tool(item, kind, completed=completed)
        text = text_of(member(item, "text")) or text_of(member(item, "message"))
        if not completed or not text:
            return []
        if kind == "agent_message":
            self._said = text
            return [StreamEvent("text", text)]
        return [StreamEvent("notice", text, {"item": kind})]

    def _tool(self, item: object, kind: str, *, completed: bool) -> list[StreamEvent]:
        identity = text_of(member(item, "id"), 200)
        events: list[StreamEvent] = []
        if identity not in self._started or not identity:
            self._started.add(identity)
            self._tool_calls += 1
            told = _told(member(item, TOOL_ITEMS[kind]))
            events.append(StreamEvent("tool_call", f"{kind} {told}".strip(), {"id": identity, "name": kind}))
        if completed:
            data = {"id": identity, "exit_code": json_safe(member(item, "exit_code")),
                    "is_error": member(item, "status") == "failed"}  # fmt: skip
            events.append(StreamEvent("tool_result", text_of(member(item, "aggregated_output")), data))
        return events

    def _turn_completed(self, item: dict[str, Any]) -> list[StreamEvent]:
        self._completed = True
        self._error = ""
        self._tokens = Tokens.read(item.get("usage"))
        data = {**self._usage().model_dump(mode="json"), "final": True}
        return [StreamEvent("usage", "", data), StreamEvent("result", self._said)]

    def _failure(self, item: dict[str, Any], *, final: bool) -> list[StreamEvent]:
        message = _message(member(item, "error", "message") if final else item.get("message"))
        if final:
            self._completed = False
        if final and message == self._error:
            return []  # the same words came just before as an `error` of their own
        self._error = message or self._error
        return [StreamEvent("limit" if _is_limit(message) else "notice", message, {"final": final})]

    def finish(self, exit_code: int | None, stderr_tail: str) -> EngineOutcome:
        """Judge the run: a completed turn, a failed one, or neither."""
        if self._completed and exit_code == 0:
            return self._outcome(None, "", result_text=self._said)
        if self._completed:
            return self._outcome(FailureKind.ENGINE_ERROR, f"{describe_exit('codex', exit_code)} after its result")
        if not self._error:
            kind, message = ended_without_result("codex", exit_code, stderr_tail)
            return self._outcome(kind, message)
        if _is_limit(self._error):
            retry_at = reset_time(self._error, self._clock())
            return self._outcome(FailureKind.RATE_LIMITED, self._error, retry_at=retry_at)
        if exit_code is not None and exit_code < 0:  # killed while it was still trying again
            return self._outcome(FailureKind.CRASH, f"{describe_exit('codex', exit_code)}: {self._error}")
        refused = _NO_LIMIT_TEXT.search(self._error) or _LOGIN_TEXT.search(self._error)
        kind = FailureKind.ENGINE_UNAVAILABLE if refused else FailureKind.ENGINE_ERROR
        return self._outcome(kind, self._error)

    def _outcome(
        self, failure: FailureKind | None, message: str, *, retry_at: datetime | None = None, result_text: str = ""
    ) -> EngineOutcome:
        return EngineOutcome(
            ok=failure is None,
            failure=failure,
            message=shorten(message, 4000),
            retry_at=retry_at,
            session_id=self._session,
            usage=self._usage(),
            tool_calls=self._tool_calls,
            result_text=result_text,
            model=self._model(),
        )

    def _model(self) -> str:
        return self._run.model or self._recorded().model

    def _recorded(self) -> SessionRecord:
        """Return what the session file says; read once the turn is over, or when the process is gone."""
        if self._record is None:
            path = find_session_file(self._run.home, self._session) if self._session else None
            self._record = read_session(path) if path else SessionRecord(None, "")
        return self._record

    def _consumed(self) -> Tokens | None:
        """Return the tokens of this run alone; None when they cannot be told from earlier ones."""
        tokens = self._tokens or self._recorded().tokens
        if tokens is None or self._session != self._run.resume_session:
            return tokens
        return tokens.since(self._before) if self._before else None

    def _usage(self) -> Usage:
        tokens = self._consumed()
        if tokens is None:
            return Usage()
        cost = estimate_usd(
            self._model(),
            input_tokens=tokens.asked,
            cached=tokens.cached,
            cache_writes=tokens.cache_writes,
            output_tokens=tokens.answered,
        )
        return Usage(
            input_tokens=tokens.asked,
            output_tokens=tokens.answered,
            total_tokens=tokens.asked + tokens.answered,
            cost_usd=cost,
            cost_source="unknown" if cost is None else "estimated",
        )


def _is_limit(message: str) -> bool:
    return bool(_LIMIT_TEXT.search(message)) and not _NO_LIMIT_TEXT.search(message)


def _message(value: object) -> str:
    """Return an error's message; some are the provider's JSON body as text."""
    text = text_of(value)
    body = decode_object(text.encode()) if text.startswith("{") else None
    return text_of(member(body, "error", "message")) or text_of(member(body, "message")) or text


def _told(value: object) -> str:
    if isinstance(value, list):
        return " ".join(text_of(member(change, "path"), 200) for change in value[:10])
    return text_of(value, 300)
