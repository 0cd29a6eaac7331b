"""Waiting for what others do, longer than any machine takes that is only busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 120.0
SeenT = TypeVar("SeenT")


async def until(look: Callable[[], SeenT]) -> SeenT:
    """Look until there is something to see; return it."""
    async with asyncio.timeout(PATIENCE_S):
        while not (seen := look()):
            await asyncio.sleep(0.01)
    return seen


async def written(path: Path) -> str:
    """Wait for a file with something in it; return that."""
    return await until(lambda: path.exists() and path.read_text().strip()) or ""
