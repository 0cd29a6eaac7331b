"""A benchmark that is ended in the middle, however, leaves nothing running and nothing lying about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.field import ROOT
from tests.e2e.conftest import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.chaos]

BENCH = """
import asyncio
from tests.bench.field import bare_workers, field

async def run(ground):
    async with bare_workers(ground.temporal, 1):
        print(ground.folder, flush=True)
        await asyncio.sleep(600)

with field(seats=1) as ground:
    asyncio.run(run(ground))
"""


def processes_of(folder: Path, bench: int) -> list[str]:
    """Return the command lines of what belongs to the benchmark: its stack, its bare workers, its guard."""
    marks = (os.fsencode(folder), f"GF_BENCH_TEST={bench}".encode())
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if any(mark in command + (entry / "environ").read_bytes() for mark in marks):
                found.append(command.decode(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return [command for command in found if command]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_benchmark_that_is_killed_leaves_nothing(temporal_binary: Path, number: signal.Signals) -> None:
    """Stack, bare workers, repositories and home are gone soon after it."""
    mark = os.getpid()
    environ = os.environ | {"PYTHONPATH": str(ROOT), "GF_BENCH_TEST": str(mark)}
    environ.pop("GIGAFACTORY_HOME", None)
    command = [sys.executable, "-P", "-c", BENCH]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True) as bench:
        assert bench.stdout is not None
        folder = Path(bench.stdout.readline().strip())
        assert folder.name.startswith("gf-bench-")
        assert any("workers.control" in line for line in processes_of(folder, mark))
        bench.send_signal(number)
    wait_for("the end of its processes", lambda: not processes_of(folder, mark))
    wait_for("the end of its folder", lambda: not folder.exists())
