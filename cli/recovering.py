"""`gf recover`: gives jobs whose workflow was lost a new one, page by page, and reports. *Does I/O: HTTP, terminal.*"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from cli import output
from cli.client import Client, connect
from cli.exit_codes import ExitCode

PAGE: Final = 200
SENTENCES: Final = {
    "running": "unchanged, its workflow runs",
    "starting": "its workflow is being started",
    "closed": "its workflow has closed; the reconciler ends the job within a minute",
}


def recover(*, ledger_restored: bool, as_json: bool) -> ExitCode:
    """Look at every unfinished job and show what was done."""
    report = _all_pages(connect(), ledger_restored)
    if as_json:
        output.document(report)
    else:
        _show(report)
    return ExitCode.DONE


def _all_pages(client: Client, ledger_restored: bool) -> dict[str, Any]:
    """Return the report over all pages."""
    report: dict[str, Any] = {"generation": None, "jobs": [], "ended_workflows": []}
    after: str | None = ""
    while after is not None:
        body = {"ledger_restored": ledger_restored, "after": after, "limit": PAGE}
        page = client.post("/fleet/recover", body)
        report["generation"] = report["generation"] or page["generation"]
        report["jobs"] += page["jobs"]
        report["ended_workflows"] += page["ended_workflows"]
        after = page["next"]
        if after is not None:
            output.note(f"{len(report['jobs'])} jobs looked at")
    found = Counter(job["found"] for job in report["jobs"])
    return report | {"counts": {name: found[name] for name in ("missing", "running", "starting", "closed")}}


def _show(report: dict[str, Any]) -> None:
    rows = [(job["id"], job["stage"], _words(job)) for job in report["jobs"] if job["found"] != "running"]
    if rows:
        output.table(("job", "was", "now"), rows)
    counts = report["counts"]
    output.say(
        f"{len(report['jobs'])} unfinished jobs: {counts['missing']} without a workflow got a new one, "
        f"{counts['running']} have theirs, {counts['starting']} are being started, {counts['closed']} have closed"
    )
    if report["generation"] is not None:
        output.say(f"generation {report['generation']}: nothing that was granted before can write any more")
    for name in report["ended_workflows"]:
        output.say(f"ended {name}: the ledger has no such unfinished job")


def _words(job: dict[str, Any]) -> str:
    """Say what became of one job."""
    if job["found"] != "missing":
        return SENTENCES[job["found"]]
    if job["at"] == "gate":
        return f"in {job['stage']} again, with the same candidate"
    if job["superseded"]:
        return f"queued; epoch {job['superseded']} was running and does not count any more"
    return "queued again"
