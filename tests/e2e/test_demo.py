"""The demonstration that everybody is shown is a true one, and cleans up after itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.mark.req("F14", "F6")
def test_demo_kills_a_factory_and_ships_every_job_once(temporal_binary: Path, tmp_path: Path) -> None:
    """The killed factory's work goes on at the other one, from where it was; one commit a job; nothing stays."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "GIGAFACTORY_CACHE") if name in os.environ}
    environ |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "GIGAFACTORY_HOME": str(tmp_path / "untouched")}
    command = [sys.executable, "-P", "-m", "cli", "demo", "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=400)

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (line,) = done.stdout.splitlines()
    proof = json.loads(line)
    assert proof["proven"]
    assert proof["commits_on_main"] == len(proof["jobs"]) == 3
    moved = [job for job in proof["jobs"] if len(job["factories"]) > 1]
    assert moved
    for job in moved:
        assert job["factories"] == [proof["killed_factory"], proof["attested_factory"]]
        assert job["certified"]
        assert job["pages_by_epoch"] == sorted(job["pages_by_epoch"])
        assert set(job["pages_by_epoch"]) == {1, 2}, "the second attempt began from nothing"
    (poster,) = (job for job in proof["jobs"] if job["name"] == "poster")
    assert poster["factories"] == [proof["attested_factory"]]
    assert "not_attested" in done.stderr
    assert not list(tmp_path.glob("gf-demo-*"))
    assert not (tmp_path / "untouched").exists()
