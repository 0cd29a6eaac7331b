from __future__ import annotations

import base64
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from core.attempt import Usage
from core.errors import InvalidInput, NotFound
from core.job import Dependency, Stage
from store.database import open_database
from tests.store.fleet import CANDIDATE, Fleet


async def sql(fleet: Fleet, *statements: str) -> None:
    """Change the database behind the ledger's back."""
    database = open_database(fleet.url)
    for statement in statements:
        await database.write(lambda connection, s=statement: connection.execute(text(s)))  # type: ignore[misc]
    await database.close()


async def unlock_events(fleet: Fleet) -> None:
    """Take away the triggers that forbid what an intruder with the database's password could do."""
    if fleet.url.startswith("sqlite"):
        await sql(fleet, "DROP TRIGGER events_no_update", "DROP TRIGGER events_no_delete")
    else:
        await sql(fleet, "ALTER TABLE events DISABLE TRIGGER ALL")


# --- the job document ---------------------------------------------------------------------------------------------


async def test_job_document_has_what_clients_rely_on(fleet: Fleet) -> None:
    """As JSON: identity, stage, conditions, attempts, commits, tokens and cost; unknown is null."""
    await fleet.factory("f1")
    await fleet.submit("parent")
    await fleet.building("j-1", product_id="default", deps=())

    document = (await fleet.job("j-1")).model_dump(mode="json")

    assert {"id", "product_id", "title", "stage", "conditions", "attempts", "commits", "tokens", "cost"} <= set(
        document
    )
    assert (document["id"], document["stage"], document["ship"]) == ("j-1", "building", "branch")
    assert document["cost"] == {"usd": None, "source": "unknown", "complete": False}
    assert document["tokens"] is None
    (attempt,) = document["attempts"]
    assert {k: attempt[k] for k in ("epoch", "factory", "engine", "outcome")} == {
        "epoch": 1,
        "factory": "f1",
        "engine": "shell",
        "outcome": None,
    }


async def test_unknown_job_is_not_found(fleet: Fleet) -> None:
    """Every read of a single job names the job that is not there."""
    ledger = fleet.ledger
    for read in (
        ledger.job,
        ledger.documents,
        ledger.events,
        ledger.verify_chain,
        ledger.latest_ids,
        ledger.start_payload,
    ):
        for job_id in ("j-x", "nul\x00", "\ud800"):
            with pytest.raises(NotFound, match="there is no job"):
                await read(job_id)


@pytest.mark.parametrize(
    ("usages", "cost", "tokens"),
    [
        ([], (None, "unknown", False), None),
        ([Usage()], (None, "unknown", False), None),
        ([Usage(cost_usd=Decimal(0), cost_source="reported")], (Decimal(0), "reported", True), None),
        (
            [Usage(cost_usd=Decimal("0.1"), cost_source="reported", total_tokens=5), Usage(input_tokens=3)],
            (Decimal("0.1"), "reported", False),
            8,
        ),
        (
            [
                Usage(cost_usd=Decimal("0.1"), cost_source="reported"),
                Usage(cost_usd=Decimal("0.2"), cost_source="estimated"),
            ],
            (Decimal("0.3"), "estimated", True),
            None,
        ),
    ],
)
async def test_cost_adds_up_and_unknown_is_never_nothing(
    fleet: Fleet, usages: list[Usage], cost: tuple[Any, ...], tokens: int | None
) -> None:
    """Known costs are summed exactly; what is not known is said, and never counted as 0."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    for usage in usages:
        grant = await fleet.ledger.route("j-1", fleet.now)
        assert grant is not None
        await fleet.record("j-1", Stage.QUEUED, epoch=grant.epoch, attempt_outcome="crash", usage=usage, end_lease=True)

    job = await fleet.job("j-1")
    assert (job.cost.usd, job.cost.source, job.cost.complete) == cost
    assert job.tokens == tokens


async def test_attempts_are_listed_oldest_first(fleet: Fleet) -> None:
    """The history of a job shows each attempt with its end."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    await fleet.lose("j-1", 1)
    await fleet.record("j-1", Stage.QUEUED, epoch=1)
    await fleet.ledger.route("j-1", fleet.now)

    assert [(a.epoch, a.outcome, a.lease) for a in await fleet.ledger.attempts("j-1")] == [
        (1, "lease_lost", "lost"),
        (2, None, "living"),
    ]


# --- lists --------------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_newest_first_page_by_page(fleet: Fleet) -> None:
    """Walking through the pages shows every job once, also those of one moment, and new ones do not disturb."""
    for n in range(5):
        await fleet.submit(f"j-{n}")
        fleet.tick(-1)
    first = await fleet.ledger.jobs(limit=2)
    await fleet.submit("j-new")
    seen = [job.id for job in first.items]
    cursor = first.next_cursor
    while cursor:
        page = await fleet.ledger.jobs(limit=2, cursor=cursor)
        seen += [job.id for job in page.items]
        cursor = page.next_cursor

    assert seen == ["j-4", "j-3", "j-2", "j-1", "j-0"]


async def test_jobs_are_filtered_by_product_and_stage(fleet: Fleet) -> None:
    """Filters combine."""
    await fleet.factory("f1")
    await fleet.granted("a")
    await fleet.submit("b")
    await fleet.submit("c", product_id="toys")

    async def ids(**query: Any) -> list[str]:
        return [job.id for job in (await fleet.ledger.jobs(**query)).items]

    assert await ids(products=["toys"]) == ["c"]
    assert await ids(stages=[Stage.QUEUED]) == ["c", "b"]
    assert await ids(stages=[Stage.QUEUED, Stage.ASSIGNED], products=["default"]) == ["b", "a"]
    assert await ids(stages=[Stage.SHIPPED]) == []
    assert await ids(products=["toys", "default"]) == ["c", "b", "a"]
    assert await ids(products=[]) == []


@pytest.mark.parametrize(
    "cursor", ["x", "%%%", "ü", base64.urlsafe_b64encode(b"2026-01-01T00:00:00 j-1").decode(), "eHg="]
)
async def test_cursor_that_is_none_is_refused(fleet: Fleet, cursor: str) -> None:
    """A made-up cursor is the caller's mistake, not a crash."""
    with pytest.raises(InvalidInput, match="cursor"):
        await fleet.ledger.jobs(cursor=cursor)


async def test_list_shows_attempts_of_each_job(fleet: Fleet) -> None:
    """A list needs no further question for what runs where."""
    await fleet.factory("f1")
    await fleet.granted("a")
    await fleet.submit("b")

    by_id = {job.id: job for job in (await fleet.ledger.jobs()).items}
    assert [a.factory for a in by_id["a"].attempts] == ["f1"]
    assert by_id["b"].attempts == ()


async def test_list_shows_what_each_job_waits_for(fleet: Fleet) -> None:
    """Parents are in a list as they are in the single document, with their present stage."""
    await fleet.submit("a")
    await fleet.submit("b", deps=(Dependency(job_id="a", until="testing"),))

    newest, oldest = (await fleet.ledger.jobs()).items
    assert [(dep.job_id, dep.until, dep.stage) for dep in newest.deps] == [("a", "testing", Stage.QUEUED)]
    assert newest == await fleet.job("b")
    assert oldest.deps == ()


# --- events and their chain -----------------------------------------------------------------------------------------


async def test_events_tell_the_whole_life_in_order(fleet: Fleet) -> None:
    """The event log alone reconstructs what happened to a job."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    await fleet.ship("j-1")

    events = await fleet.events("j-1")
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert [e.data["to"] for e in events if e.type == "stage.changed"] == ["assigned", "building", "review", "shipped"]
    assert [e.type for e in events if e.type != "stage.changed"] == [
        "job.submitted",
        "job.granted",
        "attempt.started",
        "attempt.accepted",
        "attempt.ended",
    ]
    assert {e.product_id for e in events} == {"default"}


async def test_events_are_read_on_from_a_number(fleet: Fleet) -> None:
    """A reader that comes back goes on where it was."""
    await fleet.factory("f1")
    await fleet.building("j-1")

    events = await fleet.events("j-1")
    assert await fleet.ledger.events("j-1", after_seq=2, limit=2) == tuple(events[2:4])
    assert await fleet.ledger.events("j-1", after_seq=99) == ()
    assert (await fleet.ledger.latest_ids("j-1")).event_seq == len(events)


async def test_untouched_chain_verifies(fleet: Fleet) -> None:
    """Each event is linked to the one before it by a hash that anybody can compute from an export."""
    import hashlib
    import json

    await fleet.factory("f1")
    await fleet.building("j-1", title="ünï ☃ \x00 code")
    await fleet.ship("j-1")

    report = await fleet.ledger.verify_chain("j-1")
    assert report.ok
    prev = "0" * 64
    for event in await fleet.events("j-1"):
        hashed = event.model_dump(exclude={"prev_hash", "hash"})
        hashed["at"] = event.at.isoformat(timespec="microseconds")
        canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
        assert event.prev_hash == prev
        assert event.hash == hashlib.sha256((prev + canonical).encode()).hexdigest()
        prev = event.hash


@pytest.mark.parametrize(
    ("tampering", "broken_at", "problem"),
    [
        ("UPDATE events SET message = 'nothing happened' WHERE seq = 2", 2, "changed"),
        ("UPDATE events SET data = '{}' WHERE seq = 3", 3, "changed"),
        ("UPDATE events SET at = (SELECT at FROM events WHERE seq = 6) WHERE seq = 1", 1, "changed"),
        ("UPDATE events SET hash = prev_hash WHERE seq = 2", 2, "changed"),
        ("DELETE FROM events WHERE seq = 3", 3, "missing"),
        ("DELETE FROM events WHERE seq = 1", 1, "missing"),
        ("DELETE FROM events WHERE seq > 4", 5, "ends at event 4"),
        ("DELETE FROM events", 1, "ends at event 0"),
        ("UPDATE jobs SET event_hash = 'x'", 9, "newest"),
    ],
)
@pytest.mark.usefixtures("own_schema")
async def test_tampering_with_events_is_found(fleet: Fleet, tampering: str, broken_at: int, problem: str) -> None:
    """A changed, removed or cut-off event is found, with its number."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    fleet.tick()
    await fleet.record("j-1", Stage.REVIEW, epoch=1, attempt_outcome="succeeded")
    await fleet.record("j-1", entries=({"type": "decision.approve", "message": "by ada"},))
    assert (await fleet.ledger.latest_ids("j-1")).event_seq == 8
    await unlock_events(fleet)

    await sql(fleet, tampering)

    report = await fleet.ledger.verify_chain("j-1")
    assert (report.ok, report.broken_at) == (False, broken_at)
    assert problem in report.problem


async def test_latest_ids_say_how_far_a_stream_can_read(fleet: Fleet) -> None:
    """One small question tells whether there is anything new."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    before = await fleet.ledger.latest_ids("j-1")
    assert (before.log_id, before.stage) == (0, Stage.BUILDING)
    await fleet.logs("j-1", 1, 1, fleet.line("x"))
    after = await fleet.ledger.latest_ids("j-1")

    assert after.event_seq == before.event_seq
    assert after.log_id > 0


# --- for the reconciler ---------------------------------------------------------------------------------------------


async def test_unfinished_jobs_are_those_whose_workflow_should_live(fleet: Fleet) -> None:
    """Ended jobs and jobs that were just written to are left out; each says what it was doing."""
    await fleet.factory("f1")
    await fleet.building("a")
    await fleet.building("ended")
    await fleet.ship("ended")
    await fleet.deliver()
    await fleet.submit("b")
    quiet = fleet.tick()
    await fleet.submit("young")

    found = await fleet.ledger.unfinished_jobs(quiet)

    assert [(job.id, job.stage, job.epoch, job.life, job.lease, job.start_pending) for job in found] == [
        ("a", Stage.BUILDING, 1, 1, "living", False),
        ("b", Stage.QUEUED, 0, 1, None, True),
    ]
    (first,) = await fleet.ledger.unfinished_jobs(quiet, limit=1)
    assert [job.id for job in await fleet.ledger.unfinished_jobs(quiet, limit=5, after=first)] == ["b"]


async def test_start_payload_tells_the_workflow_everything(fleet: Fleet) -> None:
    """A workflow can begin without asking anything else."""
    await fleet.submit("parent")
    await fleet.submit("j-1", deps=(Dependency(job_id="parent"),), title="Paint")

    payload = await fleet.ledger.start_payload("j-1")

    assert (payload.spec.title, payload.grant, payload.life, payload.epoch) == ("Paint", None, 1, 0)
    assert not payload.ready
    assert (await fleet.ledger.start_payload("parent")).ready
    assert payload.submitted_at == fleet.now
    assert CANDIDATE not in payload.model_dump_json()
