"""Which paths a job may change: globs, what they match, and how sets of globs relate. *Pure.*

The language of a glob, from the repository's root and case-sensitive:

    src/app.py      that path and no other
    src             a name without an ending: that path, and everything below it if it is a directory
    src/            everything below the directory `src` (not a file or link of that name)
    docs/*.md       `*` is any run of characters, `?` one character; neither crosses `/`
    docs/**         everything below `docs`; `**` stands alone between slashes and crosses them
    **/tests/*.py   `**/` is any number of directories, also none
    /README.md      a leading `/` changes nothing: every glob begins at the root
    !docs/legal/    takes out of the set again, wherever it stands in the list

All other characters stand for themselves, brackets too (`app/[id]/page.tsx`). A list of exclusions alone means
everything but them. An empty list is no restriction; it also claims nothing.

A set of globs is run as one finite automaton, so that matching takes time linear in the path, and `overlaps` and
`contains` are decided exactly, with a path as witness. Beyond `SEARCH_LIMIT` states they answer on the safe side.
"""

from __future__ import annotations

import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from core.attempt import ChangedPath

LONGEST_GLOB = 300
SEARCH_LIMIT = 20_000
"""Pairs of state sets that one comparison of two scopes looks at before it answers on the safe side."""
LONGEST_TABLE = 50_000
"""Remembered steps of one scope; a longer table is thrown away and grows anew."""


class GlobError(ValueError):
    """A text is no glob; `suggestion` is the nearest valid spelling, or empty."""

    def __init__(self, message: str, *, expected: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.suggestion = suggestion


def check_glob(text: str) -> str:
    """Return `text` if it is a glob that can match something.

    Raises:
        GlobError: empty, too long, a backslash, braces, `**` beside other characters, or a `.` or `..` segment.

    """
    expected = "a path from the repository's root such as src/app.py, docs/** or **/*.md"
    glob = text.removeprefix("!").removeprefix("/")
    segments = glob.removesuffix("/").split("/")
    if not glob.strip() or len(text) > LONGEST_GLOB or not text.isprintable():
        raise GlobError("is not a glob", expected=expected)
    if "\\" in text:
        raise GlobError("has a backslash", expected="`/` between folders", suggestion=text.replace("\\", "/"))
    if "{" in text:
        raise GlobError("has braces", expected="one glob for each alternative", suggestion=_braces(text))
    if any("**" in segment and segment != "**" for segment in segments):
        fixed = "/".join(map(_spread, segments)) + ("/" if text.endswith("/") else "")
        raise GlobError(
            "has `**` beside other characters",
            expected="`**` alone between slashes",
            suggestion=("!" if text.startswith("!") else "") + fixed,
        )
    if any(segment in {"", ".", ".."} for segment in segments):
        fixed = "/".join(segment for segment in segments if segment not in {"", "."})
        nearest = "" if ".." in segments or not fixed else ("!" if text.startswith("!") else "") + fixed
        raise GlobError("has an empty, `.` or `..` part", expected=expected, suggestion=nearest)
    return text


def _spread(segment: str) -> str:
    """Return what `**.py` or `test**` is likely to mean, with `**` as a part of its own."""
    if "**" not in segment or segment == "**":
        return segment
    if segment.startswith("**"):
        return "**/*" + re.sub(r"\*+", "*", segment.lstrip("*"))
    return re.sub(r"\*+", "*", segment.rstrip("*")) + ("*/**" if segment.endswith("**") else "")


def _braces(text: str) -> str:
    """Return the globs that `a/*.{x,y}` stands for, separated by commas; empty when it is nested or open."""
    match = re.fullmatch(r"([^{}]*)\{([^{}]+)\}([^{}]*)", text)
    return ", ".join(f"{match[1]}{choice.strip()}{match[3]}" for choice in match[2].split(",")) if match else ""


# --- the automaton ----------------------------------------------------------------------------------------------------

_NOT_SLASH = "not /"
_ANY = "any"
_OTHER = "\0"
"""Stands for every character that no glob of the scope names; no path contains NUL."""

States = frozenset[int]


class _Edge(NamedTuple):
    on: str
    """A character, `_NOT_SLASH` or `_ANY`."""
    to: int


class Scope:
    """A set of globs as one automaton; build it with `scope_of`, which keeps the recent ones."""

    def __init__(self, globs: Iterable[str]) -> None:
        self.globs = tuple(globs)
        self._edges: list[list[_Edge]] = []
        self._jumps: list[list[int]] = []
        self._included: set[int] = set()
        self._excluded: set[int] = set()
        self._table: dict[tuple[States, str], States] = {}
        starts = [self._add(glob) for glob in self.globs]
        if all(glob.startswith("!") for glob in self.globs):
            starts.append(self._add("**"))
        self.alphabet = frozenset(e.on for edges in self._edges for e in edges) - {_NOT_SLASH, _ANY}
        self.start = self._closure(starts)

    def allows(self, path: str) -> bool:
        """Whether the globs cover `path`; whether any scope may cover it is for `never_in_scope` to say."""
        states = self.start
        for character in path:
            states = self.step(states, character)
            if not states:
                return False
        return self.accepts(states)

    def accepts(self, states: States) -> bool:
        """Whether a path that ends in `states` is covered: by some glob, and by no exclusion."""
        return not self._included.isdisjoint(states) and self._excluded.isdisjoint(states)

    def step(self, states: States, character: str) -> States:
        """Return where `character` leads from `states`."""
        symbol = character if character in self.alphabet or character == "/" else _OTHER
        key = (states, symbol)
        if key not in self._table:
            if len(self._table) > LONGEST_TABLE:
                self._table.clear()
            self._table[key] = self._closure(
                edge.to
                for state in states
                for edge in self._edges[state]
                if edge.on in (symbol, _ANY) or (edge.on == _NOT_SLASH and symbol != "/")
            )
        return self._table[key]

    def named(self, states: States) -> set[str]:
        """Return the characters that globs name at `states`; all others lead to one and the same place."""
        return {edge.on for state in states for edge in self._edges[state]} - {_NOT_SLASH, _ANY}

    def _closure(self, states: Iterable[int]) -> States:
        found: set[int] = set()
        todo = list(states)
        while todo:
            state = todo.pop()
            if state not in found:
                found.add(state)
                todo.extend(self._jumps[state])
        return frozenset(found)

    def _state(self) -> int:
        self._edges.append([])
        self._jumps.append([])
        return len(self._edges) - 1

    def _after(self, state: int, on: str) -> int:
        target = self._state()
        self._edges[state].append(_Edge(on, target))
        return target

    def _looping(self, state: int, on: str) -> int:
        """Return a new state, reached from `state` for nothing, that stays where it is on `on`."""
        target = self._state()
        self._jumps[state].append(target)
        self._edges[target].append(_Edge(on, target))
        return target

    def _add(self, glob: str) -> int:
        """Add the states of one glob and return the first of them."""
        finals = self._excluded if glob.startswith("!") else self._included
        text = glob.removeprefix("!").removeprefix("/")
        segments = text.split("/")
        if segments[-1] == "":
            segments[-1] = "**"
        start = state = self._state()
        for segment in segments[:-1]:
            state = self._folders(state) if segment == "**" else self._after(self._segment(state, segment), "/")
        if segments[-1] == "**":
            finals.add(self._looping(self._after(state, _ANY), _ANY))
            return start
        state = self._segment(state, segments[-1])
        finals.add(state)
        if re.search(r"[*?]|.\.", segments[-1]) is None:
            finals.add(self._looping(self._after(self._after(state, "/"), _ANY), _ANY))
        return start

    def _folders(self, state: int) -> int:
        """Add any number of folders, each with its slash, and return the state behind them."""
        boundary = self._state()
        self._jumps[state].append(boundary)
        inside = self._after(boundary, _NOT_SLASH)
        self._edges[inside] += [_Edge(_NOT_SLASH, inside), _Edge("/", boundary)]
        behind = self._state()
        self._jumps[boundary].append(behind)
        return behind

    def _segment(self, state: int, segment: str) -> int:
        for character in segment:
            if character == "*":
                state = self._looping(state, _NOT_SLASH)
            else:
                state = self._after(state, _NOT_SLASH if character == "?" else character)
        return state


@lru_cache(maxsize=512)
def scope_of(globs: tuple[str, ...]) -> Scope:
    """Return the automaton of `globs`; an empty tuple covers everything."""
    return Scope(globs)


# --- how two scopes relate --------------------------------------------------------------------------------------------


def overlaps(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether some path is covered by both; a side without globs claims nothing and overlaps nothing.

    Exact up to `SEARCH_LIMIT`, beyond it True: two jobs then wait for each other needlessly, but never collide.
    """
    return bool(a and b) and _common(*sorted((a, b)))


@lru_cache(maxsize=16_384)
def _common(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    return _search(scope_of(a), scope_of(b), lambda in_a, in_b: in_a and in_b, both=True) is not None


def contains(outer: tuple[str, ...], inner: tuple[str, ...]) -> bool:
    """Whether every path that `inner` covers is covered by `outer`; no globs on a side are no restriction.

    Exact up to `SEARCH_LIMIT`, beyond it False: a scope is then refused needlessly, never widened unseen.
    """
    return widening_example(outer, inner) is None


def widening_example(outer: tuple[str, ...], inner: tuple[str, ...]) -> str | None:
    """Return a shortest path that `inner` covers and `outer` does not, None when there is none.

    An empty text means that the comparison took more than `SEARCH_LIMIT` steps and counts as a widening.
    """
    if not outer:
        return None
    return _search(scope_of(outer), scope_of(inner), lambda in_outer, in_inner: in_inner and not in_outer, both=False)


def _search(a: Scope, b: Scope, wanted: Callable[[bool, bool], bool], *, both: bool) -> str | None:
    """Return a shortest path whose membership in `a` and `b` is as `wanted`; empty when the limit was reached.

    With `both` a path that cannot be in `a` any more is given up; one that cannot be in `b` always is.
    """
    other = next(c for c in _SHOWN if c not in a.alphabet and c not in b.alphabet)
    start = (a.start, b.start, "")
    seen = {start}
    todo = deque([(start, "")])
    while todo:
        (in_a, in_b, segment), path = todo.popleft()
        complete = segment not in {"", ".", ".."}
        if complete and wanted(a.accepts(in_a), b.accepts(in_b)):
            return path
        for character in (other, *sorted({*a.named(in_a), *b.named(in_b), "/"})):
            if character == "/" and not complete:
                continue
            following = (a.step(in_a, character), b.step(in_b, character), _segment_class(segment, character))
            if following in seen or not following[1] or (both and not following[0]):
                continue
            seen.add(following)
            todo.append((following, path + character))
        if len(seen) > SEARCH_LIMIT:
            return ""
    return None


def _segment_class(segment: str, character: str) -> str:
    """Return the part of a path since its last slash, as far as it matters: empty, `.`, `..`, or anything else."""
    if character == "/":
        return ""
    return segment + character if segment + character in {".", ".."} else "x"


_SHOWN = "xyzabcdefghijklmnopqrstuvwXYZABCDEFGHIJKLMNOPQRSTUVW0123456789" + "".join(map(chr, range(0xC0, 0x500)))
"""Characters that may stand in a witness for all that no glob names; more than two scopes can name."""


# --- the gate ---------------------------------------------------------------------------------------------------------

_KINDS = {
    "A": "added",
    "M": "changed",
    "D": "deleted",
    "T": "type changed",
    "X": "mode changed",
    "S": "submodule changed",
}
_IGNORED_BY_HFS = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


def out_of_scope(changes: Iterable[ChangedPath], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return each change that `allowed` does not cover as `path (reason)`, in the order of `changes`.

    A rename or copy needs both its ends in scope; a mode change or a submodule counts as a change of its path; a
    symbolic link must point at something in scope. Paths that are in no scope (`never_in_scope`) and links out of the
    workspace are reported even when `allowed` is empty.
    """
    scope = scope_of(allowed)
    return tuple(f"{_printable(change.path)} ({reason})" for change in changes if (reason := _objection(change, scope)))


def _objection(change: ChangedPath, scope: Scope) -> str:
    """Return why `change` is out of `scope`, or an empty text."""
    verb = "copied from" if change.kind.startswith("C") else "renamed from"
    done = f"{verb} {_printable(change.previous)}" if change.previous else _KINDS.get(change.kind[:1], "changed")
    for path in (change.path, change.previous) if change.previous else (change.path,):
        if never := never_in_scope(path):
            return f"{done}; {never}"
    if not scope.allows(change.path) or (change.previous and not scope.allows(change.previous)):
        return done
    if change.target:
        return _link_objection(change.path, change.target, scope)
    return ""


def _link_objection(path: str, target: str, scope: Scope) -> str:
    """Return why a symbolic link at `path` to `target` is out of `scope`, or an empty text."""
    link = f"link to {_printable(target)}"
    plain = target.replace("\\", "/")
    end = posixpath.normpath(posixpath.join(posixpath.dirname(path), plain))
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or end.split("/")[0] == "..":
        return f"{link}, which leaves the workspace"
    if end == ".":
        return "" if contains(scope.globs, ()) else f"{link}, which is out of scope"
    if never := never_in_scope(end):
        return f"{link}; {never}"
    covered = scope.allows(end) or contains(scope.globs, (_literal(end) + "/",))
    return "" if covered else f"{link}, which is out of scope"


def _literal(path: str) -> str:
    """Return a glob that matches at least `path`; its wildcards, if any, only make the check stricter."""
    return "/" + path


def never_in_scope(path: str) -> str:
    """Return why no scope may cover `path`: outside the workspace, or git's own files; empty when one may."""
    segments = path.replace("\\", "/").split("/")
    if "\0" in path or any(segment in {"", ".", ".."} for segment in segments) or re.match(r"[A-Za-z]:", path):
        return "not a path inside the workspace"
    if any(_is_git_folder(segment) for segment in segments):
        return "git's own files are in no scope"
    return ""


def _is_git_folder(segment: str) -> bool:
    """Whether some file system takes `segment` for `.git`: case, short names, streams, invisible characters."""
    plain = _IGNORED_BY_HFS.sub("", segment).partition(":")[0].rstrip(" .").lower()
    return plain == ".git" or re.fullmatch(r"git~[0-9]+", plain) is not None


def _printable(path: str) -> str:
    """Return `path` with control characters escaped, because it is shown in terminals."""
    return path if path.isprintable() else path.encode("unicode_escape").decode()
