"""Saves the work of an attempt without touching its index: tree, checkpoint commit, push. Does I/O: git, disk.

Standard library only: the supervisor uses it while the engine runs, at its end, and after the agent's death; the
agent uses it for attempts that outlived both. Whatever may not leave the machine (secrets, huge files) is in the full
checkpoint, which stays here, and not in the one that is pushed; `quarantine.json` names it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from core.redactor import find_shapes

OVERSIZE_BYTES: Final = 20 * 1024 * 1024
LOCAL_TIMEOUT_S: Final = 120.0
PUSH_TIMEOUT_S: Final = 30.0
WHO: Final = {
    "GIT_AUTHOR_NAME": "Gigafactory",
    "GIT_AUTHOR_EMAIL": "gigafactory@localhost",
    "GIT_COMMITTER_NAME": "Gigafactory",
    "GIT_COMMITTER_EMAIL": "gigafactory@localhost",
}


@dataclass(frozen=True, slots=True)
class GitPlace:
    """Where an attempt's work lies and where it is saved to; made from the supervisor's specification."""

    git_dir: str
    """Administrative directory of the worktree, so that nothing the engine does to `.git` can mislead us."""
    work_tree: str
    base: str
    """Commit that the attempt started from."""
    url: str
    wip_ref: str
    fence: str
    """Refspec of the job's fence; a push without it could come from a superseded epoch."""
    start_index: str
    """Index as it was before the engine started."""

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> GitPlace:
        """Read the place from JSON; other members are ignored."""
        return cls(**{name: str(spec[name]) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One file that stays on the machine."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The work as it is now."""

    tree: str
    """Everything that git would take; empty when nothing changed."""
    clean_tree: str
    """The same without what is quarantined."""
    changed: bool
    """It differs from the commit that the attempt started from."""
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint."""

    sha: str
    """Commit with everything, which the mirror on this machine holds."""
    pushed: str
    """Newest checkpoint that the remote holds; empty when there is none."""
    pushed_tree: str
    """Tree of the snapshot that `pushed` was made from."""


class Salvage:
    """Saves one attempt's work; `env` runs git on this machine, `remote_env` against its remote."""

    def __init__(self, place: GitPlace, folder: Path, env: Mapping[str, str], remote_env: Mapping[str, str]) -> None:
        self.place = place
        self._folder = folder
        self._env = {**env, "GIT_DIR": place.git_dir, "GIT_WORK_TREE": place.work_tree}
        self._remote_env = {**remote_env, "GIT_DIR": place.git_dir}
        self._index = folder / "salvage.index"

    def snapshot(self) -> Snapshot:
        """Return the present work as trees in the object store; an unchanged worktree has none of its own."""
        if not self._index.exists():
            _copy(self.place.start_index, self._index)
        Path(f"{self._index}.lock").unlink(missing_ok=True)
        self._git("add", "-A", "--ignore-errors", accept=(0, 1))  # 1: some file could not be read
        changed, quarantined = self._look_through()
        if not changed:
            return Snapshot("", "", changed=False)
        tree = self._git("write-tree")
        _write_json(self._folder / "quarantine.json", [{"path": q.path, "reason": q.reason} for q in quarantined])
        if not quarantined:
            return Snapshot(tree, tree, changed=True)
        return Snapshot(tree, self._without(quarantined, changed), True, tuple(quarantined))

    def save(self, snapshot: Snapshot, message: str, previous: Saved | None = None) -> Saved:
        """Commit a snapshot, keep all of it in the mirror and push what may leave."""
        sha = self._commit(snapshot.tree, message)
        self._git("update-ref", self.place.wip_ref, sha)
        clean = sha if snapshot.clean_tree == snapshot.tree else self._commit(snapshot.clean_tree, message)
        if self.push(clean):
            return Saved(sha, clean, snapshot.tree)
        return Saved(sha, previous.pushed if previous else "", previous.pushed_tree if previous else "")

    def _commit(self, tree: str, message: str) -> str:
        """Commit a tree on top of the worktree's HEAD, so that commits of the engine's own are kept as well."""
        head = self._git("rev-parse", "--verify", "-q", "HEAD", accept=(0, 1, 128)) or self.place.base
        return self._git("commit-tree", tree, "-p", head, "-m", message, env=WHO)

    def push(self, sha: str) -> bool:
        """Push the checkpoint to the attempt's ref, if the fence still allows this epoch to write."""
        refspecs = (self.place.fence, f"+{sha}:{self.place.wip_ref}")
        try:
            done = subprocess.run(
                ["git", "push", "-q", "--atomic", "--no-verify", self.place.url, *refspecs],
                env=self._remote_env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PUSH_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    # --- what may not leave the machine -------------------------------------------------------------------------------

    def _look_through(self) -> tuple[dict[str, tuple[str, str]], list[Quarantined]]:
        """Return changed path → (mode, object) in the base, and what of it must stay here."""
        argv = ["git", "-c", f"core.bigFileThreshold={OVERSIZE_BYTES}", "diff-index", "--cached", "--raw", "-p", "-z"]
        argv += ["-U0", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv", self.place.base]
        env = {**self._env, "GIT_INDEX_FILE": str(self._index)}
        with subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            changed, sections = read_raw(process.stdout)
            found = dict(scan_patch(process.stdout, sections))
        if process.returncode:
            raise OSError(f"git diff-index ended with exit code {process.returncode}")
        for path in changed:
            size = _size(Path(self.place.work_tree, path))
            if size > OVERSIZE_BYTES:
                found.setdefault(path, f"{size // 1048576} MiB, the limit is {OVERSIZE_BYTES // 1048576} MiB")
        return changed, [Quarantined(path, reason) for path, reason in found.items()]

    def _without(self, quarantined: Sequence[Quarantined], changed: Mapping[str, tuple[str, str]]) -> str:
        """Write the tree with the quarantined paths as they were in the base."""
        index = self._folder / "clean.index"
        _copy(self._index, index)
        entries = [f"{mode} {sha}\t{path}\0" for path, (mode, sha) in _chosen(changed, quarantined)]
        env = {"GIT_INDEX_FILE": str(index)}
        listing = "".join(entries).encode(errors="surrogateescape")
        self._git("update-index", "-z", "--index-info", env=env, stdin=listing)
        return self._git("write-tree", env=env)

    def _git(
        self, *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", accept: Sequence[int] = (0,)
    ) -> str:
        done = subprocess.run(
            ["git", *arguments],
            env={**self._env, "GIT_INDEX_FILE": str(self._index), **(env or {})},
            input=stdin,
            capture_output=True,
            timeout=LOCAL_TIMEOUT_S,
            check=False,
        )
        if done.returncode not in accept:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise OSError(f"git {arguments[0]} ended with exit code {done.returncode}: {said}")
        return done.stdout.decode().strip()


def _chosen(
    changed: Mapping[str, tuple[str, str]], quarantined: Sequence[Quarantined]
) -> Iterator[tuple[str, tuple[str, str]]]:
    return ((q.path, changed[q.path]) for q in quarantined)


def read_raw(stream: IO[bytes]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Read the raw part of `git diff-index --raw -p -z`, which ends with an empty field.

    Returns path → (mode, object) before the change, and the path of each section of the patch that follows; a file
    that became a link, or the other way round, has two sections.
    """
    changed: dict[str, tuple[str, str]] = {}
    sections = []
    while (entry := _field(stream)).startswith(":"):
        mode, _, sha, _, status = entry[1:].split(" ")
        path = _field(stream)
        changed[path] = (mode, sha)
        sections += [path] * (2 if status == "T" else 1)
    return changed, sections


def _field(stream: IO[bytes]) -> str:
    """Read up to the next NUL."""
    out = bytearray()
    while (byte := stream.read(1)) not in (b"\0", b""):
        out += byte
    return out.decode(errors="surrogateescape")


def scan_patch(stream: IO[bytes], sections: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, reason) for each file whose added lines hold a secret; `sections` are the paths in patch order."""
    number, reported, in_text = -1, "", False
    for line in stream:
        if line.startswith(b"diff --git "):
            number, in_text = number + 1, False
        elif line.startswith(b"@@"):
            in_text = True
        elif in_text and line.startswith(b"+") and sections[number] != reported:
            kinds = find_shapes(line.decode(errors="replace"))
            if kinds:
                reported = sections[number]
                yield reported, f"looks like a secret ({', '.join(kinds)})"


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _copy(source: str | Path, target: Path) -> None:
    """Copy an index with its time stamp, which git compares with those of the files."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _write_json(path: Path, value: object) -> None:
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)
