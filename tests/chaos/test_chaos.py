"""The short form of `gf bench chaos`: a whole stack under fire, judged by its scripts' own ledger and bare remotes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ENVIRON, TOPOLOGY
from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.slow]

JOBS, KILLS, ZOMBIES = 12, 8, 42


@pytest.mark.req("F4", "F6")
def test_jobs_under_fire_ship_once_and_zombies_are_refused() -> None:
    """Nothing is lost, shipped twice or stuck; nothing outlives its certificate; no stale write is taken."""
    command = [sys.executable, "-P", "-m", "tests.bench.bench_chaos", "--json", "--topology", TOPOLOGY]
    scale = {"jobs": JOBS, "kills": KILLS, "zombies": ZOMBIES, "rate-rounds": 0, "seed": os.getpid()}
    words = [word for name, value in scale.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [*command, *words], env={**ENVIRON, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures["jobs"] == JOBS
    assert figures["kills"] == KILLS
    assert figures["zombie_writes"] == figures["zombie_refused"] >= ZOMBIES
