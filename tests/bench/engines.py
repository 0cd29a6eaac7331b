"""Engines that a benchmark ends before their time, and how it sees them: in the process table, in what they tell.

Does I/O: the process table, files, HTTP.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.bench.field import document_of
from workers.process_table import marked_processes

PATIENCE_S = 120.0
LOOK_S = 0.005
T = TypeVar("T")


async def until(what: str, look: Callable[[], Awaitable[T | None]], *, patience_s: float = PATIENCE_S) -> T:
    """Return the first truthy answer of `look`.

    Raises:
        RuntimeError: there was none in time.

    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        seen = await look()
        if seen:
            return seen
        await asyncio.sleep(LOOK_S)
    raise RuntimeError(f"waited {patience_s:.0f} s in vain for {what}")


async def submit(http: httpx.AsyncClient, manifest: str) -> str:
    """Submit a job and return its id."""
    return str(document_of(await http.post("/fleet/jobs", json={"manifest": manifest}))["jobs"][0]["id"])


async def stage(http: httpx.AsyncClient, job_id: str, *wanted: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
    """Wait until the job is in one of the stages, or ended in another one; return its document."""
    ends = {"shipped", "failed", "dead_letter", "cancelled"}

    async def look() -> dict[str, Any] | None:
        await asyncio.sleep(0.05)
        document: dict[str, Any] = document_of(await http.get(f"/fleet/jobs/{job_id}"))
        return document if document["stage"] in ends.union(wanted) else None

    return await until(f"{job_id} in {wanted}", look, patience_s=patience_s)


def family_of(job_id: str, epoch: int) -> list[int]:
    """Return the living processes of an attempt: whatever inherited its mark, in whatever session."""
    return list(marked_processes(f"GIGAFACTORY_ATTEMPT={job_id}.{epoch}"))


def wait_for_end(job_id: str, epoch: int) -> float:
    """Wait until no process of an attempt is left; return the monotonic time at which the last one ended.

    Ends are heard of from the kernel, so that watching costs the watched no time.

    Raises:
        RuntimeError: some are still there after a long time.

    """
    deadline, ended = time.monotonic() + PATIENCE_S, time.monotonic()
    while family := family_of(job_id, epoch):
        for pid in family:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                with closing(os.fdopen(descriptor)):
                    poller = select.poll()
                    poller.register(descriptor, select.POLLIN)
                    if not poller.poll(max(0, int(1000 * (deadline - time.monotonic())))):
                        raise RuntimeError(f"process {pid} of {job_id} epoch {epoch} lives on")
        ended = time.monotonic()
    return ended


class Judge:
    """A file that engines append words to, outside of everything that is measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def told(self, *words: str) -> list[str] | None:
        """Return the first line that begins with these words."""
        lines = (line.split() for line in self.path.read_text().splitlines())
        return next((line for line in lines if tuple(line[: len(words)]) == words), None)

    async def hears(self, *words: str, patience_s: float = PATIENCE_S) -> list[str]:
        """Wait for a line that begins with these words and return it whole."""

        async def look() -> list[str] | None:
            return self.told(*words)

        return await until(f"an engine to tell {words}", look, patience_s=patience_s)
