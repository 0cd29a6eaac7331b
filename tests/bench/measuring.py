"""What every benchmark shares: the machine, the figures' form, a table for people. Does I/O: stdout, stderr."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

LOAD_BEFORE = [round(value, 2) for value in os.getloadavg()]
"""When the benchmark began: what else the machine had to do."""


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine to compare figures."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "mem_gb": round(pages * size / 1024**3),
        "arch": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "temporalio": version("temporalio"),
        "load_before": LOAD_BEFORE,
    }


def parser(name: str, **defaults: int) -> argparse.ArgumentParser:
    """Return a command line with `--json` and one whole-number option for each default."""
    made = argparse.ArgumentParser(prog=f"gf bench {name}")
    made.add_argument("--json", action="store_true", help="one document on stdout")
    for option, value in defaults.items():
        made.add_argument(f"--{option.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    return made


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of `values` lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def tell(text: str) -> None:
    """Say how far the benchmark is, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def publish(name: str, figures: Mapping[str, Any], *, as_json: bool, **more: Any) -> None:
    """Print the result: one JSON document, or a table."""
    document = {"bench": name, "figures": dict(figures), "machine": machine(), **more}
    if as_json:
        sys.stdout.write(json.dumps(document, default=str) + "\n")
        return
    width = max(len(key) for key in figures)
    lines = [f"{key:<{width}}  {value}" for key, value in figures.items()]
    sys.stdout.write("\n".join([f"bench {name}", *lines, ""]))
