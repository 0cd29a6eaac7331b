"""From what a manifest says (`cwd` or `repo`, `base`) to the repository of a job, once, at submit. Does I/O: git, disk.

Nothing here changes the user's checkout: it is read with the user's own git configuration and optional locks off.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from activities.git import (
    GitOutput,
    Identity,
    init_mirror,
    is_network_url,
    run_git,
    strip_userinfo,
    write_commit,
)
from activities.shared_calls import SharedCalls
from core.errors import FieldProblem, InvalidInput, WorkspaceError
from core.job import Repository, RepositoryKind

SCRATCH: Final = "scratch:"
SCRATCH_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SHOWN_PATHS: Final = 3
README: Final = "# {name}\n\nA scratch repository that Gigafactory made. Jobs with `repo: scratch:{name}` work here.\n"


async def resolve_repository(
    *,
    cwd: str | None = None,
    repo: str | None = None,
    base: str | None = None,
    home: Path,
    host: str,
    include_dirty: bool = False,
) -> Repository:
    """Return where a job starts and where it goes to.

    Args:
        cwd: Absolute path of the user's directory.
        repo: Git URL, path, or `scratch:<name>`.
        base: Branch to start from; None for the current branch of `cwd` or the default branch of `repo`.
        home: `$GIGAFACTORY_HOME`, where scratch repositories lie.
        host: Name of this machine; the job is pinned to it when nobody else can reach the repository.
        include_dirty: Start from a commit that holds the uncommitted changes of `cwd` too.

    Raises:
        InvalidInput: no such directory, repository or branch; the problem's path is `cwd`, `repo` or `base`.

    """
    if cwd:
        return await _resolve_cwd(_existing(cwd), base, host, include_dirty=include_dirty)
    if not repo:
        raise _invalid("cwd", "a job needs `cwd` or `repo`", "", "a directory, or a git URL")
    if repo.startswith(SCRATCH):
        repo = str(await _scratch(home, repo.removeprefix(SCRATCH)))
    return await _resolve_remote(repo, base, host)


def _invalid(path: str, message: str, value: object, expected: str = "", suggestion: str = "") -> InvalidInput:
    return InvalidInput(message, (FieldProblem(path, message, value, expected, suggestion),))


# --- cwd ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Checkout:
    """What is known of the repository that `cwd` lies in."""

    top: Path
    branch: str
    """Current branch; empty when HEAD is detached."""


@dataclass(frozen=True, slots=True)
class _Branch:
    sha: str
    checked_out: bool


@dataclass(frozen=True, slots=True)
class _Extras:
    dirty: tuple[str, ...]
    take_dirty: bool
    shared_url: str


def _existing(cwd: str) -> Path:
    """Return the directory that `cwd` names, symbolic links resolved."""
    path = Path(cwd).expanduser()
    if not path.is_absolute():
        raise _invalid("cwd", f"`cwd` must be absolute here, got {cwd}", cwd, "an absolute path")
    if not path.is_dir():
        what = "is no directory" if path.exists() else "does not exist"
        raise _invalid("cwd", f"the directory {path} {what}", cwd, "a directory that exists")
    return path.resolve()


async def _resolve_cwd(cwd: Path, base: str | None, host: str, *, include_dirty: bool) -> Repository:
    checkout = await _find_checkout(cwd)
    if checkout is None:
        return _plain_directory(cwd, base, host)
    name = base or checkout.branch
    if not name:
        message = f"HEAD of {checkout.top} is detached; name the branch to start from with `base`, or switch to one"
        raise _invalid("base", message, None, "a branch name")
    branch, dirty, url = await asyncio.gather(
        _local_branch(checkout.top, name), _uncommitted(checkout.top), _shared_url(checkout.top)
    )
    wanted = include_dirty and name == checkout.branch
    found = await _from_checkout(checkout, name, branch, host, _Extras(dirty, wanted, url))
    if cwd == checkout.top:
        return found
    note = f"{cwd} lies inside {checkout.top}: the job starts at the top of that repository"
    return found.model_copy(update={"notes": (note, *found.notes)})


async def _from_checkout(checkout: _Checkout, name: str, branch: _Branch, host: str, extras: _Extras) -> Repository:
    """Put together what was read; the shared remote is used when it has the base commit and nothing else is wanted."""
    dirty, top, url, sha = extras.dirty, checkout.top, extras.shared_url, branch.sha
    notes = []
    snapshot = bool(dirty) and extras.take_dirty
    if snapshot:
        sha = await _commit_dirty(top, sha)
        notes.append(f"{_count(dirty)} taken along as commit {sha[:12]}: {_listed(dirty)}")
    elif dirty:
        notes.append(f"{_count(dirty)} left out: {_listed(dirty)}")
    if url and not snapshot and await _is_shared(top, sha):
        notes += _left_out_password(url)
        return Repository(url=strip_userinfo(url), base=name, base_sha=sha, notes=tuple(notes))
    if url and not snapshot:
        notes.append(
            f"{name} has commits that its remote does not have: the job works from {top} on host {host} "
            "and cannot fail over to another (push them first to change that)"
        )
    if branch.checked_out:
        notes.append(_checked_out(name, str(top)))
    return Repository(
        url=str(top),
        base=name,
        base_sha=sha,
        host=host,
        base_checked_out=branch.checked_out,
        notes=tuple(notes),
    )


async def _find_checkout(cwd: Path) -> _Checkout | None:
    output = await run_git(
        "rev-parse", "--is-bare-repository", "--absolute-git-dir", "--show-toplevel",
        at=cwd, user=True, accept=(0, 128),
    )  # fmt: skip
    lines = output.text.splitlines()
    if lines[:1] == ["true"]:
        top = Path(lines[1])
    elif output.code == 0:
        top = Path(lines[2])
    elif "not a git repository" in output.stderr:
        return None
    else:
        raise _invalid("cwd", f"git cannot read the repository of {cwd}: {output.stderr}", str(cwd))
    head = await run_git("symbolic-ref", "-q", "--short", "HEAD", at=top, user=True, accept=(0, 1))
    return _Checkout(top, head.text)


async def _local_branch(top: Path, name: str) -> _Branch:
    fields = "--format=%(refname:short)%00%(objectname)%00%(worktreepath)"
    output = await run_git("for-each-ref", fields, "refs/heads", at=top, user=True)
    branches = {}
    for line in output.text.splitlines():
        short, sha, worktree = line.split("\0")
        branches[short] = _Branch(sha, bool(worktree))
    if name not in branches:
        raise _no_branch(name, tuple(branches), str(top))
    return branches[name]


def _no_branch(name: str, branches: tuple[str, ...], where: str) -> InvalidInput:
    if not branches:
        return _invalid("base", f"{where} has no commit yet; make a first one", name, "a branch with a commit")
    near = difflib.get_close_matches(name, branches, 3, 0.5)
    nearest = near or sorted(branches)[:5]
    message = f"{where} has no branch {name!r}; the nearest are {', '.join(nearest)}"
    return _invalid("base", message, name, "a branch of the repository", near[0] if near else "")


async def _uncommitted(top: Path) -> tuple[str, ...]:
    """Return the paths that differ from HEAD; untracked directories count as one."""
    output = await run_git("status", "--porcelain", "-z", at=top, user=True, accept=(0, 128))
    fields = iter(output.stdout.decode(errors="backslashreplace").split("\0"))
    paths = []
    for entry in fields:
        if entry:
            paths.append(entry[3:])
            if entry[0] in "RC":
                next(fields)
    return tuple(paths)


def _count(paths: tuple[str, ...]) -> str:
    return "1 uncommitted change is" if len(paths) == 1 else f"{len(paths)} uncommitted changes are"


def _listed(paths: tuple[str, ...]) -> str:
    rest = len(paths) - SHOWN_PATHS
    return ", ".join(paths[:SHOWN_PATHS]) + (f" and {rest} more" if rest > 0 else "")


async def _shared_url(top: Path) -> str:
    """Return the URL of the remote that other machines can reach; empty when there is none."""
    output = await run_git("config", "--get", "remote.origin.url", at=top, user=True, accept=(0, 1))
    return output.text if is_network_url(output.text) else ""


async def _is_shared(top: Path, sha: str) -> bool:
    output = await run_git("for-each-ref", "--count=1", "--contains", sha, "refs/remotes/origin", at=top, user=True)
    return bool(output.text)


async def _commit_dirty(top: Path, head: str) -> str:
    """Commit the whole working tree with an index of our own, reachable from a ref of ours; return the commit."""
    with tempfile.TemporaryDirectory(prefix="gigafactory-") as scratch:
        env = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        await run_git("read-tree", head, at=top, user=True, env=env)
        await run_git("add", "-A", at=top, user=True, env=env)
        tree = (await run_git("write-tree", at=top, user=True, env=env)).text
    who = {
        "GIT_AUTHOR_NAME": Identity().name, "GIT_AUTHOR_EMAIL": Identity().email,
        "GIT_COMMITTER_NAME": Identity().name, "GIT_COMMITTER_EMAIL": Identity().email,
    }  # fmt: skip
    message = "Uncommitted changes, taken along as the start of a job"
    sha = (await run_git("commit-tree", tree, "-p", head, "-m", message, at=top, user=True, env=who)).text
    await run_git("update-ref", f"refs/gigafactory/start/{sha[:16]}", sha, at=top, user=True)
    return sha


def _plain_directory(cwd: Path, base: str | None, host: str) -> Repository:
    if base:
        raise _invalid("base", f"{cwd} is no git repository, so it has no branch {base!r}", base)
    note = (
        f"{cwd} is no git repository: the job runs in place, with verify but without scope gate, undo and merge "
        "(`git init` there to have them)"
    )
    return Repository(kind=RepositoryKind.DIRECTORY, url=str(cwd), base="", host=host, notes=(note,))


# --- repo ---------------------------------------------------------------------------------------------------------


def _local_path(repo: str) -> str:
    path = Path(repo.removeprefix("file://")).expanduser()
    if not path.is_absolute():
        raise _invalid("repo", f"`repo` must be a URL or an absolute path here, got {repo}", repo)
    return str(path)


async def _read_heads(url: str) -> GitOutput:
    return await run_git("ls-remote", "-q", "--symref", url, "HEAD", "refs/heads/*", user=True, timeout_s=60)


_heads = SharedCalls(_read_heads)
"""Many jobs for one repository come at once; the API would start a git for each."""


async def _resolve_remote(repo: str, base: str | None, host: str) -> Repository:
    network = is_network_url(repo)
    url = repo if network else _local_path(repo)
    try:
        output = await _heads.ask(url)
    except WorkspaceError as error:
        said = error.fields.get("stderr") or error
        raise _invalid("repo", f"cannot read {strip_userinfo(url)}: {said}", strip_userinfo(repo)) from None
    default, branches = _parse_symref(output)
    name = base or default
    if name not in branches:
        raise _no_branch(name or "HEAD", tuple(branches), strip_userinfo(url))
    found = Repository(
        url=strip_userinfo(url),
        base=name,
        base_sha=branches[name],
        host=None if network else host,
        notes=_left_out_password(url),
    )
    return found if network else await _with_checkout_note(found)


def _left_out_password(url: str) -> tuple[str, ...]:
    if strip_userinfo(url) == url:
        return ()
    return ("the password in the repository's URL was left out: factories use their own git credentials",)


def _parse_symref(output: GitOutput) -> tuple[str, dict[str, str]]:
    default, branches = "", {}
    for line in output.text.splitlines():
        value, _, ref = line.partition("\t")
        if ref == "HEAD" and value.startswith("ref: "):
            default = value.removeprefix("ref: refs/heads/")
        elif ref.startswith("refs/heads/"):
            branches[ref.removeprefix("refs/heads/")] = value
    return default, branches


async def _with_checkout_note(repository: Repository) -> Repository:
    """Return the repository with the warning that its base is checked out in a working tree at that path."""
    if not (Path(repository.url) / ".git").exists():
        return repository
    branch = await _local_branch(Path(repository.url), repository.base)
    if not branch.checked_out:
        return repository
    note = _checked_out(repository.base, repository.url)
    return repository.model_copy(update={"base_checked_out": True, "notes": (note,)})


def _checked_out(branch: str, top: str) -> str:
    return f"{branch} is checked out in {top}: ship never moves it there, but prints the merge command"


async def _scratch(home: Path, name: str) -> Path:
    """Return the scratch repository of that name, made on first use; two makers at once end with one repository."""
    if not SCRATCH_NAME.fullmatch(name):
        raise _invalid("repo", f"{name!r} is no name for a scratch repository", f"{SCRATCH}{name}", "a-z 0-9 . _ -")
    path = home / "scratch" / f"{name}.git"
    if not _exists(path):
        draft = _draft_beside(path)
        await _make_scratch(draft, name)
        _publish(draft, path)
    return path


def _exists(path: Path) -> bool:
    return path.exists()


def _draft_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))


def _publish(draft: Path, path: Path) -> None:
    """Rename `draft` to `path`, or drop it when another maker was first."""
    try:
        draft.rename(path)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not path.exists():
            raise


async def _make_scratch(path: Path, name: str) -> None:
    await init_mirror(path)
    text = README.format(name=name).encode()
    blob = (await run_git("hash-object", "-w", "--stdin", at=path, stdin=text)).text
    tree = (await run_git("mktree", at=path, stdin=f"100644 blob {blob}\tREADME.md\n".encode())).text
    commit = write_commit(path, tree, (), message="Begin", who=Identity(), when=datetime.now(UTC))
    await run_git("update-ref", "refs/heads/main", commit, at=path)
    await run_git("symbolic-ref", "HEAD", "refs/heads/main", at=path)
    for key, value in (("user.name", Identity().name), ("user.email", Identity().email)):
        await run_git("config", key, value, at=path)
