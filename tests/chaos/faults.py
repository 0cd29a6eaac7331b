"""Does to a running stack what the plan says, and undoes what lasts. Does I/O: signals, doors.

Parts are found in the stack's own record by pid and birth, supervisors below their agents: nobody else's process is
ever touched.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.chaos.doors import Doors
from tests.chaos.plan import Fault
from workers.process_table import living_descendants
from workers.stack_state import PartRecord, ProcessId, read_state

HERD_S = 0.5
"""How long everybody is cut off before all come back at once."""
ThingT = TypeVar("ThingT")


class Injector:
    """Strikes one stack; `strike` returns at once, what lasts ends by itself or with `heal`."""

    def __init__(self, home: Path, doors: Doors, databases: Callable[[], list[ProcessId]]) -> None:
        """`databases` returns the backends of the stack's own PostgreSQL server."""
        self._home = home
        self._doors = doors
        self._databases = databases
        self._lasting: set[asyncio.Task[None]] = set()
        self.done: Counter[str] = Counter()
        """How often each fault was done."""

    @property
    def kills(self) -> int:
        """Return how often something was killed; a whole factory counts once."""
        return sum(count for name, count in self.done.items() if name.startswith("kill "))

    def strike(self, fault: Fault) -> bool:
        """Do it; return False when there is nothing to do it to."""
        struck = getattr(self, f"_{fault.what}")(fault)
        if struck:
            self.done[" ".join(filter(None, (fault.what, fault.target, fault.how)))] += 1
        return bool(struck)

    async def heal(self) -> None:
        """End everything that still lasts."""
        for task in self._lasting:
            task.cancel()
        await asyncio.gather(*self._lasting, return_exceptions=True)
        self._doors.losses.waiting.clear()

    # --- what is done -------------------------------------------------------------------------------------------------

    def _kill(self, fault: Fault) -> bool:
        victims = self._processes(fault.target, fault.pick)
        killed = [victim for victim in victims if victim.signal(signal.SIGKILL)]
        return bool(killed)

    def _freeze(self, fault: Fault) -> bool:
        frozen = [victim for victim in self._processes(fault.target, fault.pick) if victim.signal(signal.SIGSTOP)]

        def thaw() -> None:
            for victim in frozen:
                victim.signal(signal.SIGCONT)

        self._until(fault.hold_s, thaw)
        return bool(frozen)

    def _partition(self, fault: Fault) -> bool:
        part, service = fault.target.split("-")
        if part == "factory":
            part = next((agent.name for agent in self._pick(self._parts("factory"), fault.pick)), "")
        doors = self._doors.between(part, service)
        for door in doors:
            door.shut(fault.how)

        def reopen() -> None:
            for door in doors:
                door.reopen()

        self._until(fault.hold_s, reopen)
        return bool(doors)

    def _lose(self, fault: Fault) -> bool:
        self._doors.losses.expect(fault.target, fault.how)
        return True

    def _link(self, _fault: Fault) -> bool:
        return bool(self._doors.api.cut_links())

    def _herd(self, _fault: Fault) -> bool:
        """Cut everybody off, so that all come back together."""
        doors = self._doors.all()
        for door in doors:
            door.shut("cut")

        def reopen() -> None:
            for door in doors:
                door.reopen()

        self._until(HERD_S, reopen)
        return True

    def _until(self, hold_s: float, undo: Callable[[], None]) -> None:
        async def wait() -> None:
            try:
                await asyncio.sleep(hold_s)
            finally:
                undo()

        task = asyncio.create_task(wait())
        self._lasting.add(task)
        task.add_done_callback(self._lasting.discard)

    # --- to whom ------------------------------------------------------------------------------------------------------

    def _parts(self, kind: str) -> list[PartRecord]:
        state = read_state(self._home)
        found = state.parts if state is not None else ()
        return [part for part in found if part.kind == kind and part.process.alive and part.state == "ready"]

    def _processes(self, target: str, pick: float) -> list[ProcessId]:
        """Return the processes that a target means now."""
        if target == "postgres":
            return self._pick(self._databases(), pick)
        if target not in {"agent", "factory", "machine", "supervisor", "nursery"}:
            return [part.process for part in self._pick(self._parts(target), pick)]
        agents = self._parts("factory")
        if target == "supervisor":
            return self._pick([one for agent in agents for one in supervisors_of(agent.pid)[1:]], pick)
        chosen = self._pick(agents, pick)
        if target == "nursery":
            return [one for agent in chosen for one in supervisors_of(agent.pid)[:1]]
        if target == "agent":
            return [agent.process for agent in chosen]
        below = supervisors_of if target == "factory" else everything_below
        return [one for agent in chosen for one in (agent.process, *below(agent.pid))]

    @staticmethod
    def _pick(things: list[ThingT], pick: float) -> list[ThingT]:
        """Return one of the things, if there is any."""
        return [things[int(pick * len(things))]] if things else []


def everything_below(agent: int) -> list[ProcessId]:
    """Return the living descendants of an agent."""
    return [ProcessId(pid, birth) for pid, birth in living_descendants(agent).items()]


def supervisors_of(agent: int) -> list[ProcessId]:
    """Return the living processes of our supervisor below an agent, the nursery first."""
    found = []
    for process in everything_below(agent):
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"workers/supervisor.py") for word in words):
            found.append(process)
    return sorted(found, key=lambda process: (int(process.birth), process.pid))
