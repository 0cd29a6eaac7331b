"""Finds or builds the full Temporal server with its schema tool: what production runs, for tests and benches of it.

Does I/O: looks at PATH and the cache, builds with Go. Starts nothing that lasts. Production itself takes the published
images of the same version (`docker-compose.yml`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workers.temporal_server import Tell, TemporalMissing, cache_dir, exclusive, go

VERSION: Final = "1.29.1"
"""The server that the embedded one contains too (GO_MODULE), so that Go compiles most of both only once."""

GO_PACKAGES: Final[Mapping[str, str]] = {
    "temporal-server": f"go.temporal.io/server/cmd/server@v{VERSION}",
    "temporal-sql-tool": f"go.temporal.io/server/cmd/tools/sql@v{VERSION}",
}
"""Each program, as the published images call it, and the package that it is built from."""


@dataclass(frozen=True)
class FullServer:
    """A directory with `temporal-server` and `temporal-sql-tool`, to be put on a PATH."""

    bin_dir: Path


def find_full_server(environ: Mapping[str, str]) -> FullServer | None:
    """Return the server that is on PATH or in our cache, or None. Fetches nothing."""
    on_path = [Path(folder) for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in (*on_path, _cached(environ)):
        if all(os.access(folder / name, os.X_OK) for name in GO_PACKAGES):
            return FullServer(folder)
    return None


async def obtain_full_server(*, environ: Mapping[str, str], tell: Tell) -> FullServer:
    """Return the server, building it into the cache if it must be (2 to 4 minutes, 180 MB).

    Concurrent callers wait for each other and share the result.

    Raises:
        TemporalMissing: it could not be built; the message says why.

    """
    if found := find_full_server(environ):
        return found
    target = _cached(environ)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        async with exclusive(target.parent / ".lock", tell):
            if found := find_full_server(environ):
                return found
            tell(f"building the full Temporal server {VERSION} with Go (once; 2 to 4 minutes)")
            failure = await _build(target, environ, tell)
    except OSError as error:
        failure = f"{error.strerror}: {error.filename}"
    if failure:
        raise TemporalMissing(
            f"no full Temporal server: {failure}",
            hint="install Go >= 1.21 and try again, or put temporal-server and temporal-sql-tool on PATH",
        )
    return FullServer(target)


async def _build(target: Path, environ: Mapping[str, str], tell: Tell) -> str:
    """Build both programs and put them in place together; return what went wrong, or an empty string."""
    draft = target.with_name(f"build-{os.getpid()}")
    try:
        draft.mkdir()
        failure = await go(("install", *GO_PACKAGES.values()), draft, {**environ, "GOBIN": str(draft)}, tell)
        if not failure:
            for name, package in GO_PACKAGES.items():
                (draft / package.partition("@")[0].rpartition("/")[2]).rename(draft / name)
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
        return failure
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _cached(environ: Mapping[str, str]) -> Path:
    return cache_dir(environ) / f"temporal-server-{VERSION}" / "bin"
