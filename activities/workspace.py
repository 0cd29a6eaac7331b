"""Mirrors and worktrees: where attempts work. Does I/O: git, disk.

One bare mirror for each repository. The mirror of a repository on this machine borrows its objects instead of copying
them (`objects/info/alternates`), so that neither a first attempt nor a takeover fetches anything. Mirrors are never
garbage collected: what no ref names may be an attempt's work.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from activities import git
from activities.fence import Objects
from core.errors import WorkspaceError

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Worktree:
    """A worktree of a mirror."""

    mirror: Path
    path: Path
    admin: Path
    """Its administrative directory inside the mirror."""

    @property
    def index(self) -> Path:
        """Return its index file."""
        return self.admin / "index"


class Workspaces:
    """All mirrors of one factory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._identities: dict[str, git.Identity] = {}

    def path(self, url: str) -> Path:
        """Return where the mirror of `url` lies."""
        return self._folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.git"

    def warm(self) -> tuple[str, ...]:
        """Return the repositories that have a mirror here."""
        known = (_read_text(mirror / "gigafactory-url") for mirror in sorted(self._folder.glob("*.git")))
        return tuple(url for url in known if url)

    async def mirror(self, url: str, sha: str) -> Path:
        """Return the mirror of `url`, made when it is missing; `sha` tells which hash function the repository uses."""
        path = self.path(url)
        async with self._locks[path]:
            if not _is_file(path / "gigafactory-url"):
                await self._make(path, url, git.object_format_of(sha))
        return path

    async def _make(self, path: Path, url: str, object_format: str) -> None:
        clear(path)
        local = git.local_path(url)
        borrow = await git.borrowable_objects(local) if local else None
        await git.init_mirror(path, object_format=object_format, borrow=borrow)
        (path / "gigafactory-url").write_text(url, encoding="utf-8")

    async def with_commit(self, url: str, sha: str, ref: str, use: Callable[[Path], Awaitable[ResultT]]) -> ResultT:
        """Return what `use` makes of the mirror; when that fails for want of the commit `sha`, fetch it and try again.

        The mirror nearly always has the commit, and asking it costs as much as trying. `ref` is where the remote is
        likely to have it.

        Raises:
            WorkspaceError: `use` failed, or the remote does not have the commit any more, or is out of reach.

        """
        mirror = await self.mirror(url, sha)
        try:
            return await use(mirror)
        except WorkspaceError:
            if await git.has_commit(mirror, sha):
                raise
        async with self._locks[mirror]:
            await fetch_commit(mirror, url, sha, ref)
        return await use(mirror)

    async def check_out(self, url: str, sha: str, path: Path, *, ref: str, tree: str = "") -> Worktree:
        """Make a worktree at `path` with HEAD at `sha`; its files are those of `tree` where one is given."""

        async def add(mirror: Path) -> Worktree:
            async with self._locks[mirror]:
                await git.add_worktree(mirror, path, sha, checkout=not tree)
            return Worktree(mirror, path, git.worktree_admin(path))

        worktree = await self.with_commit(url, sha, ref, add)
        if tree:
            await git.read_tree(path, tree)
        return worktree

    @asynccontextmanager
    async def visit(self, url: str, sha: str, path: Path, *, ref: str) -> AsyncIterator[Worktree]:
        """Check out a commit for as long as the block runs."""
        worktree = await self.check_out(url, sha, path, ref=ref)
        try:
            yield worktree
        finally:
            await asyncio.shield(self.remove(worktree))

    async def remove(self, worktree: Worktree) -> None:
        """Remove a worktree the way `git worktree remove --force` does, without asking git."""
        async with self._locks[worktree.mirror]:  # `git worktree add` fails when one of those it lists goes away
            gone = take_off(worktree)
        await asyncio.to_thread(clear, gone)
        await asyncio.to_thread(clear, worktree.path)

    async def identity(self, url: str) -> git.Identity:
        """Return who commits to `url` are from."""
        if url not in self._identities:
            self._identities[url] = await git.read_identity(url)
        return self._identities[url]


async def fetch_commit(mirror: Path, url: str, sha: str, ref: str) -> None:
    """Fetch a commit, by the ref that is likely to lead to it, or by its own name.

    Raises:
        WorkspaceError: the remote has it no more, or is out of reach.

    """
    for wanted in (f"+{ref}:refs/remotes/origin/{ref.removeprefix('refs/')}", sha):
        with suppress(WorkspaceError):
            await git.fetch(mirror, url, wanted)
        if await git.has_commit(mirror, sha):
            return
    await git.ls_remote(url, "HEAD")  # out of reach: that is the error to show
    raise WorkspaceError(f"{git.strip_userinfo(url)} does not have commit {sha} any more; was its branch rewritten?")


def store(mirror: Path, objects: Objects) -> str:
    """Write commits into a mirror and return the id of the last one."""
    for sha, data in objects:
        git.write_object(mirror, sha, data)
    return objects[-1][0]


def take_off(worktree: Worktree) -> Path:
    """Take a worktree off its mirror's list, at once; return what is left of its entry."""
    gone = worktree.mirror / f"removed-{uuid.uuid4().hex}"
    with suppress(FileNotFoundError):
        worktree.admin.rename(gone)
    return gone


def clear(path: Path) -> None:
    """Remove a folder with everything in it; one that is not there is no error."""
    shutil.rmtree(path, ignore_errors=True)


def _is_file(path: Path) -> bool:
    return path.is_file()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
