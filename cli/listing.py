"""Commands that ask for a document and show it: jobs, job, factories, version. *Does I/O: HTTP, terminal.*"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cli import output, words
from cli.client import ApiProblem, NotRunning, connect, job_path
from cli.exit_codes import ExitCode
from core.version import VERSION

TITLE_WIDTH = 44
WAITING_WIDTH = 40


def jobs(*, stages: tuple[str, ...], product: str | None, limit: int, cursor: str | None, as_json: bool) -> ExitCode:
    """List jobs, newest first."""
    query = {"stage": list(stages) or None, "product": product, "limit": limit, "cursor": cursor}
    page = connect().get("/fleet/jobs", **query)
    if as_json:
        output.document(page)
        return ExitCode.DONE
    if not page["jobs"]:
        output.note("no jobs" if not (stages or product) else "no jobs like that")
        return ExitCode.DONE
    now = datetime.now(UTC)
    output.table(("JOB", "STAGE", "TITLE", "WHERE", "WAITS FOR", "AGE"), [_job_row(job, now) for job in page["jobs"]])
    if page["next_cursor"]:
        output.note(f"more: gf jobs --cursor {page['next_cursor']}")
    return ExitCode.DONE


def _job_row(job: dict[str, Any], now: datetime) -> tuple[str, ...]:
    where = f"{job['factory']}/{job['engine']}" if job["factory"] else job["engine"] or words.UNKNOWN
    title = job["title"] if job["product_id"] == "default" else f"[{job['product_id']}] {job['title']}"
    return (
        job["id"],
        job["stage"],
        words.clipped(title, TITLE_WIDTH),
        where,
        words.clipped(words.waiting(job), WAITING_WIDTH),
        words.age(job["submitted_at"], now),
    )


def job(job_id: str, *, as_json: bool) -> ExitCode:
    """Show one job."""
    document = connect().get(job_path(job_id))
    if as_json:
        output.document(document)
    else:
        for text in job_lines(document):
            output.say(text)
    return ExitCode.DONE


def job_lines(job: dict[str, Any]) -> list[str]:
    """Return a job's document as lines."""
    repository = job["repository"]
    lines = [f"{job['id']}  {job['stage']}  {job['title']}"]
    lines += [f"  {name:<12}{value}" for name, value in _facts(job, repository) if value]
    lines += [f"  note        {note}" for note in repository.get("notes") or ()]
    if job["attempts"]:
        lines.append("  attempts")
        lines += [f"    {_attempt_line(attempt)}" for attempt in job["attempts"]]
    waiting = job.get("waiting")
    if waiting:
        lines.append(f"  waits for   {words.waiting(job)}")
        choices = waiting["choices"] or [waiting["command"]]
        lines += [f"  {'or' if index else 'next':<12}{choice}" for index, choice in enumerate(choices) if choice]
    return lines


def _facts(job: dict[str, Any], repository: dict[str, Any]) -> list[tuple[str, str]]:
    verdict = job.get("verdict") or {}
    out_of_scope = verdict.get("out_of_scope") or ()
    return [
        ("product", job["product_id"]),
        ("priority", job["priority"]),
        ("profile", job["profile"] or ""),
        ("repository", f"{repository['url']} ({repository['base']})" if repository["base"] else repository["url"]),
        ("parents", words.awaited(job["deps"], job["deps_total"])),
        ("child jobs", words.awaited(job["children"], job["children_total"])),
        ("candidate", words.short(job["candidate_sha"]) if job["candidate_sha"] else ""),
        ("verify", verdict.get("verify", "")),
        ("scope", f"{len(out_of_scope)} out: {', '.join(out_of_scope[:5])}" if out_of_scope else ""),
        ("commits", ", ".join(words.short(sha) for sha in job["commits"])),
        ("shipped to", job["shipped_ref"].removeprefix("refs/heads/")),
        ("approved by", job["approved_by"]),
        ("tokens", words.tokens(job["tokens"]) if job["attempts"] else ""),
        ("cost", words.cost(job["cost"]) if job["attempts"] else ""),
        ("submitted", f"{job['submitted_at'][:19]}Z by {job['submitted_by']}"),
        ("temporal", job["links"].get("temporal", "")),
    ]


def _attempt_line(attempt: dict[str, Any]) -> str:
    outcome = attempt["outcome"] or ("running" if attempt["started_at"] else "granted")
    took = words.between(attempt["started_at"] or attempt["granted_at"], attempt["ended_at"])
    message = f": {words.clipped(attempt['message'], 100)}" if attempt["message"] else ""
    if attempt["cooldown_until"]:
        message += f" (not asked there again before {words.moment(attempt['cooldown_until'])})"
    return f"{attempt['epoch']:>2}  {attempt['factory']}/{attempt['engine']}  {outcome}  {took}{message}"


def diff(job_id: str, *, as_json: bool) -> ExitCode:
    """Show the diff of a job's candidate."""
    text = connect().text(job_path(job_id, "/diff"))
    if as_json:
        output.document({"id": job_id, "diff": text})
    else:
        output.diff(text)
    return ExitCode.DONE


def factories(*, capabilities: bool, as_json: bool) -> ExitCode:
    """List the factories; with `capabilities` also what each detected, declared, and was attested."""
    found = connect().get("/fleet/factories")
    if as_json:
        output.document(found)
        return ExitCode.DONE
    if not found["factories"]:
        output.note("no factories; start one with `gf up --factories 1`")
        return ExitCode.DONE
    now = datetime.now(UTC)
    rows = [_factory_row(factory, now) for factory in found["factories"]]
    output.table(("FACTORY", "STATE", "HOST", "PID", "SEATS", "STATIONS", "LAST BEAT"), rows)
    for factory in found["factories"]:
        for note in _notes_on(factory, now):
            output.note(note)
        if capabilities:
            _say_capabilities(factory)
    return ExitCode.DONE


def _notes_on(factory: dict[str, Any], now: datetime) -> Iterator[str]:
    """Yield what somebody may have to know or do about a factory."""
    name = factory["name"]
    if factory["activity"]["reason"]:
        yield f"{name} takes no further job: {factory['activity']['reason']}"
    if absence := factory["status"].get("absence"):
        yield f"{name}: {absence['message']} (noticed {words.age(absence['at'], now)} ago)"
    for station in factory["stations"]:
        place = f"{name}/{station['engine']}"
        if not station["usable"] and station["repair"]:
            yield f"{place}: {station['repair']}"
        if words.in_future(station["cooldown_until"], now):
            yield f"{place} rests until {words.moment(station['cooldown_until'])}: {station['cooldown_reason']}"
    for claim in factory["unattested"]:
        yield f"{name}: {claim} does not count; gf attest {name} {claim}"


def _say_capabilities(factory: dict[str, Any]) -> None:
    output.say(factory["name"])
    for kind, word in (("capabilities", "detected"), ("declared", "declared"), ("attested", "attested")):
        output.say(f"  {word:<9} {', '.join(factory[kind]) or words.UNKNOWN}")


def _factory_row(factory: dict[str, Any], now: datetime) -> tuple[str, ...]:
    stations = ", ".join(_station(station) for station in factory["stations"]) or words.UNKNOWN
    return (
        factory["name"],
        factory["activity"]["doing"],
        factory["host"],
        str(factory["pid"]),
        f"{factory['busy']}/{factory['seats']}",
        stations,
        words.age(factory["last_beat_at"], now),
    )


def _station(station: dict[str, Any]) -> str:
    state = f"{station['busy']}/{station['seats']}" if station["usable"] else "unusable"
    return f"{station['engine']} {state}"


def version(*, as_json: bool) -> ExitCode:
    """Show the version here and the stack's; 0 also when no stack runs."""
    try:
        stack = connect().get("/fleet/version")["version"]
    except (NotRunning, ApiProblem):
        stack = None
    if as_json:
        output.document({"version": VERSION, "stack": stack})
        return ExitCode.DONE
    output.say(f"gf {VERSION}")
    if stack and stack != VERSION:
        output.note(f"the stack that runs is {stack}; restart it with `gf down` and `gf up --detach`")
    return ExitCode.DONE
