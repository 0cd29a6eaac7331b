"""The steward: starts the parts of the embedded stack, keeps them alive, ends them in order. Does I/O: processes.

Run as `python -P -m workers.stack --home HOME`, normally by `gf up`. One steward a home; what it does is written to
`<home>/run/stack.json` (see `workers.stack_state`), which is also how `gf` hears of it.

    SIGTERM, SIGINT   end the stack: factories, control worker, API, Temporal, each with a bounded grace; again: at once
    SIGHUP            have as many local factories as `<home>/run/factories-wanted` says

A part that dies is started again at once, on the same ports; one that keeps dying, after pauses that double up to some
seconds. Before the stack was ready once, a part that dies three times ends the start instead (`workers.stack_part`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from store.logging_setup import configure_logging
from store.settings_source import read_settings
from workers.fork_server import ForkServer, start_fork_server
from workers.stack_home import (
    PortReservation,
    factory_names,
    open_log,
    prepare,
    read_wanted,
    steward_lock,
    wanted_path,
)
from workers.stack_part import Limits, Part, happens, now_text
from workers.stack_parts import Module, PartSpec, StackPlan, plan_enrolled, plan_stack
from workers.stack_state import (
    Failure,
    ProcessId,
    StackPhase,
    StackState,
    read_state,
    state_path,
    write_atomically,
    write_state,
)
from workers.stack_stop import clear_leftovers, end_strays, strays_of

LOCK_WAIT_S: Final = 30.0
"""For a guard that still clears what the last steward left."""

FACTORY_KIND: Final = "factory"
FACTORY_RANK: Final = 0

MakePlan = Callable[[PortReservation], StackPlan]

log = structlog.get_logger()


class Steward:
    """Runs one stack from its plan until it is told to end, or until it cannot be started."""

    def __init__(self, home: Path, plan: StackPlan, limits: Limits | None = None) -> None:
        self.home = home
        self._plan = plan
        self.limits = limits or Limits()
        self.forks: ForkServer | None = None
        self._parts: dict[str, Part] = {}
        self._phase: StackPhase = "starting"
        self._failure: Failure | None = None
        self._started = time.monotonic()
        self._started_at = now_text()
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
        specs = (*self._plan.parts, *self._local_factories())
        self.forks = await self._warm_up(specs)
        for spec in specs:
            self._add(spec)
        self.changed()
        waiting = asyncio.create_task(self._watch_start())
        await self._end.wait()
        waiting.cancel()
        self._phase = "stopping"
        self.changed()
        await self._end_everything()
        if self.forks is not None:
            await self.forks.close()
        if self._failure is not None:
            self._phase = "failed"
            self.changed()
            return 1
        state_path(self.home).unlink(missing_ok=True)
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

    async def _warm_up(self, specs: Sequence[PartSpec]) -> ForkServer | None:
        """Start the process that parts are forked from; for a single one it is not worth it."""
        warm = [(spec.command.name, spec.environment()) for spec in specs if isinstance(spec.command, Module)]
        if len(warm) < 2:
            return None
        output = open_log(self.home / "logs" / "fork-server.log")
        try:
            modules = list(dict.fromkeys(name for name, _ in warm))
            return await start_fork_server(modules, environ=warm[0][1], cwd=self.home, output=output)
        finally:
            os.close(output)

    def _local_factories(self) -> list[PartSpec]:
        return [self._plan.factory(name) for name in factory_names(self.home, self._wanted)]

    def _add(self, spec: PartSpec) -> None:
        self._parts[spec.name] = Part(spec, self)

    async def _watch_start(self) -> None:
        """Wait for all parts to be ready once; give up after a while."""
        parts = list(self._parts.values())
        try:
            async with asyncio.timeout(self.limits.ready_timeout_s):
                for part in parts:
                    await part.ready.wait()
        except TimeoutError:
            late = next(part for part in parts if not part.ready.is_set())
            self.failed(late, f"not ready within {self.limits.ready_timeout_s:g} s")
            return
        self._phase, self._ready_at = "ready", now_text()
        self._ready_s = round(time.monotonic() - self._started, 3)
        log.info("stack.ready", ready_s=self._ready_s)
        self.changed()

    @property
    def starting(self) -> bool:
        """Whether the stack was not ready yet."""
        return self._phase == "starting"

    def failed(self, part: Part, message: str) -> None:
        """Give the stack up because of `part`."""
        if self._failure is None:
            log.error("stack.failed", part=part.spec.name, message=message)
            self._failure = Failure(part.spec.name, message, part.spec.mend)
            part.mark("failed")
        self._end.set()

    # --- ending ------------------------------------------------------------------------------------------------

    async def _end_everything(self) -> None:
        """End all parts in the order of their rank; what factories left behind ends before the API does."""
        for rank in sorted({part.spec.rank for part in self._parts.values()}):
            parts = [part for part in self._parts.values() if part.spec.rank == rank]
            await asyncio.gather(*(part.end(self._hurry) for part in parts))
            if rank == FACTORY_RANK:
                await self._await_strays()
        for stray in await asyncio.to_thread(end_strays, self.home, 0.0, self._pids()):
            log.warning("stray.killed", child=stray.pid)

    async def _await_strays(self) -> None:
        """Let supervisors whose agent is gone finish their work and report it, while the API still runs."""
        deadline = time.monotonic() + self.limits.stray_grace_s
        while strays_of(self.home, self._pids()) and time.monotonic() < deadline:
            if await happens(self._hurry, within_s=0.1):
                return

    def _pids(self) -> list[int]:
        pids = [part.pid for part in self._parts.values() if part.pid is not None]
        return [*pids, self.forks.pid] if self.forks else pids

    # --- factories ---------------------------------------------------------------------------------------------

    def _rescale(self) -> None:
        """Have as many factories as were last asked for."""
        wanted = read_wanted(self.home)
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
        self.changed()

    async def _dismiss(self, part: Part) -> None:
        """Drain a factory that is too many. One of that name may be wanted again by the time it is gone."""
        await part.end(self._hurry)
        del self._parts[part.spec.name]
        self._rescale()

    # --- the record --------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Write the record anew."""
        write_state(
            self.home,
            StackState(
                version=self._plan.version,
                home=str(self.home),
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
        if settings.enrolled_as:
            return plan_enrolled(settings)
        write_atomically(wanted_path(home), f"{factories}\n")
        return plan_stack(settings, ports, factories=factories, temporal_binary=given.temporal_binary)

    return run_steward(home, make_plan, foreground=given.foreground)


if __name__ == "__main__":
    sys.exit(main())
