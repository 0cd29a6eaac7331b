"""Globs: what they match, how two sets of them relate, and which changes the scope gate stops."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import scope
from core.attempt import ChangedPath
from core.scope import (
    GlobError,
    check_glob,
    contains,
    never_in_scope,
    out_of_scope,
    overlaps,
    scope_of,
    widening_example,
)

pytestmark = pytest.mark.req("G3")

MATCHES = [
    # glob, path, covered
    ("src/app.py", "src/app.py", True),
    ("src/app.py", "src/app.pyc", False),
    ("src/app.py", "lib/src/app.py", False),
    ("src/app.py", "src/app.py/x", False),
    (".github", ".github/workflows/ci.yml", True),
    ("v1.2", "v1.2/x", False),
    ("src", "src/a/b.py", True),
    ("src", "src", True),
    ("src", "srcs/a", False),
    ("src/", "src/a/b.py", True),
    ("src/", "src", False),
    ("src/**", "src", False),
    ("src/**", "src/a", True),
    ("src/**", "src/a/b/c", True),
    ("docs/*.md", "docs/a.md", True),
    ("docs/*.md", "docs/sub/a.md", False),
    ("*.md", "README.md", True),
    ("*.md", "docs/a.md", False),
    ("*", "src/a", False),
    ("docs/*", "docs/sub/a.md", False),
    ("?.py", "a.py", True),
    ("?.py", "/.py", False),
    ("a?b", "a/b", False),
    ("**/*.md", "README.md", True),
    ("**/*.md", "a/b/c.md", True),
    ("**/tests/**", "tests/x", True),
    ("**/tests/**", "a/tests/b/x", True),
    ("**/tests/**", "mytests/x", False),
    ("a/**/b", "a/b", True),
    ("a/**/b", "a/x/y/b", True),
    ("a/**/b", "a/xb", False),
    ("**", ".github/workflows/ci.yml", True),
    ("/README.md", "README.md", True),
    ("Src/", "src/a", False),
    ("app/[id]/page.tsx", "app/[id]/page.tsx", True),
    ("app/[id]/page.tsx", "app/i/page.tsx", False),
    ("src/*/mod", "src/a/mod/x.py", True),
    ("a.b", "axb", False),
]


@pytest.mark.parametrize(("glob", "path", "covered"), MATCHES)
def test_glob_covers_exactly_what_its_table_says(glob: str, path: str, covered: bool) -> None:
    """`*` and `?` stop at `/`, `**` does not, a trailing `/` is a directory, every glob begins at the root."""
    assert scope_of((glob,)).allows(path) is covered


def test_exclusion_takes_out_wherever_it_stands() -> None:
    """`!` wins over every other glob, in any order; exclusions alone mean everything but them."""
    for globs in (("src/", "!src/gen/"), ("!src/gen/", "src/")):
        assert scope_of(globs).allows("src/a.py")
        assert not scope_of(globs).allows("src/gen/a.py")
    assert scope_of(("!docs",)).allows("src/a.py")
    assert not scope_of(("!docs",)).allows("docs/a.md")


def test_no_globs_are_no_restriction() -> None:
    """An empty scope covers every path."""
    assert scope_of(()).allows("any/thing")


WRONG = [
    ("", ""),
    ("   ", ""),
    ("!", ""),
    ("/", ""),
    ("src/**.py", "src/**/*.py"),
    ("test**", "test*/**"),
    ("!a**b", "!a*b"),
    ("src\\app", "src/app"),
    ("src/*.{ts,tsx}", "src/*.ts, src/*.tsx"),
    ("a/{b", ""),
    ("./src", "src"),
    ("a//b", "a/b"),
    ("../x", ""),
    ("a/./b", "a/b"),
    ("x" * 301, ""),
    ("a\nb", ""),
]


@pytest.mark.parametrize(("glob", "suggestion"), WRONG)
def test_text_that_could_never_match_is_refused(glob: str, suggestion: str) -> None:
    """Braces, backslashes, dot segments and a squeezed `**` are refused with what is likely meant."""
    with pytest.raises(GlobError) as caught:
        check_glob(glob)
    assert caught.value.suggestion == suggestion


@pytest.mark.parametrize("glob", ["src", "src/", "/src", "**", "**/*.py", "!docs/**", "a b/ü.txt", "a*b?c"])
def test_valid_glob_is_taken_as_it_is(glob: str) -> None:
    """Globs are kept as written."""
    assert check_glob(glob) == glob


# --- against a naive matcher ------------------------------------------------------------------------------------------


def naive(globs: tuple[str, ...], path: str) -> bool:
    """Match by plain recursion, written from the documentation."""
    included = [glob for glob in globs if not glob.startswith("!")] or ["**"]
    excluded = [glob[1:] for glob in globs if glob.startswith("!")]
    return any(naive_one(glob, path) for glob in included) and not any(naive_one(glob, path) for glob in excluded)


def naive_one(glob: str, path: str) -> bool:
    """Match one glob without its mark."""
    if glob.endswith("/"):
        glob += "**"
    parts = glob.removeprefix("/").split("/")
    plain = "*" not in parts[-1] and "?" not in parts[-1] and "." not in parts[-1][1:]
    if plain and naive_parts([*parts, "**"], path.split("/")):
        return True
    return naive_parts(parts, path.split("/"))


def naive_parts(glob: list[str], path: list[str]) -> bool:
    """Match part by part."""
    if not glob or not path:
        return not glob and not path
    if glob[0] == "**":
        if len(glob) == 1:
            return True
        return naive_parts(glob[1:], path) or naive_parts(glob, path[1:])
    return naive_text(glob[0], path[0]) and naive_parts(glob[1:], path[1:])


def naive_text(pattern: str, text: str) -> bool:
    """Match within one part."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return naive_text(pattern[1:], text) or (bool(text) and naive_text(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and naive_text(pattern[1:], text[1:])


SEGMENTS = st.one_of(st.just("**"), st.text("ab.*?", min_size=1, max_size=3).map(lambda s: s.replace("**", "*")))
GLOBS = st.builds(
    lambda mark, root, segments, end: mark + root + "/".join(segments) + end,
    st.sampled_from(["", "", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(SEGMENTS, min_size=1, max_size=4),
    st.sampled_from(["", "", "/"]),
)
SCOPES = st.lists(GLOBS, min_size=1, max_size=3).map(tuple)
PATHS = st.lists(
    st.text("ab.", min_size=1, max_size=3).filter(lambda s: s not in (".", "..")), min_size=1, max_size=4
).map("/".join)


@settings(max_examples=400)
@given(SCOPES, PATHS)
def test_automaton_agrees_with_naive_matcher(globs: tuple[str, ...], path: str) -> None:
    """The automaton covers exactly the paths that a reading of the documentation covers."""
    assert scope_of(globs).allows(path) == naive(globs, path)


@settings(max_examples=300)
@given(SCOPES, SCOPES, PATHS)
def test_containment_is_sound_and_its_counterexample_is_true(
    outer: tuple[str, ...], inner: tuple[str, ...], path: str
) -> None:
    """No path of `inner` lies outside a scope that contains it; a refusal shows a path that does."""
    example = widening_example(outer, inner)
    assert contains(outer, inner) == (example is None)
    if example is None:
        assert not (naive(inner, path) and not naive(outer, path))
    else:
        assert naive(inner, example)
        assert not naive(outer, example)


@settings(max_examples=300)
@given(SCOPES, SCOPES, PATHS)
def test_scopes_that_do_not_overlap_share_no_path(a: tuple[str, ...], b: tuple[str, ...], path: str) -> None:
    """Overlap is symmetric, and without it no path is covered by both."""
    assert overlaps(a, b) == overlaps(b, a)
    if not overlaps(a, b):
        assert not (naive(a, path) and naive(b, path))


@settings(max_examples=200)
@given(SCOPES, PATHS)
def test_scope_overlaps_and_contains_each_path_it_covers(globs: tuple[str, ...], path: str) -> None:
    """A path as a scope of its own relates to a scope as matching says (nothing lies below it here)."""
    if naive(globs, path):
        assert overlaps(globs, (path,))


OVERLAPS = [
    (("src/**",), ("src/a.py",), True),
    (("src/",), ("docs/",), False),
    (("**/*.md",), ("src/*",), True),
    (("**/*.md",), ("src/*.py",), False),
    (("**", "!docs/"), ("docs/a.md",), False),
    (("src/a*",), ("src/*b",), True),
    (("packages/a/",), ("packages/b/", "packages/a/x"), True),
    ((), ("src/",), False),
    (("src/",), (), False),
]


@pytest.mark.req("R7")
@pytest.mark.parametrize(("a", "b", "expected"), OVERLAPS)
def test_overlap_follows_the_paths_that_both_cover(a: tuple[str, ...], b: tuple[str, ...], expected: bool) -> None:
    """Scopes overlap when one path fits both; a side without globs claims nothing."""
    assert overlaps(a, b) is expected


CONTAINS = [
    (("src/**",), ("src/a.py",), True),
    (("src/**",), ("src/*/tests/**",), True),
    (("src/",), ("src",), False),  # the directory itself may be replaced by a file or link
    (("docs/**", "*.md"), ("**/*.md",), False),
    (("docs/**", "**/*.md"), ("docs/*.md", "a/b.md"), True),
    (("**", "!ci/"), ("src/",), True),
    (("**", "!ci/"), ("**",), False),
    (("**", "!ci/"), ("**", "!ci/", "!docs/"), True),
    ((), ("anything",), True),
    (("src/",), (), False),
    (("**",), (), True),
]


@pytest.mark.req("P3")
@pytest.mark.parametrize(("outer", "inner", "expected"), CONTAINS)
def test_containment_is_decided_exactly(outer: tuple[str, ...], inner: tuple[str, ...], expected: bool) -> None:
    """One scope lies within another when each of its paths does."""
    assert contains(outer, inner) is expected


def test_comparison_beyond_its_limit_answers_on_the_safe_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too hard to decide: the scopes count as overlapping, and as not contained."""
    monkeypatch.setattr(scope, "SEARCH_LIMIT", 3)
    scope._common.cache_clear()
    assert overlaps(("aaaaaaaa/b",), ("aaaaaaaa/c",))
    assert widening_example(("aaaaaaaa/*",), ("aaaaaaaa/b*c",)) == ""
    scope._common.cache_clear()


def test_table_of_steps_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many paths are looked at, the memory of one scope is limited."""
    monkeypatch.setattr(scope, "LONGEST_TABLE", 5)
    one = scope.Scope(["abcdefghij*"])
    assert one.allows("abcdefghijk")
    assert len(one._table) <= 6


# --- the gate ---------------------------------------------------------------------------------------------------------


def change(path: str, kind: str = "M", previous: str = "", target: str = "") -> ChangedPath:
    """Return one entry of a diff."""
    return ChangedPath(path=path, kind=kind, previous=previous, target=target)


GATE = [
    (change("src/a.py"), ("src/",), ""),
    (change("docs/a.md"), ("src/",), "docs/a.md (changed)"),
    (change("docs/a.md", "A"), ("src/",), "docs/a.md (added)"),
    (change("docs/a.md", "D"), ("src/",), "docs/a.md (deleted)"),
    (change("docs/a.md", "X"), ("src/",), "docs/a.md (mode changed)"),
    (change("docs/a.md", "T"), ("src/",), "docs/a.md (type changed)"),
    (change("vendor/lib", "S"), ("src/",), "vendor/lib (submodule changed)"),
    (change("src/lib", "S"), ("src/",), ""),
    (change("src/b.py", "R", "src/a.py"), ("src/",), ""),
    (change("src/b.py", "R", "docs/a.py"), ("src/",), "src/b.py (renamed from docs/a.py)"),
    (change("docs/b.py", "R", "src/a.py"), ("src/",), "docs/b.py (renamed from src/a.py)"),
    (change("src/b.py", "C", "docs/a.py"), ("src/",), "src/b.py (copied from docs/a.py)"),
    (change("Src/a.py"), ("src/",), "Src/a.py (changed)"),
    (change("src/link", "A", target="b.py"), ("src/",), ""),
    (change("src/link", "A", target="../src/b.py"), ("src/",), ""),
    (change("src/link", "A", target="../docs"), ("src/",), "src/link (link to ../docs, which is out of scope)"),
    (change("src/link", "A", target="../docs"), ("src/", "docs/**"), ""),
    (change("src/link", "A", target=".."), ("src/",), "src/link (link to .., which is out of scope)"),
    (change("src/link", "A", target=".."), ("**",), ""),
    (change("src/link", "A", target="../../x"), ("src/",), "src/link (link to ../../x, which leaves the workspace)"),
    (change("src/link", "A", target="/etc"), (), "src/link (link to /etc, which leaves the workspace)"),
    (change("src/link", "A", target="C:\\x"), (), "src/link (link to C:\\x, which leaves the workspace)"),
    (change("link", "T", target="..\\x"), (), "link (link to ..\\x, which leaves the workspace)"),
    (
        change("src/link", "A", target="../.git/hooks"),
        (),
        "src/link (link to ../.git/hooks; git's own files are in no scope)",
    ),
    (change("anything/else"), (), ""),
    (change(".git/hooks/pre-commit", "A"), (), ".git/hooks/pre-commit (added; git's own files are in no scope)"),
    (change("a/.GIT/config"), ("**",), "a/.GIT/config (changed; git's own files are in no scope)"),
    (change("../x"), (), "../x (changed; not a path inside the workspace)"),
    (change("x", "R", "/etc/x"), (), "x (renamed from /etc/x; not a path inside the workspace)"),
    (change("doc\x1b[2Js"), ("src/",), "doc\\x1b[2Js (changed)"),
]


@pytest.mark.parametrize(("entry", "allowed", "expected"), GATE)
def test_gate_stops_changes_out_of_scope_with_the_reason(
    entry: ChangedPath, allowed: tuple[str, ...], expected: str
) -> None:
    """Renames, copies, links, modes and submodules are seen; the line says path and reason."""
    assert out_of_scope([entry], allowed) == ((expected,) if expected else ())


@pytest.mark.parametrize(
    "path",
    [
        ".git",
        ".git/x",
        "a/.git",
        ".Git/x",
        ".git /x",
        ".git./x",
        "git~1/x",
        "GIT~2",
        ".git::$INDEX/x",
        ".g\u200cit/x",
        "a\\.git\\x",
    ],
)
def test_git_folder_in_any_spelling_is_in_no_scope(path: str) -> None:
    """Case, short names, streams and invisible characters do not get around the rule."""
    assert never_in_scope(path) == "git's own files are in no scope"


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/", "../a", "a/../b", "./a", "a\0b", "C:/x", "..\\a"])
def test_path_outside_the_workspace_is_in_no_scope(path: str) -> None:
    """Absolute paths, dot segments and NUL are refused whatever the globs say."""
    assert never_in_scope(path) == "not a path inside the workspace"


@pytest.mark.parametrize("path", [".gitignore", ".github/x", "a.git", "git/x", "dir/.gitattributes", "...", "a b"])
def test_ordinary_path_may_be_in_scope(path: str) -> None:
    """Names that only look like git's own are ordinary."""
    assert never_in_scope(path) == ""
