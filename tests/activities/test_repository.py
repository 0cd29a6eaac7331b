"""What `cwd`, `repo` and `base` resolve to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from activities.repository import resolve_repository
from core.errors import InvalidInput
from core.job import Repository, RepositoryKind
from tests.repositories import Checkout


async def resolve(tmp_path: Path, **given: object) -> Repository:
    """Resolve on the host `box`."""
    return await resolve_repository(home=tmp_path / "gf", host="box", **given)  # type: ignore[arg-type]


async def refused(tmp_path: Path, **given: object) -> InvalidInput:
    """Return the error that resolving ends with."""
    with pytest.raises(InvalidInput) as caught:
        await resolve(tmp_path, **given)
    return caught.value


async def test_cwd_clean_checkout_pins_to_this_host(tmp_path: Path, checkout: Checkout) -> None:
    """A repository without a shared remote is its own remote, on this host only."""
    found = await resolve(tmp_path, cwd=str(checkout.path))
    assert (found.url, found.base, found.base_sha, found.host) == (
        str(checkout.path), "main", checkout.git("rev-parse", "HEAD"), "box",
    )  # fmt: skip
    assert found.base_checked_out
    assert "checked out" in found.notes[0]


async def test_cwd_dirty_names_what_is_left_out(tmp_path: Path, checkout: Checkout) -> None:
    """Uncommitted changes are left out and named; index and files stay as they are."""
    checkout.write("README.md", "changed\n")
    checkout.write("new file.txt", "x")
    checkout.write("staged.txt", "x")
    checkout.write("more.txt", "x")
    checkout.git("add", "staged.txt")
    before = (checkout.path / ".git/index").read_bytes()
    found = await resolve(tmp_path, cwd=str(checkout.path))
    assert found.notes[0].startswith("4 uncommitted changes are left out: ")
    assert "README.md" in found.notes[0]
    assert "and 1 more" in found.notes[0]
    assert (checkout.path / ".git/index").read_bytes() == before


async def test_cwd_include_dirty_starts_from_a_commit_with_the_changes(tmp_path: Path, checkout: Checkout) -> None:
    """`include_dirty` takes tracked and untracked changes along, without touching branch, index or files."""
    head = checkout.git("rev-parse", "HEAD")
    checkout.write("README.md", "changed\n")
    checkout.write("new.txt", "x")
    status = checkout.git("status", "--porcelain")
    found = await resolve(tmp_path, cwd=str(checkout.path), include_dirty=True)
    assert checkout.git("show", f"{found.base_sha}:new.txt") == "x"
    assert checkout.git("rev-parse", f"{found.base_sha}^") == head == checkout.git("rev-parse", "main")
    assert checkout.git("status", "--porcelain") == status
    assert "taken along" in found.notes[0]


async def test_cwd_detached_head_without_base_says_what_to_do(tmp_path: Path, checkout: Checkout) -> None:
    """A detached HEAD is no base; the error says how to name one."""
    checkout.git("checkout", "-q", "--detach")
    error = await refused(tmp_path, cwd=str(checkout.path))
    assert error.problems[0].path == "base"
    assert "detached" in error.message
    assert (await resolve(tmp_path, cwd=str(checkout.path), base="main")).base == "main"


async def test_cwd_missing_directory_is_refused(tmp_path: Path) -> None:
    """A missing directory is the caller's mistake, at `cwd`."""
    error = await refused(tmp_path, cwd=str(tmp_path / "nowhere"))
    assert error.problems[0].path == "cwd"
    assert "does not exist" in error.message


async def test_cwd_without_git_runs_in_place(tmp_path: Path) -> None:
    """A directory without git is accepted, pinned, and says what is missing."""
    plain = tmp_path / "plain"
    plain.mkdir()
    found = await resolve(tmp_path, cwd=str(plain))
    assert (found.kind, found.base_sha, found.host) == (RepositoryKind.DIRECTORY, "", "box")
    assert "no git repository" in found.notes[0]


async def test_cwd_subdirectory_resolves_to_the_top(tmp_path: Path, checkout: Checkout) -> None:
    """A job of a subdirectory works on its repository, and is told so."""
    checkout.write("deep/er/x.txt", "x")
    checkout.commit()
    found = await resolve(tmp_path, cwd=str(checkout.path / "deep/er"))
    assert found.url == str(checkout.path)
    assert "starts at the top" in found.notes[0]


async def test_cwd_with_pushed_commits_uses_the_shared_remote(tmp_path: Path, checkout: Checkout) -> None:
    """What the shared remote has can run anywhere; what it lacks pins the job."""
    checkout.git("remote", "add", "origin", "https://ada:secret@git.example.org/p.git")
    checkout.git("update-ref", "refs/remotes/origin/main", "HEAD")
    found = await resolve(tmp_path, cwd=str(checkout.path))
    assert (found.url, found.host) == ("https://git.example.org/p.git", None)
    assert any("password" in note for note in found.notes)
    checkout.commit("not pushed")
    found = await resolve(tmp_path, cwd=str(checkout.path))
    assert (found.url, found.host) == (str(checkout.path), "box")
    assert any("cannot fail over" in note for note in found.notes)


async def test_unknown_base_names_the_nearest(tmp_path: Path, checkout: Checkout, remote: Checkout) -> None:
    """A mistyped branch is answered with the branch that was meant."""
    checkout.git("branch", "develop")
    error = await refused(tmp_path, cwd=str(checkout.path), base="devlop")
    assert error.problems[0].suggestion == "develop"
    error = await refused(tmp_path, repo=str(remote.path), base="man")
    assert (error.problems[0].path, error.problems[0].suggestion) == ("base", "main")


async def test_repository_without_a_commit_is_refused(tmp_path: Path) -> None:
    """There is nothing to start from in an empty repository."""
    empty = Checkout(tmp_path)
    empty.git("init", "-q", "-b", "main", "empty")
    error = await refused(tmp_path, cwd=str(tmp_path / "empty"))
    assert "no commit yet" in error.message


async def test_repo_path_resolves_default_branch(tmp_path: Path, remote: Checkout) -> None:
    """A path is read like a remote: default branch, its commit, pinned to the host."""
    found = await resolve(tmp_path, repo=str(remote.path))
    assert (found.base, found.base_sha, found.host) == ("main", remote.git("rev-parse", "main"), "box")
    assert (await resolve(tmp_path, repo=f"file://{remote.path}")).url == str(remote.path)


async def test_repo_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """The error carries what git said."""
    error = await refused(tmp_path, repo=str(tmp_path / "none.git"))
    assert error.problems[0].path == "repo"
    assert "does not appear to be a git repository" in error.message


async def test_scratch_made_once_by_many_at_once(tmp_path: Path) -> None:
    """Racing submits end with one scratch repository and the same base."""
    found = await asyncio.gather(*(resolve(tmp_path, repo="scratch:hello") for _ in range(5)))
    assert len({repository.base_sha for repository in found}) == 1
    assert [path.name for path in (tmp_path / "gf/scratch").iterdir()] == ["hello.git"]
    assert Checkout(Path(found[0].url)).git("log", "-1", "--format=%an <%ae>") == "Gigafactory <gigafactory@localhost>"
    error = await refused(tmp_path, repo="scratch:../evil")
    assert error.problems[0].path == "repo"
