"""The processes of docker-compose.yml without containers: PostgreSQL, the full Temporal server, two of each of ours.

Commands and environments are the compose file's own; only addresses, ports and paths are those of this machine. The
steward that `gf up` uses keeps the parts alive, as Docker would. Run as

    python -P -m tests.topology.production up|steward --factories N --postgres-port PORT --bin DIR

with GIGAFACTORY_HOME and the settings of the test in the environment; `up` returns when the stack is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from core.settings import Settings
from store.settings_source import read_settings
from tests.conftest import DIES_WITH_US, TOPOLOGY
from tests.conftest_postgres import PostgresServer, postgres_binaries, running_postgres
from tests.topology.compose import COMPOSE_FILE, ROOT, Service, read_services
from workers.stack import run_steward
from workers.stack_home import LOOPBACK, PortReservation
from workers.stack_part import Limits
from workers.stack_parts import PartSpec, StackPlan, http_request, plan_stack
from workers.stack_start import ensure_up, spawn_steward
from workers.temporal_full_server import obtain_full_server
from workers.temporal_server import TemporalMissing

REQUIRED = "GIGAFACTORY_REQUIRE_TOPOLOGY"
"""Set to 1 where what cannot be had must fail the tests instead of skipping them, as `--topology production` does."""
VARIABLES = {"POSTGRES_PASSWORD": "unasked", "TEMPORAL_HISTORY_SHARDS": "4"}
"""PostgreSQL trusts this machine here; four shards are enough for two cores."""
LEDGER = "gigafactory"
"""The ledger's database."""
HOME_IN_CONTAINER = "/var/lib/gigafactory"
FACTORY_IN_CONTAINER = "/var/lib/factory"
"""Where one service sees the home of the factory."""
TEMPORAL_PORTS = (
    "TEMPORAL_PORT",
    "TEMPORAL_HTTP_PORT",
    "TEMPORAL_FRONTEND_MEMBERSHIP_PORT",
    "TEMPORAL_MATCHING_PORT",
    "TEMPORAL_MATCHING_MEMBERSHIP_PORT",
    "TEMPORAL_HISTORY_PORT",
    "TEMPORAL_HISTORY_MEMBERSHIP_PORT",
    "TEMPORAL_WORKER_PORT",
    "TEMPORAL_WORKER_MEMBERSHIP_PORT",
)
FIRST_PORT = 24200
"""Of PostgreSQL and Temporal. Temporal stores its ports as signed 16-bit numbers: they must lie below 32768."""
PATIENT, FOLLOW_S = Limits(ready_timeout_s=240), 270.0
"""How long a dozen processes may take to start on a machine that others keep busy, beside the test's own patience."""
WAIT = 'while [ "$1" != -- ]; do until [ -e "$1" ]; do sleep 0.05; done; shift; done; shift; exec "$@"'
"""A shell line that waits for files, then becomes the command after `--`: `service_completed_successfully`."""
NOTE = 'note=$1; shift; "$@" && : > "$note"'
"""A shell line that runs a command to its end and notes its success in a file."""


# --- addresses -----------------------------------------------------------------------------------------------------


class Site:
    """Where the parts of one topology are on this machine."""

    def __init__(self, home: Path, temporal_ports: Mapping[str, str], *, postgres_port: int, bin_dir: Path) -> None:
        self.home = home
        self.services = read_services(COMPOSE_FILE.read_text(), VARIABLES)
        self.temporal_ports = temporal_ports
        self.temporal = f"{LOOPBACK}:{temporal_ports['TEMPORAL_PORT']}"
        self._postgres = f"{LOOPBACK}:{postgres_port}"
        self._path = os.pathsep.join((str(bin_dir), str(Path(sys.executable).parent), os.environ["PATH"]))
        self._notes = home / "run" / "done"
        self._notes.mkdir(parents=True, exist_ok=True)

    def forget(self) -> None:
        """Have every service wait anew for those that must have ended before it: a start begins."""
        for note in self._notes.iterdir():
            note.unlink()

    def run(self, name: str) -> None:
        """Run a service to its end, as `docker compose up` does also when it ran before."""
        environ = {"PYTHONPATH": str(ROOT), **self.environment(name)}
        done = subprocess.run(self.command(name), env=environ, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """Return the environment of a service's process."""
        service = self.services[name]
        values = {key: self._here(service, value) for key, value in service.environment.items()}
        values |= {"PATH": self._path, "SQL_PORT": self._postgres.rpartition(":")[2]}
        return {**values, **(self.temporal_ports if name == "temporal" else {}), **more}

    def command(self, name: str) -> tuple[str, ...]:
        """Return the command of a service, behind what it must wait for."""
        service = self.services[name]
        command = tuple(self._here(service, part) for part in service.command)
        if service.once:
            command = ("sh", "-c", NOTE, "sh", str(self._notes / name), *command)
        if not service.after:
            return command
        return ("sh", "-c", WAIT, "sh", *(str(self._notes / other) for other in service.after), "--", *command)

    def _here(self, service: Service, value: str) -> str:
        """Translate what a container sees into what this machine has."""
        for target, source in self._places(service):
            value = str(source) + value[len(target) :] if value.startswith(target) else value
        for known, here in (("postgres:5432", self._postgres), ("temporal:7233", self.temporal)):
            value = value.replace(known, here)
        return LOOPBACK if value in {"postgres", "0.0.0.0"} else value  # noqa: S104 - names it, binds nothing

    def _places(self, service: Service) -> Iterator[tuple[str, Path]]:
        """Yield each path of a container with the one it is here."""
        yield from service.mounts.items()
        yield HOME_IN_CONTAINER, self.home
        yield FACTORY_IN_CONTAINER, self.home / "home-of-factory-1"


def take_temporal_ports(ports: PortReservation) -> dict[str, str]:
    """Choose a port for each listener of the Temporal server."""
    return {name: str(ports.take(FIRST_PORT)) for name in TEMPORAL_PORTS}


# --- the plan ------------------------------------------------------------------------------------------------------


def plan_production(settings: Settings, site: Site, ports: PortReservation, *, factories: int) -> StackPlan:
    """Lay out the topology: two API processes, two control workers and `factories` factories."""
    site.forget()
    known = settings.model_copy(update={"temporal_address": site.temporal})
    base = plan_stack(known, ports, factories=factories, temporal_binary=None)
    of_base = {part.name: part for part in base.parts}
    second_port = ports.take(settings.api_port)
    second_url = f"http://{LOOPBACK}:{second_port}"

    def part(name: str, service: str, like: str, **more: str) -> PartSpec:
        spec = of_base[like]
        env = {**spec.env, **site.environment(service, **more)}
        return replace(spec, name=name, command=site.command(service), env=env)

    api, second = {"GIGAFACTORY_API_PORT": str(base.ports["api"])}, {"GIGAFACTORY_API_PORT": str(second_port)}
    chosen = {"GIGAFACTORY_GATEWAY_PORT": str(base.ports.get("gateway", ""))}
    gateway = (part("gateway", "gateway", "gateway", **chosen),) if settings.gateway else ()
    parts = (
        of_base["guard"],
        part("temporal-schema", "temporal-schema", "migration"),
        _temporal(part("temporal", "temporal", "control"), site),
        part("temporal-namespace", "temporal-namespace", "migration"),
        part("migration", "migration", "migration"),
        part("factory-token", "factory-token", "migration"),
        part("api", "api", "api", **api),
        replace(part("api-2", "api", "api", **second), url=second_url, probe=lambda _pid: healthy(second_url)),
        part("control", "control", "control"),
        part("control-2", "control", "control"),
        *gateway,
    )
    urls = {**base.urls, "api_2": second_url}
    return replace(base, parts=parts, factory=lambda name: _factory(base.factory(name), site, urls["api"]), urls=urls)


def _temporal(spec: PartSpec, site: Site) -> PartSpec:
    async def answers(_pid: int) -> bool:
        url = f"http://{LOOPBACK}:{site.temporal_ports['TEMPORAL_HTTP_PORT']}/api/v1/system-info"
        return (await http_request("GET", url))[0] == 200

    return replace(spec, kind="temporal", rank=3, grace_s=8.0, announces=False, probe=answers)


def _factory(spec: PartSpec, site: Site, api_url: str) -> PartSpec:
    """Return the part of a factory: the compose file's service under a name of this machine."""
    command = site.command("factory")
    return replace(
        spec,
        command=(*command[:-1], spec.name),
        env={**spec.env, **site.environment("factory", GIGAFACTORY_API_URL=api_url)},
    )


async def healthy(url: str) -> bool:
    """Return whether the API at `url` and its ledger answer."""
    return (await http_request("GET", f"{url}/fleet/health"))[0] == 200


# --- for tests -----------------------------------------------------------------------------------------------------


def full_server() -> Path:
    """Return the directory of the full server's programs; builds them once, see `cannot_run` where that fails."""
    try:
        found = asyncio.run(obtain_full_server(environ=os.environ, tell=_tell))
    except TemporalMissing as error:
        cannot_run(f"{error.message}; {error.hint}")
    return found.bin_dir


def cannot_run(reason: str) -> NoReturn:
    """Fail the test when this topology was asked for; skip it, with the reason, where it only comes along."""
    if TOPOLOGY == "production" or os.environ.get(REQUIRED) == "1":
        pytest.fail(f"the production topology was asked for, but {reason}", pytrace=False)
    pytest.skip(reason)


@contextmanager
def production(bin_dir: Path, *, factories: int) -> Iterator[tuple[list[str], PostgresServer]]:
    """Run a PostgreSQL server of one topology's own; yields the command that brings the topology up, and the server."""
    ports = PortReservation()
    try:
        with _postgres(ports) as server:
            command = [sys.executable, "-P", "-m", "tests.topology.production", "up"]
            yield [*command, *_arguments(factories, server.port, bin_dir)], server
    finally:
        ports.release()


@contextmanager
def running_full_server(bin_dir: Path, folder: Path) -> Iterator[str]:
    """Run PostgreSQL and the full Temporal server, schema and namespace made; yields the server's address."""
    ports = PortReservation()
    try:
        with _postgres(ports) as server:
            site = Site(folder, take_temporal_ports(ports), postgres_port=server.port, bin_dir=bin_dir)
            with _temporal_process(site, folder / "temporal.log"):
                yield site.temporal
    finally:
        ports.release()


@contextmanager
def _postgres(ports: PortReservation) -> Iterator[PostgresServer]:
    binaries = postgres_binaries()
    if binaries is None:
        cannot_run("PostgreSQL's server binaries are neither in /usr/lib/postgresql/*/bin nor on PATH")
    with running_postgres(binaries, port=ports.take(FIRST_PORT)) as server:
        server.run(f"CREATE DATABASE {LEDGER}")
        yield server


@contextmanager
def _temporal_process(site: Site, log: Path) -> Iterator[None]:
    """Run the three Temporal services of the compose file in their order; gone when the block ends or we die."""
    site.run("temporal-schema")
    with log.open("wb") as sink:
        command = ("sh", "-c", DIES_WITH_US, "sh", *site.command("temporal"))
        environ = site.environment("temporal")
        process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=sink, stderr=sink)
    try:
        site.run("temporal-namespace")
        yield
    finally:
        process.communicate(timeout=20)


def _arguments(factories: int, postgres_port: int, bin_dir: Path) -> list[str]:
    return ["--factories", str(factories), "--postgres-port", str(postgres_port), "--bin", str(bin_dir)]


# --- the process ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring the topology up, or be its steward."""
    parser = argparse.ArgumentParser(prog="tests.topology.production")
    parser.add_argument("what", choices=("up", "steward"))
    parser.add_argument("--factories", type=int, required=True)
    parser.add_argument("--postgres-port", type=int, required=True)
    parser.add_argument("--bin", type=Path, required=True)
    given = parser.parse_args(arguments)
    settings = read_settings()
    if given.what == "steward":
        return _be_steward(settings, given)

    def launch(home: Path, *_unused: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "tests.topology.production", "steward"]
        again = _arguments(given.factories, given.postgres_port, given.bin)
        return spawn_steward(home, [*command, *again], foreground=False)

    ensure_up(settings.home, _tell, launch=launch, follow_s=FOLLOW_S)
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _be_steward(settings: Settings, given: argparse.Namespace) -> int:
    def make_plan(ports: PortReservation) -> StackPlan:
        taken = take_temporal_ports(ports)
        site = Site(settings.home, taken, postgres_port=given.postgres_port, bin_dir=given.bin)
        return plan_production(settings, site, ports, factories=given.factories)

    return run_steward(settings.home, make_plan, limits=PATIENT)


if __name__ == "__main__":
    sys.exit(main())
