"""`gf dag`: which jobs wait for which, drawn as a tree. *Does I/O: HTTP, terminal.*"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli import output, words
from cli.client import connect, job_path
from cli.exit_codes import ExitCode

TITLE_WIDTH = 50


def dag(job_id: str | None, *, as_json: bool) -> ExitCode:
    """Draw the jobs around one, or all that wait now."""
    found = connect().get(job_path(job_id, "/dag") if job_id else "/fleet/dag")
    if as_json:
        output.document(found)
        return ExitCode.DONE
    if not found["jobs"]:
        output.note("no job waits for another")
    for line in lines(found, marked=job_id):
        output.say(line)
    if found["truncated"]:
        output.note(f"only {words.plural(len(found['jobs']), 'job')} of more are shown")
    return ExitCode.DONE


def lines(found: Mapping[str, Any], *, marked: str | None = None) -> Iterator[str]:
    """Yield the tree: below each job those that wait for it, and its child jobs; `marked` gets an arrow.

    A job that waits for several is drawn in full below the first of them, and by its id alone below the others.
    """
    jobs: dict[str, Any] = {job["id"]: job for job in found["jobs"]}
    below = _below(found["edges"])
    inner = {job_id for places in below.values() for job_id, _ in places}
    drawn: set[str] = set()
    roots = [job_id for job_id in jobs if job_id not in inner]
    waiting = [(job_id, "", "", "") for job_id in reversed(roots)]
    while waiting:  # no recursion: a chain may be longer than the stack is deep
        job_id, note, branch, indent = waiting.pop()
        again = job_id in drawn
        drawn.add(job_id)
        yield f"{branch}{_text(jobs[job_id], note, again=again)}{' ←' if job_id == marked else ''}"
        places = [] if again else below.get(job_id, [])
        for index, (under, told) in reversed(list(enumerate(places))):
            last = index == len(places) - 1
            waiting.append((under, told, f"{indent}{'└─ ' if last else '├─ '}", f"{indent}{'   ' if last else '│  '}"))


def _below(edges: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Return what is drawn below each job, with what is to be said of the wait."""
    below: dict[str, list[tuple[str, str]]] = {}
    for edge in edges:
        part = edge["gate"] == "ship"
        upper, lower = (edge["job_id"], edge["waits_for"]) if part else (edge["waits_for"], edge["job_id"])
        said = ["child job"] if part else [f"until {edge['until']}"] if edge["until"] != "shipped" else []
        said += [edge["state"]] if edge["state"] in ("failed", "dropped") else []
        below.setdefault(upper, []).append((lower, ", ".join(said)))
    return below


def _text(job: Mapping[str, Any], note: str, *, again: bool) -> str:
    told = f" ({note})" if note else ""
    if again:
        return f"{job['id']}{told}, see above"
    return f"{job['id']}  {job['stage']}  {words.clipped(job['title'], TITLE_WIDTH)}{told}"
