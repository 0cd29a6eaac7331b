"""The API process as it is, which also notes how long each beat takes on the ledger. *A process; does I/O: a file.*

Its one argument names the file; each line is `AT_S TOOK_MS`, where `AT_S` is the monotonic time of the answer, which is
the same for all processes of a machine.
"""

from __future__ import annotations

import os
import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any

from api.__main__ import main
from store.ledger import Ledger


def watch(notes: Path) -> None:
    """Have each beat that the ledger takes noted."""
    beat, lines = Ledger.factory_heartbeat, notes.open("w", buffering=1)

    @wraps(beat)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        answer = await beat(*args, **kwargs)
        at = time.monotonic()
        lines.write(f"{at:.3f} {(at - began) * 1000:.3f}\n")
        return answer

    Ledger.factory_heartbeat = watched  # type: ignore[method-assign]


def beats(notes: Path, since: float, until: float) -> list[float]:
    """Return the milliseconds of each beat that was answered in a period."""
    noted = [line.split() for line in notes.read_text().splitlines()]
    return [float(took) for at, took in noted if since <= float(at) <= until]


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    os._exit(main())
