"""`gf explain`: every field of a job file, its value and where that comes from. *Does I/O: files, terminal, HTTP.*

Reading and resolving a job is pure and needs no stack; where a stack runs, it adds the repository that the job would
start from and where it would be routed to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli import output
from cli.client import ApiProblem, NotRunning, connect
from cli.exit_codes import ExitCode
from cli.home import home_dir
from cli.submitting import read_file
from core.errors import InvalidInput
from core.resolution import Policy, Resolution, prepare
from store.profile_files import BUILT_IN, load_profiles
from store.settings_source import read_settings


def explain(file: str, *, as_json: bool) -> ExitCode:
    """Show one job file's fields.

    Raises:
        InvalidInput: the file cannot be read, or is not valid; with every mistake.

    """
    job = read_file(file)
    resolution = _prepare(job)
    placed = _ask_stack(job)
    if as_json:
        output.document(_document(resolution, placed))
        return ExitCode.DONE
    output.say(resolution.title)
    rows = [(row.field, _shown(row.value), row.source, row.note) for row in resolution.provenance]
    output.table(("FIELD", "VALUE", "FROM", "NOTE"), rows)
    for notice in resolution.notices:
        output.note(f"{notice.severity}: {notice.field} {notice.message}")
    _show_place(placed)
    return ExitCode.DONE


def check_files(files: Sequence[str], *, as_json: bool) -> bool:
    """Read job files as the API would, so that a broken one starts nothing, not even a stack; tell what is wrong."""
    good = True
    for file in files:
        try:
            _prepare(read_file(file))
        except InvalidInput as error:
            output.problem(error.as_problem(), as_json=as_json and good)
            good = False
    return good


def _prepare(job: Mapping[str, Any]) -> Resolution:
    home = home_dir()
    settings = read_settings(home)
    engines = settings.engines_dir or home / "engines"
    policy = Policy(
        allow_base=settings.allow_base,
        allow_yolo=settings.allow_yolo,
        engines=tuple(sorted(path.stem for path in engines.glob("*.yaml"))),
    )
    return prepare(
        job["manifest"],
        source=job["source"],
        base_dir=job["cwd_base"],
        home_dir=str(Path.home()),
        profiles=load_profiles(BUILT_IN, home / "profiles"),
        policy=policy,
    )


def _ask_stack(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the stack knows beside: repository and routing; empty when none runs."""
    try:
        answer: dict[str, Any] = connect().post("/fleet/explain", dict(job))
    except NotRunning:
        return {}
    except ApiProblem as error:
        return {"problem": error.document}
    return answer


def _document(resolution: Resolution, placed: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": resolution.title,
        "fields": [row.model_dump(mode="json") for row in resolution.provenance],
        "notices": [notice.model_dump(mode="json") for notice in resolution.notices],
        "repository": placed.get("repository"),
        "routing": placed.get("routing"),
        "problem": placed.get("problem"),
    }


def _show_place(placed: Mapping[str, Any]) -> None:
    if not placed:
        output.note("no stack runs: repository and routing are not shown")
    elif "problem" in placed:
        output.problem(placed["problem"], as_json=False)
    else:
        repository = placed["repository"]
        output.say(f"starts from {repository['url']} {repository['base']} {repository['base_sha'][:12]}".rstrip())
        for text in (*repository["notes"], *placed["routing_lines"]):
            output.say(f"  {text}")


def _shown(value: object) -> str:
    if value is None or value in ([], {}, ""):
        return "–"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
