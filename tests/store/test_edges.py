"""What waits for what: released, blocked, dropped, and told only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, event

from core.errors import IllegalAction, InvalidInput
from core.job import Dependency, Stage
from core.lifecycle import Record
from core.settings import Settings
from store import open_ledger
from store.database import Database, open_database
from store.projection import record
from tests.store.fleet import Fleet

SEATS = 60


def deps(*parents: str, until: str = "shipped") -> tuple[Dependency, ...]:
    """Return dependencies on jobs."""
    return tuple(Dependency.model_validate({"job_id": parent, "until": until}) for parent in parents)


@pytest.fixture
async def floor(fleet: Fleet) -> Fleet:
    """Return a fleet with seats for all, and the jobs `one` and `two` building there."""
    await fleet.factory("f1", stations={"shell": SEATS}, seats=SEATS)
    await fleet.building("one")
    await fleet.building("two")
    await fleet.deliver()
    return fleet


@pytest.fixture
async def database(fleet: Fleet) -> AsyncIterator[Database]:
    """Return the fleet's database, as another process would open it."""
    opened = open_database(fleet.url)
    yield opened
    await opened.close()


async def messages(fleet: Fleet) -> list[tuple[str, str, object]]:
    """Return what the outbox has for whom: `start`, or a signal's name, with the outcome that it tells."""
    return [(row.job_id, row.name, row.payload.get("outcome")) for row in await fleet.deliver()]


async def waits(fleet: Fleet, job_id: str) -> tuple[str | None, list[str]]:
    """Return what holds the job back, and the reasons that it shows."""
    job = await fleet.job(job_id)
    return job.held, [condition.reason for condition in job.conditions]


# --- released and blocked -------------------------------------------------------------------------------------------


async def test_job_is_released_by_its_last_parent_only(floor: Fleet) -> None:
    """A join hears nothing of the first parent; the last one starts its workflow, with an event that says why."""
    await floor.submit("join", deps=deps("one", "two"))
    await floor.ship("one")
    assert (await waits(floor, "join"), await messages(floor)) == (("parents", ["parents"]), [])

    await floor.ship("two")

    assert await waits(floor, "join") == ("workflow", [])
    assert await messages(floor) == [("join", "start", None)]
    assert [entry.type for entry in await floor.events("join")] == ["job.submitted", "parents.done"]


async def test_fan_out_takes_as_many_statements_for_many_as_for_few(floor: Fleet, database: Database) -> None:
    """The end of a parent is one short transaction however many jobs wait for it."""
    counts = {}
    for width in (3, 40):
        parent = f"root-{width}"
        await floor.building(parent)
        for number in range(width):
            await floor.submit(f"leaf-{width}-{number:02}", deps=deps(parent, until="testing"))
        await floor.deliver()
        statements: list[str] = []

        def counted(connection: Connection, parent: str, statements: list[str]) -> None:
            event.listen(connection, "before_cursor_execute", lambda *call: statements.append(call[2]))
            record(connection, parent, 1, Record(path=(Stage.REVIEW, Stage.TESTING), epoch=1), floor.now)

        await database.write(counted, parent, statements)
        counts[width] = len(statements)
        assert len(await messages(floor)) == width
    assert counts[3] == counts[40]


async def test_failed_parent_blocks_and_its_requeue_unblocks(floor: Fleet) -> None:
    """A parent that failed is shown; when it is requeued the job waits again, and starts when that ships."""
    await floor.submit("join", deps=deps("one", "two"))
    await floor.record("one", Stage.FAILED, epoch=1, attempt_outcome="crash")
    assert await waits(floor, "join") == ("parents", ["parent_failed"])
    assert "one (failed)" in (await floor.job("join")).conditions[0].message

    await floor.ship("two")
    assert await waits(floor, "join") == ("parents", ["parent_failed"])

    await floor.ledger.requeue("one", floor.tick())
    assert await waits(floor, "join") == ("parents", ["parents"])
    assert [entry.type for entry in await floor.events("join")][1:] == ["parents.failed", "parents.waiting"]

    await floor.deliver()
    await floor.ledger.dispatch(floor.now)
    await floor.started("one", 2)
    await floor.ship("one")
    assert await waits(floor, "join") == ("workflow", [])


async def test_second_failure_tells_nothing_new(floor: Fleet) -> None:
    """What a whole wait comes to is told when that changes, not whenever a parent does."""
    await floor.submit("join", deps=deps("one", "two"))
    await floor.record("one", Stage.FAILED, epoch=1, attempt_outcome="crash")
    before = await floor.events("join")

    ack = await floor.record("two", Stage.CANCELLED, epoch=1)

    assert not ack.told
    assert await floor.events("join") == before
    assert (await floor.ledger.parents_state("join")).failed == ("one", "two")


async def test_parent_that_leaves_testing_is_waited_for_again(floor: Fleet) -> None:
    """A candidate that passed and then goes back to the queue was no good: jobs that did not start yet wait again."""
    await floor.submit("early", deps=deps("one", "two", until="testing"))
    await floor.record("one", Stage.REVIEW, Stage.TESTING, epoch=1)
    await floor.record("one", Stage.REVIEW, epoch=1)  # it could not land: its verify passed all the same
    assert (await floor.ledger.parents_state("early")).waiting == ("two",)
    await floor.record("one", Stage.QUEUED, epoch=1)
    assert (await floor.ledger.parents_state("early")).waiting == ("one", "two")


async def test_job_with_a_workflow_is_signalled_and_gets_no_seat_meanwhile(floor: Fleet) -> None:
    """A job that may start and then may not is held at once, before its workflow hears of it."""
    await floor.submit("early", deps=deps("one", until="testing"))
    await floor.record("one", Stage.REVIEW, Stage.TESTING, epoch=1)
    await floor.deliver()
    assert await floor.ledger.ready("early", floor.now)

    await floor.record("one", Stage.QUEUED, epoch=1)

    assert (await floor.job("early")).held == "workflow"
    assert await messages(floor) == [("early", "parents_changed", "waiting")]
    assert await floor.ledger.route("early", floor.now) is None


async def test_two_parents_that_end_at_once_release_their_child_once(floor: Fleet, settings: Settings) -> None:
    """Each of two transactions would take the other's edge for open; they take turns, so one of them sees both."""
    pairs = range(8)
    for pair in pairs:
        for side in "ab":
            await floor.building(f"{side}-{pair}")
        await floor.submit(f"join-{pair}", deps=deps(f"a-{pair}", f"b-{pair}", until="testing"))
    await floor.deliver()
    passed = Record(path=(Stage.REVIEW, Stage.TESTING), epoch=1)
    processes = {side: open_ledger(settings) for side in "ab"}

    await asyncio.gather(
        *(processes[side].record(f"{side}-{pair}", 1, passed, floor.now) for pair in pairs for side in "ab")
    )

    for ledger in processes.values():
        await ledger.close()
    assert sorted(await messages(floor)) == [(f"join-{pair}", "start", None) for pair in pairs]


async def test_job_submitted_while_its_parent_ends_is_never_left_behind(floor: Fleet, settings: Settings) -> None:
    """Whichever comes first, the submit or the parent's end, the job is ready afterwards."""
    names = range(8)
    for number in names:
        await floor.building(f"p-{number}")
    await floor.deliver()
    passed = Record(path=(Stage.REVIEW, Stage.TESTING), epoch=1)
    other = open_ledger(settings)

    await asyncio.gather(
        *(other.record(f"p-{number}", 1, passed, floor.now) for number in names),
        *(floor.submit(f"c-{number}", deps=deps(f"p-{number}", until="testing")) for number in names),
    )

    await other.close()
    assert sorted(await messages(floor)) == [(f"c-{number}", "start", None) for number in names]


# --- an operator decides --------------------------------------------------------------------------------------------


async def test_dropped_edge_lets_the_job_start(floor: Fleet) -> None:
    """Dropping the failed parent leaves the other one; dropping that too starts the job, with who and why on record."""
    await floor.submit("join", deps=deps("one", "two"))
    await floor.record("one", Stage.FAILED, epoch=1, attempt_outcome="crash")

    start, ship = await floor.ledger.drop_edges("join", ["one"], floor.tick(), by="ada", reason="not needed")
    assert (start.outcome, start.waiting, ship.outcome) == ("waiting", ("two",), "ready")
    assert await waits(floor, "join") == ("parents", ["parents"])
    (decision,) = await floor.events("join", "decision.unblock")
    assert decision.message == "ada waits no more for one (failed): not needed"

    await floor.ledger.drop_edges("join", ["two"], floor.tick(), by="ada")
    assert await messages(floor) == [("join", "start", None)]
    assert {dep.job_id: dep.state for dep in (await floor.job("join")).deps} == {"one": "dropped", "two": "dropped"}

    await floor.ledger.requeue("one", floor.tick())  # a dropped edge stays dropped
    assert (await floor.ledger.parents_state("join")).outcome == "ready"


async def test_drop_of_what_is_not_waited_for_is_refused(floor: Fleet) -> None:
    """Nothing changes unless every edge that is named can be dropped."""
    await floor.submit("join", deps=deps("one", "two"))
    await floor.submit("other")
    await floor.ship("one")
    with pytest.raises(InvalidInput, match="join does not wait for other") as caught:
        await floor.ledger.drop_edges("join", ["two", "other"], floor.now)
    assert [problem.value for problem in caught.value.problems] == ["other"]
    with pytest.raises(IllegalAction, match="does not wait for one any more: that is done"):
        await floor.ledger.drop_edges("join", ["one", "two"], floor.now)
    assert (await floor.ledger.parents_state("join")).waiting == ("two",)

    await floor.record("join", Stage.CANCELLED)
    with pytest.raises(IllegalAction, match="has ended in cancelled"):
        await floor.ledger.drop_edges("join", ["two"], floor.now)


# --- lives ----------------------------------------------------------------------------------------------------------


async def test_waiting_job_has_no_workflow_until_somebody_acts_on_it(floor: Fleet) -> None:
    """A waiting job is no lost one; an action starts its workflow, once, and that hears of its parents from then on."""
    await floor.submit("join", deps=deps("one"))
    later = floor.tick(60)
    assert "join" not in {job.id for job in await floor.ledger.unfinished_jobs(later)}
    assert await floor.ledger.enqueue_start("join", later) is None

    assert await floor.ledger.begin_waiting("join", later)
    assert not await floor.ledger.begin_waiting("join", later)

    assert await messages(floor) == [("join", "start", None)]
    assert not await floor.ledger.ready("join", later)
    await floor.ship("one")
    assert await messages(floor) == [("join", "parents_changed", "ready")]


async def test_requeued_job_waits_for_the_parents_that_are_open_by_then(floor: Fleet) -> None:
    """Another life begins with the parents as they are now: a row again, when one of them is open."""
    await floor.submit("join", deps=deps("one"))
    await floor.record("join", Stage.FAILED)
    await floor.ledger.requeue("join", floor.tick())
    assert (await waits(floor, "join"), await messages(floor)) == (("parents", ["parents"]), [])

    await floor.ship("one")
    assert await messages(floor) == [("join", "start", None)]
    assert (await floor.ledger.start_payload("join")).life == 2


async def test_restart_of_a_parent_keeps_its_children_waiting(floor: Fleet) -> None:
    """A parent whose workflow was lost goes on; nothing changes for who waits for it."""
    await floor.submit("join", deps=deps("one"))
    before = await floor.events("join")
    restarted = await floor.ledger.enqueue_start("one", floor.tick())
    assert restarted is not None
    assert await floor.events("join") == before
    assert (await floor.ledger.parents_state("join")).waiting == ("one",)
