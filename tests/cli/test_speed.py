"""Commands that only ask start quickly: what they import is kept small, and measured by name, not by the clock."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import Gf
from tests.waiting import PATIENCE_S

HEAVY = ("rich", "httpx", "sqlalchemy", "temporalio", "asyncio", "fastapi", "yaml", "psutil", "store", "workers")
"""What costs tens of milliseconds; a command that asks needs none of it when it writes into a pipe.

Typer itself brings pydantic, to read the arguments.
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs",),
        ("jobs", "--json"),
        ("job", "{job}"),
        ("why", "{job}"),
        ("events", "{job}"),
        ("logs", "{job}"),
        ("factories",),
        ("version",),
        ("cancel", "{job}"),
        ("submit", "job.md"),
        ("--help",),
    ],
    ids=" ".join,
)
def test_command_that_asks_imports_nothing_heavy(gf: Gf, arguments: tuple[str, ...]) -> None:
    """None of the heavy packages is imported."""
    job_id = gf.submit("capabilities: [has:xcode]")
    command = [sys.executable, "-P", "-X", "importtime", "-m", "cli", *(a.replace("{job}", job_id) for a in arguments)]
    done = subprocess.run(
        command,
        env=gf.api.environment(),
        cwd=gf.folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in imported
    assert {
        name for name in imported if f"{name}.".startswith(tuple(f"{heavy.rstrip('.')}." for heavy in HEAVY))
    } == set()
