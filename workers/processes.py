"""Runs whose supervisor is dead: killing what is left of them, saving their work, certifying. Does I/O: processes, git.

Needed when a supervisor was killed beside a living agent, and when both died: the next agent finds the folders of
runs that nobody closed. A process is recognised by pid and birth, or by the folder of its run in its environment; a
pid alone is never killed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from activities.factory import Rescue
from activities.git import git_env, worktree_admin
from activities.supervision import CLOSED, SPEC
from core.attempt import DeathCertificate
from workers import process_table
from workers.certificate import FILE as LETTER
from workers.salvage import GitPlace, Salvage, Saved

log = structlog.get_logger(__name__)

KILL_LIMIT_S: Final = 10.0
HAND_OVER_S: Final = 20.0
"""How long a new agent waits for supervisors of the old one that still salvage."""
KEEP_S: Final = 7 * 24 * 3600
"""How long the folder of a closed attempt is kept."""
DELIVERED: Final = "death.sent.json"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A run that died without an agent, and what has to be told about it."""

    folder: Path
    certificate: DeathCertificate | None
    """None when the supervisor has told it, or there is nothing to tell."""

    def close(self) -> None:
        """Note that it is dealt with."""
        letter = self.folder / LETTER
        if letter.exists():
            letter.replace(self.folder / DELIVERED)
        (self.folder / CLOSED).touch()


def rescue_run(folder: Path, reason: str = "supervisor_died") -> Rescue:
    """Kill what is left of the run in `folder` and save its work; its supervisor must be dead."""
    spec, state = _read(folder / SPEC), _read(folder / "state.json")
    dead = kill_run(folder, state)
    sha = _save(folder, spec, state)
    log.info("run.rescued", folder=str(folder), reason=reason, group_dead=dead, checkpoint=sha)
    return Rescue(dead, sha)


def kill_run(folder: Path, state: Mapping[str, Any]) -> bool:
    """Kill everything that is known of a run and everything below it; return whether nothing is left."""
    known = {int(pid): str(birth) for pid, birth in state.get("descendants", {}).items()}
    if "engine" in state:
        known[state["engine"]["pid"]] = state["engine"]["birth"]
    limit = time.monotonic() + KILL_LIMIT_S
    victims: set[int] = set()
    while time.monotonic() < limit:
        alive = _alive(folder, known)
        for pid in alive:
            process_table.kill(pid)
        victims |= alive
        _collect(victims)
        if not alive:
            return True
        time.sleep(0.002)
    return False


def _alive(folder: Path, known: Mapping[int, str]) -> set[int]:
    """Return the living processes of a run: those known, those that carry its mark, and all below them."""
    found = {pid for pid, birth in known.items() if process_table.is_alive(pid, birth)}
    found |= set(process_table.marked_processes(f"GIGAFACTORY_RUN_DIR={folder}"))
    for pid in tuple(found):
        found |= set(process_table.living_descendants(pid))
    return found


def _collect(pids: set[int]) -> None:
    """Collect those of our victims that had become our children."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _save(folder: Path, spec: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    checkpoint = state.get("checkpoint")
    previous = Saved(**checkpoint) if checkpoint else None
    pushed = previous.pushed if previous else ""
    if not spec.get("git"):
        return pushed
    salvage = Salvage(GitPlace.of(spec["git"]), folder, git_env(), git_env(user=True))
    try:
        snapshot = salvage.snapshot()
        if not snapshot.changed or (previous and previous.pushed_tree == snapshot.tree):
            return pushed
        message = f"Checkpoint of {spec['job_id']}, epoch {spec['epoch']}"
        return salvage.save(snapshot, message, previous).pushed
    except (OSError, ValueError) as error:
        log.warning("run.not_saved", folder=str(folder), error=str(error))
        return pushed


# --- after a restart --------------------------------------------------------------------------------------------------


def find_orphans(attempts: Path) -> Iterator[Orphan]:
    """Yield the runs that an earlier agent left, each killed and saved; supervisors that still do it are awaited."""
    for path in sorted(attempts.glob(f"*/{SPEC}")) + sorted(attempts.glob(f"*/*/{SPEC}")):
        folder = path.parent
        if not (folder / CLOSED).exists():
            _await_supervisor(folder)
            yield Orphan(folder, _certificate_for(folder))


def _await_supervisor(folder: Path) -> None:
    """Wait until the run's supervisor has handed over; kill one that does not come to an end."""
    process = _read(folder / "state.json").get("supervisor") or {"pid": 0, "birth": ""}
    limit = time.monotonic() + HAND_OVER_S
    while process_table.is_alive(process["pid"], process["birth"]):
        if time.monotonic() > limit:
            process_table.kill(process["pid"])
        time.sleep(0.02)


def _certificate_for(folder: Path) -> DeathCertificate | None:
    if (folder / DELIVERED).exists():
        return None
    letter = _read(folder / LETTER)
    if letter:
        return DeathCertificate.model_validate(letter)
    rescue = rescue_run(folder, "orphan_found")
    spec = _read(folder / SPEC)
    if not spec.get("certify"):
        return None
    return DeathCertificate(
        job_id=spec["job_id"],
        epoch=spec["epoch"],
        group_dead=rescue.group_dead,
        checkpoint_sha=rescue.checkpoint_sha,
        reason="orphan_found",
        issued_at=datetime.now(UTC),
    )


def forget_old_attempts(attempts: Path) -> int:
    """Remove the folders of attempts that were closed long ago; return how many."""
    count = 0
    for folder in attempts.iterdir() if attempts.exists() else ():
        closed = folder / CLOSED
        if closed.exists() and time.time() - closed.stat().st_mtime > KEEP_S:
            with suppress(OSError):
                shutil.rmtree(worktree_admin(folder / "work"), ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    return count


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
