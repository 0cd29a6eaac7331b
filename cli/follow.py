"""A job's live stream that survives dropped connections and restarts of the API. *Does I/O: HTTP.*"""

from __future__ import annotations

import time
from collections.abc import Iterator

from cli import output
from cli.client import ApiProblem, ConnectionLost, NotRunning, ServerEvent, connect, job_path

PATIENCE_S = 60.0
"""How long the API may be away before following is given up."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
COMMENT = "comment"
"""Name of the pseudo-events that stand for the server's keep-alive comments: a chance to look around."""


def follow(job_id: str, *, last_event_id: str = "") -> Iterator[ServerEvent]:
    """Yield the events of a job until its end, each exactly once.

    Raises:
        NotRunning: the API was away for too long, or was never there.
        ApiProblem: there is no such job.

    """
    position, connected, away_since, pause_s = last_event_id, False, 0.0, FIRST_PAUSE_S
    while True:
        try:
            for event in connect().stream(job_path(job_id, "/stream"), last_event_id=position):
                connected, away_since, pause_s = True, 0.0, FIRST_PAUSE_S
                position = event.id or position
                yield event
                if event.name == "end":
                    return
        except (ConnectionLost, NotRunning, ApiProblem) as error:
            if not connected or (isinstance(error, ApiProblem) and error.status < 500):
                raise
            if away_since and time.monotonic() - away_since > PATIENCE_S:
                raise NotRunning(f"the API did not come back within {PATIENCE_S:.0f} s") from error
            if not away_since:
                away_since = time.monotonic()
                output.note(f"connection lost ({error}); trying again, nothing will be missed")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
