"""Parts that are forked from a warm process are what they would be if they had been started afresh."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.waiting import until
from workers.fork_server import ForkedProcess, ForkServer, ForkServerGone, Request, start_fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is a fork server on Linux only")

ROOT = Path(__file__).resolve().parents[2]

HEAVY = """
import os
loaded_by = os.getpid()
"""
PART = """
import heavy, json, os, signal, sys

READY = os.environ.pop("READY", "")

if __name__ == "__main__":
    print(json.dumps({
        "loaded_by": heavy.loaded_by, "pid": os.getpid(), "session": os.getsid(0), "arguments": sys.argv[1:],
        "cwd": os.getcwd(), "given": os.environ.get("GIVEN"), "taken": os.environ.get("TAKEN"),
        "stdin": sys.stdin.read(), "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
        "signals": [signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, signal.set_wakeup_fd(-1)],
    }), flush=True)
    if READY:
        os.write(int(READY), b"ready")
    if sys.argv[1:] == ["stay"]:
        signal.pause()
    sys.exit(int(sys.argv[1]))
"""


class Shop:
    """A fork server with a module to fork, and a place for logs."""

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.folder = folder
        self.server = server

    async def spawn(self, *arguments: str, module: str = "part", ready: int | None = None) -> ForkedProcess:
        """Fork the module."""
        request = Request(
            module=module,
            arguments=arguments,
            title=f"python -P -m {module}",
            environ={"GIVEN": "a word", "TAKEN": None},
            cwd=str(self.folder),
            ready_variable="READY",
        )
        with (self.folder / "log").open("w") as log:
            return await self.server.spawn(request, [log.fileno()] if ready is None else [log.fileno(), ready])

    @property
    def log(self) -> str:
        """What the child that was forked last wrote."""
        return (self.folder / "log").read_text()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Shop]:
    """Run a fork server until the block ends."""
    (folder / "heavy.py").write_text(HEAVY)
    (folder / "part.py").write_text(PART)
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "TAKEN": "away", "GIGAFACTORY_STACK": str(folder)}
    with (folder / "server.log").open("w") as log:
        server = await start_fork_server(["part", "broken"], environ=environ, cwd=folder, output=log.fileno())
    assert server is not None
    try:
        yield Shop(folder, server)
    finally:
        await server.close()
        assert (folder / "server.log").read_text() == ""


async def test_child_is_what_python_m_would_have_been(tmp_path: Path) -> None:
    """Main module, arguments, environment, directory, session and streams are its own; what is imported is shared."""
    async with opened(tmp_path) as shop:
        reader, writer = os.pipe()
        child = await shop.spawn("stay", ready=writer)
        os.close(writer)
        assert await asyncio.to_thread(os.read, reader, 64) == b"ready"
        os.close(reader)
        told = json.loads(shop.log)
        assert told["loaded_by"] == shop.server.pid
        assert told["pid"] == told["session"] == child.pid
        assert (told["arguments"], told["cwd"]) == (["stay"], str(tmp_path))
        assert (told["given"], told["taken"], told["stdin"]) == ("a word", None, "")
        assert told["signals"] == [True, -1]
        assert len(told["descriptors"]) == 4  # the three streams and the pipe
        shown = Path(f"/proc/{child.pid}")
        assert (shown / "cmdline").read_bytes().rstrip(b"\0") == b"python -P -m part"
        assert f"GIGAFACTORY_STACK={tmp_path}".encode() in (shown / "environ").read_bytes().split(b"\0")
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == -signal.SIGTERM


async def test_end_of_each_child_is_told(tmp_path: Path) -> None:
    """With its exit code, whichever ends first, and no zombie stays."""
    async with opened(tmp_path) as shop:
        lasting = await shop.spawn("stay")
        assert [await (await shop.spawn(str(code))).wait() for code in (0, 7)] == [0, 7]
        lasting.send_signal(signal.SIGKILL)
        assert await lasting.wait() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            lasting.send_signal(signal.SIGKILL)
        assert not Path(f"/proc/{lasting.pid}").exists()


async def test_module_that_cannot_be_imported_says_so_in_the_log_of_its_part(tmp_path: Path) -> None:
    """As it would if it had been started afresh; the others are not in trouble."""
    (tmp_path / "broken.py").write_text("import no_such_thing")
    async with opened(tmp_path) as shop:
        assert await (await shop.spawn(module="broken")).wait() == 1
        assert "No module named 'no_such_thing'" in shop.log
        assert await (await shop.spawn("0")).wait() == 0


async def test_children_outlive_a_killed_fork_server(tmp_path: Path) -> None:
    """It forks no more; the end of a child is still noticed, and only how it ended is not."""
    async with opened(tmp_path) as shop:
        child = await shop.spawn("stay")
        await until(lambda: shop.log)
        os.kill(shop.server.pid, signal.SIGKILL)
        waiting = asyncio.create_task(child.wait())
        with pytest.raises(ForkServerGone):
            await shop.spawn("0")
        assert not waiting.done()
        child.send_signal(signal.SIGTERM)
        assert await waiting is None


async def test_closed_fork_server_leaves_its_children_alone(tmp_path: Path) -> None:
    """They are ended as parts, by their keeper."""
    async with opened(tmp_path) as shop:
        child = await shop.spawn("stay")
        await shop.server.close()
        assert Path(f"/proc/{child.pid}").exists()
        child.send_signal(signal.SIGKILL)
        assert await child.wait() is None
