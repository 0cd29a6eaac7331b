"""`gf test`: the static checks, then the tests, each shown with its time; the first failure decides the exit code.

Does I/O: starts ruff, mypy and pytest as processes of this environment.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

NO_TESTS_COLLECTED = 5
"""pytest's exit code when a selection matched nothing; no failure for one of our two calls, only for both."""

USAGE = "gf test [--fast] [--checks-only] [--topology NAME] [--cov] [-n N] [arguments for pytest ...]"

STACK_FOLDERS = tuple(f"tests/{name}" for name in ("bench", "chaos", "e2e", "topology", "workers"))
"""Where tests marked `stack` are; nothing else has to be imported to find them."""

BEHIND = ("nice", "-n", "5")
"""Runs what follows with whatever of the cores nobody else wants."""

TOPOLOGY = "GIGAFACTORY_TEST_TOPOLOGY"
"""Tells the tests what to run on; see tests/conftest.py."""


@dataclass(frozen=True)
class Step:
    """One process to run: its name for people, its argument list, and the exit codes that mean success.

    `environ` is added to ours.
    """

    name: str
    command: tuple[str, ...]
    good_codes: tuple[int, ...] = (0,)
    environ: Mapping[str, str] = field(default_factory=dict)

    def verdict(self, code: int) -> str:
        """Return how the step ended, for people."""
        return "ok" if code in self.good_codes else f"failed (exit code {code})"


@dataclass(frozen=True)
class Options:
    """What `gf test` was asked for. `jobs` is the number of xdist processes, 0 for none."""

    fast: bool
    checks_only: bool
    topology: str
    coverage: bool
    jobs: int
    pytest_args: tuple[str, ...]


def parse_options(argv: Sequence[str]) -> Options:
    """Split our own options from pytest's; whatever is not ours goes to pytest, in its order."""
    parser = argparse.ArgumentParser(prog="gf test", usage=USAGE, allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="skip ruff and mypy")
    parser.add_argument("--checks-only", action="store_true", help="only ruff and mypy")
    parser.add_argument(
        "--topology", choices=("embedded", "production"), help="what the tests run on (default: embedded)"
    )
    parser.add_argument("--cov", action="store_true", help="measure branch coverage and print what is not covered")
    parser.add_argument(
        "-n",
        dest="jobs",
        type=int,
        default=None,
        help="processes for tests without a stack (default 2; 0 with --pdb or -s)",
    )
    known, rest = parser.parse_known_args(argv)
    interactive = any(argument in {"--pdb", "--trace", "-s", "--capture=no"} for argument in rest)
    jobs = known.jobs if known.jobs is not None else (0 if interactive else 2)
    topology = known.topology or os.environ.get(TOPOLOGY, "embedded")
    return Options(known.fast, known.checks_only, topology, known.cov, jobs, tuple(rest))


def plan_checks(root: Path) -> list[Step]:
    """List the static checks, quickest first: two by ruff, and mypy."""
    python = (sys.executable, "-P", "-m")
    return [
        Step("ruff check", (*python, "ruff", "check", "--no-fix", str(root))),
        Step("ruff format", (*python, "ruff", "format", "--check", str(root))),
        Step("mypy", (*BEHIND, *python, "mypy", "--config-file", str(root / "pyproject.toml"))),
    ]


def plan_tests(options: Options) -> list[Step]:
    """List the pytest calls: the tests that start whole stacks, one at a time, and all others, side by side.

    Both run at once: stacks wait half of their time. They have the cores first, since they are what takes longest, and
    leases must not run out because of tests that only compute. With coverage they run one after the other: the second
    adds to what the first one measured and prints the report.
    """
    pytest = (sys.executable, "-P", "-m", "pytest")
    packages = ("core", "engines", "store", "activities", "workflows", "workers", "api", "cli")
    cov = tuple(f"--cov={name}" for name in packages) if options.coverage else ()
    environ = {TOPOLOGY: options.topology}
    if options.jobs < 2:
        report = ("--cov-report=term-missing:skip-covered",) if cov else ()
        return [Step("pytest", (*pytest, *cov, *report, *options.pytest_args), environ=environ)]
    spread = ("-n", str(options.jobs), "--dist", "load")
    first = (*cov, "--cov-report=") if cov else ()
    second = (*cov, "--cov-append", "--cov-report=term-missing:skip-covered") if cov else ()
    good = (0, NO_TESTS_COLLECTED)
    folders = () if options.pytest_args else STACK_FOLDERS
    wish, rest = _take_marker_expression(options.pytest_args)
    stacks = f"({wish}) and stack" if wish else "stack"
    others = f"({wish}) and not stack" if wish else "not stack"
    return [
        Step("pytest (stacks)", (*pytest, *first, *folders, *rest, "-m", stacks), good, environ),
        Step("pytest (all others)", (*BEHIND, *pytest, *spread, *second, *rest, "-m", others), good, environ),
    ]


def _take_marker_expression(arguments: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Separate a `-m EXPRESSION` of the caller's: pytest would let the last -m win and forget the other."""
    rest = list(arguments)
    if "-m" in rest[:-1]:
        position = rest.index("-m")
        expression = rest[position + 1]
        del rest[position : position + 2]
        return expression, tuple(rest)
    return "", tuple(rest)


def run_step(step: Step, root: Path, sink: IO[bytes] | None = None) -> int:
    """Run one step in the project root and return its exit code; what it prints goes to `sink`, or is ours."""
    environ = {**os.environ, **step.environ}
    errors = None if sink is None else subprocess.STDOUT
    done = subprocess.run(
        step.command, cwd=root, env=environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=errors, check=False
    )
    return done.returncode


def run_in_turn(steps: Sequence[Step], root: Path) -> list[int]:
    """Run steps one after the other; show what each prints, and its verdict."""
    codes = []
    for step in steps:
        _tell(f"── {step.name}")
        started = time.monotonic()
        codes.append(code := run_step(step, root))
        _tell(f"── {step.name}: {step.verdict(code)} in {time.monotonic() - started:.1f} s")
    return codes


def run_at_once(steps: Sequence[Step], root: Path) -> list[int]:
    """Run steps at the same time; show what the first prints at once, and of the others when it is over.

    pytest says its own time in its closing line, and nothing may follow that.
    """
    first, *others = steps
    _tell(f"── {' beside '.join(step.name for step in steps)}")
    with ThreadPoolExecutor() as pool, ExitStack() as files:
        sinks = [files.enter_context(TemporaryFile()) for _ in others]
        runs = [pool.submit(run_step, step, root, sink) for step, sink in zip(others, sinks, strict=True)]
        codes = [run_step(first, root)]
        for step, run, sink in zip(others, runs, sinks, strict=True):
            codes.append(run.result())
            _tell(f"── {step.name}")
            sink.seek(0)
            shutil.copyfileobj(sink, sys.stdout.buffer)
    sys.stdout.flush()
    return codes


def prepare_temporal() -> None:
    """Have both Temporal servers ready before a full run: building one inside a test would starve the tests beside it.

    Where one cannot be had, the tests that need it say so.
    """
    from core.errors import GigafactoryError  # noqa: PLC0415 - the SDK takes a quarter of a second to import
    from workers.temporal_full_server import obtain_full_server  # noqa: PLC0415
    from workers.temporal_server import locate_server  # noqa: PLC0415

    try:
        source = asyncio.run(locate_server("", environ=os.environ, tell=_tell, sound=True))
        _tell(f"── Temporal server: {source.origin}")
        full = asyncio.run(obtain_full_server(environ=os.environ, tell=_tell))
        _tell(f"── full Temporal server: {full.bin_dir}")
    except GigafactoryError as error:
        _tell(f"── {error.message}\n   {error.hint}\n   tests that need it fail or are skipped")


def main(argv: Sequence[str]) -> int:
    """Run the checks and the tests; return the first failing exit code, or 0.

    All steps run even after a failure, so that one look shows everything. What ruff says comes before the tests start;
    mypy, which takes its time, runs beside them. The last line is pytest's closing one.
    """
    root = Path(os.environ.get("GIGAFACTORY_ROOT") or Path(__file__).resolve().parent.parent)
    options = parse_options(argv)
    checks = [] if options.fast else plan_checks(root)
    tests = [] if options.checks_only else plan_tests(options)
    if tests and not options.pytest_args:
        prepare_temporal()
    in_turn, at_once = [*checks, *tests], []
    if len(tests) > 1 and not options.coverage:
        in_turn, at_once = checks[:2], [tests[0], *checks[2:], *tests[1:]]
    steps = (*in_turn, *at_once)
    codes: list[int] = [*run_in_turn(in_turn, root), *(run_at_once(at_once, root) if at_once else ())]
    failed = [code for step, code in zip(steps, codes, strict=True) if code not in step.good_codes]
    if failed:
        return failed[0]
    ran = [code for step, code in zip(steps, codes, strict=True) if step in tests]
    return NO_TESTS_COLLECTED if ran and all(code == NO_TESTS_COLLECTED for code in ran) else 0


def _tell(line: str) -> None:
    """Say something about the run on stderr, in order with the steps' output."""
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
