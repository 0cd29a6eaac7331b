"""The steward: starts the parts of the embedded stack, keeps them alive, ends them in order. Does I/O: processes.

Run as `python -P -m workers.stack --home HOME`, normally by `gf up`. One steward a home; what it does is written to
`<home>/run/stack.json` (see `workers.stack_state`), which is also how `gf` hears of it.

    SIGTERM, SIGINT   end the stack: factories, control worker, API, Temporal, each with a bounded grace; again: at once
    SIGHUP            have as many local factories as `<home>/run/factories-wanted` says

A part that dies is started again at once, on the same ports; one that keeps dying, after pauses that double up to
MAX_PAUSE_S. Before the stack was ready once, a part that dies STARTUP_DEATHS times ends the attempt instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from store.logging_setup import configure_logging
from store.settings_source import read_settings
from workers.stack_guard import FAREWELL
from workers.stack_home import (
    PortReservation,
    factory_names,
    open_log,
    prepare,
    read_wanted,
    steward_lock,
    wanted_path,
)
from workers.stack_parts import PartSpec, StackPlan, plan_stack
from workers.stack_state import (
    READY_FD,
    Failure,
    PartPhase,
    PartRecord,
    ProcessId,
    StackPhase,
    StackState,
    read_state,
    state_path,
    write_atomically,
    write_state,
)
from workers.stack_stop import KILL_WAIT_S, STRAY_GRACE_S, clear_leftovers, end_strays, strays_of

READY_TIMEOUT_S: Final = 60.0
STARTUP_DEATHS: Final = 3
STABLE_S: Final = 30.0
"""A part that lived this long is taken to be well: its next death is the first one again."""

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0
PROBE_PAUSE_S: Final = 0.05
MAX_PROBE_PAUSE_S: Final = 0.5
LOCK_WAIT_S: Final = 30.0
"""For a guard that still clears what the last steward left."""

FACTORY_KIND: Final = "factory"
FACTORY_RANK: Final = 0

MakePlan = Callable[[PortReservation], StackPlan]

log = structlog.get_logger()


def restart_pause_s(deaths: int) -> float:
    """Return the pause before the start that follows the n-th early death in a row (1, 2, …), in seconds."""
    return 0.0 if deaths <= 1 else min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (deaths - 2))


def explain_exit(code: int) -> str:
    """Say how a process ended, from its return code as `subprocess` gives it."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Limits:
    """How patient a steward is; tests are in more of a hurry."""

    ready_timeout_s: float = READY_TIMEOUT_S
    startup_deaths: int = STARTUP_DEATHS
    stable_s: float = STABLE_S
    stray_grace_s: float = STRAY_GRACE_S


class Part:
    """One part while the steward runs: its spec, its process, its line in the record."""

    def __init__(self, spec: PartSpec, log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.leaving = asyncio.Event()
        self.ready = asyncio.Event()
        self.announced = asyncio.Event()
        self.record = PartRecord(
            name=spec.name, kind=spec.kind, url=spec.url, log=str(log_path), rank=spec.rank, grace_s=spec.grace_s
        )

    def signal(self, number: int) -> None:
        """Signal the part's process, if there is one."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Steward:
    """Runs one stack from its plan until it is told to end, or until it cannot be started."""

    def __init__(self, home: Path, plan: StackPlan, limits: Limits | None = None) -> None:
        self._home = home
        self._plan = plan
        self._limits = limits or Limits()
        self._parts: dict[str, Part] = {}
        self._phase: StackPhase = "starting"
        self._failure: Failure | None = None
        self._started = time.monotonic()
        self._started_at = _now()
        self._ready_at = ""
        self._ready_s: float | None = None
        self._wanted = plan.factories
        self._end = asyncio.Event()
        self._hurry = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()
        identity = ProcessId.of(os.getpid())
        assert identity is not None
        self._identity = identity

    async def run(self) -> int:
        """Start everything, watch it, end it; return the steward's exit code."""
        self._listen()
        for spec in (*self._plan.parts, *self._local_factories()):
            self._add(spec)
        self._save()
        waiting = asyncio.create_task(self._watch_start())
        await self._end.wait()
        waiting.cancel()
        self._phase = "stopping"
        self._save()
        await self._end_everything()
        if self._failure is not None:
            self._phase = "failed"
            self._save()
            return 1
        state_path(self._home).unlink(missing_ok=True)
        return 0

    def request_end(self) -> None:
        """End the stack; asked a second time, without any grace."""
        if self._end.is_set():
            self._hurry.set()
        self._end.set()

    # --- starting ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_end)
        loop.add_signal_handler(signal.SIGHUP, self._rescale)

    def _local_factories(self) -> list[PartSpec]:
        return [self._plan.factory(name) for name in factory_names(self._home, self._wanted)]

    def _add(self, spec: PartSpec) -> Part:
        part = Part(spec, self._home / "logs" / f"{spec.name}.log")
        self._parts[spec.name] = part
        part.task = asyncio.create_task(self._keep(part), name=spec.name)
        part.task.add_done_callback(lambda task: self._check_bug(part, task))
        return part

    def _check_bug(self, part: Part, task: asyncio.Task[None]) -> None:
        """Make an error of the steward itself loud: it must not leave a part unwatched in silence."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("steward.bug", part=part.spec.name, exc_info=error)
            self._fail(part, f"the steward failed over it: {error!r}; see {self._home / 'logs' / 'steward.log'}")

    async def _watch_start(self) -> None:
        """Wait for all parts to be ready once; give up after a while."""
        parts = list(self._parts.values())
        try:
            async with asyncio.timeout(self._limits.ready_timeout_s):
                for part in parts:
                    await part.ready.wait()
        except TimeoutError:
            late = next(part for part in parts if not part.ready.is_set())
            self._fail(late, f"not ready within {self._limits.ready_timeout_s:g} s")
            return
        self._phase, self._ready_at = "ready", _now()
        self._ready_s = round(time.monotonic() - self._started, 3)
        log.info("stack.ready", ready_s=self._ready_s)
        self._save()

    def _fail(self, part: Part, message: str) -> None:
        if self._failure is None:
            log.error("stack.failed", part=part.spec.name, message=message)
            self._failure = Failure(part.spec.name, message, part.spec.mend)
            self._mark(part, "failed")
        self._end.set()

    # --- one part ----------------------------------------------------------------------------------------------

    async def _keep(self, part: Part) -> None:
        """Start the part, and again whenever it ends, until it is told to leave."""
        deaths = 0
        while await self._may_start(part):
            began = time.monotonic()
            how = await self._run_once(part)
            if part.leaving.is_set() or (part.spec.once and how == "exit code 0"):
                break
            if part.spec.once:
                self._fail(part, f"ended with {how}")
                return
            deaths = 1 if time.monotonic() - began >= self._limits.stable_s else deaths + 1
            if self._phase == "starting" and deaths >= self._limits.startup_deaths:
                self._fail(part, f"ended {deaths} times before the stack was ready, last with {how}")
                return
            pause_s = restart_pause_s(deaths)
            log.warning("part.died", part=part.spec.name, how=how, deaths=deaths, pause_s=pause_s)
            part.record = replace(part.record, restarts=part.record.restarts + 1)
            self._mark(part, "restarting")
            await _happens(part.leaving, pause_s)
        self._mark(part, "stopped" if part.leaving.is_set() else "done")

    async def _may_start(self, part: Part) -> bool:
        """Wait for what the part needs; return False when it shall leave instead."""
        for name in part.spec.after:
            ready = asyncio.ensure_future(self._parts[name].ready.wait())
            leaving = asyncio.ensure_future(part.leaving.wait())
            await asyncio.wait((ready, leaving), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            leaving.cancel()
        return not part.leaving.is_set()

    async def _run_once(self, part: Part) -> str:
        """Run the part's process from start to end; return how it ended."""
        try:
            process = await self._spawn(part)
        except OSError as error:
            return f"{error.strerror}: {error.filename}"
        part.process = process
        identity = ProcessId.of(process.pid) or ProcessId(process.pid, "")
        part.record = replace(part.record, pid=identity.pid, birth=identity.birth, since=_now())
        self._mark(part, "starting")
        log.info("part.started", part=part.spec.name, child=process.pid)
        if part.leaving.is_set():  # told so while it was being started
            self._tell_to_end(part)
        watch = asyncio.create_task(self._watch_ready(part, process.pid))
        code = await process.wait()
        watch.cancel()
        part.process = None
        if code == 0 and part.spec.once:
            part.ready.set()
        return explain_exit(code)

    async def _spawn(self, part: Part) -> asyncio.subprocess.Process:
        """Start the part's process in a session of its own, with its log as stdout and stderr."""
        spec = part.spec
        environ = {**os.environ, **{key: value for key, value in spec.env.items() if value is not None}}
        for key in (key for key, value in spec.env.items() if value is None):
            environ.pop(key, None)
        with contextlib.ExitStack() as opened:
            output = open_log(part.log_path)
            opened.callback(os.close, output)
            inherited = []
            if spec.announces:
                inherited.append(self._listen_for(part))
                opened.callback(os.close, inherited[0])
                environ[READY_FD] = str(inherited[0])
            return await asyncio.create_subprocess_exec(
                *spec.command,
                env=environ,
                cwd=self._home,
                stdin=asyncio.subprocess.PIPE if spec.lifeline else asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=inherited,
            )

    def _listen_for(self, part: Part) -> int:
        """Make the pipe on which a new process of the part announces itself; return the end for that process."""
        reader, writer = os.pipe()
        announced = part.announced = asyncio.Event()
        loop = asyncio.get_running_loop()

        def heard() -> None:
            loop.remove_reader(reader)
            if os.read(reader, 64):
                announced.set()
            os.close(reader)

        loop.add_reader(reader, heard)
        return writer

    async def _watch_ready(self, part: Part, pid: int) -> None:
        """Wait until the process does its work, and note it."""
        if part.spec.once:
            return
        if part.spec.announces:
            await part.announced.wait()
        pause_s = PROBE_PAUSE_S
        while part.spec.probe is not None and not await part.spec.probe(pid):
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PROBE_PAUSE_S, pause_s * 1.1)
        part.ready.set()
        self._mark(part, "ready")

    # --- ending ------------------------------------------------------------------------------------------------

    async def _end_everything(self) -> None:
        """End all parts in the order of their rank; what factories left behind ends before the API does."""
        for rank in sorted({part.spec.rank for part in self._parts.values()}):
            await self._end_parts(part for part in self._parts.values() if part.spec.rank == rank)
            if rank == FACTORY_RANK:
                await self._await_strays()
        for stray in await asyncio.to_thread(end_strays, self._home, 0.0):
            log.warning("stray.killed", child=stray.pid)

    async def _end_parts(self, parts: Iterable[Part]) -> None:
        await asyncio.gather(*(self._end_part(part) for part in parts))

    async def _end_part(self, part: Part) -> None:
        """Ask the part to end, wait for its grace, kill it."""
        assert part.task is not None
        part.leaving.set()
        self._tell_to_end(part)
        hurry = asyncio.ensure_future(self._hurry.wait())
        waited_for = {part.task, hurry}
        await asyncio.wait(waited_for, timeout=part.spec.grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not part.task.done():
            log.warning("part.killed", part=part.spec.name, grace_s=part.spec.grace_s)
            part.signal(signal.SIGKILL)
            await asyncio.wait((part.task,), timeout=KILL_WAIT_S)

    def _tell_to_end(self, part: Part) -> None:
        if part.process is not None and part.process.stdin is not None:
            part.process.stdin.write(FAREWELL)
            part.process.stdin.close()
            return
        part.signal(signal.SIGTERM)
        part.signal(signal.SIGCONT)  # a stopped process would sleep through its grace

    async def _await_strays(self) -> None:
        """Let supervisors whose agent is gone finish their work and report it, while the API still runs."""
        deadline = time.monotonic() + self._limits.stray_grace_s
        while strays_of(self._home, self._pids()) and time.monotonic() < deadline:
            if await _happens(self._hurry, within_s=0.1):
                return

    def _pids(self) -> list[int]:
        return [part.process.pid for part in self._parts.values() if part.process is not None]

    # --- factories ---------------------------------------------------------------------------------------------

    def _rescale(self) -> None:
        """Have as many factories as were last asked for."""
        wanted = read_wanted(self._home)
        if wanted is None or self._end.is_set():
            return
        self._wanted = wanted
        specs = {spec.name: spec for spec in self._local_factories()}
        for name in specs.keys() - self._parts.keys():
            self._add(specs[name])
        for part in list(self._parts.values()):
            surplus = part.spec.kind == FACTORY_KIND and part.spec.name not in specs
            if surplus and not part.leaving.is_set():
                self._errands.add(asyncio.create_task(self._dismiss(part)))
        log.info("stack.rescaled", factories=wanted)
        self._save()

    async def _dismiss(self, part: Part) -> None:
        """Drain a factory that is too many. One of that name may be wanted again by the time it is gone."""
        await self._end_part(part)
        del self._parts[part.spec.name]
        self._rescale()

    # --- the record --------------------------------------------------------------------------------------------

    def _mark(self, part: Part, state: PartPhase) -> None:
        part.record = replace(part.record, state=state)
        self._save()

    def _save(self) -> None:
        write_state(
            self._home,
            StackState(
                version=self._plan.version,
                home=str(self._home),
                state=self._phase,
                started_at=self._started_at,
                steward=self._identity,
                ready_at=self._ready_at,
                ready_s=self._ready_s,
                urls=self._plan.urls,
                ports=self._plan.ports,
                factories_wanted=self._wanted,
                failure=self._failure,
                parts=tuple(part.record for part in self._parts.values()),
            ),
        )


async def _happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for the event, at most so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


# --- the process ---------------------------------------------------------------------------------------------------


def run_steward(
    home: Path,
    make_plan: MakePlan,
    *,
    limits: Limits | None = None,
    foreground: bool = False,
) -> int:
    """Become the steward of `home` and run its stack; return the exit code (0 also when another one runs already).

    `foreground` ends the stack when standard input closes: the `gf up` that holds the other end is gone.
    """
    configure_logging("steward")
    prepare(home)
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        with steward_lock(home) as first:
            if first:
                return _run_locked(home, make_plan, limits, foreground=foreground)
        state = read_state(home)
        if state is not None and state.alive:
            log.info("steward.not_needed", running=state.steward.pid)
            return 0
        time.sleep(0.05)
    log.error("steward.lock_held", lock=str(home / "run" / "steward.lock"))
    return 1


def _run_locked(home: Path, make_plan: MakePlan, limits: Limits | None, *, foreground: bool) -> int:
    if clear_leftovers(home):
        log.warning("stack.leftovers_ended")
    ports = PortReservation()  # held for as long as the stack runs
    plan = make_plan(ports)

    async def run() -> int:
        steward = Steward(home, plan, limits)
        if foreground:
            _end_with_input(steward)
        return await steward.run()

    try:
        return asyncio.run(run())
    finally:
        ports.release()


def _end_with_input(steward: Steward) -> None:
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if not os.read(sys.stdin.fileno(), 64):
            loop.remove_reader(sys.stdin.fileno())
            log.info("steward.terminal_gone")
            steward.request_end()

    loop.add_reader(sys.stdin.fileno(), heard)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stack of the home named on the command line."""
    parser = argparse.ArgumentParser(prog="workers.stack", description="Starts a stack and keeps it alive.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--factories", type=int)
    parser.add_argument("--temporal-binary", type=Path)
    parser.add_argument("--foreground", action="store_true", help="end when standard input closes")
    given = parser.parse_args(arguments)
    home: Path = given.home.expanduser().resolve()
    settings = read_settings(home)
    factories: int = settings.factories if given.factories is None else given.factories

    def make_plan(ports: PortReservation) -> StackPlan:
        write_atomically(wanted_path(home), f"{factories}\n")
        return plan_stack(settings, ports, factories=factories, temporal_binary=given.temporal_binary)

    return run_steward(home, make_plan, foreground=given.foreground)


if __name__ == "__main__":
    sys.exit(main())
