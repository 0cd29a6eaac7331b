"""What the exit code of every command says; the whole list, documented in `docs/reference/cli.md`. *Pure.*"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `gf`."""

    DONE = 0
    """The command reached the end that was asked for."""
    UNEXPECTED = 1
    """A bug, or an answer nobody expected; for `doctor`: something has to be mended."""
    USAGE = 2
    """Wrong arguments, an invalid job file, or a name that does not exist."""
    WAITING = 3
    """The job waits for a human, and there is no terminal to ask at."""
    JOB_FAILED = 4
    """The job ended in failed, dead_letter or cancelled."""
    REFUSED = 5
    """The stack refused: not legal now, a conflict, or a token without the right."""
    NOT_RUNNING = 6
    """The stack is not running or does not answer."""
    DETACHED = 130
    """Ctrl-C: the command stopped watching; the job goes on."""


def of_status(status: int) -> ExitCode:
    """Return the exit code for an HTTP status that reports an error."""
    if status in (400, 404, 413, 422):
        return ExitCode.USAGE
    if status in (401, 403, 409, 412, 421):
        return ExitCode.REFUSED
    if status in (502, 503, 504):
        return ExitCode.NOT_RUNNING
    return ExitCode.UNEXPECTED
