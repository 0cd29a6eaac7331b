"""Finds, obtains and describes the embedded Temporal server that a stack runs when no other one is configured.

Does I/O: looks at PATH and the cache, downloads through the SDK, builds with Go, opens sockets. It starts no lasting
process itself: `server_command` gives the argument list, the stack's supervisor runs it.

The server has no authentication, so it listens on the loopback address only, always.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import random
import re
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import Unavailable

Tell = Callable[[str], None]

GO_PACKAGE = "github.com/temporalio/cli/cmd/temporal"
GO_MODULE = """\
module gigafactory/temporal

go 1.25

require (
	github.com/temporalio/cli v1.5.1
	modernc.org/sqlite v1.61.1
)
"""
"""What GO_PACKAGE is built from: the newest Temporal CLI that can be built as a dependency (later ones carry a local
`replace`), with a newer SQLite driver than its own (see SOUND_DRIVER)."""

GO_NEEDED = "1.25"
"""What GO_MODULE asks for. A Go >= 1.21 fetches that toolchain itself."""

SOUND_DRIVER = (1, 51, 0)
"""SQLite drivers (modernc.org/sqlite) before it can be left unusable by a cancelled call: from then on the server
answers everything with `interrupted (9)`. A worker that is killed cancels its calls. 1.34.1, which Temporal's CLI 1.5
has, did so within two minutes of 136 cancelled calls a second; 1.61.1 took 20,000 of them. CLI 1.9 brings 1.51.0, which
has what was mended (query results that are closed, interrupts that hit no other query; see its changelog, v1.42.2)."""

LOOPBACK = "127.0.0.1"
RETENTION_DAYS = 30

SEARCH_ATTRIBUTES: Mapping[str, str] = {
    "GfStage": "Keyword",
    "GfProduct": "Keyword",
    "GfRepo": "Keyword",
    "GfFactory": "Keyword",
    "GfPriority": "Int",
}
"""What a person may filter workflows by in Temporal's own Web UI; our own pages never list through it."""

SQLITE_PRAGMAS: Mapping[str, str] = {
    # With the default rollback journal every commit waits for two fsyncs: 8 instead of 16 workflows a second.
    "journal_mode": "wal",
    # Survives the death of any process; only a loss of power may take the last commits.
    "synchronous": "normal",
}

DYNAMIC_CONFIG: Mapping[str, str] = {
    # Default 20: a single shard then dispatches one task each 50 ms (five steps took 550 ms; 82 ms with this).
    "history.transferProcessorMaxPollRPS": "2000",
    "history.transferProcessorMaxPollHostRPS": "20000",
    # The same throttle for timers: retries, heartbeat timeouts, lease timers.
    "history.timerProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxPollHostRPS": "20000",
    # Default 1 s: the granularity of every timer.
    "history.timerProcessorMaxTimeShift": '"50ms"',
    # One process serves all of a queue; four partitions would only forward tasks to each other.
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
}

STALLED_DOWNLOAD_S = 20.0
"""A download of which nothing new arrived for this long has failed: a blocked network hangs, it does not refuse."""

PROBE_TIMEOUT_S = 15.0
"""For `temporal server start-dev --help`, 0.1 s when warm: the first start of a 250 MB binary from a cold disk."""


class TemporalMissing(Unavailable):
    """There is no Temporal server binary, and none of the ways to obtain one worked; `tried` names each."""

    code = "temporal_missing"


class TemporalUnreachable(Unavailable):
    """A Temporal server should answer at `address`, and does not."""

    code = "temporal_unreachable"


@dataclass(frozen=True)
class ServerSource:
    """Where Temporal comes from: `address` of a running server, else the `binary` to start one with."""

    origin: str
    address: str = ""
    binary: Path | None = None
    sound: bool = True
    """False: its SQLite driver can be left unusable by a cancelled call; a steward then starts it anew."""


# --- finding --------------------------------------------------------------------------------------


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Return the directory for what can be obtained again; the same rule as in `gf`."""
    if explicit := environ.get("GIGAFACTORY_CACHE"):
        return Path(explicit).absolute()
    if xdg := environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "gigafactory"
    return Path(environ.get("HOME") or Path.home()) / ".cache" / "gigafactory"


def candidate_binaries(environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    """List the places where a `temporal` may lie already, as (origin, path), best first; only existing files."""
    candidates: list[tuple[str, Path]] = []
    if on_path := shutil.which("temporal", path=environ.get("PATH", "")):
        candidates.append(("PATH", Path(on_path)))
    candidates.append(("cache", _cached_binary(environ)))
    candidates.extend(("Go's bin directory", directory / "temporal") for directory in _go_bin_dirs(environ))
    return [(origin, path) for origin, path in candidates if os.access(path, os.X_OK) and path.is_file()]


async def find_binary(environ: Mapping[str, str]) -> ServerSource | None:
    """Return the first `temporal` on this machine that can run our server, a sound one if any. Fetches nothing."""
    doubtful = None
    for origin, path in candidate_binaries(environ):
        if await can_serve(path):
            source = ServerSource(origin=origin, binary=path, sound=is_sound(path))
            if source.sound:
                return source
            doubtful = doubtful or source
    return doubtful


def is_sound(binary: Path) -> bool:
    """Tell whether `binary` has a SQLite driver from SOUND_DRIVER on; True when it does not say which."""
    version = re.compile(rb"\tmodernc\.org/sqlite\tv(\d+)\.(\d+)\.(\d+)")
    try:
        with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = version.search(content)  # every Go program carries the list of its modules
            return found is None or tuple(int(part) for part in found.groups()) >= SOUND_DRIVER
    except (OSError, ValueError):  # unreadable, or empty
        return True


async def can_serve(binary: Path) -> bool:
    """Tell whether `binary` is a Temporal CLI with a development server that knows the flags we use."""
    try:
        code, output = await _run([str(binary), "server", "start-dev", "--help"], timeout_s=PROBE_TIMEOUT_S)
    except (OSError, TimeoutError):
        return False
    return code == 0 and all(flag in output for flag in ("--db-filename", "--sqlite-pragma", "--search-attribute"))


def _cached_binary(environ: Mapping[str, str]) -> Path:
    return cache_dir(environ) / "temporal" / "bin" / "temporal"


def _go_bin_dirs(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield where `go install` may have put binaries, without starting Go."""
    if gobin := environ.get("GOBIN"):
        yield Path(gobin)
    for gopath in filter(None, environ.get("GOPATH", "").split(os.pathsep)):
        yield Path(gopath) / "bin"
    if home := environ.get("HOME"):
        yield Path(home) / "go" / "bin"


# --- obtaining ------------------------------------------------------------------------------------


async def locate_server(address: str, *, environ: Mapping[str, str], tell: Tell, sound: bool = False) -> ServerSource:
    """Return where Temporal comes from, obtaining the server if it must be.

    Order: configured `address`, `temporal` on PATH, our cache, Go's bin directories, download through the SDK, build
    with Go. `tell` receives one line of progress at a time. With `sound`, for those who kill workers all the time, a
    server whose driver is not sound is taken only when no other one can be had.

    Raises:
        TemporalUnreachable: `address` is configured and nothing answers there.
        TemporalMissing: no binary, and neither download nor build worked.

    """
    if address:
        await check_address(address)
        return ServerSource(origin="configured address", address=address)
    found = await find_binary(environ)
    if found is not None and (found.sound or not sound):
        return found
    try:
        return await obtain_binary(environ=environ, tell=tell, sound=sound)
    except TemporalMissing:
        if found is None:
            raise
        return found


async def obtain_binary(*, environ: Mapping[str, str], tell: Tell, sound: bool = False) -> ServerSource:
    """Download or build the server into the cache. Concurrent callers wait for each other and share the result.

    With `sound` a download whose driver is not sound is replaced by what is built, if that can be.

    Raises:
        TemporalMissing: with what each way failed on, and the next step.

    """
    target = _cached_binary(environ)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TemporalMissing(
            f"no temporal found, and {target.parent} cannot be made: {error.strerror}",
            hint="set GIGAFACTORY_CACHE to a directory that you own",
        ) from error
    async with exclusive(target.parent.parent / ".lock", tell):
        got: ServerSource | None = None
        ways = [("download", _download), ("build with Go", _build)]
        if target.is_file() and await can_serve(target):
            got = ServerSource(origin="cache", binary=target, sound=is_sound(target))
            ways = ways[1:]  # a download would bring the same one
        tried: dict[str, str] = {}
        for origin, obtain in ways:
            if got is not None and (got.sound or not sound):
                break
            failure = await obtain(target, environ, tell)
            if failure:
                tried[origin] = failure
                tell(f"{origin} did not work: {failure}")
            else:
                got = ServerSource(origin=origin, binary=target, sound=is_sound(target))
                tell(f"Temporal server ready ({target.stat().st_size // 1_000_000} MB)")
        if got is not None:
            return got
    raise TemporalMissing(
        "no Temporal server: none on PATH, in the cache or in Go's bin directories; "
        + "; ".join(f"{origin}: {failure}" for origin, failure in tried.items()),
        hint="install the Temporal CLI (macOS: brew install temporal) or Go >= 1.21 and run the same command again, "
        "or set GIGAFACTORY_TEMPORAL_ADDRESS=host:port to use a server that runs already",
        tried=tried,
    )


async def _download(target: Path, environ: Mapping[str, str], tell: Tell) -> str:
    """Let the SDK fetch its own server; return what went wrong, or an empty string."""
    del environ  # the SDK reads proxy settings itself
    tell("downloading the Temporal server through the SDK (once)")
    folder = target.parent.parent / "download"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        failure = await _download_into(folder, tell)
        fetched = [path for path in folder.iterdir() if path.is_file() and os.access(path, os.X_OK)]
        if failure or not fetched:
            return failure or "the SDK left no executable"
        max(fetched, key=lambda path: path.stat().st_size).replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "" if await can_serve(target) else "the downloaded server does not run here"


async def _download_into(folder: Path, tell: Tell) -> str:
    """Start (and stop) a server of the SDK's, which downloads it into `folder`; give up when nothing arrives."""
    from temporalio.testing import WorkflowEnvironment  # noqa: PLC0415 - takes a third of a second, needed once

    start = asyncio.ensure_future(WorkflowEnvironment.start_local(download_dest_dir=str(folder), ip=LOOPBACK))
    size, since = 0, time.monotonic()
    while not start.done():
        await asyncio.wait([start], timeout=1.0)
        now_size = _folder_size(folder)
        if now_size != size:
            size, since = now_size, time.monotonic()
            tell(f"downloading the Temporal server: {size // 1_000_000} MB")
        elif time.monotonic() - since > STALLED_DOWNLOAD_S:
            start.cancel()
            await asyncio.wait([start], timeout=1.0)
            return f"nothing arrived for {STALLED_DOWNLOAD_S:.0f} s; is the internet reachable from here?"
    try:
        environment = start.result()
    except RuntimeError as error:  # what the SDK's bridge raises for every failure of a download or a start
        return str(error).splitlines()[0]
    await environment.shutdown()
    return ""


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def _build(target: Path, environ: Mapping[str, str], tell: Tell) -> str:
    """Build the server with Go; return what went wrong, or an empty string."""
    tell("building the Temporal server with Go (once; 2 to 5 minutes, 3 GB in the caches of Go)")
    folder = target.parent.parent / f"build-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "go.mod").write_text(GO_MODULE, encoding="utf-8")
        command = ("build", "-mod=mod", "-o", "temporal", GO_PACKAGE)
        failure = await go(command, folder, {**environ, "GOWORK": "off"}, tell)
        if failure:
            return failure
        (folder / "temporal").replace(target)
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "" if await can_serve(target) else "the server that was built does not run here"


async def go(arguments: Sequence[str], folder: Path, environ: Mapping[str, str], tell: Tell) -> str:
    """Run a command of Go in `folder`; return what went wrong, or an empty string.

    Raises:
        OSError: Go cannot be started.

    """
    program = shutil.which("go", path=environ.get("PATH", ""))
    if program is None:
        return f"Go is not installed (Go >= 1.21 fetches the {GO_NEEDED} that this needs)"
    code, output = await _run([program, *arguments], cwd=folder, environ=environ, tell=_every_nth(tell, 25))
    return f"`go {' '.join(arguments)}` ended with code {code}: {_last_line(output)}" if code else ""


def _every_nth(tell: Tell, n: int) -> Tell:
    """Return a callback that passes on the first of every `n` lines: Go names each of 300 modules."""
    count = 0

    def tell_some(line: str) -> None:
        nonlocal count
        if count % n == 0:
            tell(line)
        count += 1

    return tell_some


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


@asynccontextmanager
async def exclusive(path: Path, tell: Tell) -> AsyncIterator[None]:
    """Hold the file lock at `path`; the system frees it when a holder dies. No lock on native Windows."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 - absent on Windows

    with path.open("w") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    tell("another process is obtaining the Temporal server; waiting for it")
                told = True
                await asyncio.sleep(0.5)
        yield


async def _run(
    command: list[str],
    *,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    tell: Tell | None = None,
) -> tuple[int, str]:
    """Run `command` to its end; return its exit code and output (stdout and stderr in order).

    Raises:
        OSError: it cannot be started. TimeoutError: it took longer than `timeout_s`; it was killed.

    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(timeout_s):
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                lines.append(line)
                if tell:
                    tell(line)
            code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return code, "\n".join(lines)


# --- starting -------------------------------------------------------------------------------------


UNUSED_BY_CLIENTS: Final = range(20_000, 32_768)
"""Ports below those that Linux (32768), macOS and Windows (49152) give to outgoing connections."""


def free_port(first: int = 0, *, host: str = LOOPBACK, tries: int = 100) -> int:
    """Return a free TCP port: the first one from `first` upwards, or any when `first` is 0 or all `tries` are taken.

    Free means free now; whoever binds it must still be ready to lose the race. Any is one that no system gives to
    outgoing connections, so that only another server can win it.
    """
    for port in range(first, first + tries) if first else random.SystemRandom().sample(UNUSED_BY_CLIENTS, tries):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # As servers do: a port in TIME_WAIT from the last run is free, one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def server_command(
    binary: Path,
    *,
    port: int,
    ui_port: int | None,
    db_file: Path | None,
    namespace: str = "default",
    http_port: int | None = None,
    search_attributes: Mapping[str, str] = SEARCH_ATTRIBUTES,
    dynamic_config: Mapping[str, str] = DYNAMIC_CONFIG,
) -> list[str]:
    """Return the argument list that starts the embedded server, tuned for one small machine.

    `ui_port` None leaves the Web UI out; `db_file` None keeps everything in memory. The namespace's retention is no
    flag (the server starts with 24 hours): `stack_parts.serves_namespace` sets it.
    """
    command = [str(binary), "server", "start-dev", "--ip", LOOPBACK, "--port", str(port), "--log-level", "error"]
    command += ["--headless"] if ui_port is None else ["--ui-port", str(ui_port)]
    if http_port is not None:
        command += ["--http-port", str(http_port)]
    if namespace != "default":  # which is always there
        command += ["--namespace", namespace]
    if db_file is not None:
        command += ["--db-filename", str(db_file)]
        command += _pairs("--sqlite-pragma", SQLITE_PRAGMAS)
    command += _pairs("--dynamic-config-value", dynamic_config)
    command += _pairs("--search-attribute", search_attributes)
    return command


def _pairs(flag: str, values: Mapping[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in (flag, f"{key}={value}")]


async def check_address(address: str, *, timeout_s: float = 5.0) -> None:
    """Make sure that something listens at `address` (host:port).

    Raises:
        TemporalUnreachable: nothing does, or `address` is not of that form.

    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise TemporalUnreachable(
            f"{address!r} is no address of a Temporal server", hint="write it as host:port", address=address
        )
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError) as error:
        raise TemporalUnreachable(
            f"no Temporal server answers at {address}: {str(error) or 'timed out'}",
            hint="start it, correct GIGAFACTORY_TEMPORAL_ADDRESS, or unset that to use the embedded server",
            address=address,
        ) from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
