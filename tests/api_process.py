"""A real API process over a ledger of its own: `python -P -m api`, as the stack starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from core.settings import Settings
from store import migrate
from store.token_files import ensure_factory_token
from tests.waiting import PATIENCE_S
from workers.temporal_server import free_port

ROOT = Path(__file__).resolve().parents[1]
USER = "token"
"""Name of the file with the user's token."""
NOWHERE = "127.0.0.1:1"
"""An address at which no Temporal server answers."""


@dataclass
class ApiProcess:
    """A running API process, or one that ran."""

    home: Path
    port: int
    temporal_address: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Return what it logged."""
        return (self.home / "api.log").read_text()

    def token(self, name: str = "token") -> str:
        """Return the token in a file of the home."""
        return (self.home / name).read_text().strip()

    def of_factory(self, name: str) -> str:
        """Return the name of the file with the token of a factory of this home, which is made now if there is none."""
        ensure_factory_token(self.home, name)
        return f"factories/{name}/token"

    def call(self, method: str, path: str, *, token: str = USER, **options: Any) -> httpx.Response:
        """Make a request with one of the home's tokens."""
        headers = {"Authorization": f"Bearer {self.token(token)}"} | options.pop("headers", {})
        return httpx.request(method, self.url + path, headers=headers, timeout=PATIENCE_S, **options)

    def get(self, path: str, **options: Any) -> Any:
        """GET a document."""
        answer = self.call("GET", path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, manifest: str) -> str:
        """Submit a job file's text and return the job's id."""
        answer = self.call("POST", "/fleet/jobs", json={"manifest": manifest})
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["jobs"][0]["id"])

    def environment(self) -> dict[str, str]:
        """Return the environment of the process, which a command line of this home can use too."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        return kept | {
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "GIGAFACTORY_HOME": str(self.home),
            "GIGAFACTORY_API_PORT": str(self.port),
            "GIGAFACTORY_API_URL": self.url,
            "GIGAFACTORY_TEMPORAL_ADDRESS": self.temporal_address,
            "GIGAFACTORY_SEAT_WAIT_S": "0",  # there is no factory
            "GIGAFACTORY_FACTORY_BEAT_S": "600",  # nor does one beat that a test registers
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.home / "api.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "api"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            try:
                httpx.get(f"{self.url}/fleet/health", timeout=PATIENCE_S)
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"no answer within {PATIENCE_S} s\n{self.log}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextmanager
def running_api(home: Path, *, temporal_address: str = NOWHERE) -> Iterator[ApiProcess]:
    """Run an API process over a migrated ledger; it is gone when the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as aside:  # the caller may have a loop of its own
        aside.submit(lambda: asyncio.run(migrate(Settings(home=home).ledger_url))).result()
    api = ApiProcess(home, free_port(), temporal_address)
    try:
        api.start()
        yield api
    finally:
        assert api.process is not None
        if api.process.poll() is None:
            api.process.kill()
            api.process.wait(PATIENCE_S)
