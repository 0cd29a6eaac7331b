"""The API as a process: starts without Temporal, answers, stops when told, leaves with its own exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle
from temporalio.service import RPCError

from cli.client import Client as StdlibClient
from cli.client import ConnectionLost, ServerEvent
from cli.home import Endpoint
from core.attempt import workflow_id
from tests.api_process import ApiProcess, running_api
from tests.conftest import TemporalServer
from tests.waiting import PATIENCE_S
from workers.temporal_server import free_port

JOB = "---\nengine: shell\nrepo: scratch:demo\n---\n# Say hi\n\necho hi > hi.txt\n"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    """Return an API process to which no Temporal server answers."""
    with running_api(tmp_path / "home") as running:
        yield running


def test_process_works_without_temporal_and_ends_with_zero(api: ApiProcess) -> None:
    """Reads and submits work; SIGTERM ends it with exit code 0; what it logged is JSON, a line each."""
    job_id = api.submit(JOB)
    assert api.get(f"/fleet/jobs/{job_id}")["stage"] == "queued"
    health = api.get("/fleet/health")
    assert (health["status"], health["parts"]["ledger"]) == ("degraded", "ok")
    deadline = time.monotonic() + PATIENCE_S
    while "temporal.unreachable" not in api.log:
        assert time.monotonic() < deadline, api.log
        time.sleep(0.05)
    assert api.stop() == 0
    logged = [json.loads(line) for line in api.log.splitlines()]
    assert all(line["process"] == "api" for line in logged)
    assert api.token() not in api.log


def test_restart_keeps_tokens_and_jobs(api: ApiProcess) -> None:
    """A killed process loses nothing that it had answered for."""
    job_id, token = api.submit(JOB), api.token()
    api.stop(signal.SIGKILL)
    api.start()
    assert api.token() == token
    assert [job["id"] for job in api.get("/fleet/jobs")["jobs"]] == [job_id]


def test_stop_ends_open_streams_and_readers_come_back_without_loss(api: ApiProcess) -> None:
    """A follower is let go at once by SIGTERM and goes on behind its last event at the next process."""
    job_id = api.submit(JOB)
    seen: list[ServerEvent] = []
    caught_up, cut_off = threading.Event(), threading.Event()

    def read() -> None:
        stream = StdlibClient(Endpoint(api.url, api.token())).stream(f"/fleet/jobs/{job_id}/stream")
        try:
            for event in stream:
                if event.name == "comment":
                    caught_up.set()
                else:
                    seen.append(event)
        except ConnectionLost:
            pass
        cut_off.set()

    threading.Thread(target=read, daemon=True).start()
    assert caught_up.wait(PATIENCE_S)
    assert api.stop() == 0
    assert "timeout graceful shutdown exceeded" not in api.log
    assert cut_off.wait(PATIENCE_S)
    assert [event.data["seq"] for event in seen] == [1]
    api.start()
    again = StdlibClient(Endpoint(api.url, api.token()))
    rest = list(again.stream(f"/fleet/jobs/{job_id}/stream", last_event_id=seen[-1].id, follow="false"))
    assert [event.name for event in rest if event.name != "comment"] == []


def test_taken_port_is_told_and_the_exit_code_says_so(api: ApiProcess) -> None:
    """A second process on the same port ends with its own code and a reason in the log."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "api"],
        env=api.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 3
    assert "address already in use" in done.stderr


def test_bad_settings_are_told_and_the_exit_code_says_so(tmp_path: Path) -> None:
    """Unknown settings end the process at once, each named."""
    (tmp_path / "settings.yaml").write_text("lease-ttl: 3\nbeat-s: -1\n")
    process = ApiProcess(tmp_path, free_port(), "")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "api"],
        env=process.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 3
    assert {item["path"] for item in json.loads(done.stderr.splitlines()[-1])["errors"]} == {"lease_ttl", "beat_s"}


async def described(handle: WorkflowHandle[Any, Any]) -> WorkflowExecutionDescription:
    """Return a workflow's description as soon as there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await handle.describe()
        except RPCError:
            assert time.monotonic() < deadline


async def test_submitted_job_gets_its_workflow(
    tmp_path: Path, temporal_server: TemporalServer, temporal_client: Client
) -> None:
    """The API alone delivers the start of the workflow from the outbox; with Temporal there it is healthy."""
    with running_api(tmp_path / "home", temporal_address=temporal_server.address) as api:
        job_id = api.submit(JOB)
        handle = temporal_client.get_workflow_handle(workflow_id("default", job_id))
        description = await described(handle)
        assert description.task_queue == "gf.control"
        assert api.get("/fleet/health")["status"] == "ok"
        assert api.stop() == 0
        await handle.terminate()
