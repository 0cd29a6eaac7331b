"""A factory without an agent: real git, real supervisors, real engines; only Temporal and the API are stand-ins."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from temporalio.client import AsyncActivityCancelledError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities.engine_run import EngineActivities
from activities.factory import FactoryContext, FactoryPaths, LogStream, Rescue
from activities.judge import JudgeActivities
from activities.ship import ShipActivities
from activities.supervision import Supervisors
from activities.workspace import Workspaces
from core.attempt import BuildRequest, BuildResult, Grant, JudgeRequest, Resume, ShipRequest, ShipResult, Verdict
from core.errors import StaleEpoch, Unavailable
from core.job import JobSpec, Repository, ShipMode
from core.redactor import Redactor
from core.settings import Settings
from engines.registry import load
from store.settings_source import ROOT
from tests.repositories import Checkout
from workers import processes


@dataclass
class NotedReports:
    """Notes what an attempt tells; `stale` refuses its result."""

    log_lines: list[tuple[str, str]] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    delivered: list[BuildResult] = field(default_factory=list)
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    flushes: int = 0
    stale: bool = False
    kept: list[tuple[str, str]] = field(default_factory=list)
    """What was finished in quarantine: ref and commit."""
    confirmed: list[str] = field(default_factory=list)
    """Answers to `confirm`; `away`: the API does not answer."""
    confirm_with: Literal["", "cancelled", "stale", "away"] = "away"

    def started(self, **info: Any) -> None:
        self.starts.append(info)

    def log(self, stream: LogStream, text: str, at: datetime | None = None) -> None:
        self.log_lines.append((stream, text))

    def event(self, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        self.events.append((kind, message))

    def checkpoint(self, sha: str) -> None:
        self.checkpoints.append(sha)

    async def deliver(self, result: BuildResult) -> None:
        if self.stale:
            raise StaleEpoch("the lease is lost")
        self.delivered.append(result)

    async def quarantined(self, ref: str, sha: str, message: str) -> None:
        self.kept.append((ref, sha))

    async def confirm(self) -> Literal["", "cancelled"]:
        self.confirmed.append(self.confirm_with)
        if self.confirm_with == "stale":
            raise StaleEpoch("the lease is lost")
        if self.confirm_with == "away":
            raise Unavailable("the API does not answer")
        return self.confirm_with

    async def flush(self, limit_s: float) -> None:
        self.flushes += 1

    async def upload(self, path: str, body: bytes, *, kind: Literal["file", "diff", "log"], media_type: str) -> None:
        self.uploads[path] = body

    def text(self, stream: str = "stdout") -> str:
        return "\n".join(line for name, line in self.log_lines if name == stream)


@dataclass
class OneReports:
    """The same reports for every attempt."""

    reports: NotedReports

    def attempt(self, job_id: str, epoch: int) -> NotedReports:
        return self.reports


class StubHandle:
    """Answers heartbeats as the test wants."""

    def __init__(self) -> None:
        self.beats: list[Any] = []
        self.answer: Literal["ok", "cancel", "gone", "away"] = "ok"

    async def heartbeat(self, details: Any, **_options: Any) -> None:
        if self.answer == "cancel":
            raise AsyncActivityCancelledError
        if self.answer == "gone":
            raise RPCError("no such activity", RPCStatusCode.NOT_FOUND, b"")
        if self.answer == "away":
            raise RPCError("connection refused", RPCStatusCode.UNAVAILABLE, b"")
        self.beats.append(details)


class StubClient:
    """The one thing of a Temporal client that activities use."""

    def __init__(self, handle: StubHandle) -> None:
        self._handle = handle

    def get_async_activity_handle(self, **_which: Any) -> StubHandle:
        return self._handle


class Bench:
    """One factory with its activities, and requests to give them."""

    def __init__(self, home: Path, remote: Checkout, *, name: str = "brisk-otter", **settings: Any) -> None:
        given = {"beat_s": 0.1, "lease_ttl_s": 30.0, "stop_grace_s": 0.0, "checkpoint_s": 30.0} | settings
        self.remote = remote
        self.reports = NotedReports()
        self.handle = StubHandle()
        self.supervisors = Supervisors(ROOT / "workers" / "supervisor.py")
        paths = FactoryPaths(home / "factories" / name)
        for folder in (paths.attempts, paths.mirrors):
            folder.mkdir(parents=True, exist_ok=True)
        self.context = FactoryContext(
            name=name,
            settings=Settings(home=home, **given),
            paths=paths,
            environ={"PATH": os.environ["PATH"], "MY_TOKEN": "hunter2-hunter2"},
            workspaces=Workspaces(paths.mirrors),
            supervisors=self.supervisors,
            reports=OneReports(self.reports),
            engine=load,
            rescue=self._rescue,
            redactor=Redactor({"MY_TOKEN": "hunter2-hunter2"}),
            engine_versions={"shell": "1.0"},
        )

    async def _rescue(self, folder: Path) -> Rescue:
        return await asyncio.to_thread(processes.rescue_run, folder)

    def environment(self) -> ActivityEnvironment:
        client: Any = StubClient(self.handle)
        return ActivityEnvironment(client=client)

    # --- requests -----------------------------------------------------------------------------------------------------

    def spec(self, script: str, **more: Any) -> JobSpec:
        repository = Repository(
            url=str(self.remote.path), base="main", base_sha=self.remote.git("rev-parse", "main"), host="box"
        )
        given = {"title": "Do it", "body": script, "repository": repository, "engine": "shell", "timeout_s": 60}
        return JobSpec.model_validate(given | more)

    def grant(self, spec: JobSpec, epoch: int = 1, **more: Any) -> Grant:
        settings = self.context.settings
        return Grant.model_validate(
            {
                "job_id": "j-1",
                "epoch": epoch,
                "factory": self.context.name,
                "engine": spec.engine or "shell",
                "granted_at": datetime.now(UTC),
                "base_sha": spec.repository.base_sha,
                "beat_s": settings.beat_s,
                "lease_ttl_s": settings.lease_ttl_s,
            }
            | more
        )

    def build_request(self, spec: JobSpec, epoch: int = 1, resume: Resume | None = None, **grant: Any) -> BuildRequest:
        return BuildRequest(
            job_id="j-1", epoch=epoch, spec=spec, grant=self.grant(spec, epoch, **grant), resume=resume or Resume()
        )

    # --- running ------------------------------------------------------------------------------------------------------

    async def build(self, spec: JobSpec, epoch: int = 1, resume: Resume | None = None, **grant: Any) -> BuildResult:
        request = self.build_request(spec, epoch, resume, **grant)
        return await self.environment().run(EngineActivities(self.context).run_engine, request)

    async def judge(self, spec: JobSpec, built: BuildResult) -> Verdict:
        request = JudgeRequest(
            job_id="j-1", epoch=built.epoch, spec=spec, base_sha=built.base_sha, candidate_sha=built.candidate_sha
        )
        return await self.environment().run(JudgeActivities(self.context).judge, request)

    def ship_request(self, spec: JobSpec, built: BuildResult, mode: ShipMode) -> ShipRequest:
        spec = spec.model_copy(update={"ship": mode})
        return ShipRequest(
            job_id="j-1", epoch=built.epoch, spec=spec, base_sha=built.base_sha, candidate_sha=built.candidate_sha
        )

    async def ship(self, spec: JobSpec, built: BuildResult, mode: ShipMode = ShipMode.BRANCH) -> ShipResult:
        request = self.ship_request(spec, built, mode)
        return await self.environment().run(ShipActivities(self.context).ship, request)

    async def retract(self, spec: JobSpec, built: BuildResult) -> None:
        request = self.ship_request(spec, built, ShipMode.BRANCH)
        await self.environment().run(ShipActivities(self.context).retract, request)
