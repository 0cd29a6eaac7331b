"""Commands that decide about jobs: ship, approve, reject, requeue, cancel and the like. *Does I/O: HTTP, terminal.*"""

from __future__ import annotations

from typing import Any

from cli import output
from cli.client import ApiProblem, Client, connect, job_path
from cli.exit_codes import ExitCode, of_status

NAMES_CANDIDATE = ("ship", "approve")
"""These approve one commit, and the API wants to hear which."""


def act(action: str, job_ids: list[str], *, sha: str, reason: str, as_json: bool) -> ExitCode:
    """Bring `action` to each job; the exit code is that of the first refusal.

    With several jobs each is tried, whatever happened to those before. As JSON, one job gives the API's answer, several
    give `{"jobs": […]}`.
    """
    client = connect()
    taken: list[dict[str, Any]] = []
    code = ExitCode.DONE
    for job_id in job_ids:
        try:
            reply = send(client, job_id, action, sha=sha, reason=reason)
        except ApiProblem as error:
            code = code or of_status(error.status)
            taken.append({"id": job_id, "action": action, "error": error.document})
            output.problem(error.document, as_json=False)
            continue
        taken.append(reply)
        if not as_json:
            output.say(f"{job_id}  {action} taken; it is {reply['stage']}")
    if as_json:
        output.document(taken[0] if len(job_ids) == 1 else {"jobs": taken})
    return code


def unblock(job_id: str, dropped: list[str], *, reason: str, as_json: bool) -> ExitCode:
    """Let a job wait no more for `dropped`, and show what it waits for then."""
    reply = connect().post(job_path(job_id, "/unblock"), {"drop": dropped, "reason": reason})
    if as_json:
        output.document(reply)
        return ExitCode.DONE
    output.say(f"{job_id}  waits no more for {', '.join(dropped)}; it is {reply['stage']}")
    for message in reply["conditions"]:
        output.say(f"  still blocked: {message}")
    return ExitCode.DONE


def send(client: Client, job_id: str, action: str, *, sha: str = "", reason: str = "") -> dict[str, Any]:
    """Send one action; ship and approve name the job's present candidate unless `sha` names another."""
    if action in NAMES_CANDIDATE and not sha:
        sha = client.get(job_path(job_id))["candidate_sha"]
    body = {"action": action, "sha": sha, "reason": reason}
    reply: dict[str, Any] = client.post(job_path(job_id, "/actions"), body)
    return reply
