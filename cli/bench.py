"""`gf bench NAME`: becomes one of the benchmarks of `tests/bench`. *Does I/O: starts it in this process's place.*"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from cli import output
from cli.exit_codes import ExitCode

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "tests" / "bench"


def names() -> list[str]:
    """Return the benchmarks that there are: one module each, named like the benchmark."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Go on as another program: so whoever ends this process ends the benchmark."""
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve(command[0], command, environment)  # noqa: S606 - a list of arguments, no shell


def bench(name: str, arguments: list[str], *, as_json: bool) -> int:
    """Become the benchmark `name`; with `as_json` its one document goes to stdout. Returns only when there is none."""
    if name == "list":
        output.document({"benches": names()}) if as_json else output.say("\n".join(names()))
        return ExitCode.DONE
    if name not in names():
        known = ", ".join(names()) or "none in this installation"
        output.failure(f"there is no benchmark {name!r}", hint=f"there are: {known}", code="not_found", as_json=as_json)
        return ExitCode.USAGE
    flags = ["--json"] if as_json else []
    command = [sys.executable, "-P", "-m", f"tests.bench.bench_{name}", *flags, *arguments]
    _become(command, {**os.environ, "PYTHONPATH": str(ROOT)})
