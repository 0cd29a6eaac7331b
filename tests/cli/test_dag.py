"""Jobs that wait for jobs, on the command line."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from cli.graph import lines
from core.job import Stage
from tests.cli.conftest import Gf, only_document


def drawn(jobs: str, *edges: tuple[str, str, dict[str, str]], marked: str | None = None) -> str:
    """Draw jobs with one-letter ids, all queued; an edge is (job, waits for, what is unusual)."""
    usual = {"gate": "start", "until": "shipped", "state": "open"}
    found: dict[str, Any] = {
        "jobs": [{"id": job, "title": f"Job {job}", "stage": "queued"} for job in jobs],
        "edges": [{"job_id": job, "waits_for": other} | usual | unusual for job, other, unusual in edges],
    }
    return "\n".join(lines(found, marked=marked))


def test_tree_draws_a_diamond_once_and_refers_to_it() -> None:
    """A join is drawn below its first parent; below the others its id stands for it."""
    picture = drawn("abcd", ("b", "a", {}), ("c", "a", {}), ("d", "b", {}), ("d", "c", {}), marked="b")
    assert picture == (
        "a  queued  Job a\n├─ b  queued  Job b ←\n│  └─ d  queued  Job d\n└─ c  queued  Job c\n   └─ d, see above"
    )


def test_tree_tells_what_is_unusual_about_a_wait() -> None:
    """Child jobs, waits until testing, and edges that failed or were dropped are told."""
    picture = drawn(
        "abcd",
        ("a", "b", {"gate": "ship"}),
        ("c", "a", {"until": "testing"}),
        ("d", "a", {"state": "failed"}),
    )
    assert picture == (
        "a  queued  Job a\n"
        "├─ b  queued  Job b (child job)\n"
        "├─ c  queued  Job c (until testing)\n"
        "└─ d  queued  Job d (failed)"
    )


def test_tree_of_a_chain_that_is_longer_than_the_stack_is_deep() -> None:
    """Five thousand jobs in a row are drawn."""
    jobs = [chr(0x4E00 + number) for number in range(5_000)]
    picture = drawn("".join(jobs), *((job, before, {}) for before, job in pairwise(jobs)))
    assert len(picture.splitlines()) == 5_000


def test_blocked_job_shows_its_choices_and_unblock_takes_one(gf: Gf) -> None:
    """`gf job` tells what may be typed, and what it says works."""
    parent = gf.submit()
    child = gf.submit(f"deps: [{parent}]")
    tree = gf("dag", child)
    assert tree.returncode == 0, tree.stderr
    first, second = tree.stdout.splitlines()
    assert first.startswith(f"{parent}  queued")
    assert second.startswith(f"└─ {child}  queued")
    assert second.endswith("←")
    assert only_document(gf("dag", "--json"))["truncated"] is False

    gf.end(parent, Stage.FAILED, seq=1)
    shown = gf("job", child).stdout
    for choice in (f"gf requeue {parent}", f"gf unblock {child} --drop {parent}", f"gf cancel {child}"):
        assert choice in shown
    done = gf("unblock", child, "--drop", parent, "--reason", "not needed")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{child}  waits no more for {parent}; it is queued\n"
    assert gf("unblock", child, "--drop", parent).returncode == 5
    assert f"{parent} (failed, dropped)" in gf("job", child).stdout


def test_submit_child_of_a_job(gf: Gf) -> None:
    """The whole shows its parts, and the graph draws them below it."""
    whole = gf.submit()
    done = gf("submit", gf.file(), "--child-of", whole, "--json")
    part = json.loads(done.stdout)["jobs"][0]["id"]
    assert f"child jobs  {part} (queued)" in gf("job", whole).stdout
    assert f"└─ {part}  queued  Say hi (child job)" in gf("dag", whole).stdout
    assert gf("submit", gf.file(), "--child-of", "j-nobody").returncode == 2
