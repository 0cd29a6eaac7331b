"""How long-running processes run their main coroutine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from store import event_loop


@pytest.fixture
def restored() -> Iterator[None]:
    """Give this process its own manners back afterwards."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_run_lets_threads_change_soon_and_collects_rarely(restored: None) -> None:
    """A unit of work gets the interpreter back soon, and a large read does not make Python collect everything."""

    async def manners() -> tuple[float, tuple[int, int, int]]:
        return sys.getswitchinterval(), gc.get_threshold()

    sys.setswitchinterval(0.005)
    gc.set_threshold(700, 10, 10)
    interval, thresholds = event_loop.run(manners())
    assert interval == pytest.approx(event_loop.SWITCH_S)
    assert thresholds == event_loop.COLLECT
