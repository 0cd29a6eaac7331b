"""The judge itself: it finds each thing that it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.referee import SHIPPED, Certified, Line, Referee, certified, git, outlived


@pytest.fixture
def referee(tmp_path: Path) -> Referee:
    """Return a referee with two remotes."""
    return Referee(tmp_path / "judged", 2)


def land(
    referee: Referee, number: int, *, mark: str = "", branch: str = "main", name: str = "", title: str = ""
) -> None:
    """Bring a job's work to its remote, as a ship would."""
    remote = referee.task(number).remote
    tree = remote.parent / f"tree-{branch}-{name or number}-{title}"
    git(remote.parent, "clone", "-q", str(remote), str(tree))
    git(tree, "checkout", "-q", "-B", branch)
    (tree / (name or f"made-{number}")).write_text(f"{branch} {title}")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", title or f"Number {number}")
    git(tree, "push", "-q", "origin", f"HEAD:refs/heads/{branch}", *([f"HEAD:{SHIPPED}{mark}"] if mark else []))


def write(referee: Referee, *lines: str) -> None:
    """Write what scripts would."""
    with referee.ledger.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_work_that_shipped_once_is_clean(referee: Referee) -> None:
    """On the base or on a branch; a step's own file does not count as the work."""
    for number, branch in ((0, "main"), (3, "gigafactory/j-3")):
        land(referee, number, mark=f"j-{number}", branch=branch)
        write(referee, f"begin {number} j-{number}.1 10 1.0", f"end {number} j-{number}.1 10 2.0")
    land(referee, 0, name="made-0-1", title="A step")
    jobs = {number: {f"j-{number}"} for number in (0, 3)}
    assert referee.judge(jobs, {"j-0": "shipped", "j-3": "shipped"}, (), {}).clean


@pytest.mark.parametrize("stage", ["shipped", "failed", "dead_letter", "cancelled", "unknown"])
def test_work_on_no_remote_is_lost_when_the_product_is_done_with_it(referee: Referee, stage: str) -> None:
    """Also when the product says that it shipped, and when it knows nothing of it."""
    claims = {} if stage == "unknown" else {"j-0": stage}
    assert set(referee.judge({0: {"j-0"}}, claims, (), {}).lost) == {0}


@pytest.mark.parametrize("stage", ["queued", "building", "testing"])
def test_job_that_comes_to_no_end_is_stuck(referee: Referee, stage: str) -> None:
    """Whether or not its work is on the remote already."""
    land(referee, 1, mark="j-1")
    verdict = referee.judge({0: {"j-0"}, 1: {"j-1"}}, {"j-0": stage, "j-1": stage}, (), {})
    assert set(verdict.stuck) == {0, 1}


def test_work_that_landed_on_two_branches_is_shipped_twice(referee: Referee) -> None:
    """Though there is but one mark, and the second found the first one's file there."""
    land(referee, 0, mark="j-0")
    land(referee, 0, branch="gigafactory/j-0")
    write(referee, "end 0 j-0.1 10 2.0")
    assert set(referee.judge({0: {"j-0"}}, {"j-0": "shipped"}, (), {}).shipped_twice) == {0}


def test_submit_that_made_two_jobs_is_shipped_twice(referee: Referee) -> None:
    """One idempotency key is one job, whichever answer was lost."""
    land(referee, 0, mark="j-0")
    verdict = referee.judge({0: {"j-0", "j-1"}}, {"j-0": "shipped", "j-1": "queued"}, (), {})
    assert set(verdict.shipped_twice) == {0}


def test_shipped_work_that_no_script_finished_is_unproven(referee: Referee) -> None:
    """Work of an attempt that was cut off does not ship."""
    land(referee, 0, mark="j-0")
    write(referee, "begin 0 j-0.1 10 1.0")
    assert set(referee.judge({0: {"j-0"}}, {"j-0": "shipped"}, (), {}).unproven) == {0}


def test_line_after_the_death_certificate_is_found() -> None:
    """Of that attempt alone: the next epoch of the job writes, and has to."""
    lines = [Line.of(f"alive 0 j-0.{epoch} 10 {at}") for epoch, at in ((1, 5.0), (1, 6.5), (2, 7.0))]
    assert outlived(lines, [Certified("j-0", 1, 6.0)]) == {"j-0.1": 1}


def test_only_a_certified_loss_claims_that_nothing_lives() -> None:
    """A lease that ran out says nothing of the processes."""
    lost = {"type": "lease.lost", "at": "2026-01-01T00:00:01+00:00"}
    events = [
        {**lost, "epoch": 1, "data": {"certified": False}},
        {**lost, "epoch": 2, "data": {"certified": True}},
        {**lost, "epoch": 3, "type": "stage.changed", "data": {}},
    ]
    assert certified(events, "j-0") == [Certified("j-0", 2, 1767225601.0)]
