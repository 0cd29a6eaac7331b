"""Commands that tell what happened to a job and why: logs, events, why, why-not. *Does I/O: HTTP, terminal.*"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from cli import output, words
from cli.client import connect, job_path
from cli.exit_codes import ExitCode
from cli.follow import follow as follow_stream

PAGE = 1000
MESSAGE_WIDTH = 200
"""Longer messages are cut in lines for people; `--json` has the whole."""


def logs(job_id: str, *, follow: bool, epoch: int | None, as_json: bool) -> ExitCode:
    """Show what the attempts printed."""
    if follow:
        lines: Iterator[dict[str, Any]] = (
            event.data
            for event in follow_stream(job_id)
            if event.name == "log" and epoch in (None, event.data["epoch"])
        )
        return _stream(lines, _log_text, as_json=as_json)
    lines = _pages(job_id, "/logs", "lines", epoch=epoch)
    if as_json:
        output.document({"id": job_id, "lines": list(lines)})
        return ExitCode.DONE
    return _stream(lines, _log_text, as_json=False)


def events(job_id: str, *, follow: bool, as_json: bool) -> ExitCode:
    """Show what happened to a job."""
    if follow:
        happened: Iterator[dict[str, Any]] = (
            event.data for event in follow_stream(job_id) if event.name in ("event", "stage")
        )
        return _stream(happened, _event_text, as_json=as_json)
    happened = _pages(job_id, "/events", "events")
    if as_json:
        output.document({"id": job_id, "events": list(happened)})
        return ExitCode.DONE
    return _stream(happened, _event_text, as_json=False)


def why(job_id: str, *, as_json: bool) -> ExitCode:
    """Say why a job is where it is."""
    explanation = connect().get(job_path(job_id, "/explanation"))
    if as_json:
        output.document(explanation)
        return ExitCode.DONE
    output.say(f"{job_id} is {explanation['stage']}")
    for text in explanation["lines"]:
        output.say(text)
    return ExitCode.DONE


def why_not(job_id: str, factory: str, *, as_json: bool) -> ExitCode:
    """Say why a job does not run on a certain factory."""
    place = connect().get(job_path(job_id, f"/explanation/{quote(factory, safe='')}"))
    if as_json:
        output.document(place)
        return ExitCode.DONE
    for text in place["lines"]:
        output.say(text)
    return ExitCode.DONE


def _stream(items: Iterator[dict[str, Any]], text_of: Any, *, as_json: bool) -> ExitCode:
    for item in items:
        if as_json:
            output.line(item)
        else:
            output.say(text_of(item))
    return ExitCode.DONE


def _pages(job_id: str, rest: str, member: str, **query: object) -> Iterator[dict[str, Any]]:
    client, after = connect(), 0
    while True:
        page = client.get(job_path(job_id, rest), after=after, limit=PAGE, **query)
        yield from page[member]
        if len(page[member]) < PAGE:
            return
        after = page["next_after"]


def _log_text(line: dict[str, Any]) -> str:
    return f"{words.clock(line['at'])}  {line['epoch']} {line['stream']:<7} {line['text']}"


def _event_text(event: dict[str, Any]) -> str:
    epoch = f"{event['epoch']}" if event["epoch"] else " "
    message = words.clipped(event["message"], MESSAGE_WIDTH)
    return f"{words.clock(event['at'])}  {event['seq']:>4}  {epoch} {event['type']:<18} {message}"
