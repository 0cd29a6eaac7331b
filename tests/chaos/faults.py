"""Does to a running stack what the plan says, and undoes what lasts. Does I/O: signals, doors.

Parts are found in the stack's own record by pid and birth, supervisors below their agents: nobody else's process is
ever touched.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from activities.supervision import CLOSED
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
            return self._pick([one for agent in agents for one in self._supervisors(agent)], pick)
        chosen = self._pick(agents, pick)
        if target == "nursery":
            return [one for agent in chosen for one in nursery_of(agent.pid)]
        found = [agent.process for agent in chosen]
        if target == "factory":
            found += [one for agent in chosen for one in (*nursery_of(agent.pid), *self._supervisors(agent))]
        if target == "machine":
            found += [one for agent in chosen for one in everything_below(agent.pid)]
        return found

    def _supervisors(self, agent: PartRecord) -> list[ProcessId]:
        """Return the living supervisors of a factory's open runs, as they wrote themselves down."""
        attempts = self._home / "factories" / agent.name / "attempts"
        found = []
        for state in (*attempts.glob("*/state.json"), *attempts.glob("*/*/state.json")):
            if not (state.parent / CLOSED).exists():
                with suppress(OSError, ValueError, KeyError):  # it was just being replaced, or removed
                    found.append(ProcessId(**json.loads(state.read_text())["supervisor"]))
        return [one for one in found if one.alive]

    @staticmethod
    def _pick(things: list[ThingT], pick: float) -> list[ThingT]:
        """Return one of the things, if there is any."""
        return [things[int(pick * len(things))]] if things else []


def everything_below(agent: int) -> list[ProcessId]:
    """Return the living descendants of an agent."""
    return [ProcessId(pid, birth) for pid, birth in living_descendants(agent).items()]


def nursery_of(agent: int) -> list[ProcessId]:
    """Return the process that forks an agent's supervisors; after its death also those that it left to the agent."""
    found = []
    for process in everything_below(agent):
        with suppress(OSError):
            parent = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1]
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            if parent == str(agent) and b"--nursery" in words:
                found.append(process)
    return found
