"""A real PostgreSQL server for tests: in a directory of its own, on a socket of its own, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

REQUIRED = "GIGAFACTORY_REQUIRE_POSTGRES"
"""Set to 1 where a missing server must fail the tests instead of skipping them."""
PORT = 5432
"""Part of the socket's name only: the server listens on no network unless it is given a port."""
USER = "gigafactory"
LOG = "log"
DIES_WITH_US = 'exec 3<&0; "$@" </dev/null 3<&- & server=$!; read -r _ <&3; kill -QUIT "$server"; wait "$server"'
"""A shell line that runs a server until its own standard input closes, as it does when the test process is killed."""
SPEED = ("fsync=off", "full_page_writes=off", "shared_buffers=64MB", "max_connections=200")
"""What only a loss of power would punish. Commits stay synchronous: a killed server must not forget one."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server; `socket` is the directory of its socket."""

    socket: Path
    port: int = PORT

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://{USER}@/{database}?host={self.socket}&port={self.port}"

    def run(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements, each by itself; return the rows of the last one."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            answers = [connection.execute(statement.encode()) for statement in statements]
            return answers[-1].fetchall() if answers[-1].description else []


def postgres_binaries() -> Path | None:
    """Return the directory with `initdb` and `postgres`: the newest installed one, else the one on PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.split(".")[0]))
    on_path = shutil.which("postgres")
    candidates = [*reversed(versions), *([Path(on_path).resolve().parent] if on_path else [])]
    return next((path for path in candidates if (path / "initdb").exists() and (path / "postgres").exists()), None)


def _as_somebody_else() -> dict[str, Any]:
    """Return how to start a process that is not root, because the server refuses to be."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise AssertionError("root needs an unprivileged user, postgres or nobody, to run PostgreSQL as")


@contextmanager
def running_postgres(binaries: Path, *, port: int = 0) -> Iterator[PostgresServer]:
    """Run a server until the block ends, or until this process dies; with `port` it listens on the loopback address."""
    identity = _as_somebody_else()
    folder = Path(tempfile.mkdtemp(prefix="gf-pg-"))
    server = PostgresServer(folder, port or PORT)
    try:
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder)}
        options: dict[str, Any] = {"cwd": folder, "env": environment} | identity
        _make_cluster(binaries, folder, options)
        process = _start(binaries, server, "127.0.0.1" if port else "", options)
        try:
            _wait_until_ready(server, process)
            yield server
        finally:
            process.communicate(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_cluster(binaries: Path, folder: Path, options: dict[str, Any]) -> None:
    arguments = [f"--pgdata={folder / 'data'}", f"--username={USER}", "--auth=trust", "--encoding=UTF8", "--no-sync"]
    command = [str(binaries / "initdb"), *arguments]
    made = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    assert made.returncode == 0, made.stderr


def _start(binaries: Path, server: PostgresServer, address: str, options: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder = server.socket
    settings = [part for setting in (f"listen_addresses={address}", *SPEED) for part in ("-c", setting)]
    arguments = ["-D", str(folder / "data"), "-k", str(folder), "-p", str(server.port), *settings]
    command = ["sh", "-c", DIES_WITH_US, "sh", str(binaries / "postgres"), *arguments]
    with (folder / LOG).open("wb") as sink:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, **options)


def _wait_until_ready(server: PostgresServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.run("SELECT 1")
        except psycopg.Error:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"PostgreSQL did not start:\n{(server.socket / LOG).read_text()}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Return a running PostgreSQL server, one per test process; skips where it is not installed."""
    binaries = postgres_binaries()
    if binaries is None:
        reason = "PostgreSQL's server binaries are neither in /usr/lib/postgresql/*/bin nor on PATH"
        assert os.environ.get(REQUIRED) != "1", f"{REQUIRED}=1, but {reason}"
        pytest.skip(reason)
    with running_postgres(binaries) as server:
        yield server
