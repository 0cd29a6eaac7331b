"""The parts of the embedded stack as a table: command, environment, proof of readiness, order of stopping.

Does I/O: HTTP on loopback, in the probes. Tests put other parts into the same table.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from core.settings import PREFIX, Settings
from core.version import VERSION
from store.settings_source import ROOT
from store.token_files import ensure_factory_token, ensure_person_token
from workers.stack_home import LOOPBACK, PortReservation, write_names
from workers.stack_state import MARKER, READY_FD
from workers.temporal_server import RETENTION_DAYS, server_command

Probe = Callable[[int], Awaitable[bool]]
"""Given the pid of a part's process: does that process do its work?"""

PROBE_TIMEOUT_S: Final = 5.0
RETENTION: Final = f"{RETENTION_DAYS * 86_400}s"
"""How long Temporal keeps the histories of closed workflows (its own default is one day)."""

SHUTDOWN_MARGIN_S: Final = 8.0
"""For a factory, beyond the graces of its engines: the last checkpoint, its push, the farewell to the API."""

TEMPORAL_STUCK_AFTER: Final = 10
"""Half a minute. With an old SQLite driver (`temporal_server.SOUND_DRIVER`) a cancelled call may leave the embedded
server answering every call with `interrupted (9)`. Nothing is lost by a restart, and nothing goes on without one."""

LOCAL_DEFAULT_LISTENERS: Final = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - names them, binds nothing
"""Where a client on this machine reaches a server that listens everywhere."""


@dataclass(frozen=True)
class Module:
    """A Python module that is a process's program; a child of the stack's fork server may become it, too."""

    name: str
    arguments: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that runs it in a process of its own."""
        return _python(self.name, *self.arguments)


@dataclass(frozen=True)
class PartSpec:
    """One process of a stack."""

    name: str
    kind: str
    command: tuple[str, ...] | Module
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Added to the steward's environment; None removes a variable."""
    rank: int = 0
    """Lower ones end first."""
    grace_s: float = 5.0
    """Seconds from SIGTERM to SIGKILL."""
    probe: Probe | None = None
    stuck_after: int = 0
    """Probes in a row that a ready process may fail; with one more it is stuck, and is killed. 0: it is left alone."""
    announces: bool = False
    """The part tells by itself when it is ready (`announce_ready`). Without this and a probe: ready when started."""
    once: bool = False
    """Runs to its end, which must be a success, once at the start."""
    lifeline: bool = False
    """Holds a pipe of the steward's as its standard input, and ends when told so there."""
    url: str = ""
    mend: str = ""
    """What a person does when this part does not come up."""

    def environment(self) -> dict[str, str]:
        """Return the whole environment of its process."""
        environ = {key: value for key, value in os.environ.items() if key not in self.env}
        return environ | {key: value for key, value in self.env.items() if value is not None}

    @property
    def argv(self) -> tuple[str, ...]:
        """The command of a process of its own."""
        return self.command.argv if isinstance(self.command, Module) else self.command


@dataclass(frozen=True)
class StackPlan:
    """All parts of one stack; `factory` makes the spec of a local factory from its name."""

    parts: tuple[PartSpec, ...]
    factory: Callable[[str], PartSpec]
    factories: int
    urls: Mapping[str, str]
    ports: Mapping[str, int]
    version: str = VERSION


# --- the real stack ------------------------------------------------------------------------------------------------


def plan_stack(
    settings: Settings, reservation: PortReservation, *, factories: int, temporal_binary: Path | None
) -> StackPlan:
    """Lay out the stack of a home: choose its ports and say which processes make it up."""
    home = settings.home
    ports = _take_ports(settings, reservation)
    urls = _urls(settings, ports)
    env = child_environment(settings, urls, ports)
    parts = [_guard(home, env), _migration(env)]
    if not settings.temporal_address:
        assert temporal_binary is not None
        parts.append(_temporal(home, settings.temporal_namespace, temporal_binary, ports, env))
    parts += [_api(urls["api"], env), _control(env)]
    if settings.gateway:
        parts.append(_gateway(urls["gateway"], env))
    fleet = FleetWatch(urls["api"], ensure_person_token(home))

    def factory(name: str) -> PartSpec:
        ensure_factory_token(home, name)
        return replace(_factory(settings, name, env), probe=lambda pid: fleet.hears(name, pid))

    return StackPlan(parts=tuple(parts), factory=factory, factories=factories, urls=urls, ports=ports)


def plan_enrolled(settings: Settings) -> StackPlan:
    """Lay out the home of a machine that was enrolled: its factory, and nothing else of the fleet."""
    home = settings.home
    write_names(home, [settings.enrolled_as])
    env: dict[str, str | None] = {
        "PYTHONPATH": str(ROOT),
        "PYTHONHOME": None,
        MARKER: str(home),
        PREFIX + "HOME": str(home),
        READY_FD: None,
    }
    return StackPlan(
        parts=(_guard(home, env),),
        factory=lambda name: replace(_factory(settings, name, env), announces=True),
        factories=1,
        urls={"api": settings.api_url, "temporal": settings.gateway_url or settings.temporal_address},
        ports={},
    )


def child_environment(settings: Settings, urls: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, str | None]:
    """Return what the parts' environment has beyond the steward's own; the stack's choices become settings."""
    return {
        "PYTHONPATH": str(ROOT),
        "PYTHONHOME": None,
        MARKER: str(settings.home),
        PREFIX + "HOME": str(settings.home),
        PREFIX + "API_HOST": settings.api_host,
        PREFIX + "API_PORT": str(ports["api"]),
        PREFIX + "API_URL": urls["api"],
        PREFIX + "TEMPORAL_ADDRESS": urls["temporal"],
        READY_FD: None,
    } | ({PREFIX + "GATEWAY_PORT": str(ports["gateway"])} if "gateway" in ports else {})


def _take_ports(settings: Settings, reservation: PortReservation) -> dict[str, int]:
    ports = {"api": reservation.take(settings.api_port, settings.api_host)}
    if not settings.temporal_address:
        ports["temporal"] = reservation.take(settings.temporal_port)
        ports["temporal_ui"] = reservation.take(settings.temporal_ui_port)
        ports["temporal_http"] = reservation.take(settings.temporal_ui_port)
    if settings.gateway:
        ports["gateway"] = reservation.take(settings.gateway_port, settings.gateway_host)
    return ports


def _urls(settings: Settings, ports: Mapping[str, int]) -> dict[str, str]:
    urls = {"api": f"http://{_local_address(settings.api_host, ports['api'])}"}
    if settings.gateway:
        urls["gateway"] = _local_address(settings.gateway_host, ports["gateway"])
    if settings.temporal_address:
        return urls | {"temporal": settings.temporal_address}
    return urls | {
        "temporal": f"{LOOPBACK}:{ports['temporal']}",
        "temporal_ui": f"http://{LOOPBACK}:{ports['temporal_ui']}",
    }


def _local_address(host: str, port: int) -> str:
    """Return where a client on this machine reaches what listens there."""
    host = LOCAL_DEFAULT_LISTENERS.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", module, *arguments)


def _factory(settings: Settings, name: str, env: Mapping[str, str | None]) -> PartSpec:
    folder = settings.home / "factories" / name
    return PartSpec(
        name=name,
        kind="factory",
        command=Module("workers.factory_agent", ("--name", name)),
        env=env,
        rank=0,
        grace_s=settings.drain_grace_s + settings.stop_grace_s + SHUTDOWN_MARGIN_S,
        mend=f"read its log; `gf doctor` checks what a factory needs (home: {folder})",
    )


def _guard(home: Path, env: Mapping[str, str | None]) -> PartSpec:
    return PartSpec(
        name="guard",
        kind="guard",
        command=_python("workers.stack_guard", "--home", str(home)),
        env=env,
        rank=9,
        grace_s=1.0,
        lifeline=True,
    )


def _migration(env: Mapping[str, str | None]) -> PartSpec:
    return PartSpec(
        name="migration",
        kind="migration",
        command=_python("workers.stack_migration"),
        env=env,
        rank=2,
        once=True,
        mend="the ledger is left as it was; `gf doctor` shows its state",
    )


def _temporal(
    home: Path, namespace: str, binary: Path, ports: Mapping[str, int], env: Mapping[str, str | None]
) -> PartSpec:
    command = server_command(
        binary,
        port=ports["temporal"],
        ui_port=ports["temporal_ui"],
        http_port=ports["temporal_http"],
        db_file=home / "temporal.db",
        namespace=namespace,
    )
    url = f"http://{LOOPBACK}:{ports['temporal_http']}/api/v1/namespaces/{namespace}"
    return PartSpec(
        name="temporal",
        kind="temporal",
        command=tuple(command),
        env=env,
        rank=3,
        grace_s=8.0,
        probe=lambda _pid: serves_namespace(url),
        stuck_after=TEMPORAL_STUCK_AFTER,
        url=f"http://{LOOPBACK}:{ports['temporal_ui']}",
        mend=f"a full disk or a database of a newer version are the usual reasons (database: {home / 'temporal.db'})",
    )


def _api(url: str, env: Mapping[str, str | None]) -> PartSpec:
    async def healthy(_pid: int) -> bool:
        return (await http_request("GET", f"{url}/fleet/health"))[0] == 200

    mend = "read its log; another program on its port shows there"
    return PartSpec(
        name="api",
        kind="api",
        command=Module("api"),
        env=env,
        rank=2,
        probe=healthy,
        url=url,
        mend=mend,
    )


def _control(env: Mapping[str, str | None]) -> PartSpec:
    return PartSpec(
        name="control",
        kind="control",
        command=Module("workers.control"),
        env=env,
        rank=1,
        announces=True,
        mend="read its log; it needs the Temporal server and the ledger",
    )


def _gateway(address: str, env: Mapping[str, str | None]) -> PartSpec:
    return PartSpec(
        name="gateway",
        kind="gateway",
        command=Module("workers.gateway"),
        env=env,
        rank=1,
        announces=True,
        url=address,
        mend="read its log; it needs the ledger, a free port and files that only you can read (settings gateway_*)",
    )


# --- probes --------------------------------------------------------------------------------------------------------


async def serves_namespace(url: str) -> bool:
    """Return whether Temporal serves the namespace at `url` (of its HTTP API), keeping its histories long enough."""
    status, body = await http_request("GET", url)
    if status != 200:
        return False
    config = _parse(body).get("config", {})
    if config.get("workflowExecutionRetentionTtl") != RETENTION:
        change = json.dumps({"config": {"workflowExecutionRetentionTtl": RETENTION}}).encode()
        status, _ = await http_request("POST", f"{url}/update", body=change)
    return status == 200


class FleetWatch:
    """Asks the API for its factories, once for all local factories that are just starting."""

    FRESH_S: Final = 0.05

    def __init__(self, api_url: str, token: str) -> None:
        self._url = f"{api_url}/fleet/factories"
        self._token = token
        self._lock = asyncio.Lock()
        self._asked_at = 0.0
        self._factories: dict[str, dict[str, Any]] = {}

    async def hears(self, name: str, pid: int) -> bool:
        """Return whether the API hears of the factory `name`, in the shape of the process `pid`.

        One that is drained or quarantined has started all the same: only with the stack up can it be released.
        """
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now - self._asked_at > self.FRESH_S:
                self._factories = await self._ask()
                self._asked_at = now
        factory = self._factories.get(name, {})
        return factory.get("state", "offline") != "offline" and factory.get("pid", pid) in {pid, None}

    async def _ask(self) -> dict[str, dict[str, Any]]:
        status, body = await http_request("GET", self._url, token=self._token)
        if status != 200:
            return {}
        return {str(row.get("name")): row for row in _parse(body).get("factories", [])}


def _parse(body: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else, since anybody may have answered."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


async def http_request(method: str, url: str, *, token: str = "", body: bytes = b"") -> tuple[int, bytes]:
    """Send one small HTTP/1.0 request to a server on this machine; status 0 means that nobody answered properly."""
    target = urlsplit(url)
    lines = [f"{method} {target.path or '/'} HTTP/1.0", f"Host: {target.netloc}", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {token}"] * bool(token) + ["Content-Type: application/json"] * bool(body)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(target.hostname, target.port)
            try:
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                answer = await reader.read()
            finally:
                writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split(maxsplit=2)[1]), content
    except (OSError, TimeoutError, ValueError, IndexError):
        return 0, b""
