"""Parsers on recorded streams of the real CLIs, and on everything that no CLI should ever print."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.job import FailureKind
from engines.base import EngineOutcome, EngineRun, StreamEvent, StreamParser
from engines.claude import Claude, ClaudeParser
from engines.codex import Codex, CodexParser
from engines.codex_session import Tokens
from engines.generic import GenericParser, read_engine
from engines.json_lines import MAX_LINE_BYTES, MAX_TEXT
from engines.replay import ReplayParser
from engines.shell import ShellParser

STREAMS = Path(__file__).with_name("streams")
NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
SESSION = "11111111-2222-3333-4444-555555555555"


def fixed_clock() -> datetime:
    """Return the moment at which the tests stand."""
    return NOW


def run_of(**changes: Any) -> EngineRun:
    """Return a run whose directories do not exist."""
    values: dict[str, Any] = {"prompt": "Hello.", "model": "gpt-6.1-sol", **changes}
    nowhere = Path("/nonexistent")
    return EngineRun(workdir=nowhere / "tree", home=nowhere / "home", attempt_dir=nowhere, **values)


@dataclass(frozen=True)
class Recorded:
    """A recorded stream: how the CLI ended, and what it had printed."""

    exit_code: int
    stderr: str
    lines: list[bytes]

    def through(self, parser: StreamParser) -> tuple[EngineOutcome, list[StreamEvent]]:
        """Feed everything and finish."""
        events = [event for line in self.lines for event in parser.feed(line)]
        return parser.finish(self.exit_code, self.stderr), events


def recorded(name: str) -> Recorded:
    """Read a recorded stream; its first line is ours."""
    head, *lines = (STREAMS / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
    told = json.loads(head)["recorded"]
    return Recorded(told["exit_code"], told["stderr"], lines)


ENGINE_ERROR, RATE_LIMITED, CRASH = FailureKind.ENGINE_ERROR, FailureKind.RATE_LIMITED, FailureKind.CRASH
UNAVAILABLE = FailureKind.ENGINE_UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "failure", "tokens", "tool_calls"),
    [
        ("claude-success", None, 240, 1),
        ("claude-overloaded-once", None, 120, 0),
        ("claude-large-usage", None, 900_123_456_789, 0),
        ("claude-api-error", UNAVAILABLE, 0, 0),
        ("claude-overloaded", ENGINE_ERROR, 0, 0),
        ("claude-no-credit", UNAVAILABLE, 0, 0),
        ("claude-no-session", ENGINE_ERROR, 0, 0),
        ("claude-key-limit", RATE_LIMITED, 0, 0),
        ("claude-rate-limit", RATE_LIMITED, 0, 0),
        ("claude-killed", CRASH, None, 0),
        ("codex-success", None, 240, 1),
        ("codex-unknown-model", None, 120, 0),
        ("codex-large-usage", None, 900_123_456_789, 0),
        ("codex-api-error", UNAVAILABLE, None, 0),
        ("codex-cut", ENGINE_ERROR, None, 0),
        ("codex-no-quota", UNAVAILABLE, None, 0),
        ("codex-no-session", ENGINE_ERROR, None, 0),
        ("codex-overloaded", ENGINE_ERROR, None, 0),
        ("codex-key-limit", RATE_LIMITED, None, 0),
        ("codex-rate-limit", RATE_LIMITED, None, 0),
        ("codex-rate-limit-days", RATE_LIMITED, None, 0),
        ("codex-killed", CRASH, None, 1),
    ],
)
def test_recorded_stream_is_judged(name: str, failure: FailureKind | None, tokens: int | None, tool_calls: int) -> None:
    """Each recorded way to end has its kind, its consumption and its count of tool calls."""
    parser = ClaudeParser(clock=fixed_clock) if name.startswith("claude") else CodexParser(run_of(), clock=fixed_clock)
    outcome, _ = recorded(name).through(parser)
    assert (outcome.failure, outcome.ok) == (failure, failure is None)
    assert outcome.usage.total_tokens == tokens
    assert outcome.tool_calls == tool_calls
    assert bool(outcome.message) == (failure is not None)


def test_every_recorded_stream_is_read_by_a_test() -> None:
    """A stream that is recorded and then forgotten proves nothing."""
    source = Path(__file__).read_text()
    assert [path.stem for path in STREAMS.glob("*.jsonl") if f'"{path.stem}"' not in source] == []


def test_recorded_streams_name_no_path_of_the_machine_they_came_from() -> None:
    """Recordings are part of the repository."""
    text = "".join(path.read_text() for path in STREAMS.glob("*.jsonl"))
    assert [word for word in ("/root", "/home", "pytest", "/Users") if word in text.replace("/engine-home", "")] == []


def test_claude_cut_stream_names_what_the_endpoint_did() -> None:
    """The message of a cut connection is the CLI's own."""
    outcome, _ = recorded("claude-cut").through(ClaudeParser())
    assert outcome.failure == ENGINE_ERROR
    assert "stream_truncated" in outcome.message


def test_claude_resumed_stream_counts_only_its_own_run() -> None:
    """`total_cost_usd` of a resumed session is the session's; the attempt's is smaller."""
    stream = recorded("claude-resumed")
    outcome, _ = stream.through(ClaudeParser(resumed=True))
    total = json.loads(stream.lines[-1])["total_cost_usd"]
    assert outcome.usage.input_tokens == 3000
    assert outcome.usage.cost_usd is not None
    assert outcome.usage.cost_usd < Decimal(str(total))


def test_claude_older_cli_that_is_resumed_has_no_cost() -> None:
    """Where only the session's total is told, the attempt's cost is unknown rather than too high."""
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 7}
    result = {"type": "result", "subtype": "success", "is_error": False, "result": "ok", "usage": usage}
    line = json.dumps({**result, "total_cost_usd": 0.5}).encode()
    for resumed, cost in ((True, None), (False, Decimal("0.5"))):
        parser = ClaudeParser(resumed=resumed)
        parser.feed(line)
        outcome = parser.finish(0, "")
        assert (outcome.usage.cost_usd, outcome.usage.total_tokens) == (cost, 22)


def test_codex_resumed_stream_counts_only_its_own_run() -> None:
    """The tokens of the session before are taken off; when they are not known, nothing is claimed."""
    stream = recorded("codex-resumed")
    session = json.loads(stream.lines[0])["thread_id"]
    total = json.loads(stream.lines[-1])["usage"]["input_tokens"]
    known, _ = stream.through(CodexParser(run_of(resume_session=session), Tokens(1000, 20)))
    unknown, _ = stream.through(CodexParser(run_of(resume_session=session)))
    assert known.usage.input_tokens == total - 1000
    assert unknown.usage.total_tokens is None
    assert unknown.usage.cost_usd is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Claude AI usage limit reached|1795258800", datetime(2026, 11, 21, 11, 0, tzinfo=UTC)),
        ("You've hit your session limit · resets 1pm (UTC)", datetime(2026, 11, 21, 13, 1, tzinfo=UTC)),
        ("You're out of extra usage · resets 5pm (Europe/Berlin)", datetime(2026, 11, 21, 16, 1, tzinfo=UTC)),
    ],
)
def test_claude_limit_of_older_versions_is_read_from_its_text(text: str, expected: datetime) -> None:
    """Versions without a status in the result say the limit in words."""
    parser = ClaudeParser(clock=fixed_clock)
    parser.feed(json.dumps({"type": "result", "subtype": "success", "is_error": True, "result": text}).encode())
    outcome = parser.finish(1, "")
    assert (outcome.failure, outcome.retry_at) == (RATE_LIMITED, expected)


def test_claude_that_writes_about_limits_is_not_limited() -> None:
    """Words of a successful agent are not taken for the provider's."""
    parser = ClaudeParser()
    text = "I fixed the 429 handling; usage limit reached|1795258800 is parsed now."
    parser.feed(json.dumps({"type": "result", "subtype": "success", "is_error": False, "result": text}).encode())
    assert parser.finish(0, "").ok


def test_claude_limit_warning_is_an_event_and_no_failure() -> None:
    """A limit that comes near is told and nothing else."""
    info = {"status": "allowed_warning", "resetsAt": int(NOW.timestamp()) + 60, "rateLimitType": "seven_day"}
    parser = ClaudeParser(clock=fixed_clock)
    (event,) = parser.feed(json.dumps({"type": "rate_limit_event", "rate_limit_info": info}).encode())
    assert event.data["resets_at"] == (NOW + timedelta(seconds=60)).isoformat()
    parser.feed(b'{"type":"result","subtype":"error_max_turns","is_error":true,"errors":["too many turns"]}')
    assert parser.finish(1, "").failure == ENGINE_ERROR


def test_result_that_is_followed_by_a_crash_is_no_success() -> None:
    """An exit code that contradicts the result wins."""
    for name, parser in (("claude-success", ClaudeParser()), ("codex-success", CodexParser(run_of()))):
        stream = recorded(name)
        outcome, _ = Recorded(139, "", stream.lines).through(parser)
        assert outcome.failure == ENGINE_ERROR


def test_nothing_at_all_is_judged_by_the_exit_code() -> None:
    """A CLI that never said anything crashed when a signal ended it; one that is not there, or ended as if all were
    well, is no engine to work with; otherwise the run failed.
    """
    parsers: list[Callable[[], StreamParser]] = [ClaudeParser, lambda: CodexParser(run_of()), ReplayParser]
    for make in parsers:
        assert make().finish(-9, "").failure == CRASH
        assert make().finish(137, "").failure == CRASH
        assert make().finish(None, "").failure == CRASH
        failed = make().finish(127, "sh: no such program\n")
        assert failed.failure == UNAVAILABLE
        assert "no such program" in failed.message
        assert make().finish(0, "").failure == UNAVAILABLE
        assert make().finish(1, "").failure == ENGINE_ERROR


# --- what no CLI should print -----------------------------------------------------------------------------------------

GENERIC = """
name: any
probe: {command: [any]}
argv: [any, "{prompt}"]
prompt: arg
output:
  format: jsonl
  text: [text, message.content.0.text, item.text]
  tool: [name, item.command]
  session: [session_id, thread_id]
  error: [error.message]
  input_tokens: usage.input_tokens
  output_tokens: usage.output_tokens
  cost_usd: total_cost_usd
  counts: sum
failures: [{pattern: "(?i)limit", kind: rate_limited}]
"""

VOCABULARY = (
    "type subtype system init assistant user result message content text tool_use tool_result name input id usage "
    "input_tokens output_tokens cached_input_tokens total_cost_usd is_error rate_limit_event rate_limit_info status "
    "rejected resetsAt overageResetsAt session_id error api_retry api_error_status errors modelUsage costUSD "
    "model_usage_since_last_result inputTokens outputTokens thread.started thread_id turn.started turn.completed "
    "turn.failed item item.started item.completed agent_message command_execution aggregated_output exit_code "
    "file_change changes path say write run ran command failed step done success is_api_error_message"
)
WORDS = st.sampled_from(VOCABULARY.split())
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | st.text(max_size=30)
    | st.sampled_from([2**53, 2**64, -1, 10**30, 1e308, "usage limit reached|9999999999", "\ud800", "a\0b", SESSION])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=6)
)
OBJECTS = st.dictionaries(WORDS, VALUES, max_size=8) | st.builds(
    lambda kind, rest: {**rest, "type": kind}, WORDS, st.dictionaries(WORDS, VALUES, max_size=8)
)
LINES = st.binary(max_size=60) | OBJECTS.map(lambda value: json.dumps(value).encode())


def parsers() -> list[StreamParser]:
    """Return one fresh parser of each kind."""
    return [
        ClaudeParser(clock=fixed_clock),
        ClaudeParser(resumed=True, clock=fixed_clock),
        CodexParser(run_of(), clock=fixed_clock),
        CodexParser(run_of(resume_session=SESSION, model=None), Tokens(5, 5), fixed_clock),
        GenericParser(read_engine(GENERIC, "any.yaml").spec, fixed_clock),
        ReplayParser(),
        ShellParser(),
    ]


def check(events: list[StreamEvent], outcome: EngineOutcome) -> None:
    """Everything that leaves a parser can be stored, sent and shown."""
    for event in events:
        event.text.encode()
        assert "\0" not in event.text
        assert len(event.text) <= MAX_TEXT + 700
        assert "\\u0000" not in json.dumps(event.data, allow_nan=False)
        json.dumps(event.data, ensure_ascii=False).encode()
    outcome.message.encode()
    assert (outcome.failure is None) == outcome.ok
    assert outcome.retry_at is None or outcome.retry_at.utcoffset() == timedelta(0)
    assert len(outcome.session_id or "") <= 200
    for count in (outcome.usage.input_tokens, outcome.usage.output_tokens, outcome.usage.total_tokens):
        assert count is None or 0 <= count < 2**63
    assert (outcome.usage.cost_usd is None) == (outcome.usage.cost_source == "unknown")
    outcome.usage.model_dump_json()


@settings(max_examples=300)
@given(st.lists(LINES, max_size=8), st.sampled_from([0, 1, -9, 137, None]), st.text(max_size=40))
def test_garbage_never_raises(lines: list[bytes], exit_code: int | None, stderr: str) -> None:
    """Whatever stands in the stream, every parser ends with an outcome that can be stored."""
    for parser in parsers():
        events = [event for line in lines for event in parser.feed(line)]
        check(events, parser.finish(exit_code, stderr))


RECORDINGS = sorted(path.stem for path in STREAMS.glob("*.jsonl"))


@settings(max_examples=200)
@given(st.sampled_from(RECORDINGS), st.data())
def test_truncated_stream_never_raises(name: str, data: st.DataObject) -> None:
    """A stream that stops at any byte, or lost any of its lines, gives an outcome; without its end no success."""
    whole = b"".join(recorded(name).lines)
    part = whole[: data.draw(st.integers(0, max(0, len(whole) - 2)))]
    lines = part.splitlines(keepends=True)
    kept = [line for line in lines if data.draw(st.integers(0, 9)) > 0]
    for parser in parsers()[:4]:
        events = [event for line in kept for event in parser.feed(line)]
        outcome = parser.finish(1, "")
        check(events, outcome)
        assert not outcome.ok


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 200_000,
        b'{"type":' * 50_000,
        b'{"type":"result","usage":{"input_tokens":' + b"9" * 6000 + b"}}",
        b'{"type":"assistant","message":{"content":[{"type":"text","text":"' + b"x" * 3_000_000 + b'"}]}}',
        b'{"type":"item.completed","item":{"type":"agent_message","text":"' + b"y" * 3_000_000 + b'"}}',
        b"z" * (MAX_LINE_BYTES + 1),
        b'{"total_cost_usd": 1e999999999, "type": "result"}',
        b'{"total_cost_usd": NaN, "type": "result", "usage": {"input_tokens": Infinity}}',
        b"\xff\xfe\x00\x01",
        b"",
    ],
    ids=["deep", "open", "digits", "claude", "codex", "line", "exponent", "nan", "bytes", "empty"],
)
def test_monstrous_line_never_raises(line: bytes) -> None:
    """Depth, length and size have no effect but a shortened text."""
    for parser in parsers():
        events = parser.feed(line)
        check(events, parser.finish(0, ""))


def test_adapters_make_the_parsers_that_are_tested_here() -> None:
    """What the engines hand out is what this file breaks."""
    assert isinstance(Claude().parser(run_of()), ClaudeParser)
    assert isinstance(Codex().parser(run_of()), CodexParser)
