"""What attempts tell reaches the API once, in order, through outages and restarts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.attempt import BuildResult
from core.errors import GigafactoryError, InvalidInput, StaleEpoch, Unavailable
from workers.spool import SMALL_FILE_BYTES, Spool, SpooledReports, report_of


class FakeApi:
    """Takes reports in as the ledger does: lines by number, a repeated one dropped, a gap refused."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.streams: dict[str, list[str]] = {}
        self.steps: list[str] = []
        self.failing: list[GigafactoryError | None] = []
        """What the next calls end with; None takes the report and then loses the answer."""
        self.uploads = 0

    async def report(self, job_id: str, epoch: int, body: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        lose_answer = False
        if self.failing:
            error = self.failing.pop(0)
            if error is not None:
                raise error
            lose_answer = True
        self.reports.append(json.loads(json.dumps(body)))
        for block in body.get("logs", ()):
            taken = self.streams.setdefault(block["stream"], [])
            for number, line in enumerate(block["lines"], block["first_seq"]):
                assert number <= len(taken) + 1, "a line is missing"
                if number == len(taken) + 1:
                    taken.append(line["text"])
        for number, step in enumerate(
            body.get("events", {}).get("events", ()), body.get("events", {}).get("first_seq", 1)
        ):
            assert number <= len(self.steps) + 1, "a step is missing"
            if number == len(self.steps) + 1:
                self.steps.append(step["message"])
        if lose_answer:
            raise Unavailable("the answer was lost")

    async def upload(self, *_where: Any, **_what: Any) -> None:
        self.uploads += 1
        if self.failing:
            raise self.failing.pop(0) or Unavailable("away")


def open_spool(folder: Path, api: FakeApi) -> Spool:
    """Open the spool of an agent."""
    spool = Spool(folder, api, factory="brisk-otter", instance="i1")  # type: ignore[arg-type]
    spool.resume()
    return spool


@pytest.fixture
def api() -> FakeApi:
    """Return an API that takes everything."""
    return FakeApi()


@pytest.fixture
async def spool(tmp_path: Path, api: FakeApi) -> AsyncIterator[Spool]:
    """Open a spool, and close it after the test."""
    opened = open_spool(tmp_path, api)
    yield opened
    await opened.drain(0.1)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the spool try again at once."""
    monkeypatch.setattr("workers.spool.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("workers.spool.LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr("workers.spool.BATCH_S", 0.001)


def result(sha: str = "a" * 40) -> BuildResult:
    """Return a result that succeeded."""
    return BuildResult(job_id="j-1", epoch=1, outcome="succeeded", candidate_sha=sha)


async def test_short_attempt_is_one_report(spool: Spool, api: FakeApi) -> None:
    """Start, lines, steps and result travel together; the sender says who it is."""
    reports = spool.attempt("j-1", 1)
    reports.started(pid=7, engine_version="1.0", workdir="/w")
    reports.log("stdout", "one")
    reports.log("stderr", "uh")
    reports.log("stdout", "two")
    reports.event("tool_call", "reads a file", {"path": "x"})
    reports.checkpoint("b" * 40)
    await reports.deliver(result())
    (body,) = api.reports
    assert (body["factory"], body["instance"], body["started"]["pid"]) == ("brisk-otter", "i1", 7)
    assert api.streams == {"stdout": ["one", "two"], "stderr": ["uh"]}
    assert [block["first_seq"] for block in body["logs"]] == [1, 1]
    assert body["events"]["events"][0]["data"] == {"path": "x"}
    assert body["checkpoint"] == {"sha": "b" * 40}
    assert body["result"]["sha"] == "a" * 40
    assert body["result"]["answer"]["job_id"] == "j-1"
    assert list(spool.folder.glob("*.jsonl")) == [] or not reports.busy


async def test_outage_delays_and_loses_nothing(spool: Spool, api: FakeApi) -> None:
    """While the API is away everything waits on disk; lost answers double nothing."""
    chance = random.Random(7)  # noqa: S311 - a repeatable storm, not a secret
    api.failing = [None if chance.random() < 0.5 else Unavailable("away") for _ in range(30)]
    reports = spool.attempt("j-1", 1)
    for number in range(200):
        reports.log("stdout", f"line {number}")
        if number % 10 == 0:
            reports.event("text", f"step {number}")
            await asyncio.sleep(0.001)
    await reports.deliver(result())
    assert api.streams["stdout"] == [f"line {number}" for number in range(200)]
    assert api.steps == [f"step {number}" for number in range(0, 200, 10)]


async def test_next_agent_sends_what_the_killed_one_could_not(tmp_path: Path, api: FakeApi) -> None:
    """The file is enough: a new agent goes on where the acknowledgement stood, a torn line is dropped."""
    first = open_spool(tmp_path, api)
    reports = first.attempt("j-1", 1)
    reports.log("stdout", "taken")
    await reports.flush(10)
    api.failing = [Unavailable("away")] * 10_000
    reports.log("stdout", "waiting")
    reports.event("text", "waiting too")
    while len(api.failing) > 9_990:
        await asyncio.sleep(0.001)
    reports.close()  # what SIGKILL leaves, once the operating system has the writes
    with (tmp_path / "j-1.1.jsonl").open("ab") as file:
        file.write(b'{"kind": "log", "stream": "stdout", "seq": 3, "te')
    api.failing = []
    second = open_spool(tmp_path, api)
    again = second.attempt("j-1", 1)
    again.log("stdout", "after")
    await again.flush(10)
    assert api.streams["stdout"] == ["taken", "waiting", "after"]
    assert api.steps == ["waiting too"]
    await second.drain(1)


async def test_numbers_go_on_after_everything_was_taken(tmp_path: Path, api: FakeApi) -> None:
    """Verify, later and perhaps under another agent, continues the numbering of the same attempt."""
    first = open_spool(tmp_path, api)
    first.attempt("j-1", 1).event("text", "build")
    await first.drain(5)
    second = open_spool(tmp_path, api)
    second.attempt("j-1", 1).event("text", "verify")
    await second.drain(5)
    assert api.steps == ["build", "verify"]


async def test_stale_attempt_is_put_aside_and_told(spool: Spool, api: FakeApi) -> None:
    """A refused attempt stops sending; what it had stays on disk, apart, and its result fails."""
    api.failing = [StaleEpoch("its lease is lost")]
    reports = spool.attempt("j-1", 1)
    reports.log("stdout", "late")
    with pytest.raises(StaleEpoch):
        await reports.deliver(result())
    reports.log("stdout", "later")
    await asyncio.sleep(0.01)
    assert api.reports == []
    assert "late" in (spool.folder / "j-1.1.refused.jsonl").read_text()
    with pytest.raises(StaleEpoch):
        await reports.deliver(result())


async def test_malformed_report_does_not_block_others(spool: Spool, api: FakeApi) -> None:
    """An answer that will never change is no reason to ask again."""
    api.failing = [InvalidInput("no")]
    bad, good = spool.attempt("j-1", 1), spool.attempt("j-2", 1)
    bad.log("stdout", "x")
    await bad.flush(10)
    good.log("stdout", "y")
    await good.flush(10)
    assert api.streams == {"stdout": ["y"]}


async def test_long_output_travels_in_batches(spool: Spool, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is bounded; the result comes with the last one."""
    monkeypatch.setattr("workers.spool.BATCH_ENTRIES", 100)
    reports = spool.attempt("j-1", 1)
    for number in range(1050):
        reports.log("stdout", str(number))
    await reports.deliver(result())
    assert len(api.reports) == 11
    assert [("result" in body) for body in api.reports] == [False] * 10 + [True]
    assert len(api.streams["stdout"]) == 1050


LARGE = b"x" * (SMALL_FILE_BYTES + 1)


async def test_upload_of_a_large_file_waits_for_the_api(spool: Spool, api: FakeApi) -> None:
    """A short outage costs time, a refusal is told."""
    api.failing = [Unavailable("away"), Unavailable("away")]
    reports = spool.attempt("j-1", 1)
    await reports.upload("r.txt", LARGE, kind="file", media_type="text/plain")
    assert api.uploads == 3
    api.failing = [StaleEpoch("late")]
    with pytest.raises(StaleEpoch):
        await reports.upload("r.txt", LARGE, kind="file", media_type="text/plain")


async def test_small_file_travels_in_a_report_and_survives_the_agent(tmp_path: Path, api: FakeApi) -> None:
    """A small file is on disk like everything else that was told: the next agent sends it."""
    api.failing = [Unavailable("away")] * 10_000
    first = open_spool(tmp_path, api)
    await first.attempt("j-1", 1).upload("diff.patch", b"+x\n", kind="diff", media_type="text/x-diff")
    await first.drain(0.2)
    api.failing = []
    second = open_spool(tmp_path, api)
    await second.attempt("j-1", 1).flush(10)
    await second.drain(1)
    (body,) = api.reports
    (file,) = body["files"]
    assert (file["path"], file["kind"], b64decode(file["body"])) == ("diff.patch", "diff", b"+x\n")
    assert file["sha256"] == hashlib.sha256(b"+x\n").hexdigest()
    assert api.uploads == 0


async def test_many_attempts_keep_few_files_open(spool: Spool) -> None:
    """Attempts with nothing to tell are forgotten."""
    for number in range(120):
        reports: SpooledReports = spool.attempt(f"j-{number}", 1)
        reports.log("stdout", "x")
        await reports.flush(10)
    assert len(spool._attempts) <= 60


def test_report_of_nothing_is_empty() -> None:
    """There is nothing to send then."""
    assert report_of([]) == {}
