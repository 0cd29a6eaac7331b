"""Claude Code: `claude -p` with its JSON stream. *Pure*, but for a look into its own HOME for a session.

The prompt goes in by standard input, so no length of it meets the system's limit for arguments. Values that come from
a job are always the second half of `--option=value`: nothing in them can become an option of its own.

What the stream was found to do (versions in `Claude.abilities`; recorded runs lie in `tests/engines/streams/`):
an API error ends with `subtype: success` and `is_error: true`; `total_cost_usd` and `modelUsage` of a resumed session
count from its beginning, `usage` and `model_usage_since_last_result` only this run; a subscription's limit comes as
`rate_limit_event` with `resetsAt` in epoch seconds, an API key's limit without any time.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from decimal import Decimal
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
from engines.environment import engine_environment, temporary_directory
from engines.json_lines import count_of, decode_object, json_safe, member, plain_line, text_of, usd_of
from engines.limits import from_epoch, reset_time

QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
}
"""The CLI talks to its model endpoint and to nothing else, and stays at the version that was probed."""

_LIMIT_TEXT = re.compile(
    r"usage limit reached|you've (?:hit|reached) your .{0,40}limit|out of (?:extra )?usage|\b429\b|rate.?limit",
    re.IGNORECASE,
)
_BILLING_TEXT = re.compile(r"credit balance is too low", re.IGNORECASE)
_LOGIN_TEXT = re.compile(r"please run /login|invalid api key", re.IGNORECASE)
_SESSION_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HINTS = {
    "authentication_failed": "set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN in the factory's environment",
    "billing_error": "the account has no credit left",
}


_TELLING = ("file_path", "command", "pattern", "url", "description", "prompt")
"""Members of a tool's input that say in one line what it does."""


class Claude(BaseEngine):
    """The adapter."""

    name = "claude"
    title = "Claude Code"
    engine_class = "agentic-coder"
    env_allow = (
        *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"),
        *("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL"),
        *("ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "CLAUDE_CODE_OAUTH_TOKEN"),
        *("CLAUDE_CODE_MAX_RETRIES", "CLAUDE_CODE_SUBPROCESS_ENV_SCRUB", "API_TIMEOUT_MS"),
    )
    abilities = Abilities(
        resume=True, cost="reported", tokens=True, model=True, allowed_tools=True, tested_with="2.1.329"
    )
    install_hint = "install it with `npm install -g @anthropic-ai/claude-code`"

    def probe_command(self) -> list[str]:
        """Ask for the version; this makes no request."""
        return ["claude", "--version"]

    def command(self, run: EngineRun) -> Command:
        """Return the headless call; rights follow `yolo`."""
        argv = ["claude", "-p", "--output-format=stream-json", "--verbose"]
        env = engine_environment(self, run) | QUIET
        if run.yolo:
            argv.append("--dangerously-skip-permissions")
            if os.geteuid() == 0:
                env["IS_SANDBOX"] = "1"  # as root the CLI refuses that flag without this word
        else:
            argv.append("--permission-mode=acceptEdits")
        if run.model:
            argv.append(f"--model={run.model}")
        if run.allowed_tools:
            argv.append(f"--allowedTools={','.join(run.allowed_tools)}")
        if run.resume_session:
            argv.append(f"--resume={run.resume_session}")
        return Command(
            argv=tuple(argv), env=env, stdin_text=run.prompt, directories=(run.home, temporary_directory(run))
        )

    def parser(self, run: EngineRun, clock: Clock = utc_now) -> ClaudeParser:
        """Return the reader of the JSON stream."""
        return ClaudeParser(resumed=run.resume_session is not None, clock=clock)

    def has_session(self, home: Path, session: str) -> bool:
        """Look for the session's transcript; it may come from any worktree of this home."""
        if not _SESSION_ID.fullmatch(session):
            return False
        return any((home / ".claude" / "projects").glob(f"*/{session}.jsonl"))


class ClaudeParser:
    """Reads the stream of one run."""

    def __init__(self, *, resumed: bool = False, clock: Clock = utc_now) -> None:
        self._resumed = resumed
        self._clock = clock
        self._session: str | None = None
        self._model = ""
        self._tool_calls = 0
        self._limit: dict[str, Any] = {}
        self._result: dict[str, Any] | None = None
        self._asked: dict[str, int] = {}
        """Input tokens by message id, for a run that never comes to its result."""

    def feed(self, line: bytes) -> list[StreamEvent]:
        """Read one line of standard output."""
        item = decode_object(line)
        if item is None:
            text = plain_line(line)
            return [StreamEvent("notice", text)] if text.strip() else []
        session = text_of(item.get("session_id"), 200)
        if session:
            self._session = session
        readers = {
            "system": self._system,
            "assistant": self._assistant,
            "user": self._tool_results,
            "rate_limit_event": self._rate_limit,
            "result": self._take_result,
        }
        reader = readers.get(text_of(item.get("type"), 100))
        return reader(item) if reader else []

    def _system(self, item: dict[str, Any]) -> list[StreamEvent]:
        if item.get("subtype") == "init":
            self._model = text_of(item.get("model"), 200)
            version = text_of(item.get("claude_code_version"), 100)
            return [StreamEvent("session", self._session or "", {"model": self._model, "version": version})]
        if item.get("subtype") == "api_retry":
            keys = ("attempt", "max_retries", "retry_delay_ms", "error_status", "error")
            data = {key: json_safe(item.get(key)) for key in keys}
            text = "the provider answered {error_status} ({error}); try {attempt} of {max_retries}".format(**data)
            return [StreamEvent("notice", text, data)]
        return []

    def _assistant(self, item: dict[str, Any]) -> list[StreamEvent]:
        failed = bool(item.get("is_api_error_message"))
        events: list[StreamEvent] = []
        blocks = member(item, "message", "content")
        for block in blocks if isinstance(blocks, list) else ():
            kind = member(block, "type")
            if kind == "text" and text_of(member(block, "text")):
                events.append(StreamEvent("notice" if failed else "text", text_of(member(block, "text"))))
            elif kind == "tool_use":
                events.append(self._tool_call(block))
        usage = self._running_usage(item)
        return [*events, usage] if usage else events

    def _tool_call(self, block: dict[str, Any]) -> StreamEvent:
        self._tool_calls += 1
        name, arguments = text_of(block.get("name"), 200), block.get("input")
        told = next((text for key in _TELLING if (text := text_of(member(arguments, key), 300))), "")
        data = {"id": text_of(block.get("id"), 200), "name": name, "input": json_safe(arguments)}
        return StreamEvent("tool_call", f"{name} {told}".strip(), data)

    def _running_usage(self, item: dict[str, Any]) -> StreamEvent | None:
        usage = member(item, "message", "usage")
        identity = text_of(member(item, "message", "id"), 200)
        if not isinstance(usage, dict) or item.get("is_api_error_message") or not identity:
            return None
        asked = _input_tokens(usage)
        if asked is None or self._asked.get(identity) == asked:
            return None
        self._asked[identity] = asked
        return StreamEvent("usage", "", {"input_tokens": sum(self._asked.values()), "final": False})

    def _tool_results(self, item: dict[str, Any]) -> list[StreamEvent]:
        blocks = member(item, "message", "content")
        return [
            StreamEvent(
                "tool_result",
                _block_text(member(block, "content")),
                {"id": text_of(member(block, "tool_use_id"), 200), "is_error": member(block, "is_error") is True},
            )
            for block in (blocks if isinstance(blocks, list) else ())
            if member(block, "type") == "tool_result"
        ]

    def _rate_limit(self, item: dict[str, Any]) -> list[StreamEvent]:
        info = item.get("rate_limit_info")
        info = info if isinstance(info, dict) else {}
        status, window = text_of(info.get("status"), 100), text_of(info.get("rateLimitType"), 100)
        if status == "rejected":
            self._limit = info
        moment = from_epoch(info.get("resetsAt"), self._clock())
        data = {"status": status, "window": window, "utilization": json_safe(info.get("utilization"))}
        if moment:
            data["resets_at"] = moment.isoformat()
        return [StreamEvent("limit", f"{window or 'rate'} limit: {status or 'unknown'}", data)]

    def _take_result(self, item: dict[str, Any]) -> list[StreamEvent]:
        self._result = item
        usage = self._usage()
        data = {**usage.model_dump(mode="json"), "final": True}
        outcome = {"subtype": text_of(item.get("subtype"), 100), "is_error": item.get("is_error") is True}
        return [StreamEvent("usage", "", data), StreamEvent("result", _result_text(item), outcome)]

    def finish(self, exit_code: int | None, stderr_tail: str) -> EngineOutcome:
        """Judge the run by its result; without one it crashed, or could not start."""
        if self._result is None:
            kind, message = ended_without_result("claude", exit_code, stderr_tail)
            return self._outcome(kind, message)
        text = _result_text(self._result)
        if self._result.get("is_error") is True or self._result.get("subtype") != "success":
            return self._failed(text, stderr_tail)
        if exit_code != 0:
            return self._outcome(FailureKind.ENGINE_ERROR, f"{describe_exit('claude', exit_code)} after its result")
        return self._outcome(None, "", result_text=text)

    def _failed(self, text: str, stderr_tail: str) -> EngineOutcome:
        assert self._result is not None
        status = self._result.get("api_error_status")
        reason = text_of(self._result.get("subtype"), 100)
        message = text or stderr_tail.strip() or f"ended with {reason or 'an error'}"
        limited = status == 429 or (status is None and _LIMIT_TEXT.search(message) is not None)
        if (limited or self._limit) and not _BILLING_TEXT.search(message):
            return self._outcome(FailureKind.RATE_LIMITED, message, retry_at=self._reset(message))
        hint = _HINTS["authentication_failed"] if status in (401, 403) or _LOGIN_TEXT.search(message) else ""
        hint = _HINTS["billing_error"] if _BILLING_TEXT.search(message) else hint
        if hint:
            return self._outcome(FailureKind.ENGINE_UNAVAILABLE, f"{message} ({hint})")
        return self._outcome(FailureKind.ENGINE_ERROR, message)

    def _reset(self, message: str) -> datetime | None:
        now = self._clock()
        moments = [from_epoch(self._limit.get(key), now) for key in ("resetsAt", "overageResetsAt")]
        told = [moment for moment in moments if moment is not None]
        return min(told) if told else reset_time(message, now)

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
            model=self._model,
        )

    def _usage(self) -> Usage:
        if self._result is None:
            return Usage(input_tokens=sum(self._asked.values())) if self._asked else Usage()
        models = self._result.get("model_usage_since_last_result")
        if isinstance(models, dict):
            return _usage_of_models([model for model in models.values() if isinstance(model, dict)])
        usage = self._result.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        cost = None if self._resumed else usd_of(self._result.get("total_cost_usd"))
        return _usage(_input_tokens(usage), count_of(usage.get("output_tokens")), cost)


def _usage_of_models(models: list[dict[str, Any]]) -> Usage:
    """Add up what each model consumed in this run; sub-agents are in it."""
    asked = [count_of(model.get(key)) for model in models for key in _MODEL_INPUT]
    answered = [count_of(model.get("outputTokens")) for model in models]
    costs = [usd_of(model.get("costUSD")) for model in models]
    return _usage(
        _total(asked), _total(answered), None if None in costs else sum((c for c in costs if c is not None), Decimal(0))
    )


_MODEL_INPUT = ("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")


def _usage(asked: int | None, answered: int | None, cost: Decimal | None) -> Usage:
    return Usage(
        input_tokens=asked,
        output_tokens=answered,
        total_tokens=_total([asked, answered]),
        cost_usd=cost,
        cost_source="unknown" if cost is None else "reported",
    )


def _total(counts: list[int | None]) -> int | None:
    """Add up counts; one that is not known makes the sum unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _input_tokens(usage: dict[str, Any]) -> int | None:
    """Return all tokens that went in: plain, read from the cache, written to it."""
    plain = count_of(usage.get("input_tokens"))
    if plain is None:
        return None
    return plain + sum(
        count_of(usage.get(key)) or 0 for key in ("cache_read_input_tokens", "cache_creation_input_tokens")
    )


def _result_text(item: dict[str, Any]) -> str:
    errors = item.get("errors")
    told = [text_of(error) for error in errors] if isinstance(errors, list) else []
    return text_of(item.get("result")) or text_of("\n".join(text for text in told if text))


def _block_text(content: object) -> str:
    if isinstance(content, list):
        return text_of("\n".join(text_of(member(part, "text")) for part in content[:100]))
    return text_of(content)
