"""Fixtures for engines: the real CLIs, and runs in a clean, private, offline place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineRun
from tests.engines.clis import REQUIRED, ClisMissing, installed_clis
from tests.engines.running import NoWayOut


@pytest.fixture(scope="session")
def cli_directory() -> Path:
    """Return the directory with the real `claude` and `codex`."""
    try:
        return installed_clis()
    except ClisMissing as reason:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(f"{reason} (set {REQUIRED}=1 to make this an error)")


@dataclass
class Place:
    """Where runs of one test happen: one engine home, a new worktree for each run."""

    root: Path
    factory_env: dict[str, str]
    count: int = 0

    @property
    def home(self) -> Path:
        """Return the engine's private HOME."""
        return self.root / "homes" / "engine"

    def run(self, prompt: str, **changes: Any) -> EngineRun:
        """Return a run in a worktree of its own."""
        self.count += 1
        attempt = self.root / "attempts" / f"job.{self.count}"
        workdir = attempt / "tree"
        workdir.mkdir(parents=True)
        run = EngineRun(
            prompt=prompt, workdir=workdir, home=self.home, attempt_dir=attempt, factory_env=self.factory_env
        )
        return replace(run, **changes)


@pytest.fixture
def no_way_out() -> Iterator[NoWayOut]:
    """Give the proxy that leads nowhere, and fail the test if anybody tried it."""
    with NoWayOut() as proxy:
        yield proxy
        assert proxy.asked == [], "an engine tried to reach the internet"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a place for runs of engines that need no CLI."""
    return Place(tmp_path, {"PATH": os.environ["PATH"]})


@pytest.fixture
def cli_place(tmp_path: Path, cli_directory: Path, no_way_out: NoWayOut) -> Place:
    """Return a place for runs of the real CLIs: nothing of this machine's environment but PATH, and no way out."""
    path = os.pathsep.join([str(cli_directory), os.environ["PATH"]])
    return Place(tmp_path, {"PATH": path, **no_way_out.environment})
