"""From `gf up --detach` to a stack that is ready, and from `gf jobs` to its answer, as somebody at a terminal waits.

Each round starts the stack of a home that was used before and holds jobs that wait, asks it a few times for its jobs,
and stops it. Measured from outside, interpreter start included; what `./gf` itself adds before that is measured apart.
Does I/O: a stack.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.field import GF, ROOT, guarded_home
from tests.bench.measuring import median, parser, percentile, publish, tell

TARGETS = {"ready_s": 5.0, "jobs_s": 0.25}
"""Aims, in seconds; the limits that a release must keep are 8 and 0.5."""
LAUNCHER = (str(ROOT / "gf"),)
WAITS = "---\nengine: shell\ncwd: {folder}\ncapabilities: [has:nothing-that-exists]\n---\n# Wait {number}\n\ntrue\n"


def timed(home: Path, *command: str) -> float:
    """Run a command in the stack's home and return how long it took, in seconds.

    Raises:
        RuntimeError: it failed; with its last words.

    """
    environment = {**os.environ, "GIGAFACTORY_HOME": str(home), "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    took = time.monotonic() - began
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return took


def fill(home: Path, jobs: int, factories: int) -> None:
    """Make the databases, with jobs that no factory can take."""
    folder = home.parent / "waiting"
    folder.mkdir()
    for number in range(jobs):
        (folder / f"{number}.md").write_text(WAITS.format(folder=folder, number=number))
    timed(home, *GF, "up", "--detach", "--factories", str(factories))
    timed(home, *GF, "submit", *(str(path) for path in sorted(folder.glob("*.md"))))
    timed(home, *GF, "down")


def measure(home: Path, rounds: int, asks: int, factories: int) -> dict[str, list[float]]:
    """Start, ask and stop; the first round warms the caches and does not count."""
    found: dict[str, list[float]] = {"ready": [], "own": [], "jobs": [], "launcher": []}
    for number in range(rounds + 1):
        ready = timed(home, *GF, "up", "--detach", "--factories", str(factories))
        own = float(json.loads((home / "run" / "stack.json").read_text())["ready_s"])
        answers = [timed(home, *GF, "jobs") for _ in range(asks)]
        launched = [timed(home, *LAUNCHER, "version") - timed(home, *GF, "version") for _ in range(asks)]
        timed(home, *GF, "down")
        if number:
            found["ready"].append(ready)
            found["own"].append(own)
            found["jobs"] += answers
            found["launcher"] += launched
            tell(f"round {number} of {rounds}: ready in {ready:.2f} s, `gf jobs` {median(answers):.3f} s")
    return found


def main() -> int:
    """Measure and publish."""
    options = parser("up", rounds=10, asks=5, jobs=50, factories=1).parse_args()
    with guarded_home({}) as home:
        fill(home, options.jobs, options.factories)
        found = measure(home, options.rounds, options.asks, options.factories)
    figures = {
        "jobs_per_s": None,
        "bare_jobs_per_s": None,
        "ratio": None,
        "ratio_without_git": None,
        "events_per_job": None,
        "p50_ms": round(median(found["ready"]) * 1000),
        "p95_ms": round(percentile(found["ready"], 0.95) * 1000),
        "ready_s": round(median(found["ready"]), 2),
        "ready_p95_s": round(percentile(found["ready"], 0.95), 2),
        "ready_target_s": TARGETS["ready_s"],
        "stack_ready_s": round(median(found["own"]), 2),
        "jobs_s": round(median(found["jobs"]), 3),
        "jobs_p95_s": round(percentile(found["jobs"], 0.95), 3),
        "jobs_target_s": TARGETS["jobs_s"],
        "launcher_s": round(median(found["launcher"]), 3),
    }
    details = {name: getattr(options, name) for name in ("rounds", "asks", "jobs", "factories")}
    publish("up", figures, as_json=options.json, details=details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
