"""A job's way on the terminal, line by line as it happens. *Does I/O: terminal.*

Lines are only ever added, so that the story can be read, scrolled and copied without colours as well. Each line has its
word for what it is; colour only repeats it.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from cli import words
from cli.palette import style_of

LABEL_WIDTH = 9
SHOWN_DIFF_LINES = 80

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
    "attempt.step": ("agent", "blue"),
    "conditions.changed": ("waits", "yellow"),
    "write.refused": ("refused", "red"),
    "lease.lost": ("lost", "red"),
    "decision.refused": ("refused", "red"),
}
"""Type of event → its word and colour; other types show themselves."""
QUIET = frozenset({"attempt.started", "attempt.accepted", "attempt.checkpoint", "attempt.ended", "artifact.added"})
"""Events that matter to an auditor and not to who watches."""
BAD_WORDS = ("failed", "out of scope")


class LiveView:
    """Writes what happens to one job."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, job: dict[str, Any]) -> None:
        """Introduce a job."""
        self._console.print(Text.assemble((job["id"], "bold"), "  ", job["title"]))

    def stage(self, event: dict[str, Any]) -> None:
        """Show a change of stage."""
        stage = str(event["data"].get("to") or event["message"])
        self._line("stage", stage, style=style_of(stage) or "bold")

    def event(self, event: dict[str, Any]) -> None:
        """Show an event, unless only auditors want it."""
        kind = event["type"]
        if kind in QUIET:
            return
        label, style = LABELS.get(kind, (kind.rpartition(".")[2], "cyan"))
        if kind.startswith("gate."):
            style = "red" if any(word in event["message"] for word in BAD_WORDS) else "green"
        self._line(label, event["message"] or kind, style=style)
        for path in event["data"].get("out_of_scope") or ():
            self._line("", f"outside allowed-scope: {path}", style="red")

    def log(self, line: dict[str, Any]) -> None:
        """Show a line that the attempt printed."""
        label = "" if line["stream"] in ("stdout", "stderr") else line["stream"]
        style = "red" if line["stream"] == "stderr" else "dim"
        self._line(label, line["text"], style=style, bar="│")

    def diff(self, text: str, *, whole: bool) -> None:
        """Show a unified diff, its beginning or the whole."""
        lines = text.splitlines()
        shown = lines if whole else lines[:SHOWN_DIFF_LINES]
        added = sum(1 for line in lines if line.startswith("+") and not line.startswith("+++"))
        removed = sum(1 for line in lines if line.startswith("-") and not line.startswith("---"))
        files = sum(1 for line in lines if line.startswith("diff --git "))
        self._line("diff", f"{words.plural(files, 'file')}, +{added} −{removed}", style="magenta")
        body = "\n".join(shown)
        self._console.print(Syntax(body, "diff", background_color="default", word_wrap=True, padding=(0, 2)))
        if len(shown) < len(lines):
            self._line("", f"… {len(lines) - len(shown)} more lines; answer d to see all", style="dim")

    def note(self, text: str) -> None:
        """Say something about the job that is no event."""
        self._line("note", text, style="yellow")

    def waits(self, lines: list[str]) -> None:
        """Show why the job does not run yet."""
        for index, text in enumerate(lines):
            self._line("" if index else "waits", text, style="yellow")

    def ending(self, job: dict[str, Any]) -> None:
        """Show what became of a job."""
        stage = job["stage"]
        facts = [words.between(job["submitted_at"], job["ended_at"])]
        facts += [f"commit {words.short(sha)}" for sha in job["commits"][:1]]
        facts += [f"to {job['shipped_ref']}"] if job["shipped_ref"] else []
        facts += [f"{words.tokens(job['tokens'])} tokens"] if job["tokens"] is not None else []
        facts += [words.cost(job["cost"])] if job["cost"]["usd"] is not None else []
        self._console.print(Text.assemble((job["id"], "bold"), "  ", (stage, style_of(stage)), "  ", " · ".join(facts)))

    def _line(self, label: str, text: str, *, style: str, bar: str = " ") -> None:
        self._console.print(
            Text.assemble("  ", (f"{label:<{LABEL_WIDTH}}", style), f"{bar} ", (text, _body(style, bar)))
        )


def _body(style: str, bar: str) -> str:
    return style if bar.strip() or style == "red" else ""
