"""Promises that only several processes at once can break."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from fractions import Fraction
from itertools import combinations, groupby
from operator import attrgetter
from pathlib import Path

import pytest
from sqlalchemy import text

from core.job import Stage
from core.router_policy import Limits, ProductPolicy, RoutingPolicy
from store.database import open_database
from tests.store.fleet import Fleet, value

SCRIPTS = Path(__file__).parent / "processes"
ROOT = Path(__file__).parents[2]


async def together(script: str, argument_lists: list[list[object]]) -> list[str]:
    """Run `script` in one process for each list of arguments, all let go at one moment; return what they print."""
    processes = [await _start(script, arguments) for arguments in argument_lists]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n", await _complaint(process)
        outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors.decode()
        return [output.decode() for output, _ in outputs]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _start(script: str, arguments: list[object]) -> Process:
    command = [sys.executable, "-P", str(SCRIPTS / script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)


async def _complaint(process: Process) -> str:
    assert process.stderr is not None
    return (await process.stderr.read()).decode()


async def test_increments_of_several_processes_lose_nothing(fleet: Fleet) -> None:
    """Four processes that each raise a counter 25 times raise it by 100; the event chain has every entry, unbroken."""
    workers, times = 4, 25
    await fleet.submit("j-1")

    await together("count_up.py", [[fleet.url, worker, times] for worker in range(1, workers + 1)])

    assert await value(fleet, "SELECT overtaken FROM jobs") == workers * times
    notes = [event.message for event in await fleet.ledger.events("j-1", limit=1000) if event.type == "note"]
    assert sorted(notes) == sorted(f"{worker}.{number}" for worker in range(1, workers + 1) for number in range(times))
    assert (await fleet.ledger.verify_chain("j-1")).ok


async def test_epochs_raised_by_several_processes_are_all_different(fleet: Fleet) -> None:
    """Processes that fight for one job never hold the same epoch, and no epoch is skipped."""
    workers, times = 3, 8
    await fleet.factory("f1")
    await fleet.submit("j-1")

    outputs = await together("raise_epochs.py", [[fleet.url, times] for _ in range(workers)])

    epochs = sorted(epoch for output in outputs for epoch in json.loads(output))
    job = await fleet.job("j-1")
    assert epochs == list(range(1, workers * times + 1))
    assert job.epoch == workers * times
    assert job.reclaims == workers * times
    assert await fleet.busy("f1") == 0
    assert (await fleet.ledger.verify_chain("j-1")).ok


@pytest.mark.usefixtures("own_schema")
async def test_dispatch_of_several_processes_grants_each_job_and_seat_once(fleet: Fleet) -> None:
    """Processes that dispatch together grant every job exactly once, within seats and limits, and all jobs end.

    Some of the jobs share locks and paths, so that grants get in each other's way; who holds what never overlaps.
    """
    workers, count, seats, limit = 4, 24, 2, 3
    await fleet.ledger.set_limit("engine", "shell", limit, actor="ann", now=fleet.now)
    for name in ("f1", "f2"):
        await fleet.factory(name, stations={"shell": seats}, seats=seats)
    for n in range(count):
        lock = "deploy" if n % 5 == 0 else None
        scope = ("src/**",) if n % 4 == 0 else ("docs/**", f"part{n}/*") if n % 4 == 1 else ()
        await fleet.submit(f"j-{n}", lock=lock, allowed_scope=scope)

    await _watch_leases(fleet, seats, limit)

    outputs = await together("dispatch.py", [[fleet.url, count] for _ in range(workers)])

    granted = [tuple(grant) for output in outputs for grant in json.loads(output)]
    assert sorted(job for job, *_ in granted) == sorted(f"j-{n}" for n in range(count))
    assert {epoch for _, epoch, *_ in granted} == {1}
    assert (await fleet.busy("f1"), await fleet.busy("f2")) == (0, 0)
    assert await fleet.ledger.recount_seats(fleet.now) == ()
    assert (await fleet.ledger.snapshot(fleet.now)).locks == ()
    assert len((await fleet.ledger.jobs(stages=[Stage.SHIPPED], limit=500)).items) == count


async def _watch_leases(fleet: Fleet, seats: int, limit: int) -> None:
    """Let the database itself refuse a lease beyond its factory's seats or its engine's limit, whoever writes it."""
    held = "SELECT count(*) FROM leases WHERE holds_seat AND"
    too_many = f"({held} factory = NEW.factory) > {seats} OR ({held} engine = NEW.engine) > {limit}"
    if fleet.url.startswith("sqlite"):
        statements = [
            f"CREATE TRIGGER watch AFTER INSERT ON leases WHEN {too_many} BEGIN SELECT RAISE(ABORT, 'too many'); END"
        ]
    else:
        body = f"BEGIN IF {too_many} THEN RAISE EXCEPTION 'too many'; END IF; RETURN NEW; END"
        statements = [
            f"CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
            "CREATE TRIGGER watch AFTER INSERT ON leases FOR EACH ROW EXECUTE FUNCTION watch()",
        ]
    await _execute(fleet, statements)


async def _note_grants(fleet: Fleet) -> None:
    """Let the database itself write down which job was granted after which: admissions follow each other."""
    insert = "INSERT INTO granted (job_id, at) VALUES (NEW.job_id, NEW.granted_at)"
    if fleet.url.startswith("sqlite"):
        statements = [
            "CREATE TABLE granted (id INTEGER PRIMARY KEY, job_id TEXT, at TEXT)",
            f"CREATE TRIGGER note AFTER INSERT ON leases BEGIN {insert}; END",
        ]
    else:
        statements = [
            "CREATE TABLE granted (id BIGSERIAL PRIMARY KEY, job_id TEXT, at TIMESTAMPTZ)",
            f"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {insert}; RETURN NEW; END $$",
            "CREATE TRIGGER note AFTER INSERT ON leases FOR EACH ROW EXECUTE FUNCTION note()",
        ]
    await _execute(fleet, statements)


async def _execute(fleet: Fleet, statements: list[str]) -> None:
    database = open_database(fleet.url)
    for statement in statements:
        await database.write(lambda connection, s=statement: connection.execute(text(s)))  # type: ignore[misc]
    await database.close()


async def passes_of(fleet: Fleet) -> list[list[str]]:
    """Return the jobs that each pass granted, in the order in which the passes came true."""
    database = open_database(fleet.url)
    query = text("SELECT job_id, at FROM granted ORDER BY id")
    rows = await database.read(lambda connection: connection.execute(query).all())
    await database.close()
    return [[row.job_id for row in one] for _, one in groupby(rows, key=attrgetter("at"))]


async def share_out(fleet: Fleet, routing: RoutingPolicy, waiting: dict[str, int], workers: int = 3) -> list[list[str]]:
    """Let processes together give four seats to `waiting` jobs of each product, in their order; return the passes."""
    for name in ("f1", "f2"):
        await fleet.factory(name, stations={"shell": 2}, seats=2)
    for product, jobs in waiting.items():
        for number in range(jobs):
            await fleet.submit(f"{product}-{number:02}", product_id=product)
    await _note_grants(fleet)
    arguments: list[object] = [fleet.url, sum(waiting.values()), routing.model_dump_json()]
    outputs = await together("share_out.py", [arguments for _ in range(workers)])
    passes = await passes_of(fleet)
    assert sum(map(len, passes)) == sum(waiting.values())
    assert sum(int(output) > 0 for output in outputs) > 1, "one process did it all: nothing was tried"
    return passes


@pytest.mark.req("R4")
@pytest.mark.usefixtures("own_schema")
async def test_starvation_bound_holds_over_several_processes(fleet: Fleet) -> None:
    """No job of the light products is overtaken more often than its seats allow, whoever dispatches."""
    bound, seats = 2, 4
    routing = RoutingPolicy(limits=Limits(starvation_bound=bound), products={"heavy": ProductPolicy(share=16)})
    line = {"light": 3, "thin": 3, "heavy": 44}

    passes = await share_out(fleet, routing, line)

    left = {product: [f"{product}-{number:02}" for number in range(jobs)] for product, jobs in line.items()}
    overtaken: Counter[str] = Counter()
    ages = {job: age for age, job in enumerate(job for jobs in left.values() for job in jobs)}
    for granted in passes:
        for jobs in left.values():
            jobs[:] = [job for job in jobs if job not in granted]
        for head in (jobs[0] for jobs in left.values() if jobs):
            overtaken[head] += sum(ages[job] > ages[head] for job in granted)
    assert overtaken
    assert seats < max(overtaken.values()) <= bound * seats


@pytest.mark.req("R4")
@pytest.mark.usefixtures("own_schema")
async def test_shares_hold_over_several_processes(fleet: Fleet) -> None:
    """What products had in proportion to their shares never differs by more than a step of each, whoever dispatches."""
    shares = {"a": 1, "b": 2, "c": 4}
    policies = {product: ProductPolicy(share=share) for product, share in shares.items()}
    routing = RoutingPolicy(limits=Limits(starvation_bound=1000), products=policies)

    passes = await share_out(fleet, routing, {"a": 9, "b": 17, "c": 34})

    had: Counter[str] = Counter()
    for granted in passes:
        had.update(job[0] for job in granted)
        if any(had[product] >= 8 * share for product, share in shares.items()):
            break  # one of them has nothing left to wait for soon
        for one, other in combinations(shares, 2):
            steps = Fraction(1, shares[one]) + Fraction(1, shares[other])
            assert abs(Fraction(had[one], shares[one]) - Fraction(had[other], shares[other])) <= steps, had
    assert had.total() > 40
