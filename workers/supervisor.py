"""Runs one command so that nothing of it outlives its purpose, and saves its work whatever happens. *A process.*

One supervisor stands beside the factory agent for each running engine or verify command. It starts the command in a
session of its own, writes its output straight into files, holds it to its wall time and its lease, checkpoints the
worktree, and in the end kills every descendant: it is their subreaper, so that no `setsid` and no double fork escapes.

    agent ──stdin──▶ first line {"env", "git_env", "remote_env"} (never on disk), then {"op": "beat" | "stop" | "sealed" | "bye"}
    agent ◀─stdout── {"event": "started" | "checkpoint" | "exited", …}

Standard input is the life line. When it ends without `bye`, or the lease runs out because nobody renewed it, the
supervisor kills, salvages, pushes the checkpoint and sends a death certificate to the API itself. It says what it did
in `state.json` (while it runs) and `exit.json` (once the command ended), both in the run's folder.

Standard library only. `python -I -S supervisor.py SPEC.json` runs one; `--nursery FD` keeps a warm process that forks
one for each request, which costs a tenth.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - pathlib is slow
from workers import process_table as processes

if TYPE_CHECKING:
    from workers.salvage import Salvage, Snapshot

SCAN_S = 1.0
"""How often the list of known descendants is brought up to date."""
FIRST_SCAN_S = 0.2
POLL_WITHOUT_PIDFD_S = 0.05
KILL_LIMIT_S = 10.0
"""After this time a descendant that cannot be killed (stuck in the kernel) is reported instead of waited for."""
ABANDONED = ("agent_died", "fenced")
"""Ends after which nobody else will save the work or tell of the death."""


def write_json(path: str, value: object) -> None:
    """Replace a file by `value` as JSON, at once."""
    draft = f"{path}.{os.getpid()}"
    with open(draft, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(value, file)
    os.replace(draft, path)  # noqa: PTH105


class LifeLine:
    """Commands of the agent, and answers to it."""

    def __init__(self, commands: int, answers: int) -> None:
        os.set_inheritable(commands, False)
        os.set_inheritable(answers, False)
        self.fd = commands
        self._answers = answers
        self._buffer = b""
        self.ended = False

    def first(self) -> dict[str, Any]:
        """Wait for the first command; an empty one when the agent is gone already."""
        while b"\n" not in self._buffer and not self.ended:
            self._fill()
        return next(iter(self.take()), {})

    def read(self) -> list[dict[str, Any]]:
        """Return the commands that have come; the descriptor must be readable."""
        self._fill()
        return self.take()

    def take(self) -> list[dict[str, Any]]:
        """Return the complete commands that were read."""
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]

    def _fill(self) -> None:
        chunk = os.read(self.fd, 65536)
        self._buffer += chunk
        self.ended = not chunk

    def say(self, event: str, **fields: object) -> None:
        """Tell the agent; a dead one is no error."""
        try:
            os.write(self._answers, json.dumps({"event": event, **fields}).encode() + b"\n")
        except OSError:
            self.ended = True


class Supervisor:
    """One run; the methods are in the order of its life."""

    def __init__(self, spec: dict[str, Any], line: LifeLine) -> None:
        self.spec = spec
        self.line = line
        self.folder = str(spec["run_dir"])
        self.environments = line.first()
        self.salvage: Salvage | None = None
        self.engine = 0
        self.saver = 0
        """Process that takes a checkpoint beside the running engine; 0 when there is none."""
        self.statuses: dict[int, int] = {}
        self.reason = ""
        self.sealed = ""
        self.said_bye = False
        self.checkpoint: dict[str, Any] = {}
        self.state: dict[str, Any] = {"job_id": spec["job_id"], "epoch": spec["epoch"]}
        now = time.monotonic()
        self.wall_at = now + float(spec["timeout_s"])
        self.lease_at = now + float(spec["lease_s"]) if spec.get("lease_s") else float("inf")
        self.kill_at = float("inf")
        self.scan_at = now + FIRST_SCAN_S
        self.save_at = now + float(spec.get("checkpoint_s") or "inf") if spec.get("git") else float("inf")

    def run(self) -> None:
        """Live the whole life."""
        if self.line.ended:
            return
        processes.become_subreaper()
        started_at = time.time()
        self._start()
        self._watch()
        group_dead = self._kill_all()
        self._finish(started_at, group_dead)
        if self.reason not in ABANDONED:
            self._wait_for_bye()
        if self.reason in ABANDONED and not self.said_bye:
            self._abandoned(group_dead)

    # --- start --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.engine = os.fork()
        if self.engine == 0:
            self._become_engine()
        self.state["supervisor"] = {"pid": os.getpid(), "birth": processes.birth_of(os.getpid())}
        self.state["engine"] = {"pid": self.engine, "birth": processes.birth_of(self.engine)}
        self.state["descendants"] = {}
        self._write_state()
        self.line.say("started", pid=self.engine)

    def _become_engine(self) -> None:
        """Turn the forked child into the command; never returns."""
        error = 2
        try:
            os.setsid()
            processes.die_with_parent()
            _default_signals()
            streams = ((self.spec.get("stdin") or os.devnull, os.O_RDONLY), ("out.log", _APPEND), ("err.log", _APPEND))
            for number, (name, flags) in enumerate(streams):
                descriptor = os.open(os.path.join(self.folder, str(name)), flags, 0o600)  # noqa: PTH118
                os.dup2(descriptor, number)
            os.chdir(self.spec["cwd"])
            env = dict(self.environments.get("env", {}))
            env["GIGAFACTORY_ATTEMPT"] = f"{self.spec['job_id']}.{self.spec['epoch']}"
            env["GIGAFACTORY_RUN_DIR"] = self.folder
            argv = [str(word) for word in self.spec["argv"]]
            os.execvpe(argv[0], argv, env)  # noqa: S606 - a list of arguments, no shell
        except OSError as problem:
            os.write(error, f"cannot start {self.spec['argv'][0]}: {problem.strerror}\n".encode())
        finally:
            os._exit(127)

    # --- while it runs ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Return when the engine has ended, or has to."""
        poller = select.poll()
        poller.register(self.line.fd, select.POLLIN)
        engine_fd = _pidfd(self.engine)
        if engine_fd is not None:
            poller.register(engine_fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(self._pause_ms(engine_fd is not None))}
            self._reap()
            if self.engine in self.statuses:
                self.reason = self.reason or "exited"
                break
            if self.line.fd in ready:
                self._obey(self.line.read())
            if self._due():
                break
        if engine_fd is not None:
            os.close(engine_fd)

    def _pause_ms(self, has_pidfd: bool) -> int:
        due = min(self.wall_at, self.lease_at, self.kill_at, self.scan_at, self.save_at)
        pause = max(0.0, due - time.monotonic())
        return int(1000 * (pause if has_pidfd else min(pause, POLL_WITHOUT_PIDFD_S))) + 1

    def _obey(self, commands: list[dict[str, Any]]) -> None:
        for command in commands:
            if command["op"] == "beat":
                self.lease_at = time.monotonic() + float(command["lease_s"])
            elif command["op"] == "stop":
                self._stop(str(command["reason"]), float(command.get("grace_s", 0)))
            elif command["op"] == "sealed":
                self.sealed = str(command["sha"])
            elif command["op"] == "bye":
                self.said_bye = True
        if self.line.ended and not self.said_bye:
            self.reason, self.kill_at = "agent_died", 0.0

    def _stop(self, reason: str, grace_s: float) -> None:
        """Ask the engine to end, and note when patience ends."""
        self.reason = self.reason or reason
        self.kill_at = min(self.kill_at, time.monotonic() + grace_s)
        if grace_s > 0:
            processes.kill(-self.engine, processes.SIGTERM)

    def _due(self) -> bool:
        """Do what its time has come for; return whether the run has to end now."""
        now = time.monotonic()
        if now >= self.kill_at:
            return True
        if now >= self.lease_at:
            self.reason = "fenced"
            return True
        if now >= self.wall_at:
            self.wall_at = float("inf")
            self._stop("timeout", float(self.spec.get("grace_s", 0)))
        if now >= self.scan_at:
            self._note_descendants()
            self.scan_at = now + SCAN_S
        if now >= self.save_at:
            self._start_saving()
            self.save_at = now + float(self.spec["checkpoint_s"])
        return False

    def _note_descendants(self) -> None:
        """Write down who runs, for the agent that may have to kill them without us."""
        known = {str(pid): birth for pid, birth in processes.living_descendants(os.getpid()).items()}
        if known != self.state["descendants"]:
            self.state["descendants"] = known
            self._write_state()

    def _start_saving(self) -> None:
        """Take a checkpoint in a process of its own, so that a slow push never delays a kill."""
        if self.saver:
            return
        self.saver = os.fork()
        if self.saver == 0:
            try:
                self._save_beside()
            finally:
                os._exit(0)

    def _save_beside(self) -> None:
        snapshot = self._salvage().snapshot()
        if snapshot.tree == self.checkpoint.get("tree"):
            return
        saved = self._commit(snapshot)
        write_json(os.path.join(self.folder, "checkpoint.json"), saved)  # noqa: PTH118

    def _saver_ended(self) -> None:
        self.saver = 0
        try:
            with open(os.path.join(self.folder, "checkpoint.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
                saved = json.load(file)
        except FileNotFoundError:
            return
        if saved != self.checkpoint:
            self.checkpoint = saved
            self.state["checkpoint"] = saved
            self._write_state()
            self.line.say("checkpoint", sha=saved["sha"], pushed=saved["pushed"])

    def _write_state(self) -> None:
        write_json(os.path.join(self.folder, "state.json"), self.state)  # noqa: PTH118

    # --- the end ------------------------------------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Collect children that have ended; return whether there is any child left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.statuses[pid] = status
            if pid == self.saver:
                self._saver_ended()

    def _kill_all(self) -> bool:
        """Kill until there is nothing left to kill; return whether that was reached.

        A process without children has no descendants, since orphans come to their subreaper. Without a subreaper the
        marker in the environment has to do.
        """
        limit = time.monotonic() + KILL_LIMIT_S
        marker = f"GIGAFACTORY_RUN_DIR={self.folder}"
        look_around = self.reason != "exited" or not processes.LINUX
        while time.monotonic() < limit:
            alive = processes.living_descendants(os.getpid())
            if look_around:
                alive |= processes.marked_processes(marker)
            for pid in alive:
                processes.kill(pid)
            if not self._reap() and not alive:
                return True
            time.sleep(0.002)
        return False

    def _finish(self, started_at: float, group_dead: bool) -> None:
        status = self.statuses.get(self.engine, 0)
        exit_fields: dict[str, Any] = {
            "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "reason": self.reason,
            "group_dead": group_dead,
            "started_at": started_at,
            "ended_at": time.time(),
            "tree": "",
            "clean_tree": "",
            "quarantined": [],
            "problem": "",
        }
        if self.spec.get("git"):
            exit_fields |= self._last_snapshot()
        exit_fields["checkpoint_sha"] = self.checkpoint.get("sha", "")
        write_json(os.path.join(self.folder, "exit.json"), exit_fields)  # noqa: PTH118
        self.line.say("exited", **exit_fields)

    def _last_snapshot(self) -> dict[str, Any]:
        try:
            snapshot = self._salvage().snapshot()
            if self.reason in ABANDONED:
                self.checkpoint = self._commit(snapshot)
        except (OSError, ValueError) as problem:  # a full disk, a worktree that was deleted: say so, go on
            return {"problem": str(problem)}
        quarantined = [{"path": q.path, "reason": q.reason} for q in snapshot.quarantined]
        self._snapshot = snapshot
        return {"tree": snapshot.tree, "clean_tree": snapshot.clean_tree, "quarantined": quarantined}

    def _wait_for_bye(self) -> None:
        """Stay until the agent has handed the work on; it may die on the way."""
        poller = select.poll()
        poller.register(self.line.fd, select.POLLIN)
        self.kill_at = float("inf")
        while not self.said_bye and not self.line.ended:
            wait_s = min(self.lease_at - time.monotonic(), 3600.0)
            if wait_s <= 0:
                self.reason = "fenced"
                return
            if poller.poll(int(wait_s * 1000) + 1):
                self._obey(self.line.read())

    def _abandoned(self, group_dead: bool) -> None:
        """Save the work and tell of the death; nobody else will."""
        from workers import certificate  # noqa: PLC0415 - only needed here

        sha = self.sealed
        if self.spec.get("git"):
            if sha:
                self._salvage().push(sha)
            elif self.reason in ABANDONED and not self.checkpoint.get("final"):
                self.checkpoint = self._commit(self._snapshot)
        sha = sha or str(self.checkpoint.get("pushed", ""))
        certificate.deliver(self.spec, group_dead=group_dead, checkpoint_sha=sha, reason=self.reason)

    # --- saving -------------------------------------------------------------------------------------------------------

    def _salvage(self) -> Salvage:
        if self.salvage is None:
            from pathlib import Path  # noqa: PLC0415 - not before the engine runs

            from workers.salvage import GitPlace, Salvage  # noqa: PLC0415 - the same

            place = GitPlace.of(self.spec["git"])
            names = (self.environments.get("git_env", {}), self.environments.get("remote_env", {}))
            self.salvage = Salvage(place, Path(self.folder), *names)
        return self.salvage

    def _commit(self, snapshot: Snapshot) -> dict[str, Any]:
        """Commit and push a snapshot; return what was saved, `pushed` being what the remote has."""
        ...


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
