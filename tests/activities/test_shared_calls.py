"""Callers who ask the same at the same time share answers that are never older than their questions."""

from __future__ import annotations

import asyncio

import pytest

from activities.shared_calls import SharedCalls


class Clock:
    """Something that is asked; each call answers with how many had begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Semaphore(0)

    async def call(self, key: str) -> int:
        self.begun += 1
        mine = self.begun
        await self.go.acquire()
        if key == "bad":
            raise ValueError(str(mine))
        return mine


async def test_burst_shares_the_call_after_the_running_one() -> None:
    """The first gets the first call; all who come while it runs get one that began after they asked."""
    clock = Clock()
    shared = SharedCalls(clock.call)
    first = asyncio.create_task(shared.ask("a"))
    while clock.begun < 1:
        await asyncio.sleep(0)
    burst = [asyncio.create_task(shared.ask("a")) for _ in range(50)]
    await asyncio.sleep(0)
    assert clock.begun == 1
    clock.go.release()
    assert await first == 1
    clock.go.release()
    assert await asyncio.gather(*burst) == [2] * 50
    assert clock.begun == 2


async def test_keys_do_not_wait_for_each_other() -> None:
    """Other questions have calls of their own."""
    clock = Clock()
    shared = SharedCalls(clock.call)
    asked = [asyncio.create_task(shared.ask(key)) for key in ("a", "b")]
    clock.go.release()
    clock.go.release()
    assert sorted(await asyncio.gather(*asked)) == [1, 2]


async def test_failure_reaches_all_who_share_it_and_nobody_after() -> None:
    """A call that fails does not spoil the next one."""
    clock = Clock()
    shared = SharedCalls(clock.call)
    asked = [asyncio.create_task(shared.ask("bad")) for _ in range(3)]
    clock.go.release()
    for task in asked:
        with pytest.raises(ValueError, match="1"):
            await task
    again = asyncio.create_task(shared.ask("bad"))
    clock.go.release()
    with pytest.raises(ValueError, match="2"):
        await again


async def test_cancelled_caller_leaves_the_others_their_answer() -> None:
    """Whoever hangs up takes nothing from those who wait."""
    clock = Clock()
    shared = SharedCalls(clock.call)
    impatient, patient = (asyncio.create_task(shared.ask("a")) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    clock.go.release()
    assert await patient == 1
