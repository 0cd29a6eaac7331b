"""The gateway as a process, with the ledger's tokens: real agents behind it, real SIGKILLs, TLS, revocation."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollActivityTaskQueueRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from core.attempt import BuildResult, factory_queue
from core.settings import Settings
from store import Ledger, migrate, open_ledger
from store.settings_source import ROOT
from store.token_book import MAX_AGE_S
from store.token_files import ensure_factory_token, ensure_person_token
from tests.conftest import TemporalServer
from tests.repositories import Checkout
from tests.waiting import PATIENCE_S, written
from tests.workers.gateway_running import Raw
from tests.workers.test_factory_agent import OneAttempt, running_agent, start
from workers.gateway_calls import RECHECK_S
from workers.temporal_server import free_port

OK, STRANGER = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED


@dataclass
class GatewayProcess:
    """A gateway process of a home."""

    process: asyncio.subprocess.Process
    log: Path
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """Where factories find it."""
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}"


async def spawn(home: Path, server: TemporalServer, **settings: object) -> tuple[asyncio.subprocess.Process, Path]:
    """Start a gateway; its log says how it went."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "GIGAFACTORY_HOME": str(home)}
    env |= {"GIGAFACTORY_TEMPORAL_ADDRESS": server.address, "GIGAFACTORY_GATEWAY_PORT": "0"}
    env |= {f"GIGAFACTORY_{key.upper()}": str(value) for key, value in settings.items()}
    log = home / f"gateway-{uuid.uuid4().hex[:8]}.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "workers.gateway", env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    return process, log


@asynccontextmanager
async def gateway_process(home: Path, server: TemporalServer, **settings: object) -> AsyncIterator[GatewayProcess]:
    """Run a gateway until the block ends."""
    process, log = await spawn(home, server, **settings)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (ready := [line for line in lines_of(log) if line["event"] == "gateway.ready"]):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        yield GatewayProcess(process, log, ready[0]["port"], "gateway_tls_cert" in settings)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def lines_of(log: Path) -> list[dict[str, Any]]:
    """Return what was logged."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """Return a home with a ledger."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    await migrate(Settings(home=folder).ledger_url)
    return folder


@pytest.fixture
async def ledger(home: Path) -> AsyncIterator[Ledger]:
    """Open the ledger of the home."""
    opened = open_ledger(Settings(home=home))
    yield opened
    await opened.close()


@pytest.fixture
async def workflows(temporal_client: Client) -> AsyncIterator[Client]:
    """Run the attempts' workflow, with direct access to Temporal."""
    async with Worker(temporal_client, task_queue="test-factory-agent", workflows=[OneAttempt]):
        yield temporal_client


@asynccontextmanager
async def raw(gateway: GatewayProcess, token: str) -> AsyncIterator[Raw]:
    """Give a way to send anything."""
    async with grpc.aio.insecure_channel(f"localhost:{gateway.port}") as channel:
        yield Raw(channel, (("authorization", f"Bearer {token}"),))


async def result_of(handle: WorkflowHandle[OneAttempt, BuildResult]) -> BuildResult:
    """Return how an attempt ended."""
    return await asyncio.wait_for(handle.result(), PATIENCE_S)


NOWHERE = TemporalServer("127.0.0.1:1", "default", Path("/dev/null"))
"""What the agents here are told of Temporal: they cannot meet it."""


async def test_agent_runs_an_attempt_through_the_gateway(
    home: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout
) -> None:
    """From queue to sealed candidate, with an agent that could not reach Temporal itself."""
    ensure_factory_token(home, "f-through")
    async with (
        gateway_process(home, temporal_server) as gateway,
        running_agent(home, NOWHERE, name="f-through", gateway_url=gateway.url) as agent,
    ):
        handle = await start(workflows, agent, remote, "sleep 1; echo work > new.txt", beat_s=0.1)
        built = await result_of(handle)
        assert built.outcome == "succeeded", built.message
        agent.process.terminate()
        assert await agent.process.wait() == 0
    events = {line["event"] for line in lines_of(gateway.log)}
    assert events == {"gateway.ready"}, "nothing that an agent does is refused"


async def test_cancel_through_the_gateway_reaches_the_engine(
    tmp_path: Path, home: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout
) -> None:
    """The cancel comes back with a beat."""
    ensure_factory_token(home, "f-cancel")
    async with (
        gateway_process(home, temporal_server) as gateway,
        running_agent(home, NOWHERE, name="f-cancel", gateway_url=gateway.url) as agent,
    ):
        handle = await start(workflows, agent, remote, f"echo half > new.txt; echo $$ > {tmp_path / 'pid'}; sleep 600")
        await written(tmp_path / "pid")
        await handle.cancel()
        built = await result_of(handle)
        assert built.failure == "cancelled"
        assert remote.git("show", f"{built.checkpoint_sha}:new.txt") == "half"


async def test_gateway_killed_under_an_attempt_loses_nothing(
    tmp_path: Path, home: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout
) -> None:
    """It keeps no state: after a SIGKILL the next one takes the attempt's beats and its result."""
    ensure_factory_token(home, "f-killed")
    port = free_port()
    go_on = tmp_path / "go-on"
    script = f"echo $$ > {tmp_path / 'pid'}; while [ ! -e {go_on} ]; do sleep 0.1; done; echo work > new.txt"
    async with (
        gateway_process(home, temporal_server, gateway_port=port) as first,
        running_agent(home, NOWHERE, name="f-killed", gateway_url=first.url) as agent,
    ):
        handle = await start(workflows, agent, remote, script, ttl_s=60.0)
        await written(tmp_path / "pid")
        first.process.send_signal(signal.SIGKILL)
        await first.process.wait()
        async with gateway_process(home, temporal_server, gateway_port=port):
            go_on.touch()
            built = await result_of(handle)
    assert built.outcome == "succeeded", built.message


async def test_factory_may_answer_through_another_gateway(
    home: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout
) -> None:
    """Gateways of one home share the seal key: behind a load balancer any of them will do."""
    ensure_factory_token(home, "f-two")
    async with (
        gateway_process(home, temporal_server) as one,
        gateway_process(home, temporal_server) as two,
        spread(one.port, two.port) as port,
        running_agent(home, NOWHERE, name="f-two", gateway_url=f"http://localhost:{port}") as agent,
    ):
        go_on = home / "go-on"
        script = f"echo $$ > {home / 'pid'}; while [ ! -e {go_on} ]; do sleep 0.1; done; echo work > new.txt"
        handle = await start(workflows, agent, remote, script, beat_s=0.1)
        await written(home / "pid")
        one.process.terminate()
        await one.process.wait()
        go_on.touch()
        assert (await result_of(handle)).outcome == "succeeded"


@asynccontextmanager
async def spread(*ports: int) -> AsyncIterator[int]:
    """Run a balancer: each connection goes to the first port that answers."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in ports:
            try:
                there, back = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                continue
            await asyncio.gather(pump(reader, back), pump(there, writer))
            return
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_token_revoked_in_the_ledger_is_out_under_an_open_poll(
    home: Path, temporal_server: TemporalServer, ledger: Ledger
) -> None:
    """The poll that is open then brings nothing, all that follows is refused; the factory next door does not notice.

    Within the promised second, of which the two looks that it takes need the greater part; a busy machine may be late.
    """
    assert RECHECK_S + MAX_AGE_S < 1.0
    token, other = ensure_factory_token(home, "f-out"), ensure_factory_token(home, "f-stays")
    async with (
        gateway_process(home, temporal_server) as gateway,
        raw(gateway, token) as out,
        raw(gateway, other) as stays,
    ):
        polls = [
            asyncio.create_task(one.send("PollActivityTaskQueue", poll_of(name), timeout_s=60))
            for one, name in ((out, "f-out"), (stays, "f-stays"))
        ]
        assert (await out.send("GetSystemInfo"))[0] == OK
        assert (await stays.send("GetSystemInfo"))[0] == OK
        now = datetime.now(UTC)
        (row,) = (row for row in await ledger.tokens(now) if row.factory == "f-out")
        await ledger.revoke_token(row.id, "stolen", "test", now)
        assert await asyncio.wait_for(polls[0], 30) == (OK, b"")
        assert (await out.send("GetSystemInfo"))[0] == STRANGER
        assert (await out.send("PollActivityTaskQueue", poll_of("f-out")))[0] == STRANGER
        assert (await stays.send("GetSystemInfo"))[0] == OK
        assert not polls[1].done()
        polls[1].cancel()


def poll_of(name: str) -> PollActivityTaskQueueRequest:
    """Return a request for a task of a factory's workspace queue."""
    return PollActivityTaskQueueRequest(task_queue=TaskQueue(name=factory_queue(name)))


async def test_token_of_a_person_is_no_factorys(home: Path, temporal_server: TemporalServer) -> None:
    """Not even an admin's: what may poll is a factory."""
    async with gateway_process(home, temporal_server) as gateway, raw(gateway, ensure_person_token(home)) as person:
        assert (await person.send("GetSystemInfo"))[0] == STRANGER


async def test_rotated_token_is_used_without_a_restart(
    home: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout, ledger: Ledger
) -> None:
    """The agent shows what is in its file; the old token may end while an attempt runs."""
    old = ensure_factory_token(home, "f-rotates")
    async with (
        gateway_process(home, temporal_server) as gateway,
        running_agent(home, NOWHERE, name="f-rotates", gateway_url=gateway.url) as agent,
    ):
        script = f"echo $$ > {home / 'pid'}; sleep 6; echo work > new.txt"
        handle = await start(workflows, agent, remote, script, ttl_s=60.0)
        await written(home / "pid")  # an agent that only just starts would come back with the new token
        now = datetime.now(UTC)
        (row,) = (row for row in await ledger.tokens(now) if row.factory == "f-rotates")
        (home / "factories/f-rotates/token").unlink()
        new = ensure_factory_token(home, "f-rotates")
        assert new != old
        await asyncio.sleep(0.5)
        await ledger.revoke_token(row.id, "rotated", "test", now)
        assert (await result_of(handle)).outcome == "succeeded"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Return an authority's certificate; beside it lie `cert.pem` and `key.pem` for localhost, which it signed."""
    ca, ca_key = tmp_path / "ca.pem", tmp_path / "ca-key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-out", str(ca), "-keyout", str(ca_key)], check=True, capture_output=True)
    signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-addext", "basicConstraints=critical,CA:FALSE"]
    signed += ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-out", str(tmp_path / "cert.pem"), "-keyout", str(tmp_path / "key.pem")]
    subprocess.run([*make, *signed, *files], check=True, capture_output=True)
    return ca


async def test_agent_speaks_tls_with_the_gateway(
    home: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout, authority: Path
) -> None:
    """With the authority that it was given; without TLS there is no way in, and who tries does not fill the log."""
    token = ensure_factory_token(home, "f-tls")
    cert, key = authority.with_name("cert.pem"), authority.with_name("key.pem")
    async with gateway_process(home, temporal_server, gateway_tls_cert=cert, gateway_tls_key=key) as gateway:
        async with running_agent(home, NOWHERE, name="f-tls", gateway_url=gateway.url, gateway_ca=authority) as agent:
            handle = await start(workflows, agent, remote, "echo work > new.txt")
            assert (await result_of(handle)).outcome == "succeeded"
        async with raw(gateway, token) as plain:
            assert (await plain.send("GetSystemInfo", timeout_s=3))[0] != OK
        assert [line.startswith("{") for line in gateway.log.read_text().splitlines()] == [True]


# --- what keeps it from starting --------------------------------------------------------------------------------------


async def test_gateway_that_cannot_serve_says_why(home: Path, temporal_server: TemporalServer, authority: Path) -> None:
    """Exit code 1 and one line: a taken port, a key that others may read, half of what TLS needs, no such file."""
    open_key = home / "open-key"
    open_key.write_text("ab" * 32)
    open_key.chmod(0o644)
    async with gateway_process(home, temporal_server) as gateway:
        cases: list[tuple[dict[str, object], str]] = [
            ({"gateway_port": gateway.port}, "cannot serve at"),
            ({"gateway_seal_key": open_key}, "may be read by others"),
            ({"gateway_tls_cert": authority}, "need each other"),
            ({"gateway_tls_cert": home / "none", "gateway_tls_key": authority}, "cannot serve at"),
        ]
        for settings, words in cases:
            process, log = await spawn(home, temporal_server, **settings)
            assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 1, log.read_text()
            last = lines_of(log)[-1]
            assert last["event"] == "gateway.unusable"
            assert words in last["error"]
            assert last["hint"]


async def test_sigterm_ends_it_within_seconds_though_polls_are_open(
    home: Path, temporal_server: TemporalServer
) -> None:
    """A poll lasts a minute, and ends with the process."""
    token = ensure_factory_token(home, "f-term")
    async with gateway_process(home, temporal_server) as gateway, raw(gateway, token) as factory:
        poll = asyncio.create_task(factory.send("PollActivityTaskQueue", poll_of("f-term"), timeout_s=60))
        assert (await factory.send("GetSystemInfo"))[0] == OK
        gateway.process.terminate()
        assert await asyncio.wait_for(gateway.process.wait(), 30) == 0
        assert (await poll)[0] in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_logs_hold_no_token(home: Path, temporal_server: TemporalServer) -> None:
    """Neither good ones nor bad ones."""
    token = ensure_factory_token(home, "f-log")
    async with gateway_process(home, temporal_server) as gateway:
        for shown in (token, token[:-1] + "x", "gff_" + "y" * 43):
            async with raw(gateway, shown) as factory:
                await factory.send("GetSystemInfo")
                await factory.send("StartWorkflowExecution", b"payload-of-mine")
        text = gateway.log.read_text()
    assert "gateway.refused" in text
    for secret in (token, token[4:20], "y" * 43, "payload-of-mine"):
        assert secret not in text
