"""A warm process that the parts of a stack are forked from. Does I/O: processes, a socket.

Most of what starting a part costs is importing, and the parts import the same. The steward starts this process once
(`python -P -m workers.fork_server FD MODULE…`); it imports all the modules, then forks one child for each request on
its socket, which goes on as `python -P -m MODULE` would have: the module runs as `__main__`, in a session of its own,
with its own environment, directory and log. A part costs a third so, also when it is started again, and shares the
memory of what was imported.

Linux only: elsewhere libraries forbid a fork without exec, and there is no pidfd. Where there is no fork server, or it
is gone, parts are started afresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

MESSAGE_LIMIT: Final = 1 << 16
MAX_DESCRIPTORS: Final = 2
SPAWN_LIMIT_S: Final = 30.0
"""For a fork, and before the first one for all imports. Slower than that, it is taken to be stuck."""
END_LIMIT_S: Final = 2.0


@dataclass(frozen=True)
class Request:
    """One part to fork; its log comes as a descriptor beside it, and then the pipe on which it announces itself."""

    module: str
    arguments: Sequence[str]
    title: str
    """What `ps` shows."""
    environ: Mapping[str, str | None]
    """Changes to the fork server's own environment; None removes a variable."""
    cwd: str
    ready_variable: str
    """Environment variable that gets the number of the second descriptor, if there is one."""


class ForkServerGone(Exception):
    """The fork server does not serve any more."""


# --- the steward's end -----------------------------------------------------------------------------------------------


class ForkedProcess:
    """A child of the fork server as the steward sees it; what it uses of `asyncio.subprocess.Process`."""

    stdin = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._exit: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it came and went; how it ended is still to be told
            self._pidfd = -1

    async def wait(self) -> int | None:
        """Wait for its end; return the code as `subprocess` gives it, None when nobody can tell any more."""
        return await asyncio.shield(self._exit)

    def send_signal(self, number: int) -> None:
        """Send a signal to it, and to no later process with its pid.

        Raises:
            ProcessLookupError: it is gone.

        """
        if self._pidfd < 0:
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self._pidfd, number)

    def ended(self, code: int | None) -> None:
        """Take note of its end."""
        if not self._exit.done():
            self._exit.set_result(code)
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def orphaned(self) -> None:
        """Watch it ourselves: its parent is gone."""
        if self._pidfd < 0:
            self.ended(None)
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self.ended, None)


class ForkServer:
    """The fork server of one stack; made by `start_fork_server`."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self.pid = process.pid
        self._process = process
        self._channel = channel
        self._asked: deque[asyncio.Future[ForkedProcess]] = deque()
        self._children: dict[int, ForkedProcess] = {}
        self._gone = False
        asyncio.get_running_loop().add_reader(channel, self._hear)

    async def spawn(self, request: Request, descriptors: Sequence[int]) -> ForkedProcess:
        """Fork a part.

        Raises:
            ForkServerGone: it did not fork, and never will again.

        """
        if self._gone:
            raise ForkServerGone
        answer: asyncio.Future[ForkedProcess] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        try:
            socket.send_fds(self._channel, [json.dumps(asdict(request)).encode()], list(descriptors))
            async with asyncio.timeout(SPAWN_LIMIT_S):
                return await answer
        except (OSError, TimeoutError) as error:
            self._give_up()
            raise ForkServerGone from error

    async def close(self) -> None:
        """End it; its children live on."""
        self._give_up()
        await self._process.wait()

    def _hear(self) -> None:
        try:
            message = self._channel.recv(MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._give_up()
            return
        told = json.loads(message)
        if "code" in told:
            self._children.pop(told["pid"]).ended(told["code"])
            return
        child = self._children[told["pid"]] = ForkedProcess(told["pid"])
        answer = self._asked.popleft()
        if answer.done():  # whoever asked is gone
            child.send_signal(signal.SIGKILL)
        else:
            answer.set_result(child)

    def _give_up(self) -> None:
        if self._gone:
            return
        self._gone = True
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(ForkServerGone())
        for child in self._children.values():
            child.orphaned()


async def start_fork_server(
    modules: Sequence[str], *, environ: Mapping[str, str], cwd: Path, output: int
) -> ForkServer | None:
    """Start a fork server that imports `modules`, writing to the descriptor `output`; None where there can be none."""
    if not (sys.platform == "linux" and hasattr(os, "pidfd_open")):
        return None
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "workers.fork_server", str(its.fileno()), *modules),
            env=environ,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[its.fileno()],
        )
    ours.setblocking(False)
    return ForkServer(process, ours)


# --- the process -----------------------------------------------------------------------------------------------------


def serve(channel: socket.socket, modules: Sequence[str]) -> Request | None:
    """Fork children until the channel closes, and return None; in each child, return what it is to become."""
    _load(modules)
    heard, woken = os.pipe()  # the second end is written to when a child has ended
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([channel.fileno(), heard], [], [])
        if heard in ready:
            os.read(heard, MESSAGE_LIMIT)
            _reap(channel)
        if channel.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_LIMIT, MAX_DESCRIPTORS)
        if not message:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (heard, woken):
                os.close(descriptor)
            channel.close()
            request = Request(**json.loads(message))
            _settle(request, descriptors)
            return request
        channel.send(json.dumps({"pid": pid}).encode())
        for descriptor in descriptors:
            os.close(descriptor)


def _load(modules: Sequence[str]) -> None:
    """Import what the parts are made of. A module that cannot be imported says so in its own part's log."""
    for name in modules:
        with contextlib.suppress(Exception):
            found = importlib.import_module(name)
            main = f"{name}.__main__" if hasattr(found, "__path__") else name
            importlib.import_module(main)
            del sys.modules[main]  # it is the main module of its own process, and run there
    os.environ["SPT_NOENV"] = "1"  # leave what /proc shows of the environment alone: it tells whose process this is
    importlib.import_module("setproctitle")  # finds the place of the title while it still is as the system left it
    del os.environ["SPT_NOENV"]
    gc.collect()
    gc.freeze()  # a collection in a child would copy the pages that it shares with us


def _reap(channel: socket.socket) -> None:
    """Tell how each child ended that has."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        channel.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _settle(request: Request, descriptors: Sequence[int]) -> None:
    """Give a new child its session, streams, environment, directory and name."""
    import setproctitle  # noqa: PLC0415 - loaded already

    os.setsid()
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[0], 2)
    os.close(descriptors[0])
    environ = dict(request.environ)
    if len(descriptors) > 1:
        environ[request.ready_variable] = str(descriptors[1])
    for key, value in environ.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
    os.chdir(request.cwd)
    sys.argv = [request.module, *request.arguments]
    setproctitle.setproctitle(request.title)


if __name__ == "__main__":
    become = serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    if become is not None:
        runpy.run_module(become.module, run_name="__main__", alter_sys=True)
