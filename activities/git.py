"""Git as functions, one per operation. Does I/O: runs `git`, writes loose objects.

Two environments, and no third:

* **ours** (mirrors, worktrees, checkpoints): no system and no global configuration, so that a factory behaves the
  same whoever runs it;
* **the user's** (`user=True`: everything that talks to a remote or reads the user's own checkout): their
  configuration, credential helpers, ssh agent and proxies work, but nothing ever prompts.

Neither runs hooks of ours, signs, or starts background maintenance. Every failure is a `WorkspaceError` that carries
the command and the end of what git said.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from core.attempt import ChangedPath
from core.errors import WorkspaceError

LOCAL_TIMEOUT_S: Final = 120.0
"""Longest a command on this machine may take (a checkout of a large repository is the slow one)."""
END_S: Final = 2.0
"""Time that git has to end when it is asked to."""
REMOTE_TIMEOUT_S: Final = 600.0
"""Longest a fetch or push may take."""
STDERR_TAIL: Final = 2000

_PASSED: Final = ("PATH", "HOME", "TMPDIR", "USER", "LOGNAME")
_PASSED_TO_REMOTES: Final = (
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_ASKPASS",
    "GIT_SSL_CAINFO",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_NOSYSTEM",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)
_OVERRIDES: Final = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "push.gpgSign": "false",
    "push.followTags": "false",
    "push.recurseSubmodules": "no",
    "fetch.recurseSubmodules": "no",
    "protocol.file.allow": "always",
    "advice.detachedHead": "false",
    "submodule.recurse": "false",
}


@dataclass(frozen=True, slots=True)
class GitOutput:
    """What a git command said."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Return standard output as text without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a commit is from."""

    name: str = "Gigafactory"
    email: str = "gigafactory@localhost"


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a remote did with a push: nothing at all when `rejected` is not empty (pushes are atomic)."""

    rejected: Mapping[str, str] = field(default_factory=dict)
    """Refused ref → the reason in git's words."""

    @property
    def ok(self) -> bool:
        """Return whether every ref is now as it was asked for."""
        return not self.rejected

    @property
    def locked(self) -> bool:
        """Return whether the remote could not change a ref, whatever it holds: somebody else has its lock."""
        return any("atomic transaction failed" in reason for reason in self.rejected.values())


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Outcome of a merge in the object store; no worktree is involved."""

    tree: str
    """The merged tree; with conflict markers in it when there are conflicts."""
    conflicts: tuple[str, ...] = ()


# --- running git --------------------------------------------------------------------------------------------------


def git_env(*, user: bool = False, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for git: `user` says whether the user's own configuration applies."""
    source = os.environ if environ is None else environ
    names = _PASSED + _PASSED_TO_REMOTES if user else _PASSED
    env = {name: source[name] for name in names if name in source}
    if not user:
        env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1"}
    env |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "SSH_ASKPASS_REQUIRE": "never", "GIT_OPTIONAL_LOCKS": "0"}
    env["GIT_CONFIG_COUNT"] = str(len(_OVERRIDES))
    for index, (key, value) in enumerate(_OVERRIDES.items()):
        env[f"GIT_CONFIG_KEY_{index}"] = key
        env[f"GIT_CONFIG_VALUE_{index}"] = value
    return env


async def run_git(
    *arguments: str | Path,
    at: Path | None = None,
    user: bool = False,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_s: float = LOCAL_TIMEOUT_S,
    accept: Sequence[int] = (0,),
) -> GitOutput:
    """Run one git command and return what it said.

    Args:
        *arguments: Arguments of git, without `git` itself.
        at: Directory to run in.
        user: The user's own git configuration and credentials apply.
        env: Further environment variables.
        stdin: Bytes for its standard input; closed when None.
        timeout_s: Seconds until it is killed.
        accept: Exit codes that are no failure.

    Raises:
        WorkspaceError: git failed or took too long.

    """
    argv = [str(argument) for argument in arguments]
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            "git",
            *argv,
            cwd=at,
            env=git_env(user=user) | dict(env or {}),
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # no terminal to ask on, and one group to kill
        )
    )
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:  # asyncio itself would kill git alone, and leave what git has started by now
        await _end(await starting)
        raise
    output = await _finish(process, argv, stdin, timeout_s)
    if output.code not in accept:
        raise git_failure(argv, output)
    return output


async def _finish(
    process: asyncio.subprocess.Process, argv: Sequence[str], stdin: bytes | None, timeout_s: float
) -> GitOutput:
    """Wait for git; however the waiting ends, git and what it started are gone."""
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        raise WorkspaceError(f"`{_shown(argv)}` took longer than {timeout_s:.0f} s", command=_shown(argv)) from None
    finally:
        if process.returncode is None:
            await _end(process)
    return GitOutput(process.returncode or 0, out, err.decode(errors="replace")[-STDERR_TAIL:].strip())


async def _end(process: asyncio.subprocess.Process) -> None:
    """End git with what it started: asked first, killed when that does not help.

    A push that is killed leaves the locks of its refs on a remote on this machine, and nobody could push there again.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(END_S):
            await process.communicate()  # its pipes end with the last process that has them
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def git_failure(argv: Sequence[str], output: GitOutput) -> WorkspaceError:
    """Return the error for a git command that failed."""
    said = without_credentials(output.stderr or output.text[-STDERR_TAIL:]) or "it said nothing"
    return WorkspaceError(
        f"`{_shown(argv)}` failed with exit code {output.code}: {said}", command=_shown(argv), stderr=said
    )


def _shown(argv: Sequence[str]) -> str:
    return without_credentials("git " + " ".join(argv))[:400]


_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")


def without_credentials(text: str) -> str:
    """Return `text` with the user part of every URL in it left out."""
    return _USERINFO.sub("", text)


def strip_userinfo(url: str) -> str:
    """Return `url` without a password in it; a bare user name (`ssh://git@host`) stays."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.hostname or ""
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host))


def is_network_url(url: str) -> bool:
    """Return whether `url` names another machine: a scheme other than `file`, or the scp form `host:path`."""
    if "://" in url:
        return not url.startswith("file://")
    head, colon, _ = url.partition(":")
    return bool(colon) and "/" not in head and len(head) > 1


def local_path(url: str) -> Path | None:
    """Return the directory that a plain path names; None for every URL."""
    return None if "://" in url or is_network_url(url) else Path(url)


# --- mirrors and worktrees ----------------------------------------------------------------------------------------


async def init_mirror(mirror: Path, *, object_format: str = "sha1", borrow: Path | None = None) -> None:
    """Make an empty bare repository; with `borrow` it reads the objects of that object directory as its own."""
    await run_git("init", "-q", "--bare", "--template=", f"--object-format={object_format}", mirror)
    if borrow is not None:
        info = mirror / "objects" / "info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "alternates").write_text(f"{borrow}\n", encoding="utf-8")


async def borrowable_objects(path: Path) -> Path | None:
    """Return the object directory of the repository at `path`; None when it is shallow or partial."""
    output = await run_git(
        "rev-parse", "--path-format=absolute", "--git-path", "objects", "--git-path", "shallow", at=path, user=True
    )
    objects, shallow = (Path(line) for line in output.text.splitlines())
    promised = any(objects.glob("pack/*.promisor"))
    return None if shallow.exists() or promised else objects


async def fetch(mirror: Path, url: str, *refspecs: str) -> None:
    """Fetch `refspecs` from `url` into `mirror`, without tags and without FETCH_HEAD."""
    options = ("-q", "--no-tags", "--no-auto-gc", "--no-write-fetch-head", "--force")
    await run_git("fetch", *options, url, *refspecs, at=mirror, user=True, timeout_s=REMOTE_TIMEOUT_S)


async def has_commit(repository: Path, sha: str) -> bool:
    """Return whether the object store of `repository` has the commit."""
    return (await run_git("cat-file", "-e", f"{sha}^{{commit}}", at=repository, accept=(0, 1, 128))).code == 0


async def add_worktree(mirror: Path, path: Path, commit: str, *, checkout: bool = True) -> None:
    """Make a worktree of `mirror` at `path` with HEAD detached at `commit`; one that was there before is forgotten."""
    how = () if checkout else ("--no-checkout",)
    await run_git("worktree", "add", "-q", "--force", "--detach", *how, path, commit, at=mirror)


async def read_tree(worktree: Path, tree: str) -> None:
    """Fill index and files of an empty worktree from `tree`, without moving HEAD."""
    await run_git("read-tree", "-u", "--reset", tree, at=worktree)


def worktree_admin(worktree: Path) -> Path:
    """Return the administrative directory of a worktree, as its `.git` file names it."""
    return Path((worktree / ".git").read_text(encoding="utf-8").removeprefix("gitdir: ").strip())


# --- objects ------------------------------------------------------------------------------------------------------


def commit_object(
    tree: str, parents: Iterable[str], *, message: str, who: Identity, when: datetime, object_format: str = "sha1"
) -> tuple[str, bytes]:
    """Return id and bytes of a commit object. *Pure.*"""
    stamp = f"{_plain(who.name)} <{_plain(who.email)}> {int(when.timestamp())} +0000"
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {stamp}", f"committer {stamp}"]
    body = ("\n".join(lines) + "\n\n" + message.strip("\n") + "\n").encode()
    data = b"commit %d\0" % len(body) + body
    return hashlib.new(object_format, data).hexdigest(), data


def _plain(text: str) -> str:
    return re.sub(r"[<>\n\0]", "", text).strip() or "Gigafactory"


def write_object(mirror: Path, sha: str, data: bytes) -> None:
    """Store an object in `mirror` as a loose file, the way `git hash-object -w` does, without a process."""
    target = mirror / "objects" / sha[:2] / sha[2:]
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    draft = target.with_name(f"tmp_obj_{os.getpid()}_{sha[:12]}")
    draft.write_bytes(zlib.compress(data, 1))
    draft.chmod(0o444)
    draft.replace(target)


def write_commit(
    mirror: Path, tree: str, parents: Iterable[str], *, message: str, who: Identity, when: datetime
) -> str:
    """Store a commit in `mirror` and return its id; the same arguments give the same commit."""
    known = object_format_of(tree)
    sha, data = commit_object(tree, parents, message=message, who=who, when=when, object_format=known)
    write_object(mirror, sha, data)
    return sha


def object_format_of(sha: str) -> str:
    """Return the hash function that an object id of this length belongs to."""
    return "sha256" if len(sha) == 64 else "sha1"


async def tree_of(repository: Path, commit: str) -> str:
    """Return the tree of a commit."""
    return (await run_git("rev-parse", "--verify", "-q", f"{commit}^{{tree}}", at=repository)).text


async def update_ref(repository: Path, ref: str, sha: str) -> None:
    """Let a ref of a repository of ours hold a commit."""
    await run_git("update-ref", ref, sha, at=repository)


async def read_commit(repository: Path, commit: str) -> tuple[Identity, str]:
    """Return author and message of a commit."""
    text = (await run_git("log", "-1", "--format=%an%x00%ae%x00%B", commit, at=repository)).text
    name, email, message = text.split("\0", 2)
    return Identity(name, email), message


async def read_identity(url: str) -> Identity:
    """Return the identity that commits to `url` carry: the repository's or the user's own, else Gigafactory's."""
    output = await run_git(
        "config", "-z", "--get-regexp", r"^user\.(name|email)$", at=local_path(url), user=True, accept=(0, 1, 128)
    )
    found: dict[str, str] = {}
    for entry in output.stdout.decode(errors="replace").split("\0"):
        key, _, value = entry.partition("\n")
        found[key.lower()] = value
    if not (found.get("user.name") and found.get("user.email")):
        return Identity()
    return Identity(found["user.name"], found["user.email"])


# --- comparing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """What lies between two commits."""

    changes: tuple[ChangedPath, ...]
    patch: bytes
    """Unified diff."""


async def difference(repository: Path, base: str, commit: str) -> Difference:
    """Compare two commits: renames, symbolic links (with where they point), modes and submodules are told apart."""
    output = await run_git(
        "diff-tree", "-r", "-z", "-M", "--raw", "--numstat", "-p", "--no-color", "--no-ext-diff", "--no-textconv",
        base, commit, at=repository,
    )  # fmt: skip
    listing, patch = split_patch(output.stdout)
    entries = parse_listing(listing)
    targets = await _link_targets(repository, [entry.new_sha for entry in entries if entry.is_link])
    changes = (
        _printable(entry.change.model_copy(update={"target": targets.get(entry.new_sha, "") if entry.is_link else ""}))
        for entry in entries
    )
    return Difference(tuple(changes), patch)


@dataclass(frozen=True, slots=True)
class DiffEntry:
    """One changed path with what git knows of its new content."""

    change: ChangedPath
    new_mode: str
    new_sha: str

    @property
    def is_link(self) -> bool:
        """Return whether the path is a symbolic link now."""
        return self.new_mode == "120000"


def split_patch(raw: bytes) -> tuple[bytes, bytes]:
    """Split the output of `git diff-tree -z --raw --numstat -p` into listing and patch. *Pure.*"""
    listing, _, patch = raw.partition(b"\0\0diff --git ")
    return listing, b"diff --git " + patch if patch else b""


def parse_listing(listing: bytes) -> list[DiffEntry]:
    """Read `git diff-tree -r -z -M --raw --numstat`. *Pure.*"""
    fields = iter(listing.decode(errors="surrogateescape").split("\0"))
    entries: dict[str, DiffEntry] = {}
    for field_ in fields:
        if field_.startswith(":"):
            entry = _raw_entry(field_, fields)
            entries[entry.change.path] = entry
        elif field_:
            added, removed, path = field_.split("\t", 2)
            if not path:  # a rename: the old and the new path follow
                next(fields)
                path = next(fields)
            counted = entries[path].change.model_copy(update={"added": _count(added), "removed": _count(removed)})
            entries[path] = replace(entries[path], change=counted)
    return list(entries.values())


def _raw_entry(entry: str, fields: Iterator[str]) -> DiffEntry:
    old_mode, new_mode, _, new_sha, status = entry[1:].split(" ")
    path, previous = next(fields), ""
    if status[0] in "RC":
        previous, path = path, next(fields)
    change = ChangedPath(path=path, kind=_kind(status[0], old_mode, new_mode), previous=previous)
    return DiffEntry(change, new_mode, new_sha)


async def _link_targets(repository: Path, shas: list[str]) -> dict[str, str]:
    """Return blob → where the symbolic link that it stands for points."""
    if not shas:
        return {}
    output = await run_git("cat-file", "--batch", at=repository, stdin="\n".join(shas).encode())
    targets, rest = {}, output.stdout
    while rest:
        head, _, rest = rest.partition(b"\n")
        sha, _, size = head.decode().split(" ")
        targets[sha] = rest[: int(size)].decode(errors="backslashreplace")
        rest = rest[int(size) + 1 :]
    return targets


def _kind(status: str, old_mode: str, new_mode: str) -> str:
    if "160000" in (old_mode, new_mode):
        return "S"
    if status == "M" and old_mode != new_mode:
        return "X"
    return {"C": "A"}.get(status, status)


def _count(number: str) -> int:
    return 0 if number == "-" else int(number)


def _printable(change: ChangedPath) -> ChangedPath:
    """Return the change with bytes that are no UTF-8 shown as escapes, since paths travel as JSON."""
    escaped = {
        name: value.encode(errors="surrogateescape").decode(errors="backslashreplace")
        for name, value in (("path", change.path), ("previous", change.previous))
    }
    return change.model_copy(update=escaped)


async def patch_text(repository: Path, base: str, commit: str, *paths: str) -> bytes:
    """Return the unified diff between two commits or trees; with `paths` only of those."""
    output = await run_git(
        "diff", "-M", "--no-color", "--no-ext-diff", "--no-textconv", base, commit, "--", *paths, at=repository
    )
    return output.stdout


async def merge_trees(repository: Path, ours: str, theirs: str) -> MergeResult:
    """Merge two commits in the object store."""
    output = await run_git(
        "merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", ours, theirs, at=repository, accept=(0, 1)
    )
    tree, *rest = output.stdout.decode(errors="backslashreplace").split("\0")
    return MergeResult(tree.strip(), tuple(dict.fromkeys(path for path in rest if path)))


# --- remotes ------------------------------------------------------------------------------------------------------


async def ls_remote(url: str, *patterns: str, at: Path | None = None) -> dict[str, str]:
    """Return ref → commit at `url` for the refs that match `patterns` (all of them without)."""
    output = await run_git("ls-remote", "-q", url, *patterns, at=at, user=True, timeout_s=REMOTE_TIMEOUT_S)
    pairs = (line.split("\t", 1) for line in output.text.splitlines())
    return {ref: sha for sha, ref in pairs}


async def push(
    repository: Path, url: str, refspecs: Sequence[str], *, leases: Mapping[str, str] | None = None
) -> PushResult:
    """Push all `refspecs` or none of them.

    Args:
        repository: Where the objects are.
        url: The remote.
        refspecs: `<sha>:<ref>`; a leading `+` overwrites whatever is there.
        leases: Ref → commit that the remote must have there (empty: the ref must not exist).

    Returns:
        Which refs the remote refused; none of the others was changed then.

    Raises:
        WorkspaceError: the remote was not reached, or refused for another reason than the state of a ref.

    """
    expected = [f"--force-with-lease={ref}:{sha}" for ref, sha in (leases or {}).items()]
    argv = ["push", "--porcelain", "--atomic", "--no-verify", *expected, url, *refspecs]
    output = await run_git(*argv, at=repository, user=True, timeout_s=REMOTE_TIMEOUT_S, accept=range(256))
    rejected = parse_rejections(output.text)
    if output.code and not rejected:
        raise git_failure(argv, output)
    if output.code and any("remote failure" in reason for reason in rejected.values()):
        raise git_failure(argv, output)
    return PushResult(rejected)


def parse_rejections(porcelain: str) -> dict[str, str]:
    """Read `git push --porcelain`: refused ref → reason. *Pure.*"""
    found = {}
    for line in porcelain.splitlines():
        flag, _, rest = line.partition("\t")
        if flag == "!":
            refspec, _, summary = rest.partition("\t")
            found[refspec.rsplit(":", 1)[-1]] = summary
    return found
