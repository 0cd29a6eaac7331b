"""The command line as a process of its own, against a real API process; the test plays factory and workflow."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from core.attempt import Verdict
from core.job import Stage
from core.lifecycle import Entry, Record
from core.settings import Settings
from store import open_ledger
from store.ledger import Ledger
from tests.api_process import ROOT, ApiProcess, running_api
from tests.waiting import PATIENCE_S

CLI = (sys.executable, "-P", "-m", "cli")
SHA = "c" * 40
DIFF = "diff --git a/hi.txt b/hi.txt\nnew file mode 100644\n--- /dev/null\n+++ b/hi.txt\n@@ -0,0 +1 @@\n+hi there\n"
T = TypeVar("T")


@dataclass
class Gf:
    """Runs commands, and plays what the fleet would do."""

    api: ApiProcess
    folder: Path
    ledger: Ledger

    def __call__(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, without a terminal; `changes` go into its environment."""
        return subprocess.run(
            [*CLI, *arguments],
            env=self.api.environment() | changes,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that goes on; read what it writes from its pipes."""
        return subprocess.Popen(
            [*CLI, *arguments],
            env=self.api.environment() | {"PYTHONUNBUFFERED": "1"},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def file(self, *lines: str, engine: str = "shell", name: str = "job.md", body: str = "echo hi > hi.txt") -> str:
        """Write a job file and return its name."""
        text = "\n".join(["---", f"engine: {engine}", "repo: scratch:cli", *lines, "---", "# Say hi", "", body, ""])
        (self.folder / name).write_text(text)
        return name

    def submit(self, *lines: str) -> str:
        """Submit a job with the command line and return its id."""
        done = self("submit", self.file(*lines), "--json")
        assert done.returncode == 0, done.stderr
        job_id: str = json.loads(done.stdout)["jobs"][0]["id"]
        return job_id

    def granted(self) -> str:
        """Submit a job and return its id once it has a seat."""
        self.factory("shell")
        job_id = self.submit()
        self.until(job_id, "assigned")
        return job_id

    def until(self, job_id: str, stage: str) -> dict[str, Any]:
        """Wait until the job is in a stage; return its document."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            document: dict[str, Any] = self.api.get(f"/fleet/jobs/{job_id}")
            if document["stage"] == stage:
                return document
            assert time.monotonic() < deadline, document
            time.sleep(0.05)

    # --- what the fleet would do ---

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something with the ledger."""
        return asyncio.run(work)

    def factory(self, engine: str) -> str:
        """Have a factory for an engine that only this test's jobs name; return the factory's name."""
        name = f"factory-{uuid.uuid4().hex[:6]}"
        body = {
            "name": name,
            "instance": "a1",
            "host": socket.gethostname(),
            "pid": 4711,
            "seats": 9,
            "capabilities": ["os:linux"],
        }
        body["stations"] = [{"engine": engine, "seats": 9, "version": "1.0"}]
        answer = self.api.call("POST", "/fleet/factories", token=self.api.of_factory(name), json=body)
        assert answer.status_code == 200, answer.text
        return name

    def holder(self, job_id: str) -> str:
        """Return the token file of the factory that epoch 1 was granted to."""
        return self.api.of_factory(self.api.get(f"/fleet/jobs/{job_id}")["attempts"][0]["factory"])

    def report(self, job_id: str, **parts: Any) -> None:
        """Report for epoch 1."""
        path = f"/fleet/attempts/{job_id}/1/report"
        answer = self.api.call("POST", path, token=self.holder(job_id), json=parts)
        assert answer.status_code == 200, answer.text

    def print_lines(self, job_id: str, *texts: str, first_seq: int = 1) -> None:
        """Let epoch 1 print lines."""
        lines = [{"at": datetime.now(UTC).isoformat(), "text": text} for text in texts]
        self.report(job_id, logs=[{"stream": "stdout", "first_seq": first_seq, "lines": lines}])

    def reach_the_gate(self, job_id: str) -> None:
        """Let the gates judge a candidate of epoch 1."""
        path = f"/fleet/attempts/{job_id}/1/artifacts"
        query = {"path": "diff.patch", "kind": "diff", "sha256": hashlib.sha256(DIFF.encode()).hexdigest()}
        self.api.call("POST", path, token=self.holder(job_id), params=query, content=DIFF.encode())
        verdict = Verdict(job_id=job_id, epoch=1, candidate_sha=SHA, verify="passed", changed_paths=1)
        record = Record(
            path=(Stage.REVIEW, Stage.TESTING),
            epoch=1,
            entries=(
                Entry(type="gate.scope", message="in scope"),
                Entry(type="gate.verify", message="passed"),
            ),
            candidate_sha=SHA,
            verdict=verdict.model_dump(mode="json"),
            end_lease=True,
        )
        self.record(job_id, 1, record)

    def record(self, job_id: str, seq: int, record: Record) -> None:
        """Write what a workflow would."""
        self.do(self.ledger.record(job_id, seq, record, datetime.now(UTC)))

    def end(self, job_id: str, stage: Stage, seq: int = 2) -> None:
        """Let the job end."""
        shipped = stage == Stage.SHIPPED
        record = Record(
            path=(stage,),
            epoch=1,
            commits=(SHA,) if shipped else None,
            shipped_ref=f"gigafactory/{job_id}" if shipped else None,
            end_lease=True,
        )
        self.record(job_id, seq, record)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """Return an API process that all tests of a module share."""
    with running_api(tmp_path_factory.mktemp("cli") / "home") as running:
        yield running


@pytest.fixture
def gf(api: ApiProcess, tmp_path: Path) -> Iterator[Gf]:
    """Return the command line."""
    ledger = open_ledger(Settings(home=api.home))
    yield Gf(api, tmp_path, ledger)
    asyncio.run(ledger.close())


def only_document(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the one JSON document on stdout, which must hold nothing else."""
    assert done.stdout.endswith("\n"), done
    document, end = json.JSONDecoder().raw_decode(done.stdout)
    assert done.stdout[end:] == "\n", done.stdout
    return document


@pytest.fixture
def nowhere(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return the command line in a home without a stack."""
    home = tmp_path / "nowhere"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, *arguments],
            env=environment_without_stack(home),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


def environment_without_stack(home: Path) -> dict[str, str]:
    """Return an environment in which no stack can be found."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "GIGAFACTORY_HOME": str(home), "PYTHONPATH": str(ROOT)}
