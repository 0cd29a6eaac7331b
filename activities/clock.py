"""The clock that leases are measured with. Reads a clock; standard library only, since supervisors import it.

`time.monotonic()` stands still while a Linux machine is suspended, so a lease that is measured with it outlives a night
in a closed laptop. The boot-time clock goes on. Nobody can set either of them, which is why no lease looks at the time
of day.
"""

from __future__ import annotations

import time


def boot_time() -> float:
    """Return the seconds since this machine began, suspension included; the same for all of its processes."""
    try:
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    except AttributeError:  # no such call on Windows, whose only monotonic clock counts suspension
        return time.monotonic()
