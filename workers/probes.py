"""What this machine has: system, tools, engines, names of credentials. Does I/O: runs each tool's version command.

A tool that is there but does not work is reported as unusable together with what would mend it. Answers are kept on
disk by the program's path, size and time of change, so that an agent that comes back need not ask again.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from engines.base import Engine, EngineProbe, read_probe

PROBE_TIMEOUT_S: Final = 10.0
AT_ONCE: Final = 6
OUTPUT_LIMIT: Final = 4000
GIB: Final = 1024**3
_VERSION: Final = re.compile(r"\d+(?:\.\d+)+[A-Za-z0-9.+-]*|\d+")


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that jobs may ask for, and how to ask it for its version."""

    name: str
    command: tuple[str, ...]
    repair: str = ""
    lasting: bool = True
    """The answer depends on the program alone; otherwise (a daemon behind it) it is asked at each start."""


TOOLS: Final = (
    Tool("node", ("node", "--version"), "reinstall Node.js (https://nodejs.org)"),
    Tool("npm", ("npm", "--version"), "reinstall Node.js, which brings npm"),
    Tool("pnpm", ("pnpm", "--version"), "corepack enable pnpm"),
    Tool("yarn", ("yarn", "--version"), "corepack enable yarn"),
    Tool("bun", ("bun", "--version"), "bun upgrade"),
    Tool("python", ("python3", "--version"), "reinstall Python 3"),
    Tool("uv", ("uv", "--version"), "uv self update"),
    Tool("git", ("git", "--version"), "reinstall git"),
    Tool("git-lfs", ("git-lfs", "--version"), "git lfs install"),
    Tool("gh", ("gh", "--version"), "reinstall the GitHub CLI"),
    Tool(
        "docker",
        ("docker", "version", "--format", "{{.Server.Version}}"),
        "start the Docker daemon, and let this user reach it",
        lasting=False,
    ),
    Tool("go", ("go", "version"), "reinstall Go"),
    Tool("java", ("java", "-version"), "install a JDK"),
    Tool("rust", ("rustc", "--version"), "rustup update"),
    Tool("ruby", ("ruby", "--version"), "reinstall Ruby"),
    Tool("php", ("php", "--version"), "reinstall PHP"),
    Tool("dotnet", ("dotnet", "--version"), "reinstall the .NET SDK"),
    Tool("gcc", ("gcc", "-dumpfullversion"), "reinstall the compiler"),
    Tool("make", ("make", "--version"), "reinstall make"),
    Tool("xcode", ("xcodebuild", "-version"), "xcode-select --install, then open Xcode once"),
    Tool("gpu", ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"), "reinstall the GPU's driver"),
)

CREDENTIALS: Final[Mapping[str, tuple[str, ...]]] = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
    "openai": ("OPENAI_API_KEY", "CODEX_API_KEY"),
    "github": ("GITHUB_TOKEN", "GH_TOKEN"),
    "google": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "ssh-agent": ("SSH_AUTH_SOCK",),
}
"""Variables whose presence, and nothing else of them, is told."""


@dataclass(frozen=True, slots=True)
class ToolState:
    """Whether a tool can be used here."""

    name: str
    version: str
    usable: bool
    repair: str = ""


@dataclass(frozen=True, slots=True)
class MachineReport:
    """Everything that a factory says about its machine."""

    os: str
    arch: str
    cores: int
    mem_gb: float
    free_disk_gb: float
    tools: tuple[ToolState, ...]
    engines: tuple[EngineProbe, ...]
    credentials: tuple[str, ...]
    """Providers that a credential is present for; never the credential."""

    def facts(self) -> tuple[str, ...]:
        """Return what the router compares with a job's capabilities."""
        system = [f"os:{self.os}", f"arch:{self.arch}", f"cores={self.cores}", f"mem_gb={self.mem_gb:g}"]
        system.append(f"disk_gb={self.free_disk_gb:g}")
        usable = [tool for tool in self.tools if tool.usable]
        engines = [engine for engine in self.engines if engine.usable]
        versions = [f"{one.name}={one.version}" for one in usable if one.version]
        versions += [f"{one.engine}={one.version}" for one in engines if one.version]
        present = [f"has:{one.name}" for one in usable] + [f"has:{one.engine}" for one in engines]
        bare = ["gpu"] if any(tool.name == "gpu" for tool in usable) else []
        return (*system, *versions, *present, *bare, *(f"credential:{name}" for name in self.credentials))


class Prober:
    """Asks programs for their versions; `cache` is where answers are kept."""

    def __init__(self, environ: Mapping[str, str], cache: Path) -> None:
        self._environ = {"LC_ALL": "C"} | {name: environ[name] for name in ("PATH", "HOME") if name in environ}
        self._credentials = tuple(name for name, keys in CREDENTIALS.items() if any(environ.get(key) for key in keys))
        self._cache_path = cache
        self._known = _read_cache(cache)
        self._used: dict[str, Any] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def report(self, engines: Sequence[Engine], disk: Path) -> MachineReport:
        """Probe everything at once."""
        tools, probes = await asyncio.gather(
            asyncio.gather(*(self.tool(tool) for tool in TOOLS)),
            asyncio.gather(*(self.engine(engine) for engine in engines)),
        )
        _write_cache(self._cache_path, self._used)
        return MachineReport(
            os={"darwin": "macos"}.get(platform.system().lower(), platform.system().lower()),
            arch=platform.machine(),
            cores=cores(),
            mem_gb=round(psutil.virtual_memory().total / GIB, 1),
            free_disk_gb=free_disk_gb(disk),
            tools=tuple(tool for tool in tools if tool is not None),
            engines=tuple(probes),
            credentials=self._credentials,
        )

    async def tool(self, tool: Tool) -> ToolState | None:
        """Probe one tool; None when it is not there."""
        if shutil.which(tool.command[0], path=self._environ.get("PATH")) is None:
            return None
        code, output = await self._ask(tool.command, lasting=tool.lasting)
        if code != 0:
            return ToolState(tool.name, "", usable=False, repair=tool.repair)
        found = _VERSION.search(output)
        return ToolState(tool.name, found.group(0) if found else "", usable=True)

    async def engine(self, engine: Engine) -> EngineProbe:
        """Probe one engine."""
        return read_probe(engine, *await self._ask(engine.probe_command(), lasting=True))

    async def _ask(self, command: Sequence[str], *, lasting: bool) -> tuple[int | None, str]:
        """Return exit code (None: could not be started) and output of a command, from the cache when it may."""
        program = shutil.which(command[0], path=self._environ.get("PATH"))
        if program is None:
            return None, ""
        key = f"{' '.join(command)}|{_fingerprint(program)}"
        if lasting and key in self._known:
            code, output = self._used[key] = self._known[key]
            return code, output
        async with self._slots:
            answer = await self._run(program, command[1:])
        if lasting and answer[0] == 0:
            self._used[key] = answer
        return answer

    async def _run(self, program: str, arguments: Sequence[str]) -> tuple[int | None, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return None, str(error)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            return 124, f"no answer within {PROBE_TIMEOUT_S:.0f} s"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return process.returncode, output.decode(errors="replace")[:OUTPUT_LIMIT]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disk_gb(path: Path) -> float:
    """Return the free space of the file system that `path` lies on."""
    return round(shutil.disk_usage(path).free / GIB, 1)


def free_memory_gb() -> float:
    """Return the memory that programs can have without swapping."""
    return round(psutil.virtual_memory().available / GIB, 1)


def load_per_core() -> float:
    """Return the load average of the last minute, per core."""
    return round(psutil.getloadavg()[0] / cores(), 2)


def describe_tools(report: MachineReport) -> list[dict[str, Any]]:
    """Return the tools as JSON."""
    return [asdict(tool) for tool in report.tools]


def _fingerprint(program: str) -> str:
    path = Path(program).resolve()
    stat = path.stat()
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write_cache(path: Path, known: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(known), encoding="utf-8")
    draft.replace(path)
