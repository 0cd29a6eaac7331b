"""The ground that ours and bare Temporal are measured on: one stack in a home of its own, one Temporal server.

Does I/O: starts a stack and processes, makes repositories, all under a temporary folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

ROOT = Path(__file__).resolve().parents[2]
GF = (sys.executable, "-P", "-m", "cli")
"""Our command line."""


@dataclass
class Field:
    """A running stack, seen from a client."""

    folder: Path
    home: Path
    api: str
    token: str
    temporal: str

    def gf(self, *arguments: str) -> str:
        """Run our command line in this stack's home and return what it printed."""
        environment = {**os.environ, "GIGAFACTORY_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        command = [*GF, *arguments]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    def http(self) -> httpx.AsyncClient:
        """Return a client of the API."""
        return httpx.AsyncClient(
            base_url=self.api,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=60,
            limits=httpx.Limits(max_connections=8),
        )

    async def client(self) -> Client:
        """Return a client of the stack's Temporal server."""
        return await Client.connect(self.temporal, data_converter=pydantic_data_converter)

    def memory_mb(self) -> dict[str, int]:
        """Return the resident memory of each part, MiB."""
        status = json.loads(self.gf("status", "--json"))
        return {part["name"]: round(part["rss_bytes"] / 1024**2) for part in status["parts"]}

    def pid_of(self, part: str) -> int:
        """Return the process of a part, as the steward's record has it; 0 while it is not ready."""
        parts = json.loads((self.home / "run" / "stack.json").read_text())["parts"]
        return next((int(one["pid"]) for one in parts if one["name"] == part and one["state"] == "ready"), 0)


@contextmanager
def field(*, seats: int, factories: int = 1, **settings: object) -> Iterator[Field]:
    """Run a stack with factories of `seats` seats until the block ends, or until this process is killed.

    `settings` are those of the product that are not to be the defaults.
    """
    given = {"seats_per_factory": seats} | settings
    environ = {f"GIGAFACTORY_{name.upper()}": str(value) for name, value in given.items()}
    with guarded_home(environ, factories=factories) as home:
        state = json.loads((home / "run" / "stack.json").read_text())
        token = (home / "token").read_text().strip()
        yield Field(home.parent, home, state["urls"]["api"], token, state["urls"]["temporal"])


GUARD = """trap "" PIPE; {up} && echo ready || echo failed; read -r _
"$@" down >/dev/null 2>&1; [ -e "$0/keep" ] || rm -rf "$0"
"""
"""A shell script that cleans up when its standard input ends, as it does when the benchmark ends in whatever way."""
UP = '"$@" up --detach --factories {factories} >&2 </dev/null'


@contextmanager
def guarded_home(
    settings: dict[str, str], *, factories: int | None = None, keep: Sequence[object] = ()
) -> Iterator[Path]:
    """Yield a new home, with a stack or (None) without; both are gone when the block ends or this process does.

    The home stays when something is in `keep` by then: what was found there has to be looked at.

    The shell that sees to it has a session of its own, so that neither Ctrl-C nor any other signal to the benchmark
    reaches it.

    Raises:
        RuntimeError: the stack did not start; why is on stderr.

    """
    folder = Path(tempfile.mkdtemp(prefix="gf-bench-"))
    home = folder / "home"
    home.mkdir()
    up = "true" if factories is None else UP.format(factories=factories)
    guard = subprocess.Popen(
        ["sh", "-c", GUARD.format(up=up), str(folder), *GF],
        env={**os.environ, **settings, "GIGAFACTORY_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert guard.stdout is not None
    try:
        if guard.stdout.readline() != "ready\n":
            raise RuntimeError("the stack of the benchmark did not start")
        yield home
    finally:
        if keep:
            (folder / "keep").touch()
        guard.communicate()


@asynccontextmanager
async def bare_workers(address: str, seats: int) -> AsyncIterator[None]:
    """Run the two bare processes until the block ends; it begins when both take work.

    Raises:
        RuntimeError: one of them did not start; why is on stderr.

    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "tests.bench.bare"]
    processes = [
        await asyncio.create_subprocess_exec(
            *command, role, address, str(seats), env=environment, stdin=PIPE, stdout=PIPE
        )
        for role in ("control", "factory")
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError("a bare worker did not start")
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


def make_remote(folder: Path) -> tuple[Path, str]:
    """Make a bare repository with one small commit; return its path and that commit."""
    tree, remote = folder / "seed", folder / "remote.git"
    tree.mkdir(parents=True)
    who = ["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "init.defaultBranch=main"]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *who, *arguments], cwd=tree, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tree / "README.md").write_text("# bench\n")
    git("add", "-A")
    git("commit", "-qm", "seed")
    git("clone", "-q", "--bare", str(tree), str(remote))
    return remote, git("rev-parse", "HEAD")


def document_of(response: httpx.Response) -> Any:
    """Return an answer's JSON; raises with the body when it is an error."""
    if response.status_code >= 400:
        raise RuntimeError(response.text)
    return response.json()
