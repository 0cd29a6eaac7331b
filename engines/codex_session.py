"""Codex's own record of a session: `$HOME/.codex/sessions/<year>/<month>/<day>/rollout-<time>-<id>.jsonl`.

Does I/O: reads that one file. Its `token_count` entries hold the totals of the whole session, written after every
answer of the model; its `turn_context` entries name the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engines.json_lines import count_of, decode_object, member, text_of

SESSION_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INTERESTING = (b'"token_count"', b'"turn_context"')


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a session so far; `cached` and `cache_writes` are parts of `asked`."""

    asked: int
    answered: int
    cached: int = 0
    cache_writes: int = 0

    @classmethod
    def read(cls, usage: object) -> Self | None:
        """Read Codex's usage object; None when it lacks what counts."""
        asked, answered = count_of(member(usage, "input_tokens")), count_of(member(usage, "output_tokens"))
        if asked is None or answered is None:
            return None
        cached = count_of(member(usage, "cached_input_tokens")) or 0
        return cls(asked, answered, cached, count_of(member(usage, "cache_write_input_tokens")) or 0)

    def since(self, earlier: Tokens) -> Tokens:
        """Return what came after `earlier`."""
        return Tokens(
            asked=max(0, self.asked - earlier.asked),
            answered=max(0, self.answered - earlier.answered),
            cached=max(0, self.cached - earlier.cached),
            cache_writes=max(0, self.cache_writes - earlier.cache_writes),
        )


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What a session file says."""

    tokens: Tokens | None
    """None while the model has not answered."""
    model: str


def find_session_file(home: Path, session: str) -> Path | None:
    """Return the file of `session`, the newest if there are several; None when this home does not have it."""
    if not SESSION_ID.fullmatch(session):
        return None
    found = (home / ".codex" / "sessions").glob(f"*/*/*/rollout-*-{session}.jsonl")
    return max(found, default=None)


def read_session(path: Path) -> SessionRecord:
    """Return totals and model of a session; a file that is half written or gone counts as far as it can be read."""
    tokens: Tokens | None = None
    model = ""
    try:
        with path.open("rb") as lines:
            for line in lines:
                if not any(word in line for word in _INTERESTING):
                    continue
                item: dict[str, Any] = decode_object(line) or {}
                if item.get("type") == "turn_context":
                    model = text_of(member(item, "payload", "model"), 200) or model
                elif member(item, "payload", "type") == "token_count":
                    tokens = Tokens.read(member(item, "payload", "info", "total_token_usage")) or tokens
    except OSError:
        pass
    return SessionRecord(tokens, model)
