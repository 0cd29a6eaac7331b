"""A job's way on the terminal, line by line as it happens. *Does I/O: terminal.*

Lines are only ever added, so that the story can be read, scrolled and copied without colours as well. Each line has its
word for what it is; colour only repeats it.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from cli import words
from cli.palette import diff_style_of, style_of

LABEL_WIDTH = 9
SHOWN_DIFF_LINES = 80
SHOWN_RESULT_LINES = 6
"""Lines that are shown of what a tool gave; the whole of it is in the logs."""

LABELS = {
    "job.submitted": ("submitted", "cyan"),
    "job.granted": ("routed", "cyan"),
    "job.requeued": ("retry", "yellow"),
    "job.shipped": ("shipped", "green"),
    "job.failed": ("failed", "red"),
    "job.dead_letter": ("failed", "red"),
    "gate.scope": ("scope", "magenta"),
    "gate.verify": ("verify", "magenta"),
    "gate.ship": ("ship", "yellow"),
    "conditions.changed": ("waits", "yellow"),
    "write.refused": ("refused", "red"),
    "lease.lost": ("lost", "red"),
    "decision.refused": ("refused", "red"),
}
"""Type of event → its word and colour; other types show the end of their name."""
STEPS = {
    "tool_call": ("agent", "blue"),
    "text": ("agent", "blue"),
    "result": ("agent", "blue"),
    "notice": ("notice", "yellow"),
    "limit": ("limit", "yellow"),
}
"""Kind of step of an engine → its word and colour; other kinds show themselves."""
QUIET_STEPS = frozenset({"session", "usage"})
QUIET = frozenset({"attempt.started", "attempt.accepted", "attempt.checkpoint", "attempt.ended", "artifact.added"})
"""Events that matter to an auditor and not to who watches."""
BAD_WORDS = ("failed", "out of scope")
PLAIN_ENGINE = "shell"
"""Its standard output is for people; that of other engines is a stream of JSON, which their steps tell in words."""


class LiveView:
    """Writes what happens to one job."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._engine = ""
        self._said = ""

    def heading(self, job: dict[str, Any]) -> None:
        """Introduce a job."""
        self._console.print(Text.assemble((job["id"], "bold"), "  ", job["title"]))

    def stage(self, event: dict[str, Any]) -> None:
        """Show a change of stage."""
        stage = str(event["data"].get("to") or event["message"])
        self._block("stage", stage, style=style_of(stage) or "bold", body=style_of(stage) or "bold")

    def event(self, event: dict[str, Any]) -> None:
        """Show an event, unless only auditors want it."""
        kind, data = event["type"], event["data"]
        if kind == "attempt.step":
            self._step(str(data.get("step", "")), event["message"])
            return
        if kind in QUIET:
            return
        if kind == "job.granted":
            self._engine = str(data.get("engine", ""))
        label, style = LABELS.get(kind, (kind.rpartition(".")[2], "cyan"))
        if kind.startswith("gate."):
            style = "red" if any(word in event["message"] for word in BAD_WORDS) else "green"
        self._block(label, event["message"] or kind, style=style, body=style if style == "red" else "")
        for path in data.get("out_of_scope") or ():
            self._block("", f"outside allowed-scope: {path}", style="red", body="red")

    def log(self, line: dict[str, Any]) -> None:
        """Show a line that the attempt printed, unless steps tell it in words."""
        if line["stream"] == "stdout" and self._engine != PLAIN_ENGINE:
            said = _said(line["text"])
            if said is not None:
                self._step("text", said)
                return
        label = "" if line["stream"] in ("stdout", "stderr") else line["stream"]
        style = "red" if line["stream"] == "stderr" else "dim"
        self._block(label, line["text"], style=style, body=style, bar="│")

    def _step(self, kind: str, message: str) -> None:
        if not message.strip() or (kind == "result" and message == self._said):
            return
        self._said = message if kind == "text" else self._said
        if kind == "tool_result":
            self._result(message)
        elif kind not in QUIET_STEPS:
            label, style = STEPS.get(kind, (kind, "cyan"))
            self._block(label, message, style=style)

    def _result(self, message: str) -> None:
        lines = message.strip().splitlines()
        hidden = len(lines) - SHOWN_RESULT_LINES
        shown = lines[:SHOWN_RESULT_LINES] + ([f"… {words.plural(hidden, 'more line')}"] if hidden > 0 else [])
        self._block("", "\n".join(shown), style="dim", body="dim", bar="│")

    def diff(self, text: str, *, whole: bool) -> None:
        """Show a unified diff, its beginning or the whole."""
        lines = text.splitlines()
        shown = lines if whole else lines[:SHOWN_DIFF_LINES]
        added = sum(1 for line in lines if line.startswith("+") and not line.startswith("+++"))
        removed = sum(1 for line in lines if line.startswith("-") and not line.startswith("---"))
        files = sum(1 for line in lines if line.startswith("diff --git "))
        self._block("diff", f"{words.plural(files, 'file')}, +{added} −{removed}", style="magenta")
        for line in shown:
            self._console.print(Text(f"  {line}", style=diff_style_of(line)))
        if len(shown) < len(lines):
            self._block("", f"… {words.plural(len(lines) - len(shown), 'more line')}", style="dim", body="dim")

    def note(self, text: str) -> None:
        """Say something about the job that is no event."""
        self._block("note", text, style="yellow")

    def waits(self, lines: list[str]) -> None:
        """Show why the job does not run yet."""
        self._block("waits", "\n".join(lines), style="yellow")

    def ending(self, job: dict[str, Any]) -> None:
        """Show what became of a job."""
        stage = job["stage"]
        facts = [words.between(job["submitted_at"], job["ended_at"])]
        facts += [f"commit {words.short(sha)}" for sha in job["commits"][:1]]
        facts += [f"on {job['shipped_ref'].removeprefix('refs/heads/')}"] if job["shipped_ref"] else []
        facts += [f"{words.tokens(job['tokens'])} tokens"] if job["tokens"] else []
        facts += [words.cost(job["cost"])] if float(job["cost"]["usd"] or 0) else []
        self._console.print(Text.assemble((job["id"], "bold"), "  ", (stage, style_of(stage)), "  ", " · ".join(facts)))

    def _block(self, label: str, text: str, *, style: str, body: str = "", bar: str = " ") -> None:
        """Write lines behind a label, which stands before the first."""
        for index, line in enumerate(text.strip("\n").splitlines() or [""]):
            head = label if index == 0 else ""
            self._console.print(Text.assemble("  ", (f"{head:<{LABEL_WIDTH}}", style), f"{bar} ", (line, body)))


def _said(line: str) -> str | None:
    """Return what an engine says in a line of its JSON stream; None when the line is none.

    Most lines are told by steps and say nothing here; a replayed recording has its words only in the stream.
    """
    if not line.startswith("{"):
        return None
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return str(item.get("text", "")) if item.get("type") == "say" else ""
