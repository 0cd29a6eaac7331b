"""`gf up`, `down`, `status`: starts, stops and shows the stack of a home. Does I/O: processes, files, the terminal.

The stack is run by a steward process (`workers.stack`); these commands start it, signal it, and read what it writes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

from cli import output
from cli.exit_codes import ExitCode, of_status
from cli.home import home_dir
from core.errors import GigafactoryError
from workers import stack_start
from workers.stack_start import Narrator, StackFailed, StackInfo
from workers.stack_state import read_state
from workers.stack_stop import stop_stack

FOREGROUND_POLL_S: Final = 0.3


def ensure_up(
    home: Path,
    progress: stack_start.Progress = output.note,
    *,
    factories: int | None = None,
    foreground: bool = False,
) -> StackInfo:
    """Return the stack of `home` once it is ready, starting it if it does not run; see `workers.stack_start`."""
    return stack_start.ensure_up(home, progress, factories=factories, foreground=foreground)


def take_down(home: Path) -> None:
    """Stop the stack of `home`, if there is one."""
    stop_stack(home, output.note)


# --- the commands ----------------------------------------------------------------------------------------------------


def up(*, detach: bool, factories: int | None, as_json: bool, home: Path | None = None) -> int:
    """Start the stack; without `detach` stay with it until Ctrl-C, and stop it then."""
    place = _place(home)
    with _Shown(as_json) as shown:
        started_at = time.monotonic()
        info = stack_start.ensure_up(place, output.note, factories=factories, foreground=not detach)
        took_s = round(time.monotonic() - started_at, 3)
        if as_json:
            output.document(_info_document(info) | {"took_s": took_s})
        else:
            _say_up(info, took_s)
        if not detach and info.started:
            _stay(place)
    return shown.code


def down(*, as_json: bool, home: Path | None = None) -> int:
    """Stop the stack of a home; afterwards no process of it is left."""
    place = _place(home)
    with _Shown(as_json) as shown:
        stopped = stop_stack(place, output.note)
        if as_json:
            output.document({"stopped": stopped, "home": str(place)})
        else:
            output.say(f"stopped; nothing of {place} runs any more" if stopped else f"no stack runs for {place}")
    return shown.code


def status(*, as_json: bool, home: Path | None = None) -> int:
    """Show the parts of the stack; the exit code tells whether it is up."""
    from workers.stack_status import status_document  # noqa: PLC0415 - psutil, needed here only

    document = status_document(_place(home))
    if as_json:
        output.document(document)
    else:
        _say_status(document)
    return ExitCode.DONE if document["up"] else ExitCode.NOT_RUNNING


class _Shown:
    """Shows an expected error inside the block as a problem, and turns it into the exit code `code`."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.code = int(ExitCode.DONE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, GigafactoryError):
            return False
        if isinstance(error, StackFailed) and not self._as_json:
            for line in error.fields.get("log", ()):  # type: ignore[attr-defined]
                output.note(f"    {line}")
        output.problem(error.as_problem(), as_json=self._as_json)
        self.code = int(of_status(error.status))
        return True


def _stay(home: Path) -> None:
    """Stay with the stack that this process started; Ctrl-C, a closed terminal or SIGTERM end it."""
    narrator = Narrator(output.note)
    with _signals_interrupt():
        try:
            output.note("Ctrl-C stops the stack")
            while (state := read_state(home)) is not None and state.alive:
                narrator.look(state)
                time.sleep(FOREGROUND_POLL_S)
        except KeyboardInterrupt:
            pass
    stop_stack(home, output.note)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- words -----------------------------------------------------------------------------------------------------------


def _place(home: Path | None) -> Path:
    return (home or home_dir()).expanduser().resolve()


def _info_document(info: StackInfo) -> dict[str, Any]:
    document = asdict(info) | {"home": str(info.home), "factories": list(info.factories)}
    return document | {"urls": {"api": info.api_url, "temporal_ui": info.temporal_ui_url}}


def _say_up(info: StackInfo, took_s: float) -> None:
    output.say(f"ready in {took_s:.1f} s" if info.started else "already up")
    output.say(f"  API           {info.api_url}")
    output.say(f"  Temporal      {info.temporal_address}  {info.temporal_ui_url}".rstrip())
    output.say(f"  factories     {', '.join(info.factories) or 'none'}")
    output.say(f"  home          {info.home}")
    output.say("`gf status` shows its parts, `gf down` stops it")


def _say_status(document: dict[str, Any]) -> None:
    if not document["parts"]:
        output.say(f"no stack runs for {document['home']}; `gf up --detach` starts one")
        if document["failure"]:
            output.say(f"the last start failed: {document['failure']['part']}: {document['failure']['message']}")
        if document["leftovers"]:
            output.say(f"left over from a killed one: {', '.join(document['leftovers'])}; `gf down` ends them")
        return
    output.say(f"stack {document['version']} in {document['home']}: {document['state']}")
    if not document["same_version"]:
        output.say(f"  this command line is version {document['cli_version']}: `gf down`, then `gf up`")
    rows = [_cells(row) for row in document["parts"]]
    output.table(("part", "state", "pid", "up", "restarts", "memory", "where"), rows)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    memory = f"{row['rss_bytes'] / 1e6:.0f} MB"
    if row["descendants_rss_bytes"] and row["kind"] == "factory":
        memory += f" + {row['descendants_rss_bytes'] / 1e6:.0f} MB engines"
    where = row["url"] or row["log"]
    return (row["name"], row["state"], str(row["pid"]), _span(row["uptime_s"]), str(row["restarts"]), memory, where)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s" if minutes else f"{rest}s"
