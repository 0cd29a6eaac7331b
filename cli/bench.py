"""`gf bench NAME`: runs one of the benchmarks of `tests/bench` in a process of its own. *Does I/O: starts it.*"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from cli import output
from cli.exit_codes import ExitCode

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "tests" / "bench"


def names() -> list[str]:
    """Return the benchmarks that there are: one module each, named like the benchmark."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def bench(name: str, arguments: list[str], *, as_json: bool) -> int:
    """Run the benchmark `name` and return its exit code; with `as_json` its one document goes to stdout."""
    if name == "list":
        output.document({"benches": names()}) if as_json else output.say("\n".join(names()))
        return ExitCode.DONE
    if name not in names():
        known = ", ".join(names()) or "none in this installation"
        output.failure(f"there is no benchmark {name!r}", hint=f"there are: {known}", code="not_found", as_json=as_json)
        return ExitCode.USAGE
    flags = ["--json"] if as_json else []
    command = [sys.executable, "-P", "-m", f"tests.bench.bench_{name}", *flags, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
