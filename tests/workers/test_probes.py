"""Probes tell what is there, what is broken and how to mend it, and never a credential's value."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from core.capability import parse_requirement, unmet
from engines.registry import read_catalogue
from workers.probes import MachineReport, Prober


def program(folder: Path, name: str, script: str) -> None:
    """Put an executable shell script on a PATH of the test's own."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


async def probe(environ: Mapping[str, str], cache: Path) -> MachineReport:
    """Ask everything of this machine, as an agent that starts does."""
    return await Prober(environ, cache).report(list(read_catalogue(None).engines.values()), cache.parent)


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """Return a folder for made-up programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


async def test_usable_tools_are_facts_that_requirements_match(tmp_path: Path, bin_dir: Path) -> None:
    """A Node.js that answers satisfies `node>=20`; a GPU that answers satisfies `gpu`."""
    program(bin_dir, "node", "echo v20.11.1")
    program(bin_dir, "nvidia-smi", "echo 550.54.14")
    environ = {"PATH": f"{bin_dir}:/usr/bin:/bin"}
    report = await probe(environ, tmp_path / "probes.json")
    for text in ("node>=20,<21", "gpu", "os:any", "has:git", "cores>=1", "mem-gb>=1"):
        assert unmet(parse_requirement(text), report.facts()) is None, text


async def test_broken_tool_is_reported_with_its_repair_and_offers_nothing(tmp_path: Path, bin_dir: Path) -> None:
    """A docker without a daemon is unusable, says what to do, and is no `has:docker`."""
    program(bin_dir, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    report = await probe({"PATH": str(bin_dir)}, tmp_path / "p.json")
    docker = next(tool for tool in report.tools if tool.name == "docker")
    assert not docker.usable
    assert "daemon" in docker.repair
    assert "has:docker" not in report.facts()


async def test_missing_engine_says_how_to_get_it(tmp_path: Path, bin_dir: Path) -> None:
    """Every known engine is listed; one that is not installed is unusable and names the next step."""
    report = await probe({"PATH": str(bin_dir)}, tmp_path / "p.json")
    claude = next(probe for probe in report.engines if probe.engine == "claude")
    assert not claude.usable
    assert "claude is not on PATH" in claude.problem


async def test_unchanged_programs_are_not_run_again_and_changed_ones_are(tmp_path: Path, bin_dir: Path) -> None:
    """The second start asks nothing; after an upgrade the tool is asked anew; failures are always asked again."""
    count = tmp_path / "count"
    cache = tmp_path / "probes.json"
    environ = {"PATH": str(bin_dir)}
    program(bin_dir, "node", f"echo x >> {count}; echo v18.0.0")
    await probe(environ, cache)
    await probe(environ, cache)
    assert count.read_text() == "x\n"
    program(bin_dir, "node", f"echo xx >> {count}; echo v22.0.0")
    report = await probe(environ, cache)
    assert "node=22.0.0" in report.facts()


async def test_credentials_are_present_but_never_told(tmp_path: Path, bin_dir: Path) -> None:
    """Presence is a fact; the value is in neither the report nor the file."""
    environ = {"PATH": str(bin_dir), "ANTHROPIC_API_KEY": "sk-ant-secret-value", "HOME": os.devnull}
    report = await probe(environ, tmp_path / "p.json")
    assert "anthropic" in report.credentials
    assert "credential:anthropic" in report.facts()
    told = json.dumps(asdict(report), default=str) + (tmp_path / "p.json").read_text()
    assert "secret-value" not in told
