"""A machine that nobody trusts: enrolled on the command line, at work through the gateway, cut off when it is told to.

Its home is its own. It is told two addresses, the API's and the gateway's, and not where Temporal is.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import yaml

from store.token_book import MAX_AGE_S
from tests.conftest import gone_afterwards
from tests.e2e.conftest import BEAT_S, ROOT, Remote, Stack, running_stack, wait_for
from tests.workers.gateway_running import Raw
from workers.gateway_client import LOOK_S
from workers.stack_home import PortReservation

pytestmark = pytest.mark.stack

LEASE_S = 12.0
"""Longer than a gateway takes to come back on a busy machine: an attempt outlives that by its lease."""

FIRST_PORT = 23900
"""Where to look for the gateway's port, which machines are told before the stack runs."""

JOB = """---
engine: shell
repo: {remote}
base: main
capabilities: ["factory:{factory}"]
verify: test -s {name}.txt
---
# Write {name}

```sh
echo $$ > {judge}.begun
until [ -e {judge}.go-on ]; do sleep 0.1; done
echo {name} > {name}.txt
```
"""


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory, temporal_binary: Path) -> Iterator[Stack]:
    """Return a control plane with a gateway and no factory of its own."""
    ports = PortReservation()
    home, port = tmp_path_factory.mktemp("control") / "home", ports.take(FIRST_PORT)
    ports.release()  # below the ports that the system gives to connections: still free when the gateway takes it
    way: dict[str, Any] = {"gateway": True, "gateway_port": port, "enrol_gateway_url": f"http://127.0.0.1:{port}"}
    with running_stack(home, factories=0, lease_ttl_s=LEASE_S, **way) as running:
        yield running


@dataclass
class Machine:
    """A machine that was enrolled, as one sees it who sits in front of it."""

    home: Path
    env: dict[str, str]
    factory: str

    @property
    def token_file(self) -> Path:
        """Where its token lies."""
        return self.home / "factories" / self.factory / "token"

    @property
    def token(self) -> str:
        """Return its token."""
        return self.token_file.read_text().strip()


@contextmanager
def enrolled(control: Stack, home: Path) -> Iterator[Machine]:
    """Enrol a machine with a home of its own, and run its agent until the block ends."""
    token = json.loads(control.gf("enroll-token", "--json").stdout)["secret"]
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    env |= {"PYTHONPATH": str(ROOT), "GIGAFACTORY_HOME": str(home), "GIGAFACTORY_ENROLMENT_TOKEN": token}
    env |= {"GIGAFACTORY_FACTORY_BEAT_S": str(BEAT_S), "GIGAFACTORY_LEASE_TTL_S": str(LEASE_S)}

    def gf(*arguments: str) -> Any:
        command = [sys.executable, "-P", "-m", "cli", *arguments, "--json"]
        run = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120
        )
        assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
        return json.loads(run.stdout)

    with gone_afterwards(env):
        said = gf("enroll", "--api", control.state()["urls"]["api"])
        assert said["started"], said
        yield Machine(home, env, said["factory"])


def begun(control: Stack, machine: Machine, remote: Remote, judge: Path) -> str:
    """Start a job that runs until `<judge>.go-on` exists; return its id when its engine is at work."""
    job = JOB.format(remote=remote.path, factory=machine.factory, name=judge.name, judge=judge)
    job_id = control.submit(job)
    wait_for("the engine", lambda: judge.with_suffix(".begun").exists())
    return job_id


def at_gateway(control: Stack, token: str) -> grpc.StatusCode:
    """Return what the gateway says to whoever shows that token."""

    async def ask() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(control.state()["urls"]["gateway"]) as channel:
            return (await Raw(channel, (("authorization", f"Bearer {token}"),)).send("GetSystemInfo"))[0]

    return asyncio.run(ask())


def at_apis(control: Stack, token: str) -> set[int]:
    """Return what each API process says to it."""
    urls = control.state()["urls"]
    headers = {"Authorization": f"Bearer {token}"}
    return {
        httpx.get(f"{urls[name]}/fleet/tokens/self", headers=headers, timeout=30).status_code
        for name in ("api", "api_2")
        if name in urls
    }


def whether(refused: bool) -> tuple[set[int], grpc.StatusCode]:
    """Return what APIs and gateway say to a token that is refused, or good."""
    return ({401}, grpc.StatusCode.UNAUTHENTICATED) if refused else ({200}, grpc.StatusCode.OK)


def shown(control: Stack, token: str) -> tuple[set[int], grpc.StatusCode]:
    """Return what APIs and gateway say to a token."""
    return at_apis(control, token), at_gateway(control, token)


@pytest.mark.req("F2", "F3", "S2")
def test_job_on_a_factory_behind_the_gateway_ships(control: Stack, tmp_path: Path, remote: Remote) -> None:
    """From enrolment to ship; the gateway is killed on the way, and refuses nothing that the agent asks."""
    with enrolled(control, tmp_path / "machine") as machine:
        known = yaml.safe_load((machine.home / "settings.yaml").read_text())
        assert known["gateway_url"] == f"http://{control.state()['urls']['gateway']}"
        assert "temporal_address" not in known
        assert not (machine.home / "ledger.db").exists()
        assert health(control.env, "gateway", port=control.state()["ports"]["gateway"]) == 0
        assert health(control.env, "gateway", port=1) == 1
        assert health(machine.env, "factory", machine.factory) == 0
        assert health(machine.env, "factory", "somebody-else") == 1
        job_id = begun(control, machine, remote, tmp_path / "through")
        killed = control.kill("gateway")
        wait_for("another gateway", lambda: control.part("gateway")["pid"] != killed)
        (tmp_path / "through.go-on").touch()
        shipped = control.ship(job_id)
        assert [attempt["factory"] for attempt in shipped["attempts"]] == [machine.factory]
        assert remote.show(f"gigafactory/{job_id}:through.txt") == "through"
    logged = (control.home / "logs" / "gateway.log").read_text().splitlines()  # of all tests that share the stack
    assert [line for line in logged if "gateway.refused" in line and machine.factory in line] == []


@pytest.mark.req("F3", "S2")
def test_token_replaced_under_a_running_job_costs_it_nothing(control: Stack, tmp_path: Path, remote: Remote) -> None:
    """The old one ends while the engine runs; reports, beats and the result go on with the new one."""
    with enrolled(control, tmp_path / "machine") as machine:
        job_id = begun(control, machine, remote, tmp_path / "rotated")
        old = machine.token
        headers = {"Authorization": f"Bearer {old}"}
        url = f"{control.state()['urls']['api']}/fleet/tokens/self/rotate"
        answer = httpx.post(url, headers=headers, json={"grace_s": int(3 * LOOK_S)}, timeout=30)
        assert answer.status_code == 200, answer.text
        machine.token_file.write_text(answer.json()["secret"])
        wait_for("the end of the old token", lambda: shown(control, old) == whether(refused=True))
        assert shown(control, machine.token) == whether(refused=False)
        (tmp_path / "rotated.go-on").touch()
        assert len(control.ship(job_id)["attempts"]) == 1


@pytest.mark.req("F3", "S2")
def test_revoked_factory_is_out_everywhere_and_its_job_is_lost_to_it(
    control: Stack, tmp_path: Path, remote: Remote
) -> None:
    """Revoked at one API process, refused at all of them and at the gateway; its attempt ends with its lease."""
    with enrolled(control, tmp_path / "machine") as machine:
        job_id = begun(control, machine, remote, tmp_path / "revoked")
        assert shown(control, machine.token) == whether(refused=False)
        (token,) = [one for one in tokens_of(control) if one["factory"] == machine.factory]
        control.gf("token", "revoke", token["id"], "--reason", "stolen")
        time.sleep(MAX_AGE_S)  # the only thing that is promised: from here on it is refused
        assert shown(control, machine.token) == whether(refused=True)
        (tmp_path / "revoked.go-on").touch()
        wait_for("the loss", lambda: "lease.lost" in [event["type"] for event in control.events(job_id)])
        assert remote.refs("refs/heads/gigafactory") == []
        control.act(job_id, "cancel")
        control.until(job_id, "cancelled")


@pytest.mark.req("F2", "F10")
def test_retired_factory_is_gone_and_its_token_opens_nothing(control: Stack, tmp_path: Path, remote: Remote) -> None:
    """It drains first: the job that runs there ends as if nothing were."""
    with enrolled(control, tmp_path / "machine") as machine:
        job_id = begun(control, machine, remote, tmp_path / "retired")
        token = machine.token
        assert control.gf("retire", machine.factory, "--wait", "0s", check=False).returncode == 5
        (tmp_path / "retired.go-on").touch()
        control.ship(job_id)
        control.gf("retire", machine.factory)
        time.sleep(MAX_AGE_S)
        assert shown(control, token) == whether(refused=True)
        factories = control.patiently("GET", "/fleet/factories").json()["factories"]
        assert machine.factory not in [factory["name"] for factory in factories]


def health(env: dict[str, str], *part: str, port: int = 0) -> int:
    """Return what a container's health check exits with."""
    command = [sys.executable, "-P", "-m", "workers.health", *part]
    env = env | {"GIGAFACTORY_GATEWAY_PORT": str(port)}
    return subprocess.run(command, env=env, capture_output=True, check=False, timeout=60).returncode


def tokens_of(control: Stack) -> list[dict[str, Any]]:
    """Return the tokens that open."""
    found: list[dict[str, Any]] = control.patiently("GET", "/fleet/tokens").json()["tokens"]
    return found
