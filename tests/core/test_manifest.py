"""The job manifest: every field with its default, titles, content, notices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidManifest
from core.job import RETRYABLE_BY_MANIFEST, FailureKind, LeaseLoss, Priority, ShipMode
from core.manifest import (
    Budget,
    DependsOn,
    Manifest,
    Retry,
    Reviewers,
    canonical,
    manifest_fields,
    manifest_sha256,
    parse_manifest,
    parse_manifest_object,
    read_manifest,
    title_of,
    unbuilt,
)


def manifest_of(front: str, body: str = "Do it.\n") -> Manifest:
    """Return the manifest of a file with this front matter, placed somewhere unless it says where."""
    place = "" if "cwd:" in front or "repo:" in front else "repo: /srv/shop\n"
    return parse_manifest(f"---\n{place}{front}\n---\n{body}", base_dir="/jobs", home_dir="/home/ann").manifest


BUDGET = Budget.model_validate({"usd": Decimal(5), "tokens": 2_000_000, "wall": 14_400})

# field, attribute path, default, then pairs of YAML and value
FIELDS: list[tuple[str, str, object, list[tuple[str, object]]]] = [
    ("title", "title", None, [("title: Round half up", "Round half up"), ("title: 2024", "2024")]),
    ("engine", "engine", None, [("engine: claude", "claude"), ('engine: "my.engine-2"', "my.engine-2")]),
    ("engine-class", "engine_class", None, [("engine-class: script", "script")]),
    ("model", "model", None, [("model: vendor/model-1:latest", "vendor/model-1:latest")]),
    ("allowed-tools", "allowed_tools", None, [
        ("allowed-tools: [Read, 'Bash(git *)']", ("Read", "Bash(git *)")),
        ("allowed-tools: []", ()),
    ]),
    ("cwd", "cwd", None, [
        ("cwd: /abs/path", "/abs/path"),
        ("cwd: .", "/jobs"),
        ("cwd: ../shop/", "/shop"),
        ("cwd: ~/code", "/home/ann/code"),
        ('cwd: "~"', "/home/ann"),
        ("cwd: //a//b", "/a/b"),
        ("cwd: C:\\work", "C:\\work"),
    ]),
    ("repo", "repo", "/srv/shop", [
        ("repo: https://example.com/o/n.git", "https://example.com/o/n.git"),
        ("repo: ssh://git@example.com:22/o/n", "ssh://git@example.com:22/o/n"),
        ("repo: git@example.com:o/n.git", "git@example.com:o/n.git"),
        ("repo: file:///srv/x.git", "file:///srv/x.git"),
        ("repo: ./x", "/jobs/x"),
        ("repo: scratch:hello-2", "scratch:hello-2"),
    ]),
    ("base", "base", None, [("base: release/2.1", "release/2.1")]),
    ("product", "product", "default", [("product: shop-2", "shop-2")]),
    ("profile", "profile", None, [("profile: qa", "qa")]),
    ("capabilities", "capabilities", (), [
        ("capabilities: [os:any, node>=20, has:docker, gpu]", ("os:any", "node>=20", "has:docker", "gpu")),
        ("capabilities: gpu", ("gpu",)),
        ("capabilities: [gpu, gpu]", ("gpu",)),
        ("capabilities:\n  - node >= 20, < 23", ("node>=20,<23",)),
    ]),
    ("prefers", "prefers", (), [("prefers: [factory:mac-2]", ("factory:mac-2",))]),
    ("weights", "weights", {}, [
        ("weights: {cost: 200, load: 0}", {"cost": 200, "load": 0}),
        ("weights: {}", {}),
    ]),
    ("priority", "priority", Priority.MEDIUM, [(f"priority: {p}", p) for p in Priority]),
    ("yolo", "yolo", False, [("yolo: true", True), ("yolo: yes", True), ("yolo: off", False), ("yolo: True", True)]),
    ("lock", "lock", None, [("lock: my-repo", "my-repo"), ("lock: 007", "007"), ("lock:", None)]),
    ("timeout", "timeout_s", 3600, [("timeout: 45m", 2700), ("timeout: 90", 90), ("timeout: 1h30m", 5400)]),
    ("retry", "retry", None, [("retry: {}", Retry()), ("retry: {max: 2}", Retry(max=2))]),
    ("retry.max", "retry.max", 1, [("retry: {max: 0}", 0), ("retry: {max: 100}", 100)]),
    ("retry.backoff", "retry.backoff_s", Decimal(30), [
        ("retry: {backoff: 5m}", 300),
        ("retry: {backoff: 0.2s}", Decimal("0.2")),
    ]),
    ("retry.on", "retry.on", RETRYABLE_BY_MANIFEST, [
        ("retry: {on: [timeout, verify_failed]}", (FailureKind.TIMEOUT, FailureKind.VERIFY_FAILED)),
        ("retry: {on: crash}", (FailureKind.CRASH,)),
    ]),
    ("verify", "verify", None, [
        ("verify: pnpm -s test", ("pnpm -s test",)),
        ("verify: [a, b]", ("a", "b")),
        ("verify: []", ()),
        ("verify: true", ("true",)),
        ("verify: |\n  set -e\n  make", ("set -e\nmake",)),
    ]),
    ("review-policy", "review_policy", None, [
        ("review-policy: auto", "auto"),
        ("review-policy: manual", "manual"),
        ("review-policy: reviewers:[@ann, bob]", Reviewers(reviewers=("@ann", "bob"))),
        ("review-policy: {reviewers: [ann]}", Reviewers(reviewers=("ann",))),
    ]),
    ("on-lease-loss", "on_lease_loss", LeaseLoss.STOP, [(f"on-lease-loss: {word}", word) for word in LeaseLoss]),
    ("ship", "ship", ShipMode.BRANCH, [(f"ship: {mode}", mode) for mode in ShipMode]),
    ("allowed-scope", "allowed_scope", None, [
        ('allowed-scope: ["src/**", "!src/x"]', ("src/**", "!src/x")),
        ("allowed-scope: src", ("src",)),
    ]),
    ("shares-scope", "shares_scope", False, [("shares-scope: true", True), ("shares-scope: no", False)]),
    ("artifacts", "artifacts", None, [("artifacts: [coverage, 'shots/*.png']", ("coverage", "shots/*.png"))]),
    ("deps", "deps", (), [
        ("deps: j-1", (DependsOn(job="j-1"),)),
        ("deps: [j-1, key:k1]", (DependsOn(job="j-1"), DependsOn(job="key:k1"))),
        ("deps: [{job: j-1, until: testing}]", (DependsOn(job="j-1", until="testing"),)),
        ("deps: {job: j-1}", (DependsOn(job="j-1"),)),
    ]),
    ("deps.job", "deps.0.job", None, [("deps: [{job: key:a/b}]", "key:a/b"), ("deps: [42]", "42")]),
    ("deps.until", "deps.0.until", "shipped", [("deps: [{job: j-1, until: testing}]", "testing")]),
    ("idempotency-key", "idempotency_key", None, [
        ("idempotency-key: nomgap-ux-2", "nomgap-ux-2"),
        ("idempotency-key: 42", "42"),
    ]),
    ("budget", "budget", Budget(), [("budget: {usd: 5, tokens: 2M, wall: 4h}", BUDGET)]),
    ("budget.usd", "budget.usd", None, [("budget: {usd: $2.50}", Decimal("2.5"))]),
    ("budget.tokens", "budget.tokens", None, [("budget: {tokens: 1.5k}", 1500)]),
    ("budget.wall", "budget.wall_s", None, [("budget: {wall: 4h}", 14_400)]),
    ("tracker-item", "tracker_item", None, [("tracker-item: ITEM-789", "ITEM-789"), ("tracker-item: 789", "789")]),
]  # fmt: skip

NEEDS = {"retry": "retry: {}", "deps": "deps: [j-1]"}
"""What must be written so that the fields of a section have defaults at all."""


def at(value: object, path: str) -> object:
    """Return the part of `value` that a dotted path names."""
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, tuple) else getattr(value, part)
    return value


@pytest.mark.req("M1", "M2", "M3", "M10")
@pytest.mark.parametrize(
    ("front", "path", "expected"), [(front, path, value) for _, path, _, cases in FIELDS for front, value in cases]
)
def test_field_is_read_as_written(front: str, path: str, expected: object) -> None:
    """Every field takes its spellings and keeps their exact meaning."""
    assert at(manifest_of(front), path) == expected


@pytest.mark.req("M2", "M10")
@pytest.mark.parametrize(
    ("name", "path", "default"), [(name, path, default) for name, path, default, _ in FIELDS if name != "deps.job"]
)
def test_field_that_is_left_out_has_its_default(name: str, path: str, default: object) -> None:
    """Every field has the default that the reference names."""
    assert at(manifest_of(NEEDS.get(name.partition(".")[0], "") if "." in name else ""), path) == default


def test_table_of_fields_is_complete() -> None:
    """No field of the model is without a test."""
    assert {name for name, *_ in FIELDS} == set(manifest_fields())


LINE = "one line of text, at most 200 characters"
REFUSED = [
    ("title: " + "x" * 73, "title", "has 73 characters", "one line of text, at most 72 characters"),
    ("lock: ''", "lock", "is empty", LINE),
    ('model: "a\\nb"', "model", "has line breaks or control characters", LINE),
    ("allowed-tools: [[a]]", "allowed-tools[0]", "is a list", LINE),
    ("verify: ''", "verify[0]", "is empty", "a shell command line; [] for no command at all"),
    ("verify: [{a: b}]", "verify[0]", "is a mapping", "a shell command line"),
    ('verify: "a\\0b"', "verify[0]", "contains a NUL character", "a shell command line"),
    ("timeout: 0", "timeout", "is too short", "at least 1s and at most 30d"),
    ("timeout: 31d", "timeout", "is too long", "at least 1s and at most 30d"),
    ("budget: {tokens: 0}", "budget.tokens", "is too small", "at least 1; a whole number such as 500, 1.5k or 2M"),
    ("budget: {usd: 0}", "budget.usd", "is too small", "more than 0; an amount of US dollars such as 5, 0.50 or $5"),
    ("retry: {on: []}", "retry.on", "is an empty list", "at least one; leave the field out for none"),
    ("retry: {max: 101}", "retry.max", "is out of range", "a whole number from 0 to 100"),
    ("weights: 5", "weights", "is text", "a mapping, such as {load: 0}"),
    ("weights: {lod: 5}", "weights.lod", "is not a choice",
     "engine, prefers, health, load, cost, warm, fit or starvation"),
    ("weights: {load: 1001}", "weights.load", "is out of range", "a whole number from 0 to 1000"),
    ("cwd: ''", "cwd", "is empty", "a directory: absolute, or relative to the job file"),
    ('cwd: "/a\\x07"', "cwd", "has control characters", "a directory: absolute, or relative to the job file"),
    ("cwd: a", "cwd", "is relative",
     "a directory: absolute, or relative to the job file; here is no file to be relative to"),
    ("cwd: ~/a", "cwd", "begins with ~", "an absolute path; ~ is known to the command line only"),
    ("repo: scratch:My Repo", "repo", "is not a scratch repository", ("scratch:<name>, the name of lower-case letters, "
     "digits and `-`, at most 63 characters")),
    ("deps: [3.5, {until: testing}]", "deps[1].job", "is missing", ""),
    ("deps: [[a]]", "deps[0]", "is a list", "the id of a job, or key: and the idempotency-key of one"),
    ("review-policy: reviewers:[]", "review-policy", "is not a review policy", "auto, manual or reviewers:[name, …]"),
    ("base: a..b", "base", "is not a branch", "the name of a branch, such as main or release/2.1"),
    ("idempotency-key: a b", "idempotency-key", "is not valid", "1 to 200 visible ASCII characters without blanks"),
]  # fmt: skip


@pytest.mark.req("M5")
@pytest.mark.parametrize(("front", "path", "message", "expected"), REFUSED)
def test_value_that_a_field_cannot_take_is_refused(front: str, path: str, message: str, expected: str) -> None:
    """The field says what is wrong and what it expected."""
    place = "" if front.startswith(("cwd", "repo")) else "repo: /r\n"
    problems = read_manifest(f"---\n{place}{front}\n---\nx").problems
    assert (path, message, expected) in [(problem.path, problem.message, problem.expected) for problem in problems]


@pytest.mark.parametrize(
    "repo",
    [
        "''",
        "shop",
        "ann/shop",
        "https://example.com",
        "https:/example.com/x",
        "ext::sh -c id",
        "ftp://example.com/x",
        "https://token@example.com/x",
        "ssh://ann:pw@example.com/x",
        "ssh://-oProxyCommand=id/x",
        "ssh:///x",
        "-upload-pack=id",
        "git@:x",
        "'scratch:'",
        "scratch:../x",
        '"/a\\u0007"',
    ],
)
def test_repository_that_git_must_not_be_given_is_refused(repo: str) -> None:
    """Options in disguise, helpers that run commands, secrets and plain nonsense are no repositories."""
    problems = read_manifest(f"---\nrepo: {repo}\n---\nx", base_dir="/jobs").problems
    assert [problem.path for problem in problems] == ["repo"]
    assert "pw" not in str(problems[0].value)


@pytest.mark.req("M2")
def test_file_of_the_old_runner_is_accepted_with_everything_else_defaulted() -> None:
    """A file with only engine, cwd and yolo is whole."""
    parsed = parse_manifest("---\nengine: devin\ncwd: /abs/path/repo\nyolo: true\n---\nFix the build.\n")
    assert parsed.manifest == Manifest.model_validate({"engine": "devin", "cwd": "/abs/path/repo", "yolo": True})
    assert parsed.title == "Fix the build."


def test_field_without_a_value_counts_as_not_written() -> None:
    """Empty fields of a template mean nothing."""
    assert manifest_of("lock:\nverify: ~\nbudget:\ndeps: null") == manifest_of("")


def test_windows_line_ends_and_byte_order_mark_are_read() -> None:
    """A file from any editor reads the same, and its lines keep their numbers."""
    plain = "---\nrepo: /r\nlock: x\n---\n\n# Title\n\ntext\n"
    parsed = parse_manifest("\ufeff" + plain.replace("\n", "\r\n"))
    assert canonical(parsed.manifest, parsed.body) == canonical(*_content(plain))
    assert (parsed.lines["lock"], parsed.body_line, parsed.body) == (3, 6, "# Title\n\ntext\n")


def _content(text: str) -> tuple[Manifest, str]:
    parsed = parse_manifest(text)
    return parsed.manifest, parsed.body


def test_json_object_means_the_same_as_the_file() -> None:
    """The API's object and the file have one schema, with JSON's own numbers and booleans."""
    document = {
        "repo": "/r",
        "yolo": True,
        "timeout": 2700,
        "retry": {"max": 2, "backoff": 0.5, "on": ["timeout"]},
        "budget": {"usd": 0.1, "tokens": 1500},
        "deps": ["j-1"],
        "tracker-item": 789,
        "lock": None,
        "body": "Do it.",
    }
    front = (
        "repo: /r\nyolo: yes\ntimeout: 45m\nretry: {max: 2, backoff: 0.5s, on: timeout}\n"
        "budget: {usd: 0.1, tokens: 1.5k}\ndeps: j-1\ntracker-item: 789"
    )
    parsed = parse_manifest_object(document)
    assert (parsed.manifest, parsed.body) == (manifest_of(front), "Do it.\n")


@pytest.mark.req("M5")
def test_json_object_has_all_its_mistakes_told_at_once() -> None:
    """Mistakes in JSON carry paths and values, and no lines."""
    document = {"repo": "/r", "priority": 1, "yolo": "maybe", "retry": [2], "deps": [True], "extra": 1, "body": 3}
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest_object(document)
    found = {problem.path: (problem.value, problem.line) for problem in caught.value.problems}
    assert found == {
        "priority": (1, None),
        "yolo": ("maybe", None),
        "retry": ("[2]", None),
        "deps[0]": (True, None),
        "extra": (1, None),
        "body": (None, None),
    }
    json.dumps(caught.value.as_problem())


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_json_that_is_no_object_is_refused(document: object) -> None:
    """Whatever JSON comes, the answer is one clear problem."""
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest_object(document)
    assert [problem.path for problem in caught.value.problems] == ["front-matter"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Manifest.model_validate({}).model_dump(by_alias=True), "body", "x"]), JSON))
def test_any_json_is_read_or_refused(document: Mapping[str, Any]) -> None:
    """No JSON makes the reader fail in any other way, and every refusal can be sent as JSON."""
    try:
        parse_manifest_object(document)
    except InvalidManifest as error:
        json.dumps(error.as_problem())


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text_is_read_or_refused(front: str, body: str) -> None:
    """No file makes the reader fail in any other way."""
    for text in (front, f"---\n{front}\n---\n{body}"):
        try:
            parse_manifest(text)
        except InvalidManifest as error:
            json.dumps(error.as_problem())


# --- titles -----------------------------------------------------------------------------------------------------------

TITLES = [
    ("# Fix the build\n\ntext", "", "Fix the build"),
    ("text\n\n## Later heading ##\n", "", "Later heading"),
    ("Just a line.\nAnother.", "", "Just a line."),
    ("```sh\n# a comment\n```\n# Real one\n", "", "Real one"),
    ("```sh\n# a comment\n```\n", "/x/tidy-up.md", "tidy-up"),
    ("#!/bin/sh\necho hello\n", "", "echo hello"),
    ("#hashtag, no heading\n", "", "#hashtag, no heading"),
    ("#\n", "a/job.md", "#"),
    ("", "a/job.md", "job"),
    ("", "", "untitled"),
    ("# " + "x" * 100, "", "x" * 71 + "…"),
    ("# tab\tand\x07bell", "", "tabandbell"),
]


@pytest.mark.parametrize(("body", "source", "title"), TITLES)
def test_title_is_first_heading_else_first_line_else_file_name(body: str, source: str, title: str) -> None:
    """A job has a title of at most 72 printable characters, whatever its body."""
    assert title_of(body, source) == title


def test_written_title_wins() -> None:
    """A title in the front matter is the title."""
    assert parse_manifest("---\nrepo: /r\ntitle: Mine\n---\n# Other\n").title == "Mine"


# --- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("M6")
@pytest.mark.parametrize(
    "front",
    [
        "priority: medium",
        "ship: branch",
        "timeout: 60m",
        "timeout: 3600",
        "yolo: no",
        "deps: []",
        "product: default",
        "lock:",
        "weights: {}",
    ],
)
def test_written_default_is_the_same_content_as_an_omitted_one(front: str) -> None:
    """Spelling out a default changes nothing about what the job is."""
    assert manifest_sha256(manifest_of(front), "x") == manifest_sha256(manifest_of(""), "x")


@pytest.mark.req("M6")
@pytest.mark.parametrize(
    "front", ["priority: high", "timeout: 61m", "verify: []", "review-policy: manual", "retry: {}"]
)
def test_other_value_is_other_content(front: str) -> None:
    """What may change the job changes its content, also a value that only overrules a profile."""
    assert manifest_sha256(manifest_of(front), "x") != manifest_sha256(manifest_of(""), "x")


@pytest.mark.req("M6")
def test_key_is_no_part_of_the_content_and_the_body_is() -> None:
    """The idempotency key names content; the body's blank ends do not matter, its text does."""
    assert manifest_sha256(manifest_of("idempotency-key: a"), "x") == manifest_sha256(manifest_of(""), "\n\nx\r\n")
    assert manifest_sha256(manifest_of(""), "x") != manifest_sha256(manifest_of(""), "y")


def test_canonical_content_is_shown_in_humane_units() -> None:
    """The content that a conflict quotes reads like the file."""
    front = "timeout: 5400s\nbudget: {usd: 5.00, tokens: 2000k}\nretry: {backoff: 300s}\nreview-policy: reviewers:[a]"
    assert canonical(manifest_of(front), "x") == {
        "repo": "/srv/shop",
        "timeout": "1h30m",
        "budget": {"usd": "5", "tokens": "2M"},
        "retry": {"backoff": "5m"},
        "review-policy": {"reviewers": ["a"]},
        "body": "x\n",
    }


@pytest.mark.parametrize("front", [front for _, _, _, cases in FIELDS for front, _ in cases])
def test_canonical_content_reads_back_as_the_same_manifest(front: str) -> None:
    """The canonical form is a manifest itself, and its own canonical form."""
    content = canonical(manifest_of(front), "Do it.")
    parsed = parse_manifest_object(content)
    assert canonical(parsed.manifest, parsed.body) == content


# --- notices ----------------------------------------------------------------------------------------------------------

NOTICES = [
    ("ship: pr", [("ship", "refused")]),
    ("review-policy: reviewers:[ann]", [("review-policy", "refused")]),
    ("budget: {usd: 5}", [("budget.usd", "warning")]),
    ("budget: {tokens: 2M, wall: 4h}", [("budget.tokens", "warning"), ("budget.wall", "warning")]),
    ("tracker-item: X-1", [("tracker-item", "warning")]),
    ("engine: devin", [("engine", "warning")]),
    ("engine: codex\nallowed-tools: [Read]", [("allowed-tools", "warning")]),
    ("engine: shell\nmodel: m\nallowed-tools: [Read]", [("model", "warning"), ("allowed-tools", "warning")]),
    ("engine: claude\nmodel: m\nallowed-tools: [Read]", []),
    ("engine: home-made\nmodel: m", []),
    ("engine: claude\nyolo: true\nlock: x\ntimeout: 1m\nverify: make", []),
    ("deps: [j-1]\nretry: {max: 1}\nartifacts: [coverage]\nprefers: [gpu]\npriority: low\nidempotency-key: k", []),
]


@pytest.mark.req("M9")
@pytest.mark.parametrize(("front", "expected"), NOTICES)
def test_field_that_is_not_built_yet_is_refused_or_warned_about(front: str, expected: list[tuple[str, str]]) -> None:
    """No field is silently ignored; what works gives no notice."""
    assert [(notice.field, notice.severity) for notice in unbuilt(manifest_of(front))] == expected


def test_every_notice_says_what_happens_instead() -> None:
    """A notice is a sentence that goes on after the field's name."""
    fronts = [front for front, expected in NOTICES if expected]
    messages = [notice.message for front in fronts for notice in unbuilt(manifest_of(front))]
    assert all(len(message) > 15 for message in messages)
    assert "`timeout` is enforced" in next(m for m in messages if "for each attempt" in m)
