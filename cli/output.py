"""The only place that writes to the terminal: one JSON document or lines of them on stdout, or words for people.

*Does I/O: standard output and error.* Notes, progress and problems always go to stderr, so that stdout can be piped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def document(value: object) -> None:
    """Write the one JSON document of a command on stdout: indented for a person, on one line into a pipe."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent, default=str) + "\n")
    sys.stdout.flush()


def line(value: object) -> None:
    """Write one line of JSON Lines on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write a line for people on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line for people on stderr: progress, a hint, a warning."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def problem(problem_document: Mapping[str, Any], *, as_json: bool) -> None:
    """Show a problem: message, every field, hint, on stderr; with `as_json` the document itself on stdout too."""
    if as_json:
        document({"error": dict(problem_document)})
    note(f"error: {problem_document.get('detail', 'unknown error')}")
    for item in problem_document.get("errors") or ():
        note("  " + _field_problem(item))
    for name in ("differs", "legal", "cycle"):
        if problem_document.get(name):
            note(f"  {name}: {_plain(problem_document[name])}")
    if problem_document.get("hint"):
        note(f"hint: {problem_document['hint']}")
    if problem_document.get("code") == "internal" and problem_document.get("request_id"):
        note(f"request: {problem_document['request_id']}")


def failure(detail: str, *, hint: str = "", code: str, as_json: bool) -> None:
    """Show a problem that the command line found itself, in the same shape as those of the API."""
    problem({"code": code, "detail": detail} | ({"hint": hint} if hint else {}), as_json=as_json)


def is_terminal() -> bool:
    """Return whether a person sits at both ends: questions can be asked and answered."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def console(*, stderr: bool = False) -> Console:
    """Return a Rich console; imported here because it takes a while."""
    from rich.console import Console  # noqa: PLC0415 - see above

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table on stdout: with Rich on a terminal, as plain aligned columns into a pipe."""
    if sys.stdout.isatty():
        _rich_table(headings, rows)
        return
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    for row in (headings, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def diff(text: str) -> None:
    """Write a unified diff on stdout, in colours on a terminal."""
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.text import Text  # noqa: PLC0415 - only where there is a terminal to draw on

    from cli.palette import diff_style_of  # noqa: PLC0415

    terminal = console()
    for row in text.splitlines():
        terminal.print(Text(row, style=diff_style_of(row)))


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table  # noqa: PLC0415 - only where there is a terminal to draw on
    from rich.text import Text  # noqa: PLC0415

    from cli.palette import style_of  # noqa: PLC0415

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        drawn.add_column(heading, overflow="fold", no_wrap=heading == headings[0])
    for row in rows:
        drawn.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
    console().print(drawn)


def _field_problem(item: Mapping[str, Any]) -> str:
    where = f"line {item['line']}, " if item.get("line") else ""
    value = f" `{item['value']}`" if item.get("value") not in (None, "") else ""
    text = f"{where}{item.get('path', '')}:{value} {item.get('message', '')}"
    if item.get("expected"):
        text += f" (expected {item['expected']})"
    if item.get("suggestion"):
        text += f"; did you mean {item['suggestion']!r}?"
    return text


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
