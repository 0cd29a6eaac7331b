"""Reading front matter: what is plain YAML, what is refused, and where everything stands."""

from __future__ import annotations

import pytest

from core import front_matter
from core.front_matter import body_problems, normal_body, read_front_matter


def file(front: str, body: str = "text\n") -> str:
    """Return a file with this front matter and body."""
    return f"---\n{front}\n---\n{body}"


def test_every_scalar_is_text_and_every_value_has_its_line() -> None:
    """Nothing is converted by YAML, and nested values know where they stand."""
    front = read_front_matter(
        file("on: 007\nretry:\n  max: 1:30\n  on: [yes, 'null']\nempty:\nquoted: '~'\nflow: {a: 0x10, b: ~}")
    )
    assert front.values == {
        "on": "007",
        "retry": {"max": "1:30", "on": ["yes", "null"]},
        "empty": None,
        "quoted": "~",
        "flow": {"a": "0x10", "b": None},
    }
    assert {path: front.lines[path] for path in ("front-matter", "on", "retry.max", "retry.on[1]", "flow.b")} == {
        "front-matter": 1,
        "on": 2,
        "retry.max": 4,
        "retry.on[1]": 5,
        "flow.b": 8,
    }


def test_blank_lines_before_the_front_matter_count() -> None:
    """Lines are those of the file, also when it begins with blank ones."""
    front = read_front_matter("\n\n---\na: 1\n---\n\n\nbody\n")
    assert (front.lines["a"], front.body_line, front.body) == (4, 8, "body\n")


def test_rule_in_the_body_belongs_to_the_body() -> None:
    """Only the first closing line ends the front matter."""
    assert read_front_matter(file("a: 1", "one\n---\ntwo\n")).body == "one\n---\ntwo\n"


REFUSED = [
    ("a: &x 1", "anchor `x` is not supported (line 2, column 4)"),
    ("a: 1\nb: *x", "alias `x` is not supported (line 3, column 4)"),
    ("a: [[[[[[[[1]]]]]]]]", "nested deeper than 8 levels (line 2, column 11)"),
    ("a: \x07", "contains the control character #x0007 (line 2, column 4)"),
    ("a: 1\n  b: 2", "is no YAML: mapping values are not allowed here (line 3, column 4)"),
    ("a: 'x", "is no YAML: found unexpected end of stream (line 2, column 6)"),
    ("just text", "is text"),
    ("a: 1\nb", "is no YAML: could not find expected ':' (line 3, column 2)"),
    (
        "a: 1\n...\nb: 2",
        "is no YAML: expected '<document start>', but found '<block mapping start>' (line 4, column 1)",
    ),
]


@pytest.mark.req("M5")
@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_no_plain_yaml_is_refused_as_a_whole(text: str, message: str) -> None:
    """The problem names line and column of the file, and no field is taken for missing."""
    front = read_front_matter(file(text))
    assert [problem.message for problem in front.problems] == [message]
    assert not front.readable


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("a:\n  - !src/gen/", "a[0]", "tag `!src/gen/` is not supported"),
        ("a: !!int 3", "a", "tag `tag:yaml.org,2002:int` is not supported"),
        ("? [x]\n: 1", "front-matter", "a field name must be text"),
        ("a: {b: 1, b: 2}", "a.b", "is given twice, first on line 2"),
    ],
)
def test_odd_value_is_a_problem_of_its_field_alone(text: str, path: str, message: str) -> None:
    """The rest of the file is read all the same."""
    front = read_front_matter(file(f"{text}\nother: 1"))
    assert [(problem.path, problem.message) for problem in front.problems] == [(path, message)]
    assert front.values["other"] == "1"


def test_front_matter_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit, and it is named."""
    monkeypatch.setattr(front_matter, "LONGEST_FRONT_MATTER", 10)
    front = read_front_matter(file("title: a long one"))
    assert [(problem.message, problem.expected) for problem in front.problems] == [("is too long", "at most 10 bytes")]


@pytest.mark.parametrize("text", ["", "\n", "---", "---\n---", "---\n", "\ufeff"])
def test_next_to_nothing_is_read_without_failing(text: str) -> None:
    """Empty files and bare fences give problems or nothing, never an exception."""
    read_front_matter(text)


def test_body_is_normalised_at_its_ends_only() -> None:
    """Blank lines around the body go, indentation and blank lines within stay."""
    assert normal_body("\n \n  code\r\n\r\nmore  \n\n") == "  code\n\nmore\n"
    assert normal_body(" \n\t\n") == ""


def test_unusable_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, a NUL character (with its line) or too much is no prompt."""
    monkeypatch.setattr(front_matter, "LONGEST_BODY", 20)
    assert [p.message for p in body_problems(" ", 5)] == ["is empty"]
    assert [(p.message, p.line) for p in body_problems("a\nb\0", 5)] == [("contains a NUL character", 6)]
    assert [p.message for p in body_problems("é" * 11, None)] == ["is too long"]
