"""A Markdown file with YAML front matter, read so that every later complaint can name its line. *Pure.*

Only the plain part of YAML is read: mappings, lists and scalars, where **every scalar is text** and the field it
stands for says what it means. So `on:` stays a name, `007` keeps its zeros, `1:30` is no sixty-base number and
`verify: true` is the command `true`. Tags, anchors and aliases are refused: a job file has no use for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from core.errors import FieldProblem

FENCE = "---"
FRONT_MATTER = "front-matter"
"""Path that problems of the front matter as a whole carry."""
BODY = "body"

LONGEST_FRONT_MATTER = 64 * 1024
LONGEST_BODY = 1024 * 1024
"""Bytes of UTF-8. A prompt beyond a megabyte is a mistake, and no engine takes it."""
DEEPEST = 8
"""Levels of nesting; the deepest field needs three."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_NEEDS_QUOTES = "*&!@`%"
"""Characters that mean something to YAML at the beginning of a value; globs and names begin with them all the same."""
_UNQUOTED = re.compile(rf"(?:[:,-][ \t]+|\[[ \t]*)([{re.escape(_NEEDS_QUOTES)}])")


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """What a file says: values as written, the body, the line of each value, and what could not be read."""

    values: dict[str, Any]
    body: str
    lines: dict[str, int] = field(default_factory=dict)
    """Path of a field (`retry.on[1]`, `front-matter` for the opening line) → line in the file, from 1."""
    body_line: int = 1
    problems: tuple[FieldProblem, ...] = ()
    readable: bool = True
    """False when the front matter as a whole could not be read, so that missing fields mean nothing."""


def read_front_matter(text: str) -> FrontMatter:
    """Split `text` into front matter and body and read the former; never raises, problems are returned."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines[start].rstrip() != FENCE:
        problem = FieldProblem(
            FRONT_MATTER,
            "is missing",
            value=_clip(lines[start]),
            expected=f"a first line {FENCE}, then fields such as `engine: claude`, then a line {FENCE}",
            line=start + 1,
        )
        return FrontMatter({}, "", problems=(problem,), readable=False)
    end = next((n for n in range(start + 1, len(lines)) if lines[n].rstrip() == FENCE), None)
    if end is None:
        problem = FieldProblem(
            FRONT_MATTER,
            "is not closed",
            expected=f"a line {FENCE} between the last field and the body",
            line=start + 1,
        )
        return FrontMatter({}, "", problems=(problem,), readable=False)
    values, where, problems, readable = _read_yaml("\n".join(lines[start + 1 : end]), first_line=start + 2)
    body, body_line = _read_body(lines, end + 1)
    return FrontMatter(values, body, {FRONT_MATTER: start + 1, **where}, body_line, problems, readable)


def body_problems(body: str, line: int | None) -> Iterator[FieldProblem]:
    """Yield what is wrong with a body: nothing in it, a NUL character, or beyond `LONGEST_BODY`."""
    if not body.strip():
        yield FieldProblem(BODY, "is empty", expected="text: it is the prompt", line=line)
    if "\0" in body:
        at = body[: body.index("\0")].count("\n")
        yield FieldProblem(BODY, "contains a NUL character", expected="text", line=None if line is None else line + at)
    if len(body.encode(errors="replace")) > LONGEST_BODY:
        yield FieldProblem(BODY, "is too long", expected=f"at most {LONGEST_BODY} bytes", line=line)


def normal_body(body: str) -> str:
    """Return `body` with Unix line ends, without blank lines at its ends, closed by one line end."""
    text = body.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip() + "\n" if text.strip() else ""


def _read_body(lines: list[str], start: int) -> tuple[str, int]:
    """Return the body below the front matter and the line on which its text begins."""
    first = next((n for n in range(start, len(lines)) if lines[n].strip()), start)
    return normal_body("\n".join(lines[first:])), first + 1


def _clip(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


# --- YAML ------------------------------------------------------------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):
    """PyYAML without implicit types, aliases and deep nesting: it only composes nodes."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class wants a plain class attribute

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            kind = "alias" if isinstance(event, yaml.AliasEvent) else "anchor"
            raise ComposerError(None, None, f"{kind} `{event.anchor}` is not supported", event.start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(None, None, f"nested deeper than {DEEPEST} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Read = tuple[dict[str, Any], dict[str, int], tuple[FieldProblem, ...], bool]


def _read_yaml(text: str, *, first_line: int) -> _Read:
    """Return values, lines, problems, and whether the text could be read as a mapping at all."""
    if len(text.encode(errors="replace")) > LONGEST_FRONT_MATTER:
        problem = FieldProblem(
            FRONT_MATTER, "is too long", expected=f"at most {LONGEST_FRONT_MATTER} bytes", line=first_line - 1
        )
        return {}, {}, (problem,), False
    try:
        node = _PlainLoader(text).get_single_node()
    except yaml.YAMLError as error:
        return {}, {}, (_syntax_problem(error, text, first_line),), False
    if node is None or (isinstance(node, ScalarNode) and not node.value.strip()):
        return {}, {}, (), True
    if not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else "text"
        problem = FieldProblem(
            FRONT_MATTER,
            f"is {kind}",
            value=_clip(text.strip().split("\n")[0]),
            expected="fields such as `engine: claude`, one a line",
            line=first_line + int(node.start_mark.line),
        )
        return {}, {}, (problem,), False
    reader = _Reader(first_line)
    values = reader.mapping(node, "")
    return values, reader.lines, tuple(reader.problems), True


class _Reader:
    """Turns composed nodes into plain values and remembers the line of each."""

    def __init__(self, first_line: int) -> None:
        self.first_line = first_line
        self.lines: dict[str, int] = {}
        self.problems: list[FieldProblem] = []

    def value(self, node: Node, path: str) -> Any:
        """Return the plain value of `node`: text, None, a list or a mapping."""
        if not node.tag.startswith("tag:yaml.org,2002:") or _explicit(node):
            hint = _quotes("!") if node.tag.startswith("!") else "a value without a tag"
            self._complain(path, f"tag `{node.tag}` is not supported", node, expected=hint)
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, f"{path}.")
        if isinstance(node, SequenceNode):
            return [self._item(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
        plain = isinstance(node, ScalarNode) and node.style is None
        return None if plain and node.value in _NULLS else str(node.value)

    def mapping(self, node: MappingNode, prefix: str) -> dict[str, Any]:
        """Return the mapping with text keys; a second entry of the same key is a problem."""
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._complain(prefix.rstrip("."), "a field name must be text", key_node)
                continue
            path = f"{prefix}{key_node.value}"
            if key_node.value in values:
                first = self.lines[path]
                self._complain(path, f"is given twice, first on line {first}", key_node, expected="one value")
                continue
            self.lines[path] = self._line(key_node)
            values[key_node.value] = self.value(value_node, path)
        return values

    def _item(self, node: Node, path: str) -> Any:
        self.lines[path] = self._line(node)
        return self.value(node, path)

    def _line(self, node: Node) -> int:
        return self.first_line + int(node.start_mark.line)

    def _complain(self, path: str, message: str, node: Node, *, expected: str = "") -> None:
        self.problems.append(FieldProblem(path or FRONT_MATTER, message, expected=expected, line=self._line(node)))


def _explicit(node: Node) -> bool:
    """Whether the author wrote a standard tag such as `!!int`; untagged nodes have their kind's own tag."""
    own = {MappingNode: "map", SequenceNode: "seq", ScalarNode: "str"}[type(node)]
    return bool(node.tag != f"tag:yaml.org,2002:{own}")


def _syntax_problem(error: yaml.YAMLError, text: str, first_line: int) -> FieldProblem:
    """Return what YAML could not read, with line and column in the file and a hint where one is known."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        return _at(line, column, f"contains the control character #x{int(error.character):04x}", "", first_line)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    message = getattr(error, "problem", None) or str(error)
    if mark is None:
        return FieldProblem(FRONT_MATTER, f"is no YAML: {message}", line=first_line)
    rows = text.split("\n")
    row = rows[mark.line] if mark.line < len(rows) else ""
    return _at(mark.line, mark.column, _syntax_message(message), _syntax_hint(message, row, mark.column), first_line)


def _at(line: int, column: int, message: str, hint: str, first_line: int) -> FieldProblem:
    where = f"line {first_line + line}, column {column + 1}"
    return FieldProblem(FRONT_MATTER, f"{message} ({where})", expected=hint, line=first_line + line)


def _quotes(character: str) -> str:
    return f"quotes around a value that begins with {character}"


def _syntax_message(message: str) -> str:
    ours = message.endswith("is not supported") or message.startswith("nested deeper")
    return message if ours else f"is no YAML: {message}"


def _syntax_hint(message: str, row: str, column: int) -> str:
    """Return the likely cure for a syntax error on `row`."""
    if "\t" in row[: column + 1]:
        return "spaces: YAML allows no tab characters for indentation"
    if unquoted := _UNQUOTED.search(row):
        return _quotes(unquoted[1])
    if "mapping values are not allowed" in message:
        return "quotes around a value that contains `: `"
    if "could not find expected ':'" in message:
        return "a field name, a colon and a space before each value"
    return ""
