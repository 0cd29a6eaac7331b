"""Promises that only several processes at once can break."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
from sqlalchemy import text

from core.job import Stage
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
    database = open_database(fleet.url)
    for statement in statements:
        await database.write(lambda connection, s=statement: connection.execute(text(s)))  # type: ignore[misc]
    await database.close()
