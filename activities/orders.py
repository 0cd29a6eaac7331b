"""What stops work on this factory: halts of the fleet, the sentinel file on its machine, a hand-over. Holds state.

The agent writes here what it hears with its beats and sees on its disk; running steps wait for it. Nothing here needs
the API or Temporal, so a sentinel file works while both are away.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from core.switch import Halt, SwitchState, covering


@dataclass
class Orders:
    """The orders that one factory's agent knows of."""

    hand_over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while what runs is to end with a checkpoint and go on elsewhere."""
    sentinel: str = ""
    """The sentinel file that is there; empty: none."""
    _switch: SwitchState = field(default_factory=SwitchState)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def switch_epoch(self) -> int:
        """How far the kill switch has come, as the fleet told last."""
        return self._switch.epoch

    def hear(self, switch: SwitchState, *, hand_over: bool) -> None:
        """Take in what the fleet says; an older word about the switch than the last one is passed over."""
        if hand_over:
            self.hand_over.set()
        else:
            self.hand_over.clear()
        if switch.epoch >= self._switch.epoch:
            self._switch = switch
            self._tell()

    def see(self, sentinel: str) -> bool:
        """Note which sentinel file is there, empty for none; return whether that is news."""
        news, self.sentinel = sentinel != self.sentinel, sentinel
        if news:
            self._tell()
        return news

    def stopping(self, product_id: str, factory: str, engine: str = "", kill_epoch: int = 0) -> Halt | None:
        """Return the halt for which such work has to stop; None when it may go on.

        A halt up to `kill_epoch` was released before the work was granted, and only not heard of here.
        """
        if self.sentinel:
            return Halt(scope="factory", name=factory, origin="sentinel", reason=f"the file {self.sentinel} is there")
        halts = (halt for halt in self._switch.halts if halt.stop_running and halt.epoch > kill_epoch)
        return covering(halts, product_id=product_id, factory=factory, engine=engine)

    async def stopped(self, product_id: str, factory: str, engine: str = "", kill_epoch: int = 0) -> Halt:
        """Wait until such work has to stop; return the halt."""
        while (halt := self.stopping(product_id, factory, engine, kill_epoch)) is None:
            await self._news()
        return halt

    async def free(self, product_id: str, factory: str) -> None:
        """Wait until such work may go on."""
        while self.stopping(product_id, factory) is not None:
            await self._news()

    async def _news(self) -> None:
        await self._changed.wait()

    def _tell(self) -> None:
        """Wake all who wait; they look for themselves."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
