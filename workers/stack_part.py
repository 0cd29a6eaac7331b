"""One part while the steward runs: starts its process, watches it, starts it again, ends it. Does I/O: processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from workers.fork_server import ForkedProcess, ForkServer, ForkServerGone, Request
from workers.stack_guard import FAREWELL
from workers.stack_home import open_log
from workers.stack_parts import Module, PartSpec, Probe
from workers.stack_state import READY_FD, PartPhase, PartRecord, ProcessId
from workers.stack_stop import KILL_WAIT_S, STRAY_GRACE_S

READY_TIMEOUT_S: Final = 60.0
STARTUP_DEATHS: Final = 3
STABLE_S: Final = 30.0
"""A part that lived this long is taken to be well: its next death is the first one again."""

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0
PROBE_PAUSE_S: Final = 0.05
MAX_PROBE_PAUSE_S: Final = 0.5
WATCH_PAUSE_S: Final = 3.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """How patient a steward is; tests are in more of a hurry."""

    ready_timeout_s: float = READY_TIMEOUT_S
    startup_deaths: int = STARTUP_DEATHS
    stable_s: float = STABLE_S
    stray_grace_s: float = STRAY_GRACE_S
    watch_pause_s: float = WATCH_PAUSE_S


class Keeper(Protocol):
    """Who a part belongs to: the steward."""

    home: Path
    limits: Limits
    forks: ForkServer | None
    """What warm parts are forked from."""

    @property
    def starting(self) -> bool:
        """Whether the stack was not ready yet: a part that keeps dying then ends the start."""
        ...

    def changed(self) -> None:
        """Take note of a new record."""
        ...

    def failed(self, part: Part, message: str) -> None:
        """Give the stack up because of this part."""
        ...


def restart_pause_s(deaths: int) -> float:
    """Return the pause before the start that follows the n-th early death in a row (1, 2, …), in seconds."""
    return 0.0 if deaths <= 1 else min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(deaths - 2, 30))


def explain_exit(code: int | None) -> str:
    """Say how a process ended, from its return code as `subprocess` gives it; None: nobody saw it."""
    if code is None:
        return "an exit that nobody saw"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def now_text() -> str:
    """Return the present moment as the record writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for the event, at most so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


class Part:
    """Keeps one part of the stack alive until it is told to end it."""

    def __init__(self, spec: PartSpec, keeper: Keeper) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.leaving = asyncio.Event()
        self._keeper = keeper
        self._log_path = keeper.home / "logs" / f"{spec.name}.log"
        self._process: asyncio.subprocess.Process | ForkedProcess | None = None
        self.record = PartRecord(
            name=spec.name,
            kind=spec.kind,
            url=spec.url,
            log=str(self._log_path),
            rank=spec.rank,
            grace_s=spec.grace_s,
        )
        self._task = self._watched(self._keep())

    @property
    def pid(self) -> int | None:
        """The present process, if there is one."""
        return None if self._process is None else self._process.pid

    def mark(self, state: PartPhase) -> None:
        """Show another state in the record."""
        self.record = replace(self.record, state=state)
        self._keeper.changed()

    async def end(self, hurry: asyncio.Event) -> None:
        """Ask the process to end, wait for its grace or until `hurry`, kill it."""
        self.leaving.set()
        self._tell_to_end()
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({self._task, hurried}, timeout=self.spec.grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not self._task.done():
            log.warning("part.killed", part=self.spec.name, grace_s=self.spec.grace_s)
            self._signal(signal.SIGKILL)
            await asyncio.wait((self._task,), timeout=KILL_WAIT_S)

    def _watched(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work` as a task whose errors are loud: a part must not go unwatched in silence."""

        def check(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("steward.bug", part=self.spec.name, exc_info=error)
                self._keeper.failed(self, f"the steward failed over it ({error!r}); see steward.log")

        task = asyncio.create_task(work, name=self.spec.name)
        task.add_done_callback(check)
        return task

    async def _keep(self) -> None:
        """Start the process, and again whenever it ends, until it is told to leave."""
        deaths = 0
        while not self.leaving.is_set():
            began = time.monotonic()
            how = await self._run_once()
            if self.leaving.is_set() or (self.spec.once and how == "exit code 0"):
                break
            if self.spec.once:
                self._keeper.failed(self, f"ended with {how}")
                return
            deaths = 1 if time.monotonic() - began >= self._keeper.limits.stable_s else deaths + 1
            if self._keeper.starting and deaths >= self._keeper.limits.startup_deaths:
                self._keeper.failed(self, f"ended {deaths} times before the stack was ready, last with {how}")
                return
            pause_s = restart_pause_s(deaths)
            log.warning("part.died", part=self.spec.name, how=how, deaths=deaths, pause_s=pause_s)
            self.record = replace(self.record, restarts=self.record.restarts + 1)
            self.mark("restarting")
            await happens(self.leaving, pause_s)
        self.mark("stopped" if self.leaving.is_set() else "done")

    async def _run_once(self) -> str:
        """Run the process from start to end; return how it ended."""
        announced = asyncio.Event()
        try:
            process = await self._spawn(announced)
        except OSError as error:
            return f"{error.strerror}: {error.filename}"
        self._process = process
        identity = ProcessId.of(process.pid) or ProcessId(process.pid, "")
        self.record = replace(self.record, pid=identity.pid, birth=identity.birth, since=now_text())
        self.mark("starting")
        log.info("part.started", part=self.spec.name, child=process.pid)
        if self.leaving.is_set():  # told so while it was being started
            self._tell_to_end()
        watch = self._watched(self._watch(announced, process.pid))
        code = await process.wait()
        watch.cancel()
        self._process = None
        if code == 0 and self.spec.once:
            self.ready.set()
        return explain_exit(code)

    async def _spawn(self, announced: asyncio.Event) -> asyncio.subprocess.Process | ForkedProcess:
        """Start the process in a session of its own, with the part's log as stdout and stderr."""
        spec = self.spec
        with contextlib.ExitStack() as opened:
            output = open_log(self._log_path)
            opened.callback(os.close, output)
            inherited = []
            if spec.announces:
                inherited.append(_listen_for(announced))
                opened.callback(os.close, inherited[0])
            forks = self._keeper.forks
            if isinstance(spec.command, Module) and forks is not None:
                try:
                    return await forks.spawn(self._request(spec.command), (output, *inherited))
                except ForkServerGone:
                    log.warning("fork_server.gone", part=spec.name)
            environ = spec.environment()
            if inherited:
                environ[READY_FD] = str(inherited[0])
            return await asyncio.create_subprocess_exec(
                *spec.argv,
                env=environ,
                cwd=self._keeper.home,
                stdin=asyncio.subprocess.PIPE if spec.lifeline else asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=inherited,
            )

    def _request(self, module: Module) -> Request:
        return Request(
            module=module.name,
            arguments=module.arguments,
            title=" ".join(module.argv),
            environ=self.spec.env,
            cwd=str(self._keeper.home),
            ready_variable=READY_FD,
        )

    async def _watch(self, announced: asyncio.Event, pid: int) -> None:
        """Wait until the process does its work, note it, and see to it that it goes on doing so."""
        if self.spec.once:
            return
        await self._becomes_ready(announced, pid)
        self.ready.set()
        self.mark("ready")
        if self.spec.probe is not None and self.spec.stuck_after:
            await self._gets_stuck(self.spec.probe, pid)
            log.warning("part.stuck", part=self.spec.name, child=pid, probes=self.spec.stuck_after + 1)
            self._signal(signal.SIGKILL)

    async def _becomes_ready(self, announced: asyncio.Event, pid: int) -> None:
        if self.spec.announces:
            await announced.wait()
        pause_s = PROBE_PAUSE_S
        while self.spec.probe is not None and not await self.spec.probe(pid):
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PROBE_PAUSE_S, pause_s * 1.1)

    async def _gets_stuck(self, probe: Probe, pid: int) -> None:
        """Return when the process has failed too many probes in a row."""
        failed = 0
        while failed <= self.spec.stuck_after:
            await asyncio.sleep(self._keeper.limits.watch_pause_s)
            failed = 0 if await probe(pid) else failed + 1

    def _tell_to_end(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(FAREWELL)
            self._process.stdin.close()
            return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a stopped process would sleep through its grace

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def _listen_for(announced: asyncio.Event) -> int:
    """Make the pipe on which a new process announces itself; return the end for that process."""
    reader, writer = os.pipe()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        loop.remove_reader(reader)
        if os.read(reader, 64):
            announced.set()
        os.close(reader)

    loop.add_reader(reader, heard)
    return writer
