"""What this machine can do: hardware, tools, engines, and which credentials are present. *Does I/O: runs programs.*

Every program is asked for its version once; the answer is kept beside the factory for as long as the program's file
stays the same, so that a restart is quick. Of credentials only the presence is told, never a value.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from core.settings import Settings
from engines.base import Engine, EngineProbe, read_probe
from engines.registry import catalogue

PROBE_TIMEOUT_S: Final = 15.0
PARALLEL_PROBES: Final = 4
GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class ToolQuestion:
    """How a tool is asked for its version, and what to do when it is broken."""

    name: str
    command: tuple[str, ...]
    repair: str
    version: str = r"(\d+\.\d+(?:\.\d+)?)"
    tag: str = ""
    """Fact that a usable tool gives beside its version, such as `has:docker`."""


TOOLS: Final = (
    ToolQuestion("git", ("git", "--version"), "install git 2.38 or newer", tag="has:git"),
    ToolQuestion("python", ("python3", "--version"), "install Python 3"),
    ToolQuestion("node", ("node", "--version"), "install Node.js"),
    ToolQuestion("npm", ("npm", "--version"), "install npm"),
    ToolQuestion("pnpm", ("pnpm", "--version"), "run `npm install -g pnpm`"),
    ToolQuestion("go", ("go", "version"), "install Go"),
    ToolQuestion("java", ("java", "-version"), "install a JDK"),
    ToolQuestion("rust", ("cargo", "--version"), "install Rust with rustup"),
    ToolQuestion("make", ("make", "--version"), "install make"),
    ToolQuestion("gcc", ("gcc", "-dumpfullversion"), "install gcc"),
    ToolQuestion(
        "docker",
        ("docker", "version", "--format", "{{.Server.Version}}"),
        "start the Docker daemon, or let this user reach it",
        tag="has:docker",
    ),
    ToolQuestion("xcode", ("xcodebuild", "-version"), "run `xcode-select --install`", tag="has:xcode"),
    ToolQuestion(
        "gpu",
        ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "install the GPU's driver",
        tag="gpu",
    ),
)

CREDENTIALS: Final[Mapping[str, tuple[str, ...]]] = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
    "openai": ("OPENAI_API_KEY", "CODEX_API_KEY"),
    "github": ("GITHUB_TOKEN", "GH_TOKEN"),
    "google": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "ssh-agent": ("SSH_AUTH_SOCK",),
}
"""Variables whose presence (not whose value) a factory advertises."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program of this machine; a broken one says how it is mended."""

    name: str
    version: str
    usable: bool
    repair: str = ""


@dataclass(frozen=True, slots=True)
class MachineReport:
    """Everything that a factory says of its machine when it registers."""

    os: str
    arch: str
    cores: int
    mem_gb: int
    free_disk_gb: int
    tools: tuple[Tool, ...]
    engines: tuple[EngineProbe, ...]
    credentials: tuple[str, ...]
    capabilities: tuple[str, ...]
    """Facts as `core.capability` reads them."""


async def probe_machine(settings: Settings, environ: Mapping[str, str], *, cache_file: Path) -> MachineReport:
    """Ask the machine everything; programs that did not change since the last time are not run again.

    A program that hangs or crashes is reported as broken; nothing here raises because of one.
    """
    asked = _Asked(environ, cache_file)
    engines = catalogue(settings.engines_dir or settings.home / "engines")
    tools, probes = await asyncio.gather(
        asyncio.gather(*(_ask_tool(question, asked) for question in TOOLS)),
        asyncio.gather(*(_ask_engine(engine, asked) for engine in engines.values())),
    )
    asked.keep()
    found = tuple(tool for tool in tools if tool is not None)
    system, arch = platform.system().lower(), platform.machine().lower()
    system = {"darwin": "macos"}.get(system, system)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mem_gb, disk_gb = psutil.virtual_memory().total // GIB, free_disk_gb(settings.home)
    credentials = tuple(name for name, variables in CREDENTIALS.items() if any(environ.get(v) for v in variables))
    facts = [f"os:{system}", f"arch:{arch}", f"cores={cores}", f"mem_gb={mem_gb}", f"disk_gb={disk_gb}"]
    facts += [fact for tool in found if tool.usable for fact in _facts_of(tool)]
    facts += [f"credential:{name}" for name in credentials]
    return MachineReport(
        os=system,
        arch=arch,
        cores=cores,
        mem_gb=mem_gb,
        free_disk_gb=disk_gb,
        tools=found,
        engines=tuple(probes),
        credentials=credentials,
        capabilities=tuple(facts),
    )


def free_disk_gb(path: Path) -> int:
    """Return the free space, in GiB, of the file system that `path` is or will be on."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free // GIB


def _facts_of(tool: Tool) -> list[str]:
    question = next(question for question in TOOLS if question.name == tool.name)
    version = [f"{tool.name}={tool.version}"] if tool.version and tool.name != "gpu" else []
    return [*version, *([question.tag] if question.tag else [])]


async def _ask_tool(question: ToolQuestion, asked: _Asked) -> Tool | None:
    """Return the tool's report; None when it is not installed at all."""
    code, output = await asked.ask(question.command)
    if code is None:
        return None
    match = re.search(question.version, output)
    if code != 0 or match is None:
        return Tool(question.name, "", usable=False, repair=question.repair)
    return Tool(question.name, match.group(1), usable=True)


async def _ask_engine(engine: Engine, asked: _Asked) -> EngineProbe:
    code, output = await asked.ask(tuple(engine.probe_command()))
    return read_probe(engine, code, output)


class _Asked:
    """Runs version commands, and remembers answers by the program's file: path, size, time of change."""

    def __init__(self, environ: Mapping[str, str], cache_file: Path) -> None:
        self._path = environ.get("PATH", os.defpath)
        self._home = environ.get("HOME", "/")
        self._cache_file = cache_file
        self._known: dict[str, Any] = {}
        self._answers: dict[str, tuple[int | None, str]] = {}
        self._slots = asyncio.Semaphore(PARALLEL_PROBES)
        with contextlib.suppress(OSError, ValueError):
            self._known = dict(json.loads(cache_file.read_text(encoding="utf-8")))

    async def ask(self, command: Sequence[str]) -> tuple[int | None, str]:
        """Return exit code and output of `command`; code None when the program is not there."""
        program = shutil.which(command[0], path=self._path)
        if program is None:
            return None, ""
        stat = os.stat(program)  # noqa: PTH116 - follows links, and is one quick call
        key = json.dumps([program, stat.st_size, stat.st_mtime_ns, *command[1:]])
        remembered = self._known.get(key)
        if isinstance(remembered, list) and remembered[0] == 0:
            code, output = 0, str(remembered[1])
        else:
            async with self._slots:
                code, output = await self._run([program, *command[1:]])
        self._answers[key] = (code, output)
        return code, output

    async def _run(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a version command in a bare environment; one that hangs counts as failed."""
        environment = {"PATH": self._path, "HOME": self._home, "LC_ALL": "C"}
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return 126, str(error)
        try:
            output, _ = await asyncio.wait_for(process.communicate(), PROBE_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            return 124, f"no answer within {PROBE_TIMEOUT_S:.0f} s"
        return process.returncode or 0, output.decode(errors="replace")[:4000]

    def keep(self) -> None:
        """Write what was learnt for the next start."""
        self._cache_file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._cache_file.with_suffix(".tmp")
        draft.write_text(json.dumps({key: list(answer) for key, answer in self._answers.items()}), encoding="utf-8")
        draft.replace(self._cache_file)


def report_document(report: MachineReport) -> dict[str, Any]:
    """Return the report as JSON data."""
    return asdict(report)
