"""The real agent CLIs for tests: which versions, and where npm puts them. Installed once per machine."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

PINNED = {
    "@anthropic-ai/claude-code": "2.1.329",
    "@openai/codex": "0.169.0",
}
"""The one place where versions are named; `Abilities.tested_with` of the adapters is checked against it."""

REQUIRED = "GIGAFACTORY_REQUIRE_CLIS"


class ClisMissing(Exception):
    """The CLIs cannot be had on this machine; the message is the reason."""


def cache_directory() -> Path:
    """Return where the CLIs are kept, outside the checkout; `./gf` keeps its environments beside them."""
    named = os.environ.get("GIGAFACTORY_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return (Path(named) if named else Path(shared) / "gigafactory") / "npm"


def installed_clis() -> Path:
    """Return the directory with `claude` and `codex`; the first call on a machine installs them (0.8 GB).

    Raises:
        ClisMissing: npm is not there, or could not install them.

    """
    if not shutil.which("npm") or not shutil.which("node"):
        raise ClisMissing("npm and node are needed to install the real agent CLIs, and are not on PATH")
    key = "_".join(f"{name.rpartition('/')[2]}-{version}" for name, version in PINNED.items())
    target = cache_directory() / key
    programs = target / "node_modules" / ".bin"
    if not (target / ".complete").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side: one installs, the others wait
            if not (target / ".complete").exists():
                _install(target)
    return programs


def _install(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "package.json").write_text(json.dumps({"private": True, "dependencies": PINNED}))
    _call(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], target)
    # Its install script only puts the platform's program in place; some npm versions do not run scripts unasked.
    _call(["node", "install.cjs"], target / "node_modules" / "@anthropic-ai" / "claude-code")
    (target / ".complete").touch()


def _call(command: list[str], cwd: Path) -> None:
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        raise ClisMissing(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-1000:]}")
