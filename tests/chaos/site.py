"""A stack whose parts reach each other through doors (`tests.chaos.doors`), on either topology.

The steward is the product's, and so is every part; only the addresses that the parts are told are those of the doors.
Run as `python -P -m tests.chaos.site up|steward`, see `launch_command`; GIGAFACTORY_HOME and settings come from the
environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from core.settings import Settings
from store.settings_source import read_settings
from tests.bench.measuring import tell
from tests.topology.production import FOLLOW_S, PATIENT, Site, plan_production, take_temporal_ports
from workers.stack import run_steward
from workers.stack_home import PortReservation, prepare
from workers.stack_parts import PartSpec, StackPlan, plan_stack
from workers.stack_start import ensure_up, spawn_steward

MODULE = "tests.chaos.site"
Ports = Mapping[str, Mapping[str, int]]
"""part → service → port of its door."""

WAYS: dict[str, tuple[str, ...]] = {
    "api": ("temporal",),
    "control": ("temporal",),
}
"""Who reaches what through a door, beside factories (`api`, `temporal`) and our own client (`api`)."""
DATABASE_WAYS: dict[str, tuple[str, ...]] = {
    "api": ("temporal", "postgres"),
    "api-2": ("temporal", "postgres"),
    "control": ("temporal", "postgres"),
    "control-2": ("temporal", "postgres"),
    "temporal": ("postgres",),
}


def launch_command(
    what: str, *, factories: int, ports: Ports, binary: Path, postgres_port: int | None = None
) -> list[str]:
    """Return the command that brings the stack up, or is its steward.

    `binary` is Temporal's development server, or with PostgreSQL the directory of the full server's programs.
    """
    command = [sys.executable, "-P", "-m", MODULE, what, "--factories", str(factories), "--binary", str(binary)]
    command += ["--doors", json.dumps(ports)]
    return command + (["--postgres-port", str(postgres_port)] if postgres_port else [])


def with_doors(plan: StackPlan, ports: Ports, addresses: Mapping[str, str]) -> StackPlan:
    """Return the plan with each part led to its doors; `addresses` are those of the services themselves."""

    def led(spec: PartSpec) -> PartSpec:
        env = dict(spec.env)
        for service, port in ports.get(spec.name, {}).items():
            own = addresses[service]
            door = f"{own.rpartition(':')[0]}:{port}"
            env = {name: value and value.replace(own, door) for name, value in env.items()}
            if service == "postgres" and "SQL_PORT" in env:  # Temporal is told host and port apart
                env["SQL_PORT"] = str(port)
        return replace(spec, env=env)

    return replace(plan, parts=tuple(led(part) for part in plan.parts), factory=lambda name: led(plan.factory(name)))


def make_plan(settings: Settings, given: argparse.Namespace, reservation: PortReservation) -> StackPlan:
    """Lay out the stack of the topology that was asked for."""
    if given.postgres_port:
        taken = take_temporal_ports(reservation)
        site = Site(settings.home, taken, postgres_port=given.postgres_port, bin_dir=given.binary)
        plan = plan_production(settings, site, reservation, factories=given.factories)
    else:
        plan = plan_stack(settings, reservation, factories=given.factories, temporal_binary=given.binary)
    addresses = {"api": urlsplit(plan.urls["api"]).netloc, "temporal": plan.urls["temporal"]}
    addresses["postgres"] = f"127.0.0.1:{given.postgres_port}"
    return with_doors(plan, json.loads(given.doors), addresses)


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring the stack up, or be its steward."""
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("what", choices=("up", "steward"))
    parser.add_argument("--factories", type=int, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--doors", required=True)
    parser.add_argument("--postgres-port", type=int)
    given = parser.parse_args(arguments)
    settings = read_settings()
    if given.what == "steward":
        return run_steward(settings.home, lambda taken: make_plan(settings, given, taken), limits=PATIENT)
    prepare(settings.home)
    command = launch_command(
        "steward",
        factories=given.factories,
        ports=json.loads(given.doors),
        binary=given.binary,
        postgres_port=given.postgres_port,
    )

    def launch(home: Path, *_unused: object) -> subprocess.Popen[bytes]:
        return spawn_steward(home, command, foreground=False)

    ensure_up(settings.home, tell, launch=launch, follow_s=FOLLOW_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
