"""Commands that stop and release work: halt, drain, limits, quarantine. *Does I/O: HTTP, terminal, files.*"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from cli import output, words
from cli.client import connect
from cli.exit_codes import ExitCode
from cli.home import home_dir
from cli.tokens import seconds
from core.errors import FieldProblem, InvalidInput, NotFound

SENTINEL: Final = "KILL"
"""The same as `core.switch.SENTINEL`, which takes longer to import."""


class Subject(NamedTuple):
    """What a command is about: one product, factory or engine, else the whole fleet."""

    product: str | None = None
    factory: str | None = None
    engine: str | None = None

    def body(self) -> dict[str, str]:
        """Return it as the API wants it.

        Raises:
            InvalidInput: more than one is named.

        """
        named = {scope: name for scope, name in self._asdict().items() if name}
        if len(named) > 1:
            options = ", ".join(f"--{scope}" for scope in named)
            problem = FieldProblem(options, "cannot stand together", expected="one of them, or none for the fleet")
            raise InvalidInput("1 problem in the command", (problem,))
        return dict(zip(("scope", "name"), *named.items(), strict=True)) if named else {"scope": "fleet", "name": ""}


# --- the kill switch --------------------------------------------------------------------------------------------------


def halt(subject: Subject, *, stop_running: bool, reason: str, as_json: bool) -> ExitCode:
    """Pull the kill switch."""
    body = subject.body() | {"stop_running": stop_running, "reason": reason}
    answer = connect().post("/fleet/halts", body)
    if as_json:
        output.document(answer)
        return ExitCode.DONE
    output.say(f"{_subject(answer['halt'])} is halted: nothing of it is given a seat until `gf unhalt`")
    for attempt in answer["stopped"]:
        output.say(f"  stopping {attempt['job_id']} on {attempt['factory']} ({attempt['engine']})")
    if not answer["halt"]["stop_running"]:
        output.note("what runs already goes on; `gf halt --stop-running` stops it and keeps its work")
    return ExitCode.DONE


def unhalt(subject: Subject, *, as_json: bool) -> ExitCode:
    """Release what an operator halted."""
    body = subject.body()
    answer = connect().post("/fleet/halts/release", body)
    if as_json:
        output.document(answer)
        return ExitCode.DONE
    output.say(f"{_subject(body)} is released")
    for one in answer["halts"]:
        output.note(f"still halted: {_halt_line(one)}")
    return ExitCode.DONE


def halt_here(subject: Subject, *, reason: str, as_json: bool) -> ExitCode:
    """Write the sentinel file: the factories of this home, or one of them, stop, whatever else is down."""
    file = _sentinel(subject)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{reason}\n", encoding="utf-8")
    if as_json:
        output.document({"file": str(file), "halted": True})
    else:
        output.say(f"{file} is there: within a second the factories that see it stop everything")
    return ExitCode.DONE


def unhalt_here(subject: Subject, *, as_json: bool) -> ExitCode:
    """Remove the sentinel file.

    Raises:
        NotFound: there is none.

    """
    file = _sentinel(subject)
    try:
        file.unlink()
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", hint="`gf halts` shows what is halted, and why") from None
    if as_json:
        output.document({"file": str(file), "halted": False})
    else:
        output.say(f"{file} is gone; the factories that it stopped take jobs again")
    return ExitCode.DONE


def _sentinel(subject: Subject) -> Path:
    if subject.product or subject.engine:
        problem = FieldProblem("--local", "stops factories of this machine", expected="alone, or with --factory")
        raise InvalidInput("1 problem in the command", (problem,))
    home = home_dir()
    return (home / "factories" / subject.factory if subject.factory else home) / SENTINEL


def halts(*, released: bool, as_json: bool) -> ExitCode:
    """Show what is halted, by whom and why; with `released` also what was."""
    found = connect().get("/fleet/halts")
    if as_json:
        output.document(found)
        return ExitCode.DONE
    for one in found["halts"]:
        output.say(_halt_line(one))
    if not found["halts"]:
        output.note("nothing is halted")
    for one in found["released"] if released else ():
        output.say(f"{_halt_line(one)}; released {one['released_at'][:19]}Z by {one['released_by'] or 'the stack'}")
    return ExitCode.DONE


def _halt_line(halt: dict[str, Any]) -> str:
    by = halt["actor"] or "a file on its machine"
    why = f": {halt['reason']}" if halt["reason"] else ""
    also = ", running work too" if halt["stop_running"] else ""
    return f"{_subject(halt)}{also}, since {halt['at'][:19]}Z, by {by}{why}"


def _subject(halt: dict[str, Any]) -> str:
    return f"{halt['scope']} {halt['name']}" if halt["name"] else "the fleet"


# --- limits -----------------------------------------------------------------------------------------------------------


def limits(*, as_json: bool) -> ExitCode:
    """Show how many jobs of each product, and on each engine, may run at once, and how many do."""
    return _show_limits(connect().get("/fleet/limits"), as_json=as_json)


def limit(subject: Subject, jobs: int | None, *, as_json: bool) -> ExitCode:
    """Set a limit; None forgets it.

    Raises:
        InvalidInput: neither a product nor an engine is named.

    """
    body = subject.body()
    if body["scope"] == "fleet":
        problem = FieldProblem("--product, --engine", "are missing", expected="one of them")
        raise InvalidInput("1 problem in the command", (problem,))
    answer = connect().post("/fleet/limits", {"kind": body["scope"], "name": body["name"], "jobs": jobs})
    return _show_limits(answer, as_json=as_json)


def _show_limits(found: dict[str, Any], *, as_json: bool) -> ExitCode:
    if as_json:
        output.document(found)
    elif not found["limits"]:
        output.note("no limits: the seats of the factories decide")
    else:
        rows = [
            (one["kind"], one["name"], f"{one['running']}/{one['jobs']}", one["set_by"] or "settings")
            for one in found["limits"]
        ]
        output.table(("KIND", "NAME", "RUNNING", "SET BY"), rows)
    return ExitCode.DONE


# --- single factories -------------------------------------------------------------------------------------------------


def drain(factory: str, *, hand_over: str | None, reason: str, as_json: bool) -> ExitCode:
    """Give a factory no further jobs; with `hand_over` what still runs after that time goes on elsewhere."""
    wait_s = seconds("--hand-over", hand_over)
    answer = connect().post(_path(factory, "/drain"), {"reason": reason, "hand_over_s": wait_s})
    if as_json:
        output.document(answer)
        return ExitCode.DONE
    then = "may finish" if wait_s is None else f"goes on elsewhere in {words.span(wait_s)}"
    output.say(f"{factory} takes no further jobs until `gf undrain {factory}`; what runs there {then}")
    return ExitCode.DONE


def order(factory: str, act: str, *, as_json: bool) -> ExitCode:
    """Let a factory take jobs again: `undrain` it, or `release` it from quarantine."""
    answer = connect().post(_path(factory, f"/{act}"), {})
    if as_json:
        output.document(answer)
    else:
        output.say(f"{factory} is {answer['state']}")
    return ExitCode.DONE


def _path(factory: str, rest: str) -> str:
    return f"/fleet/factories/{quote(factory, safe='')}{rest}"
