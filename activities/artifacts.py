"""Captures the files that a job asked for. Does I/O: reads the workspace, sends to the API.

A file that git ignores counts too (reports and coverage usually are ignored). Text is redacted like a log.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from activities.factory import AttemptReports
from core.errors import GigafactoryError
from core.redactor import Redactor
from core.scope import scope_of

LARGEST_BYTES: Final = 64 * 1024 * 1024
MOST_FILES: Final = 200


async def capture(root: Path, globs: tuple[str, ...], reports: AttemptReports, redactor: Redactor) -> None:
    """Upload every file under `root` that `globs` cover; what cannot be captured is told as an event, never raised."""
    if not globs:
        return
    found = await asyncio.to_thread(lambda: list(find_files(root, globs)))
    if len(found) > MOST_FILES:
        reports.event("artifact", f"{len(found)} files match `artifacts`; only the first {MOST_FILES} are captured")
    for path in found[:MOST_FILES]:
        name = path.relative_to(root).as_posix()
        try:
            body = await asyncio.to_thread(_read, path, redactor)
            media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            await reports.upload(name, body, kind="file", media_type=media_type)
        except (OSError, GigafactoryError) as error:
            reports.event("artifact", f"{name} was not captured: {error}")


def find_files(root: Path, globs: tuple[str, ...]) -> Iterator[Path]:
    """Yield the regular files under `root` that `globs` cover, in the order of their paths; links are not followed."""
    scope = scope_of(globs)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(names):
            path = Path(folder, name)
            if not path.is_symlink() and scope.allows(path.relative_to(root).as_posix()):
                yield path


def _read(path: Path, redactor: Redactor) -> bytes:
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise OSError(f"{size // 1048576} MiB, the limit is {LARGEST_BYTES // 1048576} MiB")
    body = path.read_bytes()
    try:
        return redactor.redact(body.decode()).encode()
    except UnicodeDecodeError:
        return body
