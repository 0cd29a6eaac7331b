"""Fixtures that all tests share: a private home, and a real Temporal server that starts when first asked for."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import structlog
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from workers.temporal_server import free_port, locate_server, server_command

DIES_WITH_US = 'exec 3<&0; "$@" </dev/null 3<&- & server=$!; read -r _ <&3; kill "$server"; wait "$server"'
"""A shell line that runs a server until its own standard input closes, as it does when the test process is killed."""

CLEANS_UP = 'read -r _ || sleep 15; exec "$@"'
"""A shell line that runs a command once it is told to, or once its standard input closes without a word: then, killed
with the test process, a stack may be in the middle of its start, and cannot be taken down before there is a record."""


# No example fails because it took long: these tests run beside others that want the same cores.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")


def pytest_configure() -> None:
    """Show tracebacks without the values of all variables, as our processes do: to print those takes seconds."""
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the interpreter's finalization, which aborts now and then once the Temporal SDK was in use.

    Everything was reported by now; only the exit code would be lost (134 or 139 instead of ours; sdk-python #300).
    """
    session = config.stash.get(SESSION, None)
    if session is None or "temporalio.bridge.temporal_sdk_bridge" not in sys.modules:
        return
    atexit._run_exitfuncs()
    config.get_terminal_writer().flush()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(int(session.exitstatus))


SESSION = pytest.StashKey[pytest.Session]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep the session, whose exit status is final only after all has been reported; listen to Ctrl-C again.

    A run that a script began in its background ignores SIGINT, and so would every process that a test interrupts.
    """
    session.config.stash[SESSION] = session
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test an id of its own: of several with one id, a run side by side would run one and no other.

    Schemathesis names its tests after their operations, which since pytest 9.2 does not reach their ids.
    """
    for item in items:
        if not item.nodeid.endswith(item.name):
            item._id = item.id.with_params(item.name.partition("[")[2].removesuffix("]"))
    twins = [nodeid for nodeid, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twins:
        pytest.exit(f"several tests share one id: {', '.join(twins)}", returncode=pytest.ExitCode.USAGE_ERROR)


TOPOLOGY = os.environ.get("GIGAFACTORY_TEST_TOPOLOGY", "embedded")
"""What the tests run on: `embedded` (SQLite, Temporal's development server) or `production` (what docker-compose.yml
has: PostgreSQL, the full server, two API processes and control workers). `./gf test --topology` sets it."""

ENVIRON = dict(os.environ)
"""The environment as it was: some tests give themselves another HOME, and the server is in the real one's cache."""


@dataclass(frozen=True)
class TemporalServer:
    """A running development server; `log` is where it writes its errors."""

    address: str
    namespace: str
    log: Path


@contextmanager
def running_temporal(binary: Path, folder: Path, *, db_file: Path | None = None) -> Iterator[TemporalServer]:
    """Run a tuned server on ports of its own; it is gone when the block ends or this process dies."""
    port = free_port()
    log = folder / f"temporal-{port}.log"
    command = server_command(binary, port=port, ui_port=None, db_file=db_file)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["sh", "-c", DIES_WITH_US, "sh", *command], stdin=subprocess.PIPE, stdout=sink, stderr=sink
        )
    try:
        asyncio.run(_settle(f"127.0.0.1:{port}", process))
        yield TemporalServer(address=f"127.0.0.1:{port}", namespace="default", log=log)
    finally:
        process.communicate(timeout=20)


@contextmanager
def gone_afterwards(env: Mapping[str, str]) -> Iterator[None]:
    """Take down the stack of the home that `env` names when the block ends, or when this process dies."""
    command = ["sh", "-c", CLEANS_UP, "sh", sys.executable, "-P", "-m", "cli", "down"]
    nowhere = subprocess.DEVNULL
    guard = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True
    )
    try:
        yield
    finally:
        guard.communicate(b"now\n", timeout=300)


async def _settle(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the Temporal server ended while it was starting; its log says why"
        try:
            client = await Client.connect(address)
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
        except RuntimeError:  # not listening yet, or (RPCError) the namespace not yet known
            assert time.monotonic() < deadline, "no Temporal server within a minute"
            await asyncio.sleep(0.05)
        else:
            return


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a private, empty GIGAFACTORY_HOME, set in the environment for this test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("GIGAFACTORY_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def temporal_binary() -> Path:
    """Return a Temporal CLI with a development server; the first run on a machine may build it (3 minutes)."""
    source = asyncio.run(locate_server("", environ=ENVIRON, tell=lambda _line: None, sound=True))
    assert source.binary is not None
    return source.binary


@pytest.fixture(scope="session")
def temporal_server(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """Return a server, one per test process; tests keep apart by workflow ids and queue names."""
    folder = tmp_path_factory.mktemp("temporal")
    if TOPOLOGY == "production":
        from tests.topology.production import full_server, running_full_server

        with running_full_server(full_server(), folder) as address:
            yield TemporalServer(address=address, namespace="default", log=folder / "temporal.log")
    else:
        with running_temporal(temporal_binary, folder) as server:
            yield server


@pytest.fixture
async def temporal_client(temporal_server: TemporalServer) -> Client:
    """Return a client of `temporal_server` that speaks pydantic models."""
    return await Client.connect(
        temporal_server.address, namespace=temporal_server.namespace, data_converter=pydantic_data_converter
    )
