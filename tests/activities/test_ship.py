"""Ship against a real remote: fenced, atomic, idempotent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities.fence import closed, job_ref, opened, shipped, shipped_ref
from core.attempt import BuildResult
from core.job import JobSpec, ShipMode
from tests.activities.factory_bench import Bench
from tests.repositories import Checkout

BRANCH = "refs/heads/gigafactory/j-1"


async def candidate(bench: Bench, script: str = "echo work > new.txt", **more: object) -> tuple[JobSpec, BuildResult]:
    """Build a candidate; return it with its job."""
    spec = bench.spec(script, **more)
    built = await bench.build(spec)
    assert built.outcome == "succeeded", built.message
    return spec, built


def push_to_main(remote: Checkout, **files: str) -> str:
    """Let somebody else push to the base meanwhile."""
    seed = Checkout(remote.path.parent / "seed")
    seed.git("pull", "-q", "--no-edit", str(remote.path), "main")
    sha = seed.commit("meanwhile", **files)
    seed.git("push", "-q", str(remote.path), "main")
    return sha


async def test_branch_ship_pushes_once_and_second_is_a_no_op(bench: Bench, remote: Checkout) -> None:
    """The candidate is on its branch, marked as shipped; another ship changes nothing and says the same."""
    spec, built = await candidate(bench)
    first = await bench.ship(spec, built)
    assert (first.outcome, first.commits, first.ref) == ("shipped", (built.candidate_sha,), BRANCH)
    assert remote.ref(BRANCH) == remote.ref(shipped_ref("j-1")) == built.candidate_sha
    assert remote.ref(job_ref("j-1")) == shipped("j-1", 1)[-1][0]
    assert "git merge gigafactory/j-1" in first.message
    before = remote.git("for-each-ref")
    assert await bench.ship(spec, built) == first
    assert remote.git("for-each-ref") == before


async def test_base_ship_moves_the_base(bench: Bench, remote: Checkout) -> None:
    """`ship: base` puts the one commit on the base branch; no branch is left behind."""
    spec, built = await candidate(bench)
    first = await bench.ship(spec, built, ShipMode.BASE)
    assert (first.outcome, first.commits, first.ref) == ("shipped", (built.candidate_sha,), "refs/heads/main")
    assert remote.ref("refs/heads/main") == built.candidate_sha
    assert remote.ref(BRANCH) == ""
    push_to_main(remote, later_txt="x")
    assert await bench.ship(spec, built, ShipMode.BASE) == first, "also after the base went on"


async def test_unchanged_candidate_ships_nothing(bench: Bench, remote: Checkout) -> None:
    """A job that changed nothing is marked as shipped at its base, without commits and branch."""
    spec, built = await candidate(bench, "true")
    for _ in range(2):
        result = await bench.ship(spec, built, ShipMode.BASE)
        assert (result.outcome, result.commits) == ("shipped", ())
    assert remote.ref(shipped_ref("j-1")) == built.base_sha == remote.ref("refs/heads/main")
    assert remote.ref(BRANCH) == ""


async def test_moved_base_is_merged_and_verified_again(bench: Bench, remote: Checkout) -> None:
    """A base that moved without a conflict gets the work as one commit on top, verified there, keeping its author."""
    spec, built = await candidate(bench, verify=['test -f other.txt || test ! -f new.txt || test -z "$MOVED"'])
    moved = push_to_main(remote, other_txt="other\n")
    result = await bench.ship(spec, built, ShipMode.BASE)
    assert result.outcome == "shipped", result.message
    (landed,) = result.commits
    assert landed == remote.ref("refs/heads/main") == remote.ref(shipped_ref("j-1")) != built.candidate_sha
    assert remote.git("rev-parse", f"{landed}^") == moved
    assert remote.git("ls-tree", "--name-only", landed).split() == ["README.md", "keep.txt", "new.txt", "other.txt"]
    assert remote.git("log", "-1", "--format=%an|%s", landed) == "Ada|Do it"
    assert await bench.ship(spec, built, ShipMode.BASE) == result


async def test_moved_base_that_breaks_verify_is_not_shipped(bench: Bench, remote: Checkout) -> None:
    """What is green alone but red on the new base stays out."""
    spec, built = await candidate(bench, verify=["! test -f other.txt || { echo red; exit 1; }"])
    moved = push_to_main(remote, other_txt="other\n")
    result = await bench.ship(spec, built, ShipMode.BASE)
    assert (result.outcome, result.commits) == ("verify_failed", ())
    assert "red" in result.message
    assert remote.ref("refs/heads/main") == moved
    assert remote.ref(shipped_ref("j-1")) == ""


async def test_conflict_is_shown_with_its_hunks(bench: Bench, remote: Checkout) -> None:
    """A base that conflicts ends with the paths and the hunks, and nothing moved."""
    spec, built = await candidate(bench, "printf 'one\\nOURS\\nthree\\n' > keep.txt")
    moved = push_to_main(remote, keep_txt="one\nTHEIRS\nthree\n")
    result = await bench.ship(spec, built, ShipMode.BASE)
    assert (result.outcome, result.commits) == ("conflict", ())
    assert "conflicts in: keep.txt" in result.message
    assert "OURS" in result.message
    assert "THEIRS" in result.message
    assert remote.ref("refs/heads/main") == moved


async def test_stale_epoch_is_refused_by_the_remote_itself(tmp_path: Path, bench: Bench, remote: Checkout) -> None:
    """With no API in between: once epoch 2 has begun, epoch 1 cannot ship, in either mode."""
    spec, built = await candidate(bench)
    other = Bench(tmp_path / "elsewhere", remote, name="calm-forge")
    newer = await other.build(other.spec("echo newer > new.txt"), epoch=2)
    assert remote.ref(job_ref("j-1")) == opened("j-1", 2)[-1][0]
    for mode in (ShipMode.BRANCH, ShipMode.BASE):
        result = await bench.ship(spec, built, mode)
        assert (result.outcome, result.commits) == ("fenced", ())
    assert remote.ref("refs/heads/main") == built.base_sha
    assert remote.ref(BRANCH) == ""
    assert (await other.ship(spec, newer)).outcome == "shipped"
    assert (await bench.ship(spec, built)).commits == (newer.candidate_sha,), "what shipped is the answer from then on"
    other.supervisors.close()


async def test_stale_epoch_without_changes_is_fenced_too(tmp_path: Path, bench: Bench, remote: Checkout) -> None:
    """An empty candidate of an older epoch cannot mark the job as shipped."""
    spec, built = await candidate(bench, "true")
    other = Bench(tmp_path / "elsewhere", remote, name="calm-forge")
    await other.build(other.spec("echo newer > new.txt"), epoch=2)
    other.supervisors.close()
    assert (await bench.ship(spec, built)).outcome == "fenced"
    assert remote.ref(shipped_ref("j-1")) == ""


async def test_retracted_candidate_cannot_ship(bench: Bench, remote: Checkout) -> None:
    """Reject closes the epoch on the remote; the next epoch opens it again."""
    spec, built = await candidate(bench)
    await bench.retract(spec, built)
    await bench.retract(spec, built)
    assert remote.ref(job_ref("j-1")) == closed("j-1", 1)[-1][0]
    assert (await bench.ship(spec, built)).outcome == "fenced"
    again = await bench.build(bench.spec("echo better > new.txt"), epoch=2)
    assert (await bench.ship(spec, again)).outcome == "shipped"
    with pytest.raises(ApplicationError) as caught:
        await bench.retract(spec, built)
    assert caught.value.type == "stale_epoch"


async def test_two_ships_at_once_ship_once(tmp_path: Path, bench: Bench, remote: Checkout) -> None:
    """Racing ships of one candidate end with one commit on the base and one answer."""
    spec, built = await candidate(bench)
    other = Bench(tmp_path / "elsewhere", remote, name="calm-forge")
    results = await asyncio.gather(bench.ship(spec, built, ShipMode.BASE), other.ship(spec, built, ShipMode.BASE))
    other.supervisors.close()
    assert {result.commits for result in results} == {(built.candidate_sha,)}
    assert remote.git("rev-list", "--count", "main") == "2"


async def test_base_that_is_checked_out_is_left_alone(bench: Bench, checkout: Checkout) -> None:
    """The user's branch, index and files stay; the work is on its branch, with the merge command."""
    bench.remote = checkout
    known = bench.spec("true").repository.model_copy(update={"base_checked_out": True})
    spec, built = await candidate(bench, repository=known.model_dump())
    checkout.write("README.md", "being edited\n")
    before = (checkout.git("status", "--porcelain"), checkout.git("rev-parse", "HEAD"))
    result = await bench.ship(spec, built, ShipMode.BASE)
    assert (result.outcome, result.ref) == ("shipped", BRANCH)
    assert f"git -C {checkout.path} merge gigafactory/j-1" in result.message
    assert (checkout.git("status", "--porcelain"), checkout.git("rev-parse", "HEAD")) == before


async def test_base_that_was_checked_out_since_goes_to_the_branch(bench: Bench, checkout: Checkout) -> None:
    """Nobody knew at submit that the base would be checked out: git refuses, and the branch takes the work."""
    bench.remote = checkout
    spec, built = await candidate(bench)
    result = await bench.ship(spec, built, ShipMode.BASE)
    assert (result.outcome, result.ref) == ("shipped", BRANCH)
    assert checkout.ref(BRANCH) == built.candidate_sha


async def test_branch_of_somebody_else_is_not_overwritten(bench: Bench, remote: Checkout) -> None:
    """A branch with our name that we did not make stays as it is."""
    spec, built = await candidate(bench)
    remote.git("update-ref", BRANCH, built.base_sha)
    result = await bench.ship(spec, built)
    assert result.outcome == "conflict"
    assert remote.ref(BRANCH) == built.base_sha


async def test_refusing_hook_is_told(bench: Bench, remote: Checkout) -> None:
    """A server that refuses for reasons of its own is an error with its words, not a loop."""
    spec, built = await candidate(bench)
    hook = remote.path / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ncase $1 in refs/heads/*) exit 1;; esac\n")
    hook.chmod(0o755)
    with pytest.raises(ApplicationError, match="hook declined") as caught:
        await bench.ship(spec, built)
    assert caught.value.type == "workspace"
    assert remote.ref(shipped_ref("j-1")) == ""
