"""The API over a real SQLite ledger, called in this process; only the way to Temporal is replaced, where named so."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.backend import Backend
from api.shelf import ProfileShelf
from core.attempt import Grant
from core.errors import IllegalAction, Unavailable
from core.job import Stage
from core.job_messages import ActReply, RecoveredJob
from core.settings import Settings
from store import migrate, open_ledger
from store.ledger import Ledger
from store.messages import Registration, StationOffer
from store.token_book import TokenBook
from store.token_files import ensure_factory_token, ensure_person_token
from store.views import JobView


@dataclass
class StubTemporal:
    """Stands for Temporal: remembers the actions it was handed, refuses or is away when told so."""

    away: bool = False
    refusal: str = ""
    taken: list[dict[str, Any]] = field(default_factory=list)
    lost: tuple[str, ...] = ()

    @property
    def jobs(self) -> StubTemporal:
        """Return itself: it also takes the actions."""
        if self.away:
            raise Unavailable("Temporal at nowhere does not answer")
        return self

    async def health(self) -> str:
        """Return `ok` unless it is away."""
        return "not connected yet" if self.away else "ok"

    async def act(self, job: JobView, action: str, *, sha: str = "", reason: str = "", by: str = "") -> ActReply:
        """Take an action."""
        if self.refusal:
            raise IllegalAction(self.refusal, action=action, job_id=job.id)
        self.taken.append({"job": job.id, "action": action, "sha": sha, "reason": reason, "by": by})
        return ActReply(stage=job.stage)

    async def recover(self, after_id: str, limit: int, *, replace: bool) -> tuple[RecoveredJob, ...]:
        """Find as many missing workflows as `lost` says."""
        self.taken.append({"recover": after_id, "replace": replace})
        return tuple(
            RecoveredJob(id=job_id, product_id="default", stage=Stage.QUEUED, found="missing", life=2, at="queue")
            for job_id in self.lost
            if job_id > after_id
        )[:limit]

    async def end_unknown(self) -> tuple[str, ...]:
        """End nothing but a workflow of nobody's."""
        return ("gf-job-default-j-0",)


class StubDispatcher:
    """Counts how often somebody asked for a pass."""

    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        """Count."""
        self.wakes += 1


@dataclass
class Api:
    """The API as a test sees it: clients of an admin, of the factory `brisk-otter`, of nobody; and what is behind."""

    app: FastAPI
    backend: Backend
    ledger: Ledger
    temporal: StubTemporal
    user: httpx.AsyncClient
    factory: httpx.AsyncClient
    stranger: httpx.AsyncClient
    home: Path
    dispatcher: StubDispatcher

    async def made(self, **fields: Any) -> dict[str, Any]:
        """Have the admin make a token; return the answer, secret included."""
        answer = await self.user.post("/fleet/tokens", json={"name": "x", "roles": ["viewer"]} | fields)
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def call(self, secret: str, method: str, path: str, **options: Any) -> httpx.Response:
        """Make a request with a token."""
        headers = {"Authorization": f"Bearer {secret}"} | options.pop("headers", {})
        return await self.stranger.request(method, path, headers=headers, **options)

    async def submit(self, manifest: str, **fields: Any) -> str:
        """Submit a job that must be taken in; return its id."""
        answer = await self.user.post("/fleet/jobs", json={"manifest": manifest, **fields})
        assert answer.status_code in (200, 201), answer.text
        job_id: str = answer.json()["jobs"][0]["id"]
        return job_id

    async def grant(self, job_id: str) -> Grant:
        """Give the job a seat on a factory that is there for it; return the grant."""
        await self.ledger.register_factory(some_factory(), now=datetime.now(UTC))
        await self.ledger.dispatch(datetime.now(UTC))
        grant = await self.ledger.grant(job_id)
        assert grant is not None
        return grant


def some_factory(name: str = "brisk-otter", **changes: Any) -> Registration:
    """Return a registration of a factory with three seats for the shell."""
    values: dict[str, Any] = {
        "name": name,
        "host": socket.gethostname(),
        "pid": 4711,
        "instance": "a1",
        "capabilities": ("os:linux",),
        "stations": (StationOffer(engine="shell", seats=3),),
        "seats": 3,
    }
    return Registration(**(values | changes))


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a ledger file with all tables and no rows, made once and copied by each test."""
    folder = tmp_path_factory.mktemp("ledger")
    asyncio.run(migrate(Settings(home=folder).ledger_url))
    return folder / "ledger.db"


@pytest.fixture
async def api(home: Path, empty_ledger: Path) -> AsyncIterator[Api]:
    """Return the API over an empty ledger in a private home."""
    settings = Settings(home=home)
    shutil.copyfile(empty_ledger, home / "ledger.db")
    ledger = open_ledger(settings)
    temporal, dispatcher = StubTemporal(), StubDispatcher()
    backend = Backend(
        settings=settings,
        ledger=ledger,
        book=TokenBook(ledger, home, person="tess"),
        temporal=temporal,
        dispatcher=dispatcher,
        shelf=ProfileShelf(home),
    )
    app = create_app(backend)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    def client(token: str = "") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4410", headers=headers, timeout=10)

    person, machine = ensure_person_token(home), ensure_factory_token(home, "brisk-otter")
    async with client(person) as user, client(machine) as factory, client() as stranger:
        yield Api(app, backend, ledger, temporal, user, factory, stranger, home, dispatcher)
    backend.stopping.set()
    await asyncio.sleep(0)
    await ledger.close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a git repository with one commit on `main`."""
    tree = tmp_path / "repository"
    tree.mkdir()
    git(tree, "init", "-q", "-b", "main")
    (tree / "README.md").write_text("# seed\n")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "seed")
    return tree


def git(tree: Path, *arguments: str) -> str:
    """Run git with an identity of the test's own."""
    identity = ["-c", "user.name=Tess", "-c", "user.email=tess@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=tree, capture_output=True, text=True, check=True)
    return done.stdout.strip()


Manifest = Callable[..., str]


@pytest.fixture
def manifest(repository: Path) -> Manifest:
    """Return a maker of job files over `repository`: further front matter lines, and the script."""

    def make(*lines: str, script: str = "echo hi > hi.txt", where: str = f"repo: {repository}") -> str:
        return "\n".join(["---", "engine: shell", where, *lines, "---", "# A job", "", script, ""])

    return make
