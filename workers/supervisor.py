"""Runs one command so that nothing of it outlives its purpose, and saves its work whatever happens. *A process.*

One supervisor stands beside the factory agent for each running engine or verify command. It starts the command in a
session of its own, writes its output straight into files, holds it to its wall time and its lease, checkpoints the
worktree, and in the end kills every descendant: it is their subreaper, so that no `setsid` and no double fork escapes.

    agent ──stdin──▶ first {"env", "git_env", "remote_env"} (never on disk), then {"op": "beat|stop|sealed|bye", …}
    agent ◀─stdout── {"event": "started|checkpoint|exited", …}

Standard input is the life line. When it ends without `bye`, or the lease runs out because nobody renewed it, the
supervisor kills, salvages, pushes the checkpoint and sends a death certificate to the API itself. It says what it did
in `state.json` (while it runs) and `exit.json` (once the command ended), both in the run's folder.

A lease that ran out while nobody here was running (the machine was suspended, we were stopped) is another matter: the
agent was away as well, and has to ask whether the attempt still counts. Until it says so everything is held still, so
that nothing writes, and not for long.

Standard library only. `python -I -S supervisor.py SPEC.json` runs one; `--nursery FD` keeps a warm process that forks
one for each request, which costs a tenth.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - pathlib is slow
from activities.clock import boot_time
from workers import process_table as processes

if TYPE_CHECKING:
    from workers.salvage import Salvage, Snapshot

SCAN_S = 1.0
"""How often the list of known descendants is brought up to date."""
FIRST_SCAN_S = 0.2
POLL_WITHOUT_PIDFD_S = 0.05
KILL_LIMIT_S = 10.0
"""After this time a descendant that cannot be killed (stuck in the kernel) is reported instead of waited for."""
SAVER_GRACE_S = 2.0
"""Time that a checkpoint under way has to give its locks back before it is killed like everything else."""
LATE_S = 2.0
"""A lease that is found to be over by more than this ran out while this process was not running."""
HOLD_S = 6.0
"""How long everything is held still after that, for the agent to find out whether the attempt still counts."""
ABANDONED = ("agent_died", "fenced")
"""Ends after which nobody else will save the work or tell of the death."""
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


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
        """Wait for the first command; an empty one when the agent is gone already. Others stay to be taken."""
        while b"\n" not in self._buffer and not self.ended:
            self._fill()
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return {}
        self._buffer = rest
        first: dict[str, Any] = json.loads(line)
        return first

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
        self.engine = 0
        self.saver = 0
        """Process that takes a checkpoint beside the running engine; 0 when there is none."""
        self.statuses: dict[int, int] = {}
        """Wait status of every child that has ended."""
        self.reason = ""
        self.sealed = ""
        self.said_bye = False
        self.snapshot: Snapshot | None = None
        self.checkpoint: dict[str, str] = {}
        self.state: dict[str, Any] = {"job_id": spec["job_id"], "epoch": spec["epoch"]}
        now = time.monotonic()
        self.wall_at = now + float(spec["timeout_s"])
        self.lease_at = float(spec.get("lease_until") or "inf")
        """When the lease ends, on the boot-time clock."""
        self.held_until = 0.0
        """Until when everything is held still; 0 when nothing is."""
        self.kill_at = float("inf")
        self.scan_at = now + FIRST_SCAN_S
        self.save_at = now + float(spec["checkpoint_s"]) if spec.get("git") else float("inf")

    def run(self) -> None:
        """Live the whole life."""
        group_dead = True
        if not self.line.ended:
            processes.become_subreaper()
            started_at = time.time()
            self._start()
            self._watch()
            group_dead = self._kill_all()
            self._finish(started_at, group_dead)
            if self.reason not in ABANDONED:
                self._wait_for_bye()
        if not self.said_bye:
            self._hand_over(group_dead)

    # --- start --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.engine = os.fork()
        if self.engine == 0:
            self._become_engine()
        self.state["supervisor"] = {"pid": os.getpid(), "birth": processes.birth_of(os.getpid())}
        self.state["engine"] = {"pid": self.engine, "birth": processes.birth_of(self.engine)}
        self.state["descendants"] = {}
        self._write("state.json", self.state)
        self.line.say("started", pid=self.engine)

    def _become_engine(self) -> None:
        """Turn the forked child into the command; never returns."""
        try:
            os.setsid()
            processes.die_with_parent()
            for number in (signal.SIGPIPE, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            streams = ((self.spec.get("stdin") or os.devnull, os.O_RDONLY), ("out.log", APPEND), ("err.log", APPEND))
            for descriptor, (name, flags) in enumerate(streams):
                os.dup2(os.open(f"{self.folder}/{name}" if flags == APPEND else name, flags, 0o600), descriptor)
            os.chdir(self.spec["cwd"])
            env = dict(self.environments.get("env", {}))
            env["GIGAFACTORY_ATTEMPT"] = f"{self.spec['job_id']}.{self.spec['epoch']}"
            env["GIGAFACTORY_RUN_DIR"] = self.folder
            os.execvpe(self.spec["argv"][0], self.spec["argv"], env)  # noqa: S606 - a list of arguments, no shell
        except OSError as problem:
            os.write(2, f"cannot start {self.spec['argv'][0]}: {problem.strerror}\n".encode())
        finally:
            os._exit(127)

    # --- while it runs ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Return when the engine has ended, or has to."""
        poller = select.poll()
        poller.register(self.line.fd, select.POLLIN)
        engine_fd = _pidfd(self.engine)
        if engine_fd >= 0:
            poller.register(engine_fd, select.POLLIN)
        self._obey(self.line.take())  # what came together with the environments, while we only just began
        while True:
            ready = {fd for fd, _ in poller.poll(self._pause_ms(engine_fd >= 0))}
            self._reap()
            if self.engine in self.statuses:
                self.reason = self.reason or "exited"
                break
            if self.line.fd in ready:
                self._obey(self.line.read())
            if self._due():
                break
        if engine_fd >= 0:
            os.close(engine_fd)

    def _pause_ms(self, has_pidfd: bool) -> int:
        due = min(self.wall_at, self.kill_at, self.scan_at, self.save_at)
        pause = max(0.0, min(due - time.monotonic(), self._lease_left_s()))
        return int(1000 * (pause if has_pidfd else min(pause, POLL_WITHOUT_PIDFD_S))) + 1

    def _obey(self, commands: list[dict[str, Any]]) -> None:
        for command in commands:
            if command["op"] == "beat":
                self._renew(float(command["lease_until"]))
            elif command["op"] == "stop":
                self._stop(str(command["reason"]), float(command.get("grace_s", 0)))
            elif command["op"] == "sealed":
                self.sealed = str(command["sha"])
            elif command["op"] == "bye":
                self.said_bye = True
        if self.line.ended:  # after `bye` nobody waits for the work, and nothing may go on either
            self.reason, self.kill_at = "agent_died", 0.0

    def _stop(self, reason: str, grace_s: float) -> None:
        """Ask the engine to end, and note when patience ends."""
        self.reason = self.reason or reason
        self.kill_at = min(self.kill_at, time.monotonic() + grace_s)
        if grace_s > 0:
            processes.kill(-self.engine, signal.SIGTERM)

    def _due(self) -> bool:
        """Do what its time has come for; return whether the run has to end now."""
        now = time.monotonic()
        if self._lease_left_s() <= 0:
            self.reason = "fenced"
            return True
        if now >= self.wall_at:
            self.wall_at = float("inf")
            self._stop("timeout", float(self.spec["grace_s"]))
        if now >= self.scan_at:
            self._note_descendants()
            self.scan_at = now + SCAN_S
        if now >= self.save_at and not self.held_until:
            self._start_saving()
            self.save_at = now + float(self.spec["checkpoint_s"])
        return now >= self.kill_at

    def _lease_left_s(self) -> float:
        """Return how long the run may go on; when the lease ran out while nobody was here to see it, hold it still."""
        left = self.lease_at - boot_time()
        if left < -LATE_S and not self.held_until:
            self.held_until = boot_time() + HOLD_S
            self._hold_still()
        return self.held_until - boot_time() if self.held_until else left

    def _hold_still(self) -> None:
        """Stop every descendant; those that are forked meanwhile as well."""
        held: set[int] = set()
        while fresh := processes.living_descendants(os.getpid()).keys() - held:
            for pid in fresh:
                processes.kill(pid, signal.SIGSTOP)
            held |= fresh

    def _renew(self, until: float) -> None:
        """Take in until when the lease was renewed; what was held still goes on."""
        self.lease_at = max(self.lease_at, until)
        if self.held_until and self.lease_at > boot_time():
            self.held_until = 0.0
            for pid in processes.living_descendants(os.getpid()):
                processes.kill(pid, signal.SIGCONT)

    def _note_descendants(self) -> None:
        """Write down who runs, for the agent that may have to kill them without us."""
        found = processes.living_descendants(os.getpid())
        known = {str(pid): birth for pid, birth in found.items() if not _in_group(pid, self.saver)}
        if known != self.state["descendants"]:
            self.state["descendants"] = known
            self._write("state.json", self.state)

    def _start_saving(self) -> None:
        """Take a checkpoint in a process group of its own, so that a slow push never delays a kill."""
        if self.saver:
            return
        self.saver = os.fork()
        if self.saver == 0:
            try:
                os.setpgid(0, 0)
                self._save_beside()
            finally:
                os._exit(0)
        try:
            os.setpgid(self.saver, self.saver)  # both do it: whoever comes first
        except OSError:
            return

    def _save_beside(self) -> None:
        snapshot = self._salvage.snapshot()
        if self._is_news(snapshot):
            self._write("checkpoint.json", self._save(snapshot))

    def _saver_ended(self) -> None:
        self.saver = 0
        try:
            with open(f"{self.folder}/checkpoint.json", encoding="utf-8") as file:  # noqa: PTH123
                saved = json.load(file)
        except FileNotFoundError:
            return
        if saved != self.checkpoint:
            self.checkpoint = self.state["checkpoint"] = saved
            self._write("state.json", self.state)
            self.line.say("checkpoint", sha=saved["sha"], pushed=saved["pushed"])

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

        A process without children has no descendants, since orphans come to their subreaper. The marker finds those
        that were started through somebody else, and everything where there is no subreaper.

        A checkpoint under way is asked to end: git that is killed while it pushes to a remote on this machine leaves
        its locks on the job's refs, and nobody could push there ever again.
        """
        limit = time.monotonic() + KILL_LIMIT_S
        saver, patience = self.saver, time.monotonic() + SAVER_GRACE_S
        if saver:
            processes.kill(-saver, signal.SIGTERM)
            processes.kill(-saver, signal.SIGCONT)  # it may be held still
        marker = f"GIGAFACTORY_RUN_DIR={self.folder}"
        look_around = self.reason != "exited" or not processes.LINUX
        while time.monotonic() < limit:
            found = processes.living_descendants(os.getpid())
            if not found and not self._reap():
                found = processes.marked_processes(marker) if look_around else {}
                if not found:
                    return True
            for pid in found:
                if time.monotonic() > patience or not _in_group(pid, saver):
                    processes.kill(pid)
            self._reap()
            time.sleep(0.001 if found else 0)
        return False

    def _finish(self, started_at: float, group_dead: bool) -> None:
        status = self.statuses.get(self.engine, 0)
        outcome: dict[str, Any] = {
            "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "reason": self.reason,
            "group_dead": group_dead,
            "started_at": started_at,
            "ended_at": time.time(),
            "problem": "",
        }
        if self.spec.get("git"):
            outcome |= self._last_snapshot()
        outcome["checkpoint_sha"] = self.checkpoint.get("pushed", "")
        self._write("exit.json", outcome)
        self.line.say("exited", **outcome)

    def _last_snapshot(self) -> dict[str, Any]:
        try:
            self.snapshot = found = self._salvage.snapshot()
        except Exception as problem:  # noqa: BLE001 - a full disk, a worktree that was deleted: say so and go on
            return {"problem": f"the work could not be saved: {problem}"}
        quarantined = [{"path": q.path, "reason": q.reason} for q in found.quarantined]
        trees = {"tree": found.tree, "clean_tree": found.clean_tree, "changed": found.changed}
        return {**trees, "quarantined": quarantined}

    def _wait_for_bye(self) -> None:
        """Stay until the agent has handed the work on; it may die on the way."""
        poller = select.poll()
        poller.register(self.line.fd, select.POLLIN)
        while not self.said_bye and not self.line.ended:
            wait_s = min(self._lease_left_s(), 3600.0)
            if wait_s <= 0:
                self.reason = "fenced"
                return
            if poller.poll(int(wait_s * 1000) + 1):
                self._obey(self.line.read())

    def _hand_over(self, group_dead: bool) -> None:
        """Save the work and tell of the death, because nobody else will."""
        pushed = self.checkpoint.get("pushed", "")
        if self.sealed:
            pushed = self.sealed if self._salvage.push(self.sealed) else pushed
        elif self.snapshot and self._is_news(self.snapshot):
            self.checkpoint = self.state["checkpoint"] = self._save(self.snapshot)
            self._write("state.json", self.state)
            pushed = self.checkpoint["pushed"]
        if self.spec.get("certify"):
            from workers import certificate  # noqa: PLC0415 - only needed here

            certificate.deliver(self.spec, group_dead=group_dead, checkpoint_sha=pushed, reason=self.reason)

    # --- saving -------------------------------------------------------------------------------------------------------

    @cached_property
    def _salvage(self) -> Salvage:
        from pathlib import Path  # noqa: PLC0415 - not before the engine runs

        from workers.salvage import GitPlace, Salvage  # noqa: PLC0415 - the same

        git_env, remote_env = self.environments.get("git_env", {}), self.environments.get("remote_env", {})
        return Salvage(GitPlace.of(self.spec["git"]), Path(self.folder), git_env, remote_env)

    def _is_news(self, snapshot: Snapshot) -> bool:
        return snapshot.changed and snapshot.tree != self.checkpoint.get("pushed_tree")

    def _save(self, snapshot: Snapshot) -> dict[str, str]:
        from workers.salvage import Saved  # noqa: PLC0415 - loaded by now

        message = f"Checkpoint of {self.spec['job_id']}, epoch {self.spec['epoch']}"
        saved = self._salvage.save(snapshot, message, Saved(**self.checkpoint) if self.checkpoint else None)
        return {"sha": saved.sha, "pushed": saved.pushed, "pushed_tree": saved.pushed_tree}

    def _write(self, name: str, value: object) -> None:
        """Replace a file in the run's folder by `value` as JSON, at once."""
        draft = f"{self.folder}/{name}.{os.getpid()}"
        with open(draft, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(value, file)
        os.replace(draft, f"{self.folder}/{name}")  # noqa: PTH105


def _in_group(pid: int, group: int) -> bool:
    """Return whether a process is in a process group; none is in group 0."""
    try:
        return group != 0 and os.getpgid(pid) == group
    except ProcessLookupError:
        return False


def _pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when the child ends; -1 where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def supervise(spec_path: str, commands: int, answers: int) -> None:
    """Live one supervisor's life; what goes wrong in ours is written to `supervisor.log` beside the specification."""
    try:
        with open(spec_path, encoding="utf-8") as file:  # noqa: PTH123
            spec = json.load(file)
        Supervisor(spec, LifeLine(commands, answers)).run()
    except BaseException:
        import traceback  # noqa: PLC0415 - only needed here

        with open(f"{os.path.dirname(spec_path)}/supervisor.log", "a", encoding="utf-8") as log:  # noqa: PTH120, PTH123
            traceback.print_exc(file=log)
        raise


def nursery(channel_fd: int) -> None:
    """Fork a supervisor for each message on the channel (path of a specification, two descriptors), until it ends."""
    import gc  # noqa: PLC0415 - not needed by a supervisor
    import socket  # noqa: PLC0415 - the same

    from workers import certificate, salvage  # noqa: F401, PLC0415 - loaded once, for all

    processes.c_library()
    gc.freeze()  # a collection in a fork would copy the pages that it shares with us
    channel = socket.socket(fileno=channel_fd)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 65536, 2)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            channel.close()
            try:
                supervise(message.decode(), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    if sys.argv[1] == "--nursery":
        nursery(int(sys.argv[2]))
    else:
        supervise(sys.argv[1], 0, 1)
