"""`gf submit`, and how a job file gets to the API. *Does I/O: reads files, HTTP, terminal.*"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import output
from cli.client import Client, connect, job_path
from cli.exit_codes import ExitCode
from core.errors import InvalidInput

STANDARD_INPUT = "-"


class Unreadable(InvalidInput):
    """A job file cannot be read."""

    code = "unreadable"


def read_file(name: str) -> dict[str, Any]:
    """Return a job file as the API takes it: its text, where it lies, and what its relative paths are relative to.

    Raises:
        Unreadable: there is no such file, or it is no UTF-8 text.

    """
    try:
        if name == STANDARD_INPUT:
            return {"manifest": sys.stdin.buffer.read().decode(), "source": "stdin", "cwd_base": str(Path.cwd())}
        path = Path(name)
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{name} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise Unreadable(f"cannot read {name}: {error.strerror}") from error
    return {"manifest": text, "source": name, "cwd_base": str(path.absolute().parent)}


def send(
    client: Client,
    files: Sequence[str],
    *,
    include_dirty: bool,
    idempotency_key: str | None,
    child_of: str | None = None,
) -> list[dict[str, Any]]:
    """Submit `files`; all or none. Returns the API's answers, in their order."""
    jobs = [read_file(name) | {"include_dirty": include_dirty} for name in files]
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    path = job_path(child_of, "/children") if child_of else "/fleet/jobs"
    answer = client.post(path, {"jobs": jobs}, headers=headers)
    submitted: list[dict[str, Any]] = answer["jobs"]
    return submitted


def show_notices(jobs: Sequence[dict[str, Any]]) -> None:
    """Tell what the API noticed about submitted jobs."""
    for job in jobs:
        for notice in job["notices"]:
            output.note(f"{job['id']}: {notice}")


def submit(
    files: Sequence[str], *, include_dirty: bool, idempotency_key: str | None, child_of: str | None, as_json: bool
) -> ExitCode:
    """Submit files and show the ids."""
    jobs = send(connect(), files, include_dirty=include_dirty, idempotency_key=idempotency_key, child_of=child_of)
    show_notices(jobs)
    if as_json:
        output.document({"jobs": jobs})
        return ExitCode.DONE
    for job in jobs:
        known = "" if job["created"] else "  (submitted before)"
        output.say(f"{job['id']}  {job['stage']}  {job['title']}{known}")
    return ExitCode.DONE
