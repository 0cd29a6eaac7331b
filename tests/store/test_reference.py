from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from store.attempts import MAX_REFUSED_EVENTS
from store.database import ATTEMPTS, BUSY_TIMEOUT_MS
from store.tables import metadata
from tests.store.fleet import Fleet

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "ledger.md").read_text()


def first_column(heading: str) -> set[str]:
    """Return what the table under a heading lists."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE))


def test_reference_lists_every_table() -> None:
    """The page names exactly the tables that there are."""
    assert first_column("Tables") == set(metadata.tables)


def test_reference_lists_every_event_that_the_ledger_writes() -> None:
    """The page names exactly the event types in the ledger's code."""
    code = "".join(path.read_text() for path in sorted((ROOT / "store").glob("*.py")))
    written = set(re.findall(r'\.event\(\s*"([a-z.]+)"', code)) | set(re.findall(r'"type": "([a-z.]+)"', code))

    assert first_column("Events") == written


def test_reference_lists_every_line_of_the_audit_log() -> None:
    """The page names exactly the types of lines in the ledger's code."""
    code = "".join(path.read_text() for path in sorted((ROOT / "store").glob("*.py")))

    assert first_column("The audit log") == set(re.findall(r'audit\.note\(\s*connection,\s*"([a-z.]+)"', code))


def test_reference_names_the_bounds_of_the_code() -> None:
    """Numbers on the page are those of the code."""
    assert f"after {MAX_REFUSED_EVENTS} of one epoch" in PAGE
    assert f"waits up to {BUSY_TIMEOUT_MS // 1000} s" in PAGE
    assert ATTEMPTS == 4  # "run again, up to three times"


async def test_reference_shows_a_check_that_works(fleet: Fleet, tmp_path: Path) -> None:
    """The page's own program accepts an export as it is, and refuses one with a changed word."""
    await fleet.factory("f1")
    await fleet.building("j-1", title="ünï ☃")
    export = [event.model_dump(mode="json") for event in await fleet.events("j-1")]
    program = PAGE.split("```python\n")[1].split("```")[0] + "\nimport sys\ncheck(json.load(sys.stdin))\n"

    def accepts(events: list[dict[str, object]]) -> bool:
        run = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(events).encode(), capture_output=True, check=False
        )
        return run.returncode == 0

    assert accepts(export)
    assert not accepts([*export[:1], export[1] | {"message": "nothing"}, *export[2:]])
