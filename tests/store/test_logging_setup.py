"""Log lines: one JSON object each, with process, level and time, whoever logs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from store.settings_source import ROOT

PROGRAM = """
import logging, structlog
from store.logging_setup import configure_logging
configure_logging("api")
structlog.get_logger("ours").info("job.granted", job_id="j-1", path=__import__("pathlib").Path("/x"))
logging.getLogger("library").warning("disk at %d %%", 93)
logging.getLogger("httpx").info("chatter")
logging.getLogger("ours").debug("detail")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("ours").exception("bug")
"""


def lines(level: str | None = None) -> list[dict[str, Any]]:
    """Run the program in a process of its own and return what it logged."""
    environ = {"PYTHONPATH": str(ROOT)} | ({"GIGAFACTORY_LOG_LEVEL": level} if level else {})
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_line_is_one_json_object() -> None:
    """Structlog's and the standard library's records look the same; a traceback stays on its line."""
    ours, library, bug = lines()
    assert ours["event"] == "job.granted"
    assert ours["job_id"] == "j-1"
    assert ours["path"] == "/x"
    assert library["event"] == "disk at 93 %"
    assert "ZeroDivisionError" in bug["exception"]
    assert {line["process"] for line in (ours, library, bug)} == {"api"}
    assert all(line["timestamp"].endswith("Z") and line["pid"] > 0 for line in (ours, library, bug))
    assert [line["level"] for line in (ours, library, bug)] == ["info", "warning", "error"]


def test_level_comes_from_the_environment() -> None:
    """`GIGAFACTORY_LOG_LEVEL` widens what is logged; an unknown level is the usual one."""
    assert [line["event"] for line in lines("debug")].count("detail") == 1
    assert len(lines("loud")) == 3
