"""Benchmarks of a whole stack run as they are meant to: what they promise holds, and the document has its shape."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from cli.bench import names
from tests.bench.field import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.slow]


def run(name: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark by the command line and return its figures, after a look at its document."""
    command = [sys.executable, "-P", "-m", "cli", "bench", name, "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    document = json.loads(line)
    assert document["bench"] == name
    assert document["machine"]["cores"]
    figures: dict[str, Any] = document["figures"]
    return figures


@pytest.mark.req("F6")
def test_bench_recovery_loses_and_doubles_nothing(temporal_binary: object) -> None:
    """An agent that is killed leaves a certificate, a machine that vanished a lease; each job ships once."""
    figures = run("recovery", "--warm-up", "0", "--rounds", "1", "--vanished", "1", "--lease", "6", "--saturated", "2")
    assert (figures["lost"], figures["doubled"], figures["uncertified"]) == (0, 0, 0)
    assert 0 < figures["p50_s"] <= figures["p95_s"]
    assert figures["vanished_beyond_lease_max_s"] is not None


@pytest.mark.req("F9")
def test_bench_kill_sees_every_process_end(temporal_binary: object) -> None:
    """Both ways to stop end every process, with the link and without it."""
    figures = run("kill", "--rounds", "1", "--without-link", "1", "--warm-up", "0", "--beat", "1")
    for way in ("halt", "cancel", "halt_without_link", "cancel_without_link"):
        assert figures[f"{way}_p95_s"] > 0


@pytest.mark.req("F4")
def test_bench_factories_hears_everybody_in_time() -> None:
    """Nobody's lease is missed and nothing is refused, on SQLite and on PostgreSQL where that is installed."""
    figures = run("factories", "--factories", "20", "--queued", "60", "--beat", "1", "--seconds", "2")
    assert (figures["leases_missed"], figures["refused"], figures["factories_offline"]) == (0, 0, 0)
    assert figures["beats"] > 0
    assert figures.get("postgres_leases_missed", 0) == 0
    assert figures.get("postgres_refused", 0) == 0


def test_every_bench_is_documented() -> None:
    """The list of benchmarks in the documentation is the one that `gf bench list` prints."""
    text = (ROOT / "docs" / "benchmarks" / "README.md").read_text()
    assert [name for name in names() if f"\n| `{name}` |" not in text] == []
