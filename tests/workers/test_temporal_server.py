"""The embedded Temporal server: how it is found, obtained and started."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import stat
import subprocess
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from temporalio import workflow
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from tests.conftest import ENVIRON
from workers import temporal_server
from workers.stack_parts import serves_namespace
from workers.temporal_server import (
    SEARCH_ATTRIBUTES,
    ServerSource,
    TemporalMissing,
    TemporalUnreachable,
    cache_dir,
    candidate_binaries,
    check_address,
    find_binary,
    free_port,
    is_sound,
    locate_server,
    obtain_binary,
    server_command,
)

WORKING = "#!/bin/sh\necho --db-filename --sqlite-pragma --search-attribute\n"
BROKEN = "#!/bin/sh\nexit 1\n"


def built_with(driver: str) -> str:
    """Return a working program that says, as every program of Go's does, which SQLite driver it has."""
    return f"{WORKING}# path\tgithub.com/temporalio/cli\n# dep\tmodernc.org/sqlite\tv{driver}\th1:u3Yi6M0N8t9y\n"


OLD, NEW = built_with("1.34.1"), built_with("1.61.1")


def put_program(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def bare_environ(tmp_path: Path, **more: str) -> dict[str, str]:
    """Return an environment in which no `temporal` and no `go` can be found."""
    return {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "user"), **more}


def quiet(_line: str) -> None:
    """Drop a line of progress."""


# --- finding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GIGAFACTORY_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/gigafactory"),
        ({"HOME": "/c"}, "/c/.cache/gigafactory"),
        ({"GIGAFACTORY_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/gigafactory"),
    ],
)
def test_cache_dir_follows_the_rule_of_gf(environ: dict[str, str], expected: str) -> None:
    """The Python side and the shell side agree on where the cache is."""
    assert cache_dir(environ) == Path(expected)


def test_candidates_come_in_the_documented_order(tmp_path: Path) -> None:
    """PATH, then the cache, then GOBIN, GOPATH and ~/go."""
    environ = bare_environ(tmp_path, GOBIN=str(tmp_path / "gobin"), GOPATH=str(tmp_path / "gopath"))
    expected = [
        put_program(tmp_path / "bin" / "temporal", WORKING),
        put_program(tmp_path / "user/.cache/gigafactory/temporal/bin/temporal", WORKING),
        put_program(tmp_path / "gobin/temporal", WORKING),
        put_program(tmp_path / "gopath/bin/temporal", WORKING),
        put_program(tmp_path / "user/go/bin/temporal", WORKING),
    ]
    assert [path for _, path in candidate_binaries(environ)] == expected


async def test_find_passes_over_a_program_that_is_no_development_server(tmp_path: Path) -> None:
    """Another program named `temporal` on PATH does not hide the good one in the cache."""
    put_program(tmp_path / "bin" / "temporal", BROKEN)
    cached = put_program(tmp_path / "user/.cache/gigafactory/temporal/bin/temporal", WORKING)
    assert await find_binary(bare_environ(tmp_path)) == ServerSource(origin="cache", binary=cached)


@pytest.mark.parametrize(
    ("driver", "sound"), [("1.34.1", False), ("1.50.9", False), ("1.51.0", True), ("1.61.1", True), ("2.0.0", True)]
)
async def test_driver_that_a_cancelled_call_can_break_is_recognized(tmp_path: Path, driver: str, sound: bool) -> None:
    """By the list of modules in the program; one that says nothing has the benefit of the doubt."""
    program = put_program(tmp_path / "bin" / "temporal", built_with(driver))
    assert is_sound(program) is sound
    assert await find_binary(bare_environ(tmp_path)) == ServerSource(origin="PATH", binary=program, sound=sound)
    assert is_sound(put_program(tmp_path / "other", WORKING))
    assert is_sound(put_program(tmp_path / "empty", ""))


async def test_find_prefers_a_sound_server(tmp_path: Path) -> None:
    """Before the documented order; without one the first is good enough for everyday work."""
    first = put_program(tmp_path / "bin" / "temporal", OLD)
    put_program(tmp_path / "user/.cache/gigafactory/temporal/bin/temporal", OLD)
    environ = bare_environ(tmp_path)
    assert await find_binary(environ) == ServerSource(origin="PATH", binary=first, sound=False)
    assert await locate_server("", environ=environ, tell=quiet) == await find_binary(environ)
    last = put_program(tmp_path / "user/go/bin/temporal", NEW)
    assert await find_binary(environ) == ServerSource(origin="Go's bin directory", binary=last)


async def test_find_returns_none_on_a_bare_machine(tmp_path: Path) -> None:
    """Finding fetches nothing."""
    assert await find_binary(bare_environ(tmp_path)) is None


async def test_configured_address_wins_and_is_checked(tmp_path: Path) -> None:
    """An address is used as it is, when something answers there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        source = await locate_server(address, environ=bare_environ(tmp_path), tell=quiet)
    assert source == ServerSource(origin="configured address", address=address)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "127.0.0.1:1"])
async def test_dead_address_is_refused_with_the_next_step(address: str) -> None:
    """A configured server that does not answer is named, never silently replaced by an embedded one."""
    with pytest.raises(TemporalUnreachable) as caught:
        await check_address(address)
    assert address in caught.value.message
    assert caught.value.code == "temporal_unreachable"
    assert caught.value.hint


# --- obtaining ------------------------------------------------------------------------------------


def fake_download(failure: str, program: str = WORKING) -> Callable[[Path, Callable[[str], None]], object]:
    """Return a stand-in for the SDK's download that brings a working server, or fails."""

    async def download(folder: Path, tell: Callable[[str], None]) -> str:
        tell("downloading")
        if not failure:
            put_program(folder / "temporal-sdk-python-1.0", program)
        return failure

    return download


async def test_download_lands_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK fetched is kept in our cache under the plain name, and nothing else is left there."""
    monkeypatch.setattr(temporal_server, "_download_into", fake_download(""))
    environ = bare_environ(tmp_path)
    source = await obtain_binary(environ=environ, tell=quiet)
    assert source.origin == "download"
    assert await find_binary(environ) == ServerSource(origin="cache", binary=source.binary)
    assert sorted(path.name for path in (cache_dir(environ) / "temporal").iterdir()) == [".lock", "bin"]


class FakeEnvironment:
    """What the SDK returns once its server runs."""

    async def shutdown(self) -> None:
        """Stop nothing."""


async def test_download_through_the_sdk_asks_for_a_loopback_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK is told where to put its server; the one it starts to do so is on the loopback address."""

    async def start_local(*, download_dest_dir: str, ip: str) -> FakeEnvironment:
        assert ip == "127.0.0.1"
        put_program(Path(download_dest_dir) / "temporal-sdk-python-1.0", WORKING)
        return FakeEnvironment()

    monkeypatch.setattr(WorkflowEnvironment, "start_local", start_local)
    assert (await obtain_binary(environ=bare_environ(tmp_path), tell=quiet)).origin == "download"


@pytest.mark.parametrize(
    ("hangs", "expected"), [(True, "nothing arrived"), (False, "error sending request")], ids=["hangs", "refused"]
)
async def test_download_that_cannot_work_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool, expected: str
) -> None:
    """A blocked network is noticed whether it refuses or stays silent."""

    async def start_local(**_arguments: object) -> FakeEnvironment:
        if hangs:
            await asyncio.Event().wait()
        raise RuntimeError("error sending request\nand more")

    monkeypatch.setattr(WorkflowEnvironment, "start_local", start_local)
    monkeypatch.setattr(temporal_server, "STALLED_DOWNLOAD_S", 0.1)
    with pytest.raises(TemporalMissing, match=expected) as caught:
        await obtain_binary(environ=bare_environ(tmp_path), tell=quiet)
    assert "and more" not in caught.value.message


def put_go(tmp_path: Path) -> Path:
    """Put a `go` on PATH that builds a sound server, if it is asked for the right thing."""
    program = f"""#!/bin/sh
[ "$*" = "build -mod=mod -o temporal {temporal_server.GO_PACKAGE}" ] || exit 9
/bin/grep -q "modernc.org/sqlite v1" go.mod || exit 8
echo "go: downloading things" >&2
/bin/cat >temporal <<'EOF'
{NEW}
EOF
/bin/chmod +x temporal
"""
    return put_program(tmp_path / "bin" / "go", program)


async def test_build_follows_a_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the open internet the server is built with Go, at the pinned versions, into the cache."""
    monkeypatch.setattr(temporal_server, "_download_into", fake_download("no internet"))
    put_go(tmp_path)
    told: list[str] = []
    source = await obtain_binary(environ=bare_environ(tmp_path), tell=told.append)
    assert source.origin == "build with Go"
    assert "download did not work: no internet" in told
    assert "go: downloading things" in told


async def test_sound_server_is_built_where_only_doubtful_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For tests, which kill workers all the time; what was downloaded is replaced, what is elsewhere is left alone."""
    monkeypatch.setattr(temporal_server, "_download_into", fake_download("", program=OLD))
    environ = bare_environ(tmp_path)
    on_path = put_program(tmp_path / "bin" / "temporal", OLD)
    without_go = await locate_server("", environ=environ, tell=quiet, sound=True)
    assert without_go.binary == cache_dir(environ) / "temporal" / "bin" / "temporal"
    assert not without_go.sound
    put_go(tmp_path)
    built = await locate_server("", environ=environ, tell=quiet, sound=True)
    assert built == ServerSource(origin="build with Go", binary=without_go.binary)
    assert await find_binary(environ) == ServerSource(origin="cache", binary=built.binary)
    assert on_path.read_text() == OLD


async def test_doubtful_server_is_better_than_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be had."""
    monkeypatch.setattr(temporal_server, "_download_into", fake_download("no internet"))
    on_path = put_program(tmp_path / "bin" / "temporal", OLD)
    found = await locate_server("", environ=bare_environ(tmp_path), tell=quiet, sound=True)
    assert found == ServerSource(origin="PATH", binary=on_path, sound=False)


def test_tests_run_on_a_sound_server(temporal_binary: Path) -> None:
    """They kill workers all the time: on another one some would fail, once in a while, for no fault of ours."""
    if not go_can_build():
        pytest.skip("without Go 1.21 or newer tests take the server that there is")
    assert is_sound(temporal_binary)


def go_can_build() -> bool:
    """Return whether this machine has a Go that fetches the one that the server needs."""
    go = shutil.which("go", path=ENVIRON.get("PATH"))
    said = subprocess.run([go, "version"], env=ENVIRON, capture_output=True, text=True, check=True).stdout if go else ""
    version = re.search(r"go1\.(\d+)", said)
    return version is not None and int(version[1]) >= 21


async def test_concurrent_callers_obtain_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second caller waits and takes what the first one brought."""
    monkeypatch.setattr(temporal_server, "_download_into", fake_download(""))
    environ = bare_environ(tmp_path)
    sources = await asyncio.gather(*(obtain_binary(environ=environ, tell=quiet) for _ in range(3)))
    assert sorted(source.origin for source in sources) == ["cache", "cache", "download"]


@pytest.mark.parametrize(
    ("go", "expected"),
    [
        (None, "Go is not installed"),
        ("#!/bin/sh\necho 'module lookup disabled'; exit 1\n", "ended with code 1: module lookup disabled"),
        ("#!/bin/sh\nexit 0\n", "No such file"),
    ],
)
async def test_nothing_works_says_what_was_tried_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go: str | None, expected: str
) -> None:
    """The error names each way, why it failed, and the next step."""
    monkeypatch.setattr(temporal_server, "_download_into", fake_download("no internet"))
    if go is not None:
        put_program(tmp_path / "bin" / "go", go)
    with pytest.raises(TemporalMissing) as caught:
        await obtain_binary(environ=bare_environ(tmp_path), tell=quiet)
    assert caught.value.code == "temporal_missing"
    assert "download: no internet" in caught.value.message
    assert expected in caught.value.message
    assert "GIGAFACTORY_TEMPORAL_ADDRESS" in caught.value.hint


async def test_unwritable_cache_is_named(tmp_path: Path) -> None:
    """A cache that cannot be made is the caller's to mend, and is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TemporalMissing) as caught:
        await obtain_binary(environ=bare_environ(tmp_path, GIGAFACTORY_CACHE=str(tmp_path / "file")), tell=quiet)
    assert "GIGAFACTORY_CACHE" in caught.value.hint


# --- starting -------------------------------------------------------------------------------------


def test_free_port_skips_a_taken_one() -> None:
    """The first free port from the wished one upwards."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port(port) <= port + 100
    assert free_port() != 0


def test_server_command_never_leaves_the_loopback_address() -> None:
    """The embedded server has no authentication."""
    command = server_command(Path("temporal"), port=1, ui_port=2, db_file=None, namespace="mine")
    assert command[command.index("--ip") + 1] == "127.0.0.1"
    assert "--ui-ip" not in command
    assert command[command.index("--namespace") + 1] == "mine"
    assert "--db-filename" not in command


@workflow.defn
class Echo:
    """Returns what it was given, after a short timer."""

    @workflow.run
    async def run(self, text: str) -> str:
        """Sleep 100 ms, then answer."""
        await asyncio.sleep(0.1)
        return text


async def echo(client: Client, text: str) -> str:
    """Run one workflow on a worker of its own."""
    queue = f"echo-{uuid.uuid4()}"
    async with Worker(client, task_queue=queue, workflows=[Echo], workflow_runner=UnsandboxedWorkflowRunner()):
        return await client.execute_workflow(Echo.run, text, id=f"echo-{text}", task_queue=queue)


def listening_addresses(pid: int) -> set[str]:
    """Return the addresses that the process listens on."""
    return {
        entry.laddr.ip for entry in psutil.Process(pid).net_connections("tcp") if entry.status == psutil.CONN_LISTEN
    }


async def retention_of(client: Client) -> timedelta:
    """Return how long the client's namespace keeps closed workflows."""
    answer = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    return answer.config.workflow_execution_retention_ttl.ToTimedelta()


async def test_server_keeps_everything_over_a_restart(temporal_binary: Path, tmp_path: Path) -> None:
    """The same database file: workflows, search attributes and retention are still there; all ports are loopback."""
    db_file = tmp_path / "temporal.db"
    for round_number in (1, 2):
        port, http_port = free_port(), free_port()
        command = server_command(temporal_binary, port=port, ui_port=free_port(), db_file=db_file, http_port=http_port)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(60):
                while not await serves_namespace(f"http://127.0.0.1:{http_port}/api/v1/namespaces/default"):
                    await asyncio.sleep(0.05)
            client = await Client.connect(f"127.0.0.1:{port}", data_converter=pydantic_data_converter)
            if round_number == 1:
                assert await echo(client, "one") == "one"
            else:
                assert await client.get_workflow_handle("echo-one").result() == "one"
                assert await echo(client, "two") == "two"
            assert await retention_of(client) == timedelta(days=30)
            attributes = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace="default")
            )
            assert set(SEARCH_ATTRIBUTES) <= set(attributes.custom_attributes)
            assert listening_addresses(process.pid) <= {"127.0.0.1", "::1"}
        finally:
            process.terminate()
            await process.wait()


async def test_shared_server_fixture_runs_workflows(temporal_client: Client) -> None:
    """The fixture that all other tests build on works."""
    assert await echo(temporal_client, str(uuid.uuid4()))


async def test_real_binary_is_found_quickly(temporal_binary: Path) -> None:
    """Once it is there, finding it costs one short process."""
    async with asyncio.timeout(10):
        source = await locate_server("", environ={"PATH": str(temporal_binary.parent)}, tell=quiet)
    assert source.binary == temporal_binary
