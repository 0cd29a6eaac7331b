"""`gf doctor`: looks at everything a stack needs on this machine, and says how to mend what is missing.

Does I/O: files, short processes, sockets. It changes nothing and starts no stack.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import psutil

from cli import output
from cli.exit_codes import ExitCode
from cli.home import home_dir
from core.errors import GigafactoryError, InvalidInput
from core.field_problems import render_problem
from core.settings import Settings
from core.version import VERSION
from store.settings_source import FILE_NAME, read_settings
from store.token_files import person_token_file
from workers import home_check
from workers.stack_home import LOOPBACK, port_is_free
from workers.stack_state import StackState, read_state
from workers.stack_stop import strays_of

Verdict = Literal["ok", "warn", "fail"]

PYTHON_NEEDED: Final = (3, 11)
GIT_NEEDED: Final = (2, 38)
"""The first with `merge-tree --write-tree`, which tells whether a merge would conflict without a work tree."""

SQLITE_NEEDED: Final = (3, 35)
"""The first with RETURNING."""

DISK_FAIL_BYTES: Final = 1_000_000_000
DISK_WARN_BYTES: Final = 5_000_000_000
MEMORY_WARN_BYTES: Final = 1_000_000_000
SHM_WARN_BYTES: Final = 64_000_000
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - nothing is put there
INODES_WARN: Final = 50_000
FILES_WARN: Final = 1024
EARLIEST_S: Final = 1_750_000_000
"""A clock before this (June 2025) is wrong: this version did not exist then."""

FUTURE_WARN_S: Final = 60.0
NETWORK_FILE_SYSTEMS: Final = ("nfs", "cifs", "smb", "fuse.sshfs", "afs", "9p", "ceph", "lustre")
TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: the verdict, what was seen, and how to mend it."""

    name: str
    status: Verdict
    seen: str
    mend: str = ""


@dataclass(frozen=True)
class Patient:
    """What the checks look at."""

    home: Path
    settings: Settings
    state: StackState | None

    @property
    def stack_runs(self) -> bool:
        """Whether a steward of this home is alive."""
        return self.state is not None and self.state.alive


Check = Callable[[Patient], Iterator[Finding]]


def doctor(*, as_json: bool, home: Path | None = None) -> int:
    """Show every finding; the exit code is 0 only if nothing failed."""
    findings = examine((home or home_dir()).expanduser().resolve())
    failed = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        rows = [asdict(finding) for finding in findings]
        output.document({"ok": not failed, "version": VERSION, "checks": rows})
    else:
        for finding in findings:
            output.say(f"{finding.status:<5} {finding.name:<13} {finding.seen}")
            if finding.mend and finding.status != "ok":
                output.say(f"{'':<19} → {finding.mend}")
        output.say(_summary(findings))
    return ExitCode.UNEXPECTED if failed else ExitCode.DONE


def examine(home: Path) -> list[Finding]:
    """Run every check on the machine, with the stack in `home` in mind."""
    try:
        settings = read_settings(home)
        findings = [Finding("settings", "ok", f"{FILE_NAME} and the environment are understood")]
    except InvalidInput as error:
        settings = Settings(home=home)
        wrong = "; ".join(f"{problem.path}: {problem.message}" for problem in error.problems) or error.message
        mend = f"correct {home / FILE_NAME} or the GIGAFACTORY_… variable; docs/reference/settings.md lists all"
        findings = [Finding("settings", "fail", wrong, mend)]
    patient = Patient(home, settings, read_state(home))
    return findings + [finding for check in CHECKS for finding in check(patient)]


def _summary(findings: list[Finding]) -> str:
    counts = {status: sum(finding.status == status for finding in findings) for status in ("fail", "warn")}
    if not any(counts.values()):
        return "everything is in order"
    return f"{counts['fail']} failed, {counts['warn']} warning{'s' * (counts['warn'] != 1)}"


# --- programs --------------------------------------------------------------------------------------------------------


def check_python(_patient: Patient) -> Iterator[Finding]:
    """The interpreter is new enough."""
    seen = f"{platform.python_version()} at {sys.executable}"
    good = sys.version_info >= PYTHON_NEEDED
    mend = "install Python 3.11 or newer, or point GIGAFACTORY_PYTHON at one"
    yield Finding("python", "ok" if good else "fail", seen, mend)


def check_git(_patient: Patient) -> Iterator[Finding]:
    """Git is there and knows what shipping needs."""
    mend = "install git 2.38 or newer"
    path = shutil.which("git")
    if path is None:
        yield Finding("git", "fail", "not on PATH", mend)
        return
    shown = run_quietly(["git", "--version"])
    number = re.search(r"(\d+)\.(\d+)[\d.]*", shown)
    good = number is not None and (int(number[1]), int(number[2])) >= GIT_NEEDED
    yield Finding("git", "ok" if good else "fail", f"{number[0] if number else shown} at {path}", mend)


def check_sqlite(_patient: Patient) -> Iterator[Finding]:
    """The SQLite of this Python can hold the ledger."""
    good = sqlite3.sqlite_version_info >= SQLITE_NEEDED
    mend = "use a Python with SQLite 3.35 or newer, or set database_url to a PostgreSQL"
    yield Finding("sqlite", "ok" if good else "fail", sqlite3.sqlite_version, mend)


def check_temporal(patient: Patient) -> Iterator[Finding]:
    """A Temporal server answers, or can be started."""
    from workers.temporal_server import TemporalUnreachable, check_address, find_binary  # noqa: PLC0415 - only this check

    address = patient.settings.temporal_address
    if address:
        try:
            asyncio.run(check_address(address, timeout_s=TIMEOUT_S))
            yield Finding("temporal", "ok", f"a server answers at {address}")
        except TemporalUnreachable as error:
            yield Finding("temporal", "fail", error.message, error.hint)
        return
    source = asyncio.run(find_binary(os.environ))
    if source is not None and source.sound:
        yield Finding("temporal", "ok", f"{source.binary} ({source.origin})")
        return
    if source is not None:
        problem = "a killed worker may leave its SQLite driver unusable; the stack then starts it anew within a minute"
        mend = "install Temporal's CLI 1.9 or newer, or run `gf test` once: it builds one with Go"
        yield Finding("temporal", "warn", f"{source.binary} ({source.origin}): {problem}", mend)
        return
    mend = "`gf up` downloads it (50 MB) or builds it with Go (3 minutes); or install the Temporal CLI yourself"
    yield Finding("temporal", "warn", "no server on PATH, in the cache or in Go's bin directories", mend)


# --- the machine -----------------------------------------------------------------------------------------------------


def check_disk(patient: Patient) -> Iterator[Finding]:
    """There is room for mirrors, work trees and logs."""
    place = nearest_existing(patient.home)
    free = shutil.disk_usage(place).free
    status: Verdict = "fail" if free < DISK_FAIL_BYTES else "warn" if free < DISK_WARN_BYTES else "ok"
    yield Finding("disk", status, f"{free / 1e9:.1f} GB free at {place}", "free some room, or move GIGAFACTORY_HOME")
    system = os.statvfs(place)
    if system.f_files and system.f_favail < INODES_WARN:
        yield Finding("disk", "warn", f"{system.f_favail} inodes free at {place}", "remove directories of many files")


def check_memory(_patient: Patient) -> Iterator[Finding]:
    """There is memory for the stack (about 0.6 GB) and for engines."""
    free = psutil.virtual_memory().available
    status: Verdict = "warn" if free < MEMORY_WARN_BYTES else "ok"
    yield Finding("memory", status, f"{free / 1e9:.1f} GB available", "end other programs, or lower seats_per_factory")


def check_shared_memory(_patient: Patient) -> Iterator[Finding]:
    """`/dev/shm` is there and usable: browsers and test suites that engines run need it."""
    if not sys.platform.startswith("linux"):
        return
    mend = "mount a tmpfs there (containers: --shm-size=256m)"
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield Finding("shared memory", "warn", f"{SHARED_MEMORY} is missing or not writable", mend)
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    status: Verdict = "warn" if free < SHM_WARN_BYTES else "ok"
    yield Finding("shared memory", status, f"{free / 1e6:.0f} MB free in {SHARED_MEMORY}", mend)


def check_limits(_patient: Patient) -> Iterator[Finding]:
    """Processes may open enough files."""
    import resource  # noqa: PLC0415 - absent on Windows

    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    good = soft == resource.RLIM_INFINITY or soft >= FILES_WARN
    yield Finding("open files", "ok" if good else "warn", f"limit {soft}", "raise it: ulimit -n 4096")


def check_clock(patient: Patient) -> Iterator[Finding]:
    """The clock is plausible, and did not go back behind what the home already saw."""
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    mend = "set the clock (timedatectl set-ntp true)"
    newest = max((path.stat().st_mtime for path in _clock_witnesses(patient.home)), default=0.0)
    if now < EARLIEST_S:
        yield Finding("clock", "fail", f"{shown} is in the past", mend)
    elif newest > now + FUTURE_WARN_S:
        yield Finding("clock", "warn", f"{shown}, but the home has files from {newest - now:.0f} s later", mend)
    else:
        yield Finding("clock", "ok", shown)


def _clock_witnesses(home: Path) -> list[Path]:
    return [path for path in (*home.glob("*.db*"), *home.glob("logs/*.log"), home / "run") if path.exists()]


def check_ports(patient: Patient) -> Iterator[Finding]:
    """The usual ports are free; others are taken when they are not."""
    if patient.stack_runs and patient.state is not None:
        used = ", ".join(f"{name} {port}" for name, port in patient.state.ports.items())
        yield Finding("ports", "ok", f"this stack uses {used}")
        return
    settings = patient.settings
    wanted = {"api": (settings.api_port, settings.api_host)}
    if not settings.temporal_address:
        wanted |= {"temporal": (settings.temporal_port, LOOPBACK), "temporal_ui": (settings.temporal_ui_port, LOOPBACK)}
    taken = [f"{name} {port}" for name, (port, host) in wanted.items() if not port_is_free(port, host)]
    if taken:
        mend = "nothing to do: `gf up` takes the next free ones and `gf status` shows them"
        yield Finding("ports", "warn", f"in use by another program: {', '.join(taken)}", mend)
    else:
        yield Finding("ports", "ok", ", ".join(f"{name} {port}" for name, (port, _) in wanted.items()) + " are free")


# --- the home --------------------------------------------------------------------------------------------------------


def check_home(patient: Patient) -> Iterator[Finding]:
    """The home can be written by its owner, and by nobody else."""
    home = patient.home
    if not home.exists():
        place = nearest_existing(home)
        good = os.access(place, os.W_OK)
        mend = "set GIGAFACTORY_HOME to a directory of yours"
        yield Finding("home", "ok" if good else "fail", f"{home} will be made by `gf up`", mend)
        return
    yield _writable(home)
    yield from _too_open(home)
    kind = file_system_of(home)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        mend = "SQLite needs a local disk: move GIGAFACTORY_HOME, or use PostgreSQL"
        yield Finding("home", "warn", f"{home} lies on a network file system ({kind})", mend)


def _writable(home: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=home):
            return Finding("home", "ok", str(home))
    except OSError as error:
        return Finding("home", "fail", f"cannot write to {home}: {error.strerror}", f"sudo chown -R $USER {home}")


def _too_open(home: Path) -> Iterator[Finding]:
    mode = home.stat().st_mode
    if mode & 0o022:
        yield Finding("home", "fail", f"others may write to {home} (mode {mode & 0o777:o})", f"chmod 700 {home}")
    elif mode & 0o055:
        yield Finding("home", "warn", f"others may read {home} (mode {mode & 0o777:o})", f"chmod 700 {home}")
    for path in (person_token_file(home), *sorted(home.glob("factories/*/token"))):
        if path.exists() and path.stat().st_mode & 0o077:
            seen = f"others may read {path} (mode {path.stat().st_mode & 0o777:o})"
            yield Finding("tokens", "fail", seen, f"rm {path}; gf down; gf up    (a new one is made)")


def check_ledger(patient: Patient) -> Iterator[Finding]:
    """The ledger is as this version expects it."""
    from workers.stack_migration import ledger_condition  # noqa: PLC0415 - SQLAlchemy and Alembic: 0.4 s

    try:
        condition = asyncio.run(ledger_condition(patient.settings))
    except GigafactoryError as error:
        yield Finding("ledger", "fail", error.message, error.hint)
        return
    yield Finding("ledger", condition.verdict, condition.seen, condition.mend)


def check_profiles(patient: Patient) -> Iterator[Finding]:
    """Every profile file of the home is understood."""
    count, mistakes = home_check.check_profiles(patient.home)
    mend = "correct the file: docs/reference/profiles.md"
    yield from (Finding("profiles", "fail", render_problem(mistake), mend) for mistake in mistakes)
    if not mistakes:
        yield Finding("profiles", "ok", f"{count} profiles")


def check_codec(patient: Patient) -> Iterator[Finding]:
    """The payload codec that the settings name can be loaded."""
    named = patient.settings.payload_codec
    if named:
        problem = home_check.codec_problem(patient.settings)
        mend = "correct it: docs/how-to/seal-what-temporal-stores.md"
        yield Finding("payload codec", "fail" if problem else "ok", problem or named, mend)


# --- the stack -------------------------------------------------------------------------------------------------------


def check_stack(patient: Patient) -> Iterator[Finding]:
    """What runs is whole, of this version, and answers."""
    state = patient.state
    if state is None or not state.alive:
        strays = strays_of(patient.home)
        if strays:
            pids = ", ".join(str(stray.pid) for stray in strays)
            yield Finding("stack", "fail", f"not running, but processes of it are left: {pids}", "gf down")
        else:
            yield Finding("stack", "ok", "not running; `gf up --detach` starts it")
        return
    if state.version != VERSION:
        seen = f"version {state.version} runs, this command line is version {VERSION}"
        yield Finding("stack", "fail", seen, "gf down, then gf up")
    for part in state.parts:
        if part.state not in {"ready", "done"}:
            yield Finding("stack", "fail", f"{part.name} is {part.state}, {part.restarts} restarts", f"see {part.log}")
    url = state.urls.get("api", "")
    health = ask_health(url)
    mend = f"see {patient.home / 'logs' / 'api.log'}"
    good = health == "ok"
    yield Finding("stack", "ok" if good else "fail", f"API at {url}: {health}", mend)


def check_engines(patient: Patient) -> Iterator[Finding]:
    """Which engines there are and whether they have a login; which other tools are broken."""
    from workers import engine_check  # noqa: PLC0415 - needed here only

    place = nearest_existing(patient.home)
    report = asyncio.run(engine_check.check_engines(patient.settings, os.environ, place))
    for mistake in report.mistakes:
        yield Finding("engines", "fail", render_problem(mistake), "see docs/how-to/add-an-engine.md")
    alone = not any(engine.agent and not engine.problem for engine in report.engines)
    for engine in report.engines:
        yield judge_engine(engine.name, engine.version, engine.problem, engine.missing, alone=alone)
    for tool in report.broken_tools:
        yield Finding("tools", "warn", f"{tool.name} is installed but does not work", tool.repair)


def judge_engine(name: str, version: str, problem: str, missing: tuple[str, ...], *, alone: bool) -> Finding:
    """Judge one engine; `missing` are the variables of which one would log it in, `alone`: no agent is usable."""
    label = f"engine {name}"
    if problem:
        absent = "not on PATH" in problem
        seen, _, hint = problem.partition("; ")
        return Finding(label, "ok" if absent and not alone else "warn", seen, hint or "see docs/reference/engines.md")
    if missing:
        mend = f"set {' or '.join(missing)} before `gf up`"
        return Finding(label, "warn", f"{version}, without a login in the environment", mend)
    return Finding(label, "ok", version)


CHECKS: Final[tuple[Check, ...]] = (
    check_python,
    check_git,
    check_sqlite,
    check_temporal,
    check_disk,
    check_memory,
    check_shared_memory,
    check_limits,
    check_clock,
    check_home,
    check_ports,
    check_ledger,
    check_profiles,
    check_codec,
    check_stack,
    check_engines,
)


# --- looking ---------------------------------------------------------------------------------------------------------


def nearest_existing(path: Path) -> Path:
    """Return the path itself or its nearest ancestor that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds `path`; empty where the system does not tell."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _device, point, found, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            if path.is_relative_to(point) and len(point) >= len(best):
                best, kind = point, found
    return kind


def run_quietly(command: list[str]) -> str:
    """Run a short command; return what it printed, or why it could not be run."""
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (shown.stdout or shown.stderr).strip()


def ask_health(url: str) -> str:
    """Return the API's word about itself, or what went wrong in asking."""
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/fleet/health")
        answer = connection.getresponse()
        return _health_words(answer.status, answer.read())
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error})"
    finally:
        connection.close()


def _health_words(status: int, body: bytes) -> str:
    try:
        document: dict[str, Any] = json.loads(body)
    except ValueError:
        return f"status {status}"
    parts = document.get("parts") or {}
    bad = [f"{name}: {said}" for name, said in parts.items() if said != "ok"]
    return "; ".join(bad) or str(document.get("status", f"status {status}"))
