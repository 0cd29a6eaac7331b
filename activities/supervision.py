"""Running a command under a supervisor, seen from the agent. Does I/O: pipes, processes, files.

The other end is `workers/supervisor.py`, whose docstring describes what goes over the two pipes. On Linux a nursery
(one warm process) forks the supervisors; elsewhere, and when the nursery is gone, each is a process started afresh.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from activities.git import git_env

SPEC: Final = "spec.json"
CLOSED: Final = "closed"
"""Empty file in a run's folder: it ended in order, and nobody has to look after it."""
LINE_LIMIT: Final = 1 << 20
CLOSE_S: Final = 5.0
"""How long a closing agent waits for a supervisor that it has let go."""


@dataclass(frozen=True, slots=True)
class GitPlan:
    """Where a supervisor saves the work of a run; see `workers.salvage.GitPlace`."""

    git_dir: str
    work_tree: str
    base: str
    url: str
    wip_ref: str
    fence: str
    start_index: str


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """Where a supervisor sends a death certificate; the token stays in its file."""

    url: str
    token_file: str


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a supervisor is told in its specification file; nothing secret is in it."""

    job_id: str
    epoch: int
    run_dir: str
    argv: tuple[str, ...]
    cwd: str
    timeout_s: float
    grace_s: float
    stdin: str | None = None
    lease_until: float | None = None
    """Time of `activities.clock.boot_time` at which the lease ends; None: there is none."""
    checkpoint_s: float = 30.0
    git: GitPlan | None = None
    api: ApiAddress | None = None
    certify: bool = False
    """Send a death certificate when the agent dies."""


@dataclass(frozen=True, slots=True)
class RunExit:
    """How a run ended, as the supervisor tells it."""

    reason: str
    """`exited`, `timeout`, `fenced`, `agent_died`, or the reason that a stop was asked for with."""
    exit_code: int | None = None
    signal: int | None = None
    group_dead: bool = True
    started_at: float = 0.0
    """Seconds since the epoch, like `ended_at`."""
    ended_at: float = 0.0
    tree: str = ""
    """Everything in the worktree; empty when nothing changed."""
    clean_tree: str = ""
    """The tree without quarantined files; what may be committed and pushed."""
    changed: bool = False
    quarantined: tuple[Mapping[str, str], ...] = ()
    checkpoint_sha: str = ""
    """Newest checkpoint that the remote holds."""
    problem: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> RunExit:
        """Read the answer; members that we do not know are ignored."""
        known = {name: fields[name] for name in cls.__slots__ if name in fields}
        return cls(**{**known, "quarantined": tuple(known.get("quarantined", ()))})


class SupervisorDied(Exception):
    """The supervisor itself was killed; its run must be killed and rescued by the agent."""


class SupervisedRun:
    """One running command; made by `Supervisors.launch`."""

    def __init__(self, spec: RunSpec, life_line: int) -> None:
        self.spec = spec
        self.folder = Path(spec.run_dir)
        self.started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Pid of the command."""
        self.ended: asyncio.Future[RunExit] = asyncio.get_running_loop().create_future()
        """How it ended; fails with `SupervisorDied`."""
        self.checkpoints: asyncio.Queue[str] = asyncio.Queue()
        """Checkpoints that reached the remote."""
        self._life_line = life_line
        self._reader: asyncio.Task[None] | None = None

    def beat(self, lease_until: float) -> None:
        """Renew the lease until that time of the boot-time clock; however late this is read, it means the same."""
        self._tell(op="beat", lease_until=lease_until)

    def stop(self, reason: str, *, grace_s: float = 0.0) -> None:
        """End the run: asked with SIGTERM first when there is a grace, killed after it."""
        self._tell(op="stop", reason=reason, grace_s=grace_s)

    def sealed(self, sha: str) -> None:
        """Name the candidate: should the agent die from here on, the supervisor pushes that."""
        self._tell(op="sealed", sha=sha)

    def close(self) -> None:
        """Let the supervisor go: everything was handed on."""
        if self._life_line >= 0:
            (self.folder / CLOSED).touch()
            self._tell(op="bye")
            os.close(self._life_line)
            self._life_line = -1

    def _tell(self, **command: object) -> None:
        if self._life_line >= 0:
            with suppress(BrokenPipeError):  # the reader notices the death
                os.write(self._life_line, json.dumps(command).encode() + b"\n")

    async def listen(self, answers: asyncio.StreamReader) -> None:
        """Turn what the supervisor says into futures; runs until it has nothing more to say."""
        while line := await answers.readline():
            said = json.loads(line)
            if said["event"] == "started":
                self.started.set_result(int(said["pid"]))
            elif said["event"] == "checkpoint" and said["pushed"]:
                self.checkpoints.put_nowait(said["pushed"])
            elif said["event"] == "exited":
                self.ended.set_result(RunExit.of(said))
        for future in (self.started, self.ended):
            if not future.done():
                future.set_exception(SupervisorDied(f"the supervisor of {self.spec.run_dir} died"))
                future.exception()  # seen: whoever waits for the other one hears of it all the same


class Supervisors:
    """Starts supervisors, from a nursery where there can be one."""

    def __init__(self, script: Path, *, nursery: bool = sys.platform.startswith("linux")) -> None:
        self._command = (sys.executable, "-I", "-S", str(script))
        self._wants_nursery = nursery
        self._nursery: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._single: list[subprocess.Popen[bytes]] = []
        """Supervisors that were started without the nursery."""
        self._listeners: set[asyncio.Task[None]] = set()

    async def launch(self, spec: RunSpec, env: Mapping[str, str]) -> SupervisedRun:
        """Start a run; `env` is the command's whole environment and never touches the disk."""
        folder = Path(spec.run_dir)
        path = _write_spec(folder, spec)
        (command_out, command_in), (answer_out, answer_in) = os.pipe(), os.pipe()
        try:
            self._start(path, command_out, answer_in)
        finally:
            os.close(command_out)
            os.close(answer_in)
        run = SupervisedRun(spec, command_in)
        environments = {"env": dict(env), "git_env": git_env(), "remote_env": git_env(user=True)}
        with suppress(BrokenPipeError):
            os.write(command_in, json.dumps(environments).encode() + b"\n")
        listener = asyncio.create_task(self._listen(run, answer_out))
        self._listeners.add(listener)
        listener.add_done_callback(self._listeners.discard)
        return run

    async def _listen(self, run: SupervisedRun, descriptor: int) -> None:
        reader = asyncio.StreamReader(limit=LINE_LIMIT)
        pipe = os.fdopen(descriptor, "rb")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            await run.listen(reader)
        finally:
            transport.close()

    def _start(self, spec: Path, commands: int, answers: int) -> None:
        if self._wants_nursery:
            try:
                socket.send_fds(self._open_nursery(), [str(spec).encode()], [commands, answers])
            except OSError:
                self.close()
            else:
                return
        command = [*self._command, str(spec)]
        self._single = [process for process in self._single if process.poll() is None]
        self._single.append(subprocess.Popen(command, stdin=commands, stdout=answers, start_new_session=True))

    def _open_nursery(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._nursery = subprocess.Popen(
                    [*self._command, "--nursery", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        return self._channel

    def warm_up(self) -> None:
        """Start the nursery now, so that the first run need not wait for it."""
        if self._wants_nursery:
            self._open_nursery()

    def close(self) -> None:
        """Let the nursery go; runs that it started go on."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for process in (*self._single, *([self._nursery] if self._nursery else [])):
            with suppress(subprocess.TimeoutExpired):
                process.wait(CLOSE_S)
        self._single, self._nursery = [], None


def _write_spec(folder: Path, spec: RunSpec) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SPEC
    path.write_text(json.dumps(asdict(spec)), encoding="utf-8")
    return path
