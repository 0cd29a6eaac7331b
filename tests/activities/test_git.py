"""The git layer: environments, failures, objects, what git prints."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities import git
from activities.fence import Objects, closed, job_ref, opened, shipped
from activities.workspace import Workspaces, store
from core.errors import WorkspaceError
from tests.repositories import Checkout
from tests.waiting import until, written
from workers.process_table import birth_of

WHO = git.Identity("Ada", "ada@example.org")


def test_our_commands_know_no_configuration_but_remotes_know_the_users() -> None:
    """Ours run without system and global configuration; the user's keep ssh agent and proxy; neither ever prompts."""
    environ = {"PATH": "/bin", "HOME": "/h", "SSH_AUTH_SOCK": "/s", "https_proxy": "p", "GITHUB_TOKEN": "secret"}
    ours, users = git.git_env(environ=environ), git.git_env(user=True, environ=environ)
    assert ours["GIT_CONFIG_GLOBAL"] == "/dev/null"
    assert "SSH_AUTH_SOCK" not in ours
    assert (users["SSH_AUTH_SOCK"], users["https_proxy"]) == ("/s", "p")
    assert "GIT_CONFIG_GLOBAL" not in users
    for env in (ours, users):
        assert env["GIT_TERMINAL_PROMPT"] == "0"
        assert "GITHUB_TOKEN" not in env


async def test_global_configuration_has_no_effect_on_our_work(tmp_path: Path) -> None:
    """A user's odd settings do not change what a factory commits."""
    (Path.home() / ".gitconfig").write_text("[core]\n\tautocrlf = true\n\teol = crlf\n[commit]\n\tgpgSign = true\n")
    await git.init_mirror(tmp_path / "m.git")
    seen = await git.run_git("config", "--get", "core.autocrlf", at=tmp_path / "m.git", accept=(0, 1))
    assert seen.text == ""
    assert (await git.run_git("config", "--get", "core.autocrlf", user=True)).text == "true"


async def test_failure_carries_command_and_words_of_git(tmp_path: Path) -> None:
    """The error names the command, the code and what git said, without credentials."""
    with pytest.raises(WorkspaceError) as caught:
        await git.run_git("ls-remote", "https://ada:tops3cret@127.0.0.1:9/x.git", at=tmp_path)
    assert caught.value.message.startswith("`git ls-remote https://127.0.0.1:9/x.git` failed with exit code 128")
    assert "tops3cret" not in repr(caught.value.fields) + caught.value.message


async def test_slow_command_is_killed_with_its_children(tmp_path: Path) -> None:
    """A timeout ends git and what it started."""
    began = time.monotonic()
    with pytest.raises(WorkspaceError, match="took longer than"):
        await git.run_git("-c", "alias.wait=!sleep 600", "wait", at=tmp_path, timeout_s=0.3)
    assert time.monotonic() - began < 60


async def test_cancelled_push_leaves_no_lock_on_a_remote_of_this_machine(tmp_path: Path, remote: Checkout) -> None:
    """Git that is killed in mid-push never gives its locks back; here it is asked to end, and the next push passes."""
    held, bare = tmp_path / "held", tmp_path / "bare.git"
    remote.git("clone", "-q", "--bare", ".", str(bare))
    hook = bare / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f'#!/bin/sh\n[ "$1" = prepared ] || exit 0\n: > {held}\nsleep 600\n')
    hook.chmod(0o755)
    pushing = asyncio.create_task(git.push(remote.path, str(bare), ["HEAD:refs/gigafactory/job/j-1"]))
    await until(held.exists)
    pushing.cancel()
    with suppress(asyncio.CancelledError):
        await pushing
    hook.unlink()
    assert (await git.push(remote.path, str(bare), ["HEAD:refs/gigafactory/job/j-1"])).ok


async def test_cancelled_command_is_killed(tmp_path: Path) -> None:
    """A cancelled step leaves no git behind."""
    task = asyncio.create_task(git.run_git("-c", "alias.wait=!echo $$ > pid; sleep 600", "wait", at=tmp_path))
    await written(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: birth_of(int((tmp_path / "pid").read_text())) is None)


async def test_command_that_is_cancelled_while_it_is_being_started_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine git may have started others before asyncio has connected its pipes."""
    start = asyncio.create_subprocess_exec

    async def start_slowly(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*command, **options)
        await written(tmp_path / "pid")
        task.cancel()
        await asyncio.sleep(0.1)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_slowly)
    task = asyncio.create_task(git.run_git("-c", "alias.wait=!echo $$ > pid; sleep 600", "wait", at=tmp_path))
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: birth_of(int((tmp_path / "pid").read_text())) is None)


@pytest.mark.parametrize(
    ("url", "network"),
    [
        ("https://example.org/x.git", True),
        ("ssh://git@example.org/x.git", True),
        ("git@example.org:team/x.git", True),
        ("host:x.git", True),
        ("/srv/git/x.git", False),
        ("file:///srv/x.git", False),
        ("./a:b", False),
        ("", False),
    ],
)
def test_network_urls_are_told_from_paths(url: str, network: bool) -> None:
    """A scheme other than `file`, or the scp form."""
    assert git.is_network_url(url) is network


@pytest.mark.parametrize(
    ("url", "stripped"),
    [
        ("https://ada:pw@example.org:8443/x.git", "https://example.org:8443/x.git"),
        ("ssh://git@example.org/x.git", "ssh://git@example.org/x.git"),
        ("git@example.org:x.git", "git@example.org:x.git"),
        ("/srv/x.git", "/srv/x.git"),
    ],
)
def test_passwords_leave_urls(url: str, stripped: str) -> None:
    """A password goes, a user name that says how to log in stays."""
    assert git.strip_userinfo(url) == stripped


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_commit_is_the_one_that_git_would_make(tmp_path: Path, object_format: str) -> None:
    """Ids and content agree with git's own, for both hash functions; writing twice is harmless."""
    mirror = tmp_path / "m.git"
    await git.init_mirror(mirror, object_format=object_format)
    tree = (await git.run_git("mktree", at=mirror, stdin=b"")).text
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = git.write_commit(mirror, tree, (), message="One\n\nBody äö", who=WHO, when=when)
    second = git.write_commit(mirror, tree, [first], message="Two", who=git.Identity("<A>\n", ""), when=when)
    assert git.write_commit(mirror, tree, (), message="One\n\nBody äö", who=WHO, when=when) == first
    await git.run_git("fsck", "--strict", "--no-dangling", second, at=mirror)
    assert await git.read_commit(mirror, first) == (WHO, "One\n\nBody äö")
    env = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER") for part, value in
           (("NAME", WHO.name), ("EMAIL", WHO.email), ("DATE", "2026-01-02T03:04:05Z"))}  # fmt: skip
    own = await git.run_git("commit-tree", tree, "-m", "One\n\nBody äö", at=mirror, env=env)
    assert own.text == first


def test_rejections_are_read_from_porcelain() -> None:
    """Only refused refs count, with git's reason."""
    text = (
        "To /srv/x.git\n=\ta:refs/heads/same\t[up to date]\n"
        "!\tb:refs/heads/main\t[rejected] (stale info)\n"
        "!\tc:refs/gigafactory/job/j\t[rejected] (atomic push failed)\nDone\n"
    )
    assert git.parse_rejections(text) == {
        "refs/heads/main": "[rejected] (stale info)",
        "refs/gigafactory/job/j": "[rejected] (atomic push failed)",
    }


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
            st.sampled_from(["A", "M", "D", "T"]),
            st.integers(0, 99),
        ),
        unique_by=lambda change: change[0],
        max_size=8,
    )
)
def test_listing_with_any_path_is_read(changes: list[tuple[str, str, int]]) -> None:
    """Tabs, newlines, colons and quotes in paths are no trouble."""
    raw = "".join(f":100644 100644 {'1' * 40} {'2' * 40} {kind}\0{path}\0" for path, kind, _ in changes)
    numbers = "".join(f"{count}\t-\t{path}\0" for path, _, count in changes)
    entries = git.parse_listing((raw + numbers).encode().removesuffix(b"\0"))
    assert [(e.change.path, e.change.kind, e.change.added) for e in entries] == changes


# --- fence ------------------------------------------------------------------------------------------------------------


def test_fence_chain_is_the_same_on_every_machine() -> None:
    """Ids depend on job and epoch alone, and each chain begins with the ones before it."""
    assert opened("j-1", 3)[:5] == closed("j-1", 2) + opened("j-1", 3)[4:5]
    assert opened("j-1", 2)[0] == opened("j-1", 1)[0]
    assert opened("j-1", 1) != opened("j-2", 1)
    assert shipped("j-1", 1)[:-1] == opened("j-1", 1)
    assert len(opened("j-1", 1, "sha256")[0][0]) == 64


@pytest.mark.parametrize(
    ("there", "pushed", "legal"),
    [
        (None, opened("j", 1), True),
        (None, opened("j", 3), True),
        (opened("j", 1), opened("j", 1), True),
        (opened("j", 1), closed("j", 1), True),
        (opened("j", 1), shipped("j", 1), True),
        (closed("j", 1), opened("j", 2), True),
        (opened("j", 1), opened("j", 3), True),
        (closed("j", 1), shipped("j", 1), False),
        (opened("j", 2), opened("j", 1), False),
        (opened("j", 2), shipped("j", 1), False),
        (opened("j", 2), closed("j", 1), False),
        (shipped("j", 1), opened("j", 2), False),
        (shipped("j", 1), closed("j", 1), False),
    ],
)
async def test_remote_lets_only_newer_epochs_pass(
    tmp_path: Path, remote: Checkout, there: Objects | None, pushed: Objects, legal: bool
) -> None:
    """The fast-forward rule of git is the fence: no force, no lease, no API."""
    mirror = tmp_path / "m.git"
    await git.init_mirror(mirror)
    if there is not None:
        assert (await git.push(mirror, str(remote.path), [f"{store(mirror, there)}:{job_ref('j')}"])).ok
    result = await git.push(mirror, str(remote.path), [f"{store(mirror, pushed)}:{job_ref('j')}"])
    assert result.ok is legal
    assert remote.ref(job_ref("j")) == (pushed if legal else there or pushed)[-1][0]


async def test_fence_moves_from_a_machine_that_never_saw_the_old_one(tmp_path: Path, remote: Checkout) -> None:
    """A stale mirror that lacks the newer epoch's objects is refused all the same."""
    old, new = tmp_path / "old.git", tmp_path / "new.git"
    await git.init_mirror(old)
    await git.init_mirror(new)
    assert (await git.push(new, str(remote.path), [f"{store(new, opened('j', 2))}:{job_ref('j')}"])).ok
    refused = await git.push(old, str(remote.path), [f"{store(old, opened('j', 1))}:{job_ref('j')}"])
    assert not refused.ok


# --- mirrors ----------------------------------------------------------------------------------------------------------


async def test_mirror_is_made_once_for_many(tmp_path: Path, remote: Checkout) -> None:
    """Attempts that begin together share one mirror and have worktrees of their own."""
    sha = remote.git("rev-parse", "main")
    workspaces = Workspaces(tmp_path / "mirrors")
    url, ref = str(remote.path), "refs/heads/main"
    trees = await asyncio.gather(
        *(workspaces.check_out(url, sha, tmp_path / f"w{n}" / "work", ref=ref) for n in range(4))
    )
    assert len({tree.admin for tree in trees}) == 4
    assert all((tree.path / "README.md").read_text() == "hello\n" for tree in trees)
    assert workspaces.warm() == (url,)


async def test_worktree_stays_listed_while_another_one_is_made(
    tmp_path: Path, remote: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git worktree add` reads the entries of all others, and fails when one of them goes away meanwhile."""
    sha = remote.git("rev-parse", "main")
    workspaces = Workspaces(tmp_path / "mirrors")
    url, ref = str(remote.path), "refs/heads/main"
    first = await workspaces.check_out(url, sha, tmp_path / "first", ref=ref)
    adding, go_on, add = asyncio.Event(), asyncio.Event(), git.add_worktree

    async def slow_add(mirror: Path, path: Path, commit: str, *, checkout: bool = True) -> None:
        adding.set()
        await go_on.wait()
        await add(mirror, path, commit, checkout=checkout)

    monkeypatch.setattr(git, "add_worktree", slow_add)
    second = asyncio.create_task(workspaces.check_out(url, sha, tmp_path / "second", ref=ref))
    await adding.wait()
    removed = asyncio.create_task(workspaces.remove(first))
    done, _ = await asyncio.wait({removed}, timeout=0.2)
    assert not done
    assert first.admin.is_dir()
    go_on.set()
    assert (await second).admin.is_dir()
    await removed
    assert not first.admin.exists()
    assert not first.path.exists()


async def test_commit_that_came_later_is_fetched(tmp_path: Path, remote: Checkout) -> None:
    """A mirror that borrows nothing fetches what it lacks, and says so when the remote lacks it too."""
    workspaces = Workspaces(tmp_path / "mirrors")
    url, ref = f"file://{remote.path}", "refs/heads/main"
    await workspaces.check_out(url, remote.git("rev-parse", "main"), tmp_path / "a", ref=ref)
    seed = Checkout(tmp_path / "seed")
    later = seed.commit("later", later_txt="x")
    seed.git("push", "-q", str(remote.path), "main")
    tree = await workspaces.check_out(url, later, tmp_path / "b", ref=ref)
    assert (tree.path / "later.txt").read_text() == "x"
    with pytest.raises(WorkspaceError, match="does not have commit"):
        await workspaces.check_out(url, "1" * 40, tmp_path / "c", ref=ref)


async def test_shallow_repository_is_fetched_instead_of_borrowed(tmp_path: Path, remote: Checkout) -> None:
    """Objects that are not all there cannot be borrowed."""
    shallow = tmp_path / "shallow"
    Checkout(tmp_path).git("clone", "-q", "--depth=1", f"file://{remote.path}", str(shallow))
    assert await git.borrowable_objects(shallow) is None
    assert await git.borrowable_objects(remote.path) == remote.path / "objects"
