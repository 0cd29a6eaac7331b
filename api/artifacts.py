"""Captured files of attempts: received from factories, kept in `<home>/artifacts`, found again. *Does I/O: files.*"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Final

from core.errors import FieldProblem, InvalidInput, NotFound
from store.ledger import Ledger
from store.views import ArtifactView

DIFF_PATH: Final = "diff.patch"
"""Under this path the judge step hands in the unified diff of a candidate."""
LONGEST_NAME: Final = 200
"""Bytes of one path element; file systems take 255."""


def checked_path(path: str, where: str = "query.path") -> PurePosixPath:
    """Return `path`, the value of the field `where`, as a relative path that stays inside its directory.

    Raises:
        InvalidInput: it is absolute, leaves its directory, or could not be a file name.

    """
    parts = path.split("/")
    bad = [part for part in parts if part in ("", ".", "..") or len(part.encode()) > LONGEST_NAME]
    if bad or not path.isprintable() or "\\" in path:
        problem = FieldProblem(
            path=where,
            message="is no usable path",
            value=path[:100],
            expected="a relative path with / between names, without . and .. and control characters",
        )
        raise InvalidInput("1 problem in the request", (problem,))
    return PurePosixPath(*parts)


class Draft:
    """A file on its way: written beside its place, then put there whole, or not at all. Does I/O: files."""

    def __init__(self, target: Path) -> None:
        self.target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
        self.file = self._path.open("xb")

    @classmethod
    def of(cls, target: Path, body: bytes) -> Draft:
        """Return a draft with all of its bytes."""
        draft = cls(target)
        draft.file.write(body)
        return draft

    def publish(self) -> None:
        """Put the file in its place, instead of one that is there."""
        self.file.close()
        self._path.replace(self.target)

    def discard(self) -> None:
        """Remove what was not published."""
        self.file.close()
        self._path.unlink(missing_ok=True)


def check_hash(found: str, claimed: str, where: str = "query.sha256") -> None:
    """Raise InvalidInput, about the field `where`, when two hashes differ."""
    if found != claimed:
        problem = FieldProblem(path=where, message="is not the hash of the body", value=claimed, expected=found)
        raise InvalidInput("1 problem in the request", (problem,))


async def receive(body: AsyncIterator[bytes], target: Path, *, sha256: str) -> int:
    """Write `body` to `target` and return its size in bytes; the file appears whole or not at all.

    Raises:
        InvalidInput: the bytes do not have the hash `sha256`.

    """
    draft = await asyncio.to_thread(Draft, target)
    digest, size = hashlib.sha256(), 0
    try:
        async for chunk in body:
            digest.update(chunk)
            size += len(chunk)
            await asyncio.to_thread(draft.file.write, chunk)
        check_hash(digest.hexdigest(), sha256)
        await asyncio.to_thread(draft.publish)
    finally:
        draft.discard()
    return size


async def find_artifact(ledger: Ledger, job_id: str, path: str, *, epoch: int | None = None) -> ArtifactView:
    """Return the captured file of that path, of the newest attempt that has one unless `epoch` says which.

    Raises:
        NotFound: there is no such job or file.

    """
    await ledger.latest_ids(job_id)
    found = [
        artifact
        for artifact in await ledger.artifacts(job_id)
        if artifact.path == path and (epoch is None or artifact.epoch == epoch)
    ]
    if not found:
        which = f" epoch {epoch}" if epoch is not None else ""
        raise NotFound(
            f"job {job_id}{which} has no artifact {path}", hint=f"GET /fleet/jobs/{job_id}/artifacts lists them"
        )
    return max(found, key=lambda artifact: artifact.epoch)
