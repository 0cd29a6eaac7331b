"""A small fleet on a real ledger: what the tests of the ledger say in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from core.attempt import BuildResult, Grant
from core.job import Dependency, JobSpec, Repository, RepositoryKind, Stage
from core.lifecycle import Record, RecordAck
from store.database import open_database
from store.ledger import Ledger
from store.messages import (
    AttemptReport,
    AttemptStep,
    FactoryStatus,
    HandedIn,
    LogBlock,
    LogLine,
    Registration,
    StartedInfo,
    StationOffer,
    StepBlock,
)
from store.views import BeatAnswer, EventView, FactoryRow, JobView, OutboxRow, ReportAck, Submitted

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BASE = "b" * 40
CANDIDATE = "c" * 40
CHECKPOINT = "d" * 40


def make_spec(**values: Any) -> JobSpec:
    """Return a snapshot with defaults for what a test does not care about."""
    repository = Repository(url="https://git.example/shop.git", base_sha=BASE)
    return JobSpec.model_validate(
        {"title": "Say hello", "body": "echo hello", "engine": "shell", "repository": repository} | values
    )


@dataclass
class Fleet:
    """A ledger, a clock that only moves when told to, and the numbers of records."""

    ledger: Ledger
    url: str
    now: datetime = START
    _seqs: dict[str, int] = field(default_factory=dict)

    def tick(self, seconds: float = 1.0) -> datetime:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)
        return self.now

    async def submit(self, job_id: str, *, deps: tuple[Dependency, ...] = (), **values: Any) -> Submitted:
        """Submit a job; every submission is a second later than the one before."""
        self.tick()
        return await self.ledger.submit(
            make_spec(deps=deps, **values),
            job_id=job_id,
            idempotency_key=None,
            canonical={},
            snapshot={},
            submitted_by="ada",
            now=self.now,
        )

    async def factory(
        self,
        name: str = "f1",
        *,
        stations: Mapping[str, int] | None = None,
        seats: int = 3,
        unusable: tuple[str, ...] = (),
        **values: Any,
    ) -> FactoryRow:
        """Register a factory; `stations` maps engines to seats."""
        offered = {"shell": 3} if stations is None else stations
        offers = tuple(StationOffer(engine=e, seats=n, usable=e not in unusable) for e, n in offered.items())
        registration = Registration.model_validate(
            {
                "name": name,
                "host": f"host-{name}",
                "pid": 100,
                "instance": f"{name}-a",
                "capabilities": ("os:linux",),
                "stations": offers,
                "seats": seats,
            }
            | values
        )
        return await self.ledger.register_factory(registration, self.now)

    async def beat(self, name: str, instance: str | None = None, **status: Any) -> BeatAnswer:
        """Let a factory's agent be heard of."""
        return await self.ledger.factory_heartbeat(name, instance or f"{name}-a", FactoryStatus(**status), self.now)

    async def report(self, job_id: str, epoch: int, **parts: Any) -> ReportAck:
        """Let an attempt tell something."""
        return await self.ledger.report(job_id, epoch, AttemptReport(**parts), self.now)

    async def started(self, job_id: str, epoch: int, **info: Any) -> None:
        """Let an attempt tell that its engine runs."""
        await self.report(job_id, epoch, started=StartedInfo(**info))

    async def logs(self, job_id: str, epoch: int, first_seq: int, *lines: LogLine, stream: str = "stdout") -> int:
        """Let an attempt tell lines; return how many were new."""
        block = LogBlock(stream=stream, first_seq=first_seq, lines=lines)
        return (await self.report(job_id, epoch, logs=(block,))).lines

    async def steps(self, job_id: str, epoch: int, first_seq: int, *steps: AttemptStep) -> int:
        """Let an attempt tell steps; return how many were new."""
        return (await self.report(job_id, epoch, steps=StepBlock(first_seq=first_seq, steps=steps))).steps

    async def checkpoint(self, job_id: str, epoch: int, sha: str) -> None:
        """Let an attempt tell where its work is."""
        await self.report(job_id, epoch, checkpoint=sha)

    async def accept(self, job_id: str, epoch: int, sha: str = CANDIDATE, answer: BuildResult | None = None) -> None:
        """Let an attempt hand its result in."""
        await self.report(job_id, epoch, result=HandedIn(sha=sha, answer=answer))

    async def granted(self, job_id: str, **values: Any) -> Grant:
        """Submit a job and give it a seat."""
        await self.submit(job_id, **values)
        await self.ledger.dispatch(self.now)
        grant = await self.ledger.grant(job_id)
        assert grant is not None
        return grant

    async def building(self, job_id: str, **values: Any) -> Grant:
        """Submit a job, give it a seat, and let its engine start."""
        grant = await self.granted(job_id, **values)
        await self.started(job_id, grant.epoch, engine_version="1.0")
        return grant

    async def record(self, job_id: str, *path: Stage, **values: Any) -> RecordAck:
        """Write the workflow's next decision."""
        seq = self._seqs[job_id] = self._seqs.get(job_id, 0) + 1
        record = Record.model_validate({"path": path} | values)
        return await self.ledger.record(job_id, seq, record, self.tick(0.1))

    async def lose(self, job_id: str, epoch: int) -> bool:
        """Lose a lease."""
        return await self.ledger.mark_lost(job_id, epoch, "machine vanished", "", self.now)

    async def ship(self, job_id: str) -> None:
        """Bring a building job to its good end."""
        epoch = (await self.ledger.job(job_id)).epoch
        await self.accept(job_id, epoch)
        await self.record(job_id, Stage.REVIEW, epoch=epoch, attempt_outcome="succeeded", candidate_sha=CANDIDATE)
        await self.record(job_id, Stage.SHIPPED, epoch=epoch, end_lease=True, release_locks=True, commits=(CANDIDATE,))

    async def stage(self, job_id: str) -> Stage:
        """Return where the job is."""
        return (await self.job(job_id)).stage

    async def job(self, job_id: str) -> JobView:
        """Return the job's document."""
        return await self.ledger.job(job_id)

    async def events(self, job_id: str, kind: str | None = None) -> list[EventView]:
        """Return the job's events, of one type if wanted."""
        return [e for e in await self.ledger.events(job_id) if kind is None or e.type == kind]

    async def busy(self, name: str = "f1") -> int:
        """Return how many seats of a factory are taken, after checking that its stations agree."""
        row = await self.ledger.factory(name)
        assert row.busy == sum(station.busy for station in row.stations)
        return row.busy

    async def deliver(self) -> list[OutboxRow]:
        """Claim and acknowledge everything in the outbox, in the order of delivery."""
        done: list[OutboxRow] = []
        while rows := await self.ledger.claim_outbox(self.now):
            for row in rows:
                done.append(row)
                await self.ledger.outbox_done(row.id)
        return done

    def line(self, text: str) -> LogLine:
        """Return a log line of this moment."""
        return LogLine(at=self.now, text=text)


def in_place(path: str, host: str) -> Repository:
    """Return a directory without git on one host."""
    return Repository(kind=RepositoryKind.DIRECTORY, url=path, host=host)


async def value(fleet: Fleet, query: str) -> Any:
    """Ask the database itself."""
    database = open_database(fleet.url)
    try:
        return await database.read(lambda connection: connection.execute(text(query)).scalar_one())
    finally:
        await database.close()
