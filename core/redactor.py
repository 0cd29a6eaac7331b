"""Takes secrets out of text that flows through: values that are known, and tokens of well-known shapes. *Pure.*

`Redactor` works on lines, because that is how logs travel: a chunk may end anywhere, what is given out always ends at
a line's end (or is the very end), and the whole output depends on the text alone, never on how it was cut. The shapes
are also what `workers.salvage` looks for before anything is pushed.

Standard library only: the supervisor imports it without site-packages.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote

SHORTEST_VALUE: Final = 6
"""Shorter values are no secrets worth the name, and would tear holes into ordinary words."""
LONGEST_SECRET: Final = 4096
LONGEST_LINE: Final = 64 * 1024
"""A line that is longer is given out in pieces; a secret that lies across the cut moves the cut."""


class Shape(NamedTuple):
    """What tokens of one kind look like."""

    kind: str
    hint: str
    """Text that every such token contains; lines without it are not searched."""
    pattern: re.Pattern[str]
    pushed: bool
    """Also keeps a file from being pushed; the others are too common in test data for that."""


def _shape(kind: str, hint: str, pattern: str, *, pushed: bool = True) -> Shape:
    return Shape(kind, hint, re.compile(pattern), pushed)


SHAPES: Final = (
    _shape("private-key", "PRIVATE KEY-----", r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"),
    _shape("anthropic-key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{20,300}"),
    _shape("api-key", "sk-", r"(?<![A-Za-z0-9])sk-(?!ant-)(?:proj-|svcacct-)?[A-Za-z0-9_-]{20,300}"),
    _shape("github-token", "gh", r"gh[pousr]_[A-Za-z0-9]{30,255}"),
    _shape("github-token", "github_pat_", r"github_pat_[A-Za-z0-9_]{22,255}"),
    _shape("gitlab-token", "glpat-", r"glpat-[A-Za-z0-9_-]{20,100}"),
    _shape("aws-key", "KIA", r"(?<![A-Z0-9])AKIA[0-9A-Z]{16}(?![A-Z0-9])"),
    _shape("aws-key", "SIA", r"(?<![A-Z0-9])ASIA[0-9A-Z]{16}(?![A-Z0-9])"),
    _shape("slack-token", "xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,250}"),
    _shape("google-key", "AIza", r"AIza[0-9A-Za-z_-]{35}"),
    _shape("npm-token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    # Our own tokens; after the bare prefix of the first version a name in some source would look alike.
    _shape(
        "gigafactory-token",
        "gf",
        r"gf(?:[ufet]_|_(?=[a-z0-9_-]{0,42}[A-Z])(?=[A-Za-z_-]{0,42}[0-9]))[A-Za-z0-9_-]{43}",
    ),
    _shape("payment-key", "k_live_", r"[rs]k_live_[A-Za-z0-9]{16,200}"),
    _shape("jwt", "eyJ", r"eyJ[A-Za-z0-9_-]{8,1000}\.eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,1000}", pushed=False),
    _shape("password", "://", r"(?<=://)[^/\s:@\"'<>]{0,100}:[^/\s@\"'<>]{3,200}(?=@)", pushed=False),
)
PUSHED_SHAPES: Final = tuple(shape for shape in SHAPES if shape.pushed)

_KEY_BEGIN: Final = re.compile(r"-----BEGIN ([A-Z ]{0,30}PRIVATE KEY)-----")
_KEY_END: Final = re.compile(r"-----END [A-Z ]{0,30}PRIVATE KEY-----")
LONGEST_KEY_LINES: Final = 200
"""A key block that does not end within this many lines is no key; the text after it is shown again."""

_SECRET_NAME: Final = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|_AUTH|APIKEY)", re.IGNORECASE
)
_HARMLESS_NAME: Final = re.compile(r"(_SOCK|_PATH|_FILE|_DIR|_URL|_ID|_NAME|_PID)$", re.IGNORECASE)


def secret_values(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment whose names say that their values are secret."""
    return {
        name: value
        for name, value in environ.items()
        if _SECRET_NAME.search(name) and not _HARMLESS_NAME.search(name) and len(value) >= SHORTEST_VALUE
    }


def find_shapes(text: str) -> tuple[str, ...]:
    """Return the kinds of tokens in `text` that may not be pushed, each once."""
    found = (s.kind for s in PUSHED_SHAPES if s.hint in text and s.pattern.search(text))
    return tuple(dict.fromkeys(found))


class Redactor:
    """Replaces secrets by `[redacted:<kind>]` in text that arrives in chunks."""

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self._values = _spellings(secrets or {})
        self._pending: list[str] = []
        """Pieces of the line that has not ended yet."""
        self._pending_chars = 0
        self._key_lines = 0
        """Lines seen since a private key began; 0 outside of one."""

    def feed(self, chunk: str) -> str:
        """Take a chunk and return what can be given out: redacted, up to the end of its last whole line."""
        head, newline, tail = chunk.rpartition("\n")
        out = []
        if newline:
            whole = "".join([*self._pending, head, newline])
            self._pending, self._pending_chars = [], 0
            out.append(self._lines(whole))
        self._pending.append(tail)
        self._pending_chars += len(tail)
        if self._pending_chars >= LONGEST_LINE:
            line = "".join(self._pending)
            given, rest = self._pieces(line)
            self._pending, self._pending_chars = [rest], len(rest)
            out.append(given)
        return "".join(out)

    def close(self) -> str:
        """Return the rest, a last line without its end included."""
        line = "".join(self._pending)
        self._pending, self._pending_chars = [], 0
        given, rest = self._pieces(line)
        return given + self._line(rest)

    def redact(self, text: str) -> str:
        """Return one complete text without secrets; nothing is remembered of it."""
        return Redactor.sharing(self).feed(text + "\n")[:-1]

    @classmethod
    def sharing(cls, other: Redactor) -> Redactor:
        """Return a fresh redactor that knows the same secrets, for another stream."""
        fresh = cls()
        fresh._values = other._values
        return fresh

    def _lines(self, text: str) -> str:
        if not self._key_lines and "PRIVATE KEY-----" not in text and len(text) < LONGEST_LINE:
            return self._replace(text)
        out = []
        for line in text.split("\n")[:-1]:  # `splitlines` would split at more than line feeds
            given, rest = self._pieces(line + "\n")
            out.append(given + self._line(rest))
        return "".join(out)

    def _pieces(self, line: str) -> tuple[str, str]:
        """Give out the beginning of a line that is too long, cut where no secret lies; return it and the rest."""
        out = []
        while len(line) >= LONGEST_LINE:
            cut = self._cut(line[:LONGEST_LINE])
            out.append(self._line(line[:cut]))
            line = line[cut:]
        return "".join(out), line

    def _cut(self, window: str) -> int:
        cut = LONGEST_LINE - LONGEST_SECRET
        for start, end in self._spans(window):
            if start < cut < end:
                cut = end
        return cut

    def _spans(self, text: str) -> list[tuple[int, int]]:
        spans = []
        for value, _ in self._values:
            at = text.find(value)
            while at >= 0:
                spans.append((at, at + len(value)))
                at = text.find(value, at + 1)
        for shape in SHAPES:
            if shape.hint in text:
                spans += [match.span() for match in shape.pattern.finditer(text)]
        return sorted(spans)

    def _line(self, line: str) -> str:
        """Redact one line, knowing whether it lies in a private key."""
        if self._key_lines:
            return self._inside_key(line)
        begin = _KEY_BEGIN.search(line)
        if begin is None:
            return self._replace(line)
        head = self._replace(line[: begin.start()])
        end = _KEY_END.search(line, begin.end())
        if end is not None:
            return f"{head}[redacted:private-key]" + self._line(line[end.end() :])
        self._key_lines = 1
        return f"{head}[redacted:private-key]" + ("\n" if line.endswith("\n") else "")

    def _inside_key(self, line: str) -> str:
        end = _KEY_END.search(line)
        if end is not None:
            self._key_lines = 0
            return self._line(line[end.end() :])
        self._key_lines += 1
        if self._key_lines > LONGEST_KEY_LINES:
            self._key_lines = 0
        return ""

    def _replace(self, text: str) -> str:
        for value, tag in self._values:
            if value in text:
                text = text.replace(value, tag)
        for shape in SHAPES:
            if shape.hint in text:
                text = shape.pattern.sub(f"[redacted:{shape.kind}]", text)
        return text


def _spellings(secrets: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return (spelling, replacement) for each secret as it is, in common encodings and line by line, longest first."""
    found: dict[str, str] = {}
    for kind, value in secrets.items():
        tag = f"[redacted:{kind}]"
        for spelling in _spell(value.strip()):
            if len(spelling) >= SHORTEST_VALUE:
                found.setdefault(spelling[:LONGEST_SECRET], tag)
    return tuple(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def _spell(value: str) -> Iterable[str]:
    if "\n" in value:
        yield from (line.strip() for line in value.split("\n") if len(line.strip()) >= 16)
    else:
        yield value
    yield quote(value, safe="")
    yield json.dumps(value)[1:-1]
    yield base64.b64encode(value.encode()).decode().rstrip("=")
