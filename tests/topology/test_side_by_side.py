"""Several API processes and control workers at once, on PostgreSQL: nothing is lost, nothing happens twice.

The judges stand outside: a file that the jobs' scripts append to, and the bare git remote.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.conftest import TOPOLOGY
from tests.e2e.conftest import Remote, Stack, wait_for
from tests.topology.compose import COMPOSE_FILE, read_services
from tests.topology.conftest import FACTORIES, SEATS

pytestmark = [pytest.mark.stack, pytest.mark.chaos]

JOBS = 18
LOCKS = ("left", "right", "")
"""Every third job has the same lock, or none."""
ASKERS = 6


@dataclass(frozen=True)
class Line:
    """One line of the judge's file: a script began or ended."""

    what: str
    job: str
    attempt: str
    at: float


def manifest(remote: Remote, ledger: Path, number: int) -> str:
    """Return a job that tells the judge when it runs; every second one merges into the base branch."""
    lock = LOCKS[number % len(LOCKS)]
    head = [f"engine: shell\nrepo: {remote.path}\nbase: main\nprofile: solo\nidempotency-key: side-{number}"]
    head += ["ship: base" if number % 2 else "ship: branch", f"verify: test -s made-{number}"]
    head += [f"lock: {lock}"] if lock else []
    tell = f'echo "$1 {number} $GIGAFACTORY_ATTEMPT $(date +%s.%N)" >> {ledger}'
    script = f"set -e\ntell() {{ {tell}; }}\ntell begin\nsleep 0.3\necho {number} > made-{number}\ntell end\n"
    return "---\n" + "\n".join(head) + f"\n---\n# Number {number}\n\n```sh\n{script}```\n"


def lines_of(ledger: Path) -> list[Line]:
    """Return what the scripts told, in the order in which it was written."""
    told = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return [Line(what, job, attempt, float(at)) for what, job, attempt, at in told]


class Clients:
    """The two API processes; a call that finds one dead goes on at the other."""

    def __init__(self, stack: Stack) -> None:
        self.apis = [stack.client("api"), stack.client("api_2")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for api in self.apis:
            api.close()

    def call(self, first: int, method: str, path: str, **body: Any) -> httpx.Response:
        """Call the API `first`, then the other, until one answers."""
        turn = iter(range(first, 10_000))

        def attempt() -> httpx.Response | None:
            try:
                answer = self.apis[next(turn) % 2].request(method, path, **body)
            except httpx.TransportError:
                return None
            return None if answer.status_code in (502, 503) else answer

        return wait_for(f"an answer to {method} {path}", attempt)

    def stories(self, job_ids: set[str]) -> str:
        """Return what happened last to the jobs that did not ship."""
        told = []
        for job_id in sorted(job_ids):
            job = self.call(0, "GET", f"/fleet/jobs/{job_id}").json()
            if job["stage"] != "shipped":
                events = self.call(0, "GET", f"/fleet/jobs/{job_id}/events").json()["events"]
                told.append({"job": job, "events": events[-12:]})
        return json.dumps(told, indent=1)


@pytest.fixture
def clients(fleet: Stack) -> Iterator[Clients]:
    """Return clients of both API processes."""
    with Clients(fleet) as opened:
        yield opened


@pytest.mark.parametrize("service", ["api", "control", "factory"])
def test_health_check_of_the_container_tells_whether_a_part_works(fleet: Stack, service: str) -> None:
    """The compose file's own check succeeds while the part runs, and fails for one that does not."""
    known = read_services(COMPOSE_FILE.read_text(), {"POSTGRES_PASSWORD": "p"})[service]
    words = {"python": sys.executable, "factory-1": fleet.part("factory")["name"]}
    command = [words.get(word, word) for word in known.document["healthcheck"]["test"][1:]]
    urls = fleet.state()["urls"]

    def exit_code(api_port: str, temporal: str) -> int:
        environ = fleet.env | {"GIGAFACTORY_API_PORT": api_port, "GIGAFACTORY_TEMPORAL_ADDRESS": temporal}
        return subprocess.run(command, env=environ, capture_output=True, check=False).returncode

    assert exit_code(urls["api"].rpartition(":")[2], urls["temporal"]) == 0
    assert exit_code("1", "127.0.0.1:1") == 1


def test_token_that_a_container_of_a_factory_gets_is_its_own(fleet: Stack, clients: Clients) -> None:
    """The compose file's own service handed it over; the APIs take it for that factory, and for nothing else."""
    token = (fleet.home / "home-of-factory-1" / "factories" / "factory-1" / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    for first in (0, 1):
        known = clients.call(first, "GET", "/fleet/tokens/self", headers=headers).json()
        assert (known["roles"], known["factory"]) == (["factory"], "factory-1")
        assert clients.call(first, "GET", "/fleet/jobs", headers=headers).status_code == 403


@pytest.mark.skipif(TOPOLOGY != "production", reason="half a minute; runs with `./gf test --topology production`")
def test_submits_and_ships_through_both_while_one_of_each_is_killed(
    fleet: Stack, clients: Clients, remote: Remote, tmp_path: Path
) -> None:
    """The same keys through both APIs give one job each; every job is shipped exactly once, within seats and locks."""
    ledger = tmp_path / "ledger"
    ids: dict[int, set[str]] = {number: set() for number in range(JOBS)}

    def submit(number: int, first: int) -> None:
        document = {"manifest": manifest(remote, ledger, number)}
        answer = clients.call(first, "POST", "/fleet/jobs", json=document)
        assert answer.status_code in (200, 201), answer.text
        ids[number].add(answer.json()["jobs"][0]["id"])

    with ThreadPoolExecutor(ASKERS) as asking:
        submits = [asking.submit(submit, number, first) for number in range(JOBS) for first in (0, 1)]
        wait_for("a third of the submits", lambda: sum(done.done() for done in submits) >= JOBS * 2 // 3)
        killed = [fleet.kill("api"), fleet.kill("control")]
        for done in submits:
            done.result()
    assert all(len(same) == 1 for same in ids.values()), ids
    jobs = {number: same.pop() for number, same in ids.items()}
    ship_all(clients, set(jobs.values()), at_half=lambda: killed.extend((fleet.kill("api-2"), fleet.kill("control-2"))))
    assert len(set(killed)) == 4
    assert_shipped_once(remote, jobs)
    assert_within_seats_and_locks(lines_of(ledger), jobs)


def ship_all(clients: Clients, job_ids: set[str], at_half: Callable[[], object]) -> None:
    """Ship each job when it is at its gate, through both APIs at once, until all have shipped."""
    asked: set[str] = set()
    answers: list[Future[httpx.Response]] = []

    def ask_and_count() -> bool:
        listed = clients.call(0, "GET", "/fleet/jobs", params={"limit": 200}).json()["jobs"]
        ours = [job for job in listed if job["id"] in job_ids]
        for job in ours:
            if job["stage"] == "testing" and job["id"] not in asked:
                asked.add(job["id"])
                body = {"action": "ship", "sha": job["candidate_sha"]}
                path = f"/fleet/jobs/{job['id']}/actions"
                answers.extend(asking.submit(clients.call, first, "POST", path, json=body) for first in (0, 1))
        if len(asked) >= len(job_ids) // 2 and not halfway:
            halfway.append(at_half())
        return len([job for job in ours if job["stage"] == "shipped"]) == len(job_ids)

    halfway: list[object] = []
    with ThreadPoolExecutor(ASKERS) as asking:
        try:
            wait_for("all jobs to be shipped", ask_and_count, patience_s=300)
        except AssertionError:
            raise AssertionError(clients.stories(job_ids)) from None
    refused = [answer.result().text for answer in answers if answer.result().status_code not in (200, 409)]
    assert refused == []


def assert_shipped_once(remote: Remote, jobs: dict[int, str]) -> None:
    """The remote has one shipped mark per job, and each job's work once: on the base or on its branch."""
    marks = {name.rpartition("/")[2] for name in remote.refs("refs/gigafactory/shipped/")}
    assert marks == set(jobs.values())
    assert Counter(remote.added("main")) == Counter(["README.md", *(f"made-{number}" for number in jobs if number % 2)])
    for number, job_id in jobs.items():
        if not number % 2:
            assert Counter(remote.added(f"gigafactory/{job_id}"))[f"made-{number}"] == 1


def assert_within_seats_and_locks(lines: list[Line], jobs: dict[int, str]) -> None:
    """No attempt ran twice, no more scripts ran at once than there are seats, none of a lock beside another."""
    begun = Counter(line.attempt for line in lines if line.what == "begin")
    assert set(begun.values()) == {1}
    assert {line.job for line in lines if line.what == "end"} == {str(number) for number in jobs}
    running: set[str] = set()
    for line in sorted(lines, key=lambda line: line.at):
        if line.what == "end":
            running.discard(line.job)
            continue
        beside = {LOCKS[int(job) % len(LOCKS)] for job in running}
        assert LOCKS[int(line.job) % len(LOCKS)] not in beside - {""}, f"{line} beside {running}"
        running.add(line.job)
        assert len(running) <= SEATS * FACTORIES
