"""`gf run`: from a job file to its end, watched. *Does I/O: files, HTTP, terminal; may start the stack.*"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from cli import acting, output, submitting
from cli.client import ApiProblem, Client, NotRunning, ServerEvent, connect, job_path
from cli.exit_codes import ExitCode, of_status
from cli.follow import COMMENT, follow
from cli.home import home_dir
from cli.live import LiveView

ENDED = ("shipped", "failed", "dead_letter", "cancelled")
QUESTION = "Ship it? [y/N/d(iff)] "
QUIET_S = 2.0
"""A job that is still queued after this time gets its routing explained."""


@dataclass(frozen=True)
class RunRequest:
    """What `gf run` was asked for."""

    files: tuple[str, ...]
    ship: bool
    include_dirty: bool
    idempotency_key: str | None


def run(request: RunRequest, *, as_json: bool) -> ExitCode:
    """Submit, follow, ask, ship; the exit code is that of the first job that did not end as asked for.

    As JSON, one file gives the job's document, several give `{"jobs": […]}`.
    """
    if not _stack_answers():
        from cli.explaining import check_files  # noqa: PLC0415 - the pure core takes a while to import

        if not check_files(request.files, as_json=as_json):
            return ExitCode.USAGE
    _ensure_stack()
    client = connect()
    jobs = submitting.send(
        client, request.files, include_dirty=request.include_dirty, idempotency_key=request.idempotency_key
    )
    submitting.show_notices(jobs)
    codes: list[ExitCode] = []
    signal.signal(signal.SIGINT, _interrupt_once)
    view = LiveView(output.console(stderr=as_json))
    try:
        for job in jobs:
            view.heading(job)
            codes.append(Watcher(client, job["id"], view, request, may_ask=not as_json).watch())
    except KeyboardInterrupt:
        _say_detached(jobs)
        codes.append(ExitCode.DETACHED)
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if as_json:
        documents = [client.get(job_path(job["id"])) for job in jobs]
        output.document(documents[0] if len(documents) == 1 else {"jobs": documents})
    output.note("the stack stays up; `gf down` stops it")
    return next((code for code in codes if code), ExitCode.DONE)


class Watcher:
    """Follows one job to its end or to a human."""

    def __init__(self, client: Client, job_id: str, view: LiveView, request: RunRequest, *, may_ask: bool) -> None:
        self._client = client
        self._id = job_id
        self._view = view
        self._request = request
        self._may_ask = may_ask and output.is_terminal()
        self._approved = ""
        """Candidate that was already answered with yes."""
        self._explained = False
        self._stage = "queued"
        self._changed = True
        self._started_at = time.monotonic()

    def watch(self) -> ExitCode:
        """Follow until the job ended, or waits for a human who is not here."""
        for event in follow(self._id):
            self._show(event)
            if event.name == "end":
                break
            if event.name == COMMENT:
                stop = self._look()
                if stop is not None:
                    return stop
        job = self._job()
        self._view.ending(job)
        if job["stage"] in ("failed", "dead_letter"):
            output.note(f"why: gf events {self._id} · try again: gf requeue {self._id}")
        return ExitCode.DONE if job["stage"] == "shipped" else ExitCode.JOB_FAILED

    def _show(self, event: ServerEvent) -> None:
        if event.name == "log":
            self._view.log(event.data)
        elif event.name == "stage":
            self._stage, self._changed = str(event.data["data"].get("to", "")), True
            self._view.stage(event.data)
        elif event.name == "event":
            self._changed = True
            self._view.event(event.data)

    def _look(self) -> ExitCode | None:
        """Everything so far was shown: look whether the job waits.

        Returns the code to leave with when it waits for a human and none is here; None to go on.
        """
        if self._stage == "queued" and not self._explained and time.monotonic() - self._started_at > QUIET_S:
            self._explained = True
            self._view.waits(self._client.get(job_path(self._id, "/explanation"))["lines"])
        if not self._changed:
            return None
        self._changed = False
        job = self._job()
        waiting = job["waiting"]
        if waiting is None or waiting["kind"] != "human":
            return None
        if waiting["command"] != f"gf ship {self._id}":
            return self._leave(waiting)
        if self._approved == job["candidate_sha"]:
            return None
        diff = self._diff()
        if diff:
            self._view.diff(diff, whole=False)
        if self._request.ship or (self._may_ask and self._ask(diff)):
            return self._ship(job["candidate_sha"], waiting)
        return self._leave(waiting)

    def _leave(self, waiting: dict[str, Any]) -> ExitCode:
        self._view.note(f"{self._id} waits for a human: {waiting['message']}")
        output.note(f"next: {waiting['command']}")
        output.note(f"or:   gf reject {self._id} · gf cancel {self._id} · follow again: gf logs -f {self._id}")
        return ExitCode.WAITING

    def _ask(self, diff: str) -> bool:
        while True:
            try:
                answer = input(QUESTION).strip().lower()
            except EOFError:
                return False
            if answer in ("d", "diff"):
                self._view.diff(diff, whole=True)
            else:
                return answer in ("y", "yes")

    def _ship(self, sha: str, waiting: dict[str, Any]) -> ExitCode | None:
        """Approve the candidate; returns the code to leave with when the answer did not get through.

        A refusal (somebody else was faster) is shown, and the stream tells what becomes of the job.
        """
        self._approved = sha
        try:
            acting.send(self._client, self._id, "ship", sha=sha)
        except ApiProblem as error:
            output.problem(error.document, as_json=False)
            code = of_status(error.status)
            if code != ExitCode.REFUSED:
                self._leave(waiting)
                return code
        return None

    def _diff(self) -> str:
        try:
            return self._client.text(job_path(self._id, "/diff"))
        except ApiProblem:
            return ""

    def _job(self) -> dict[str, Any]:
        job: dict[str, Any] = self._client.get(job_path(self._id))
        return job


def _interrupt_once(_number: int, _frame: object) -> NoReturn:
    """Detach at the first Ctrl-C; an impatient second one must not cut the words off that say how to go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stack_answers() -> bool:
    """Return whether there is an API, which then knows best what is wrong with a file."""
    try:
        connect().get("/fleet/health")
    except (NotRunning, ApiProblem):
        return False
    return True


def _ensure_stack() -> None:
    """Start the stack of this home unless the environment names an API."""
    if os.environ.get("GIGAFACTORY_API_URL"):
        return
    from cli.up import ensure_up  # noqa: PLC0415 - starts processes; imported only where that is wanted

    ensure_up(home_dir(), output.note)


def _say_detached(jobs: list[dict[str, Any]]) -> None:
    ids = " ".join(job["id"] for job in jobs)
    output.note("")
    output.note(f"detached; {ids} goes on. Follow again: gf logs -f {jobs[0]['id']} · stop it: gf cancel {ids}")
