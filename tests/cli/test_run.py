"""`gf run`: what is shown on the way, what is asked, and the exit code for each end."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli.exit_codes import ExitCode
from core.job import Condition, Stage
from core.lifecycle import Entry, Record
from tests.cli.conftest import CLI, SHA, Gf, only_document
from tests.waiting import PATIENCE_S


def started(gf: Gf, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start `gf run` without a terminal and return it with the job's id, once the job has a seat."""
    gf.factory("shell")
    key = f"run-{time.monotonic_ns()}"
    process = gf.start("run", gf.file(f"idempotency-key: {key}"), *options)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for job in gf.api.get("/fleet/jobs")["jobs"]:
            snapshot = gf.api.get(f"/fleet/jobs/{job['id']}/snapshot")
            if snapshot["spec"]["idempotency_key"] == key:
                gf.until(job["id"], "assigned")
                return process, job["id"]
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no job")


def finish(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    """Return output, notes and exit code."""
    output, notes = process.communicate(timeout=PATIENCE_S)
    return output, notes, process.returncode


def test_shipped_job_is_0_and_its_way_is_told(gf: Gf) -> None:
    """Routing, steps, output, gates and end are on stdout in order; the stack's staying up is said."""
    process, job_id = started(gf)
    at = "2026-01-02T03:04:05+00:00"
    step = {"at": at, "type": "tool_call", "message": "writes hi.txt", "data": {}}
    gf.report(job_id, started={"at": at, "pid": 1}, events={"first_seq": 1, "events": [step]})
    gf.print_lines(job_id, "made it")
    record = Record(
        path=(Stage.REVIEW, Stage.TESTING, Stage.SHIPPED),
        epoch=1,
        entries=(Entry(type="gate.scope", message="in scope"), Entry(type="gate.verify", message="passed")),
        commits=(SHA,),
        shipped_ref=f"gigafactory/{job_id}",
        end_lease=True,
    )
    gf.record(job_id, 1, record)
    output, notes, code = finish(process)
    assert code == ExitCode.DONE, notes
    words = ["Say hi", "routed", "assigned", "writes hi.txt", "made it", "in scope", "passed", "shipped", SHA[:12]]
    places = [output.find(word) for word in words]
    assert -1 not in places, (output, dict(zip(words, places, strict=True)))
    assert f"gigafactory/{job_id}" in output
    assert "gf down" in notes
    assert "\x1b" not in output


@pytest.mark.parametrize("stage", [Stage.FAILED, Stage.DEAD_LETTER, Stage.CANCELLED])
def test_job_that_did_not_ship_is_4(gf: Gf, stage: Stage) -> None:
    """Failed, dead letter, cancelled: not what was asked for."""
    process, job_id = started(gf)
    gf.end(job_id, stage, seq=1)
    output, notes, code = finish(process)
    assert code == ExitCode.JOB_FAILED
    assert str(stage) in output
    if stage != Stage.CANCELLED:
        assert f"gf requeue {job_id}" in notes


def test_gate_without_a_terminal_is_3_with_the_ship_command(gf: Gf) -> None:
    """The diff is shown, the command that ships is printed, nothing is shipped."""
    process, job_id = started(gf)
    gf.reach_the_gate(job_id)
    output, notes, code = finish(process)
    assert code == ExitCode.WAITING, notes
    assert "+hi there" in output
    assert f"gf ship {job_id}" in notes
    assert gf.api.get(f"/fleet/jobs/{job_id}")["stage"] == "testing"


def test_json_run_gives_one_document_and_the_story_on_stderr(gf: Gf) -> None:
    """Standard output is the job's document and nothing else, also when it waits."""
    process, job_id = started(gf, "--json")
    gf.reach_the_gate(job_id)
    output, notes, code = finish(process)
    assert code == ExitCode.WAITING
    document = only_document(subprocess.CompletedProcess((), code, output, notes))
    assert (document["id"], document["stage"], document["candidate_sha"]) == (job_id, "testing", SHA)
    assert "passed" in notes


def test_gate_blocked_by_scope_is_3_with_the_paths(gf: Gf) -> None:
    """What is out of scope is shown; shipping is not offered, even with `--ship`."""
    process, job_id = started(gf, "--ship")
    blocked = Condition(type="blocked", reason="scope", message="changes outside allowed-scope: etc/passwd")
    entry = Entry(type="gate.scope", message="1 path(s) out of scope", data={"out_of_scope": ["etc/passwd"]})
    record = Record(
        path=(Stage.REVIEW,), epoch=1, entries=(entry,), conditions=(blocked,), candidate_sha=SHA, end_lease=True
    )
    gf.record(job_id, 1, record)
    output, notes, code = finish(process)
    assert code == ExitCode.WAITING
    assert "etc/passwd" in output
    assert f"gf requeue {job_id}" in notes
    assert "next: gf ship" not in notes


def test_job_that_nobody_can_take_is_explained_while_it_waits(gf: Gf) -> None:
    """After a moment in the queue the missing capability is on the screen; Ctrl-C detaches with 130."""
    process = gf.start("run", gf.file("capabilities: [has:xcode]"))
    assert process.stdout is not None
    seen = ""
    while "has:xcode" not in seen:
        line = process.stdout.readline()
        assert line, process.communicate()
        seen += line
    process.send_signal(signal.SIGINT)
    _, notes, code = finish(process)
    assert code == ExitCode.DETACHED
    assert re.search(r"gf logs -f j-[0-9a-z]{10}", notes)
    assert "goes on" in notes
    assert "Traceback" not in notes


# --- on a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """A command with a person at it."""

    def __init__(self, gf: Gf, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*CLI, *arguments],
            env=gf.api.environment() | {"TERM": "xterm-256color", "COLUMNS": "100"},
            cwd=gf.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> None:
        """Read until `text` is on the screen."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if not self._read():
                raise AssertionError(f"ended without {text!r}:\n{self.seen}")

    def type(self, text: str) -> None:
        """Type a line."""
        self.seen = ""
        os.write(self.ours, f"{text}\n".encode())

    def end(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.ours], [], [], PATIENCE_S)
        try:
            data = os.read(self.ours, 65536) if ready else b""
        except OSError:  # Linux says so when the other end is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(gf: Gf, *arguments: str) -> Iterator[Terminal]:
    """Run a command on a terminal."""
    running = Terminal(gf, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(PATIENCE_S)
        os.close(running.ours)


def job_of(seen: str) -> str:
    """Return the job id on the screen."""
    found = re.search(r"j-[0-9a-z]{10}", seen)
    assert found, seen
    return found[0]


def test_person_at_the_gate_sees_the_diff_and_says_no(gf: Gf) -> None:
    """`d` shows the diff in colours and asks again; anything but yes leaves the job waiting: 3."""
    gf.factory("shell")
    with terminal(gf, "run", gf.file()) as screen:
        screen.until("assigned")
        job_id = job_of(screen.seen)
        gf.reach_the_gate(job_id)
        screen.until("Ship it? [y/N/d(iff)]")
        screen.type("d")
        screen.until("Ship it? [y/N/d(iff)]")
        assert "hi there" in screen.seen
        assert "\x1b[" in screen.seen
        screen.type("")
        assert screen.end() == ExitCode.WAITING
        assert f"gf ship {job_id}" in screen.seen


def test_yes_that_does_not_get_through_is_told_with_the_command_that_goes_on(gf: Gf) -> None:
    """Temporal is away here: the problem and the ship command are shown, and the exit code is the problem's."""
    gf.factory("shell")
    with terminal(gf, "run", gf.file()) as screen:
        screen.until("assigned")
        job_id = job_of(screen.seen)
        gf.reach_the_gate(job_id)
        screen.until("Ship it? [y/N/d(iff)]")
        screen.type("y")
        assert screen.end() == ExitCode.NOT_RUNNING
        assert "Temporal" in screen.seen
        assert f"gf ship {job_id}" in screen.seen


def test_ctrl_c_detaches_and_says_how_to_follow_again(gf: Gf) -> None:
    """Ctrl-C leaves the job alone."""
    gf.factory("shell")
    with terminal(gf, "run", gf.file()) as screen:
        screen.until("assigned")
        job_id = job_of(screen.seen)
        for _ in range(2):  # people press it twice
            screen.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        assert screen.end() == ExitCode.DETACHED
        assert f"gf logs -f {job_id}" in screen.seen
    assert gf.api.get(f"/fleet/jobs/{job_id}")["stage"] == "assigned"


def test_terminal_without_colour_reads_as_well(gf: Gf) -> None:
    """NO_COLOR: the same words, no escape sequences that colour."""
    job_id = gf.submit("capabilities: [has:xcode]")
    done = gf("jobs", NO_COLOR="1")
    assert job_id in done.stdout
    assert "\x1b[3" not in done.stdout
