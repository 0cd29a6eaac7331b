"""A whole stack as users run it: `gf up` in a home of its own, real processes, judged from outside.

The judges are independent of what is judged: a ledger file that the jobs' scripts append to, a bare git remote, and
the process table.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.conftest import TOPOLOGY, gone_afterwards
from tests.topology.production import LEDGER, Site, full_server, production
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 6.0
"""Longer than an agent, or a supervisor at its salvage, is without a core on a busy machine."""
BEAT_S = 0.5
START_S = 300.0
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """Return the first truthy answer of `look`; fail with `what` when there is none in time.

    The longer it has waited the more seldom it looks, since a look at a stack costs what the stack needs itself.
    """
    began = time.monotonic()
    while (waited := time.monotonic() - began) < patience_s:
        seen = look()
        if seen:
            return seen
        time.sleep(min(0.02 + waited / 20, 0.25))
    raise AssertionError(f"waited {patience_s} s in vain for {what}")


def git(*arguments: str, cwd: Path | None = None) -> str:
    """Run git with an identity of the test's own and return its output."""
    identity = ["-c", "user.name=Tess", "-c", "user.email=tess@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Launcher:
    """How a stack is brought up, how it loses Temporal's data, and how to get at its ledger."""

    command: list[str]
    lose_temporal: Callable[[], None]
    """Temporal must not run."""
    renew_temporal: Callable[[], None]
    """What an operator then does, if nothing else of the stack is started anew."""
    ledger: Callable[..., list[tuple[Any, ...]]]
    """Runs SQL statements and returns the rows of the last."""


@dataclass
class Remote:
    """A bare repository with one commit on `main`."""

    path: Path

    @classmethod
    def create(cls, path: Path, files: dict[str, str] | None = None) -> Remote:
        """Make it, with `files` in the first commit."""
        tree = path.parent / f"{path.name}-seed"
        tree.mkdir(parents=True)
        git("init", "-q", cwd=tree)
        for name, text in (files or {"README.md": "# seed\n"}).items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        git("add", "-A", cwd=tree)
        git("commit", "-qm", "seed", cwd=tree)
        git("clone", "-q", "--bare", str(tree), str(path))
        return cls(path)

    def ref(self, name: str) -> str:
        """Return the commit of a ref, empty when there is none."""
        done = subprocess.run(
            ["git", "-C", str(self.path), "rev-parse", "-q", "--verify", name],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    def count(self, name: str) -> int:
        """Return how many commits a ref has."""
        return int(git("rev-list", "--count", name, cwd=self.path))

    def refs(self, prefix: str) -> list[str]:
        """Return the names of all refs below `prefix`."""
        return git("for-each-ref", "--format=%(refname)", prefix, cwd=self.path).split()

    def added(self, name: str) -> list[str]:
        """Return the path of each file that a commit of the ref added: a path twice was added twice."""
        return git(
            "log", "-m", "--first-parent", "--diff-filter=A", "--format=", "--name-only", name, cwd=self.path
        ).split()

    def show(self, spec: str) -> str:
        """Return the content at `ref:path`."""
        return git("show", spec, cwd=self.path)

    def files(self, name: str) -> set[str]:
        """Return the paths in a commit."""
        return set(git("ls-tree", "-r", "--name-only", name, cwd=self.path).splitlines())


class Stack:
    """A running stack and the outside view of it."""

    def __init__(self, home: Path, env: dict[str, str], launcher: Launcher) -> None:
        self.home = home
        self.env = env
        self._launcher = launcher
        self.start()

    def start(self) -> None:
        """Bring it up, for the first time or again."""
        up = self._run(self._launcher.command)
        assert up.returncode == 0, f"{up.stdout}\n{up.stderr}"
        self.http = self.client("api")

    def stop(self) -> None:
        """Stop it, with everything it started."""
        self.http.close()
        down = self.gf("down")
        assert down.returncode == 0, down.stderr

    def lose_temporal(self) -> None:
        """Delete all that Temporal knows; it must not run."""
        self._launcher.lose_temporal()

    def renew_temporal(self) -> None:
        """Make of nothing what Temporal needs to start, without a start of the stack."""
        self._launcher.renew_temporal()

    def ledger(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run SQL statements on the ledger behind everybody's back; return the rows of the last one."""
        return self._launcher.ledger(*statements)

    def client(self, url: str) -> httpx.Client:
        """Return a client of the API that the stack's record lists under that name."""
        token = (self.home / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.state()["urls"][url], headers=headers, timeout=30)

    def _run(self, command: list[str], *, check: bool = False) -> subprocess.CompletedProcess[str]:
        nothing = subprocess.DEVNULL
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=check, stdin=nothing, timeout=START_S
        )

    def gf(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run our command line."""
        return self._run([sys.executable, "-P", "-m", "cli", *arguments], check=check)

    def state(self) -> dict[str, Any]:
        """Return the stack's own record."""
        document: dict[str, Any] = json.loads((self.home / "run" / "stack.json").read_text())
        return document

    def part(self, name_or_kind: str) -> dict[str, Any]:
        """Return the record of a part that runs."""

        def look() -> dict[str, Any] | None:
            for part in self.state()["parts"]:
                if name_or_kind in (part["name"], part["kind"]) and part["state"] == "ready":
                    return dict(part)
            return None

        return wait_for(f"a ready part {name_or_kind}", look)

    def kill(self, name_or_kind: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a part and return the pid it had."""
        pid = int(self.part(name_or_kind)["pid"])
        os.kill(pid, number)
        return pid

    def patiently(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Call the API; one that is being restarted is asked again."""

        def call() -> httpx.Response | None:
            try:
                response = self.http.request(method, path, **options)
            except httpx.TransportError:
                return None
            return None if response.status_code in (502, 503) else response

        return wait_for(f"an answer to {method} {path}", call)

    def submit(self, manifest: str, **options: Any) -> str:
        """Submit a job file's text and return the job's id."""
        response = self.patiently("POST", "/fleet/jobs", json={"manifest": manifest, **options})
        assert response.status_code in (200, 201), response.text
        return str(response.json()["jobs"][0]["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job's document."""
        document: dict[str, Any] = self.patiently("GET", f"/fleet/jobs/{job_id}").json()
        return document

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return the job's event log."""
        response = self.patiently("GET", f"/fleet/jobs/{job_id}/events", params={"limit": 500})
        events: list[dict[str, Any]] = response.json()["events"]
        return events

    def until(self, job_id: str, *stages: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the job is in one of `stages`."""

        def look() -> dict[str, Any] | None:
            document = self.job(job_id)
            return document if document["stage"] in stages else None

        try:
            return wait_for(f"{job_id} in {stages}", look, patience_s)
        except AssertionError:
            raise AssertionError(json.dumps([self.job(job_id), self.events(job_id)[-8:]], indent=1)) from None

    def gate(self, job_id: str) -> dict[str, Any]:
        """Wait until a human is asked about the job's candidate."""

        def look() -> dict[str, Any] | None:
            document = self.job(job_id)
            return document if (document["waiting"] or {}).get("kind") == "human" else None

        try:
            return wait_for(f"the gate of {job_id}", look)
        except AssertionError:
            raise AssertionError(json.dumps([self.job(job_id), self.events(job_id)[-8:]], indent=1)) from None

    def act(self, job_id: str, action: str, **fields: Any) -> httpx.Response:
        """Send an operator's action."""
        return self.patiently("POST", f"/fleet/jobs/{job_id}/actions", json={"action": action, **fields})

    def ship(self, job_id: str) -> dict[str, Any]:
        """Ship the job's candidate and wait for its end.

        A ship that was not answered in time (its control worker died: 503) may be taken all the same; asked again, the
        job then is "being shipped" or "has ended in shipped".
        """
        document = self.gate(job_id)
        response = self.act(job_id, "ship", sha=document["candidate_sha"])
        taken_before = response.status_code == 409 and "shipped" in response.json()["detail"]
        assert response.status_code == 200 or taken_before, response.text
        return self.until(job_id, "shipped")

    def attempt_processes(self, job_id: str) -> list[int]:
        """Return the living processes of the job's attempts, found by the mark in their environment."""
        mark = f"GIGAFACTORY_ATTEMPT={job_id}.".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes() and b"\nState:\tZ" not in (entry / "status").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def is_whole(self) -> bool:
        """Return whether every part does its work, and the API gives jobs to every factory."""
        factories = self.patiently("GET", "/fleet/factories").json()["factories"]
        return all(part["state"] in {"ready", "done"} for part in self.state()["parts"]) and all(
            factory["state"] == "online" for factory in factories
        )

    def factory_pid(self, name: str) -> int:
        """Return the pid of a factory's agent."""
        return int(self.part(name)["pid"])


def until_told(flag: Path) -> str:
    """Return the beginning of a script that does nothing before the file is there."""
    return f"until [ -e {flag} ]; do sleep 0.1; done"


@contextmanager
def running_stack(
    home: Path,
    *,
    factories: int = 2,
    topology: str = TOPOLOGY,
    environ: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[Stack]:
    """Run a stack until the block ends; then nothing of it is left. `environ` is what its processes find besides."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "GIGAFACTORY_CACHE") if name in os.environ}
    fast = {
        "lease_ttl_s": LEASE_S,
        "beat_s": BEAT_S,
        "factory_beat_s": BEAT_S,
        "checkpoint_s": 0.3,
        "reconcile_s": 1,
        "seat_wait_s": 1,
    }
    env = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "GIGAFACTORY_HOME": str(home),
        **{f"GIGAFACTORY_{name.upper()}": str(value) for name, value in (fast | settings).items()},
        **(environ or {}),
    }
    make = production_launcher if topology == "production" else embedded_launcher
    with make(home, factories) as launcher, gone_afterwards(env):
        running = Stack(home, env, launcher)
        yield running
        running.http.close()


@contextmanager
def embedded_launcher(home: Path, factories: int) -> Iterator[Launcher]:
    """Start stacks as users do: `gf up`, with SQLite and Temporal's development server."""

    def lose_temporal() -> None:
        for path in home.glob("temporal.db*"):
            path.unlink()

    def ledger(*statements: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(home / "ledger.db", timeout=30, isolation_level=None)) as connection:
            return [connection.execute(statement).fetchall() for statement in statements][-1]

    command = [sys.executable, "-P", "-m", "cli", "up", "--detach", "--factories", str(factories)]
    yield Launcher(command, lose_temporal, lambda: None, ledger)


@contextmanager
def production_launcher(home: Path, factories: int) -> Iterator[Launcher]:
    """Start the processes of docker-compose.yml, on a PostgreSQL server of this stack's own."""
    programs = full_server()
    with production(programs, factories=factories) as (command, server):

        def lose_temporal() -> None:
            names = ("temporal", "temporal_visibility")
            server.run(*(f"DROP DATABASE {name} WITH (FORCE)" for name in names))  # a killed one's backends live on

        def renew_temporal() -> None:
            port = json.loads((home / "run" / "stack.json").read_text())["urls"]["temporal"].rpartition(":")[2]
            site = Site(home, {"TEMPORAL_PORT": port}, postgres_port=server.port, bin_dir=programs)
            for service in ("temporal-schema", "temporal-namespace"):
                site.run(service)

        yield Launcher(command, lose_temporal, renew_temporal, partial(server.run, database=LEDGER))


@pytest.hookimpl(trylast=True)  # after they were shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the shared stack last: from its first test on it lives until all others are done."""
    items.sort(key=lambda item: "shared_stack" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory, temporal_binary: Path) -> Iterator[Stack]:
    """Return a stack that all tests of a process share, in any order; no factory is flaky for what they do to it."""
    with running_stack(tmp_path_factory.mktemp("stack") / "home", quarantine_failures=0) as running:
        yield running


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    """Return a stack with two factories; what the test before this one killed has come back."""
    wait_for("a whole stack", shared_stack.is_whole)
    return shared_stack


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    """Return a bare remote of the test's own."""
    return Remote.create(tmp_path / "remote.git")
