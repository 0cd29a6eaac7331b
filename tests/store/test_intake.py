from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event

from core.errors import IdempotencyConflict, InvalidInput
from core.job import Dependency, ProfileRef, Stage
from store.database import open_database
from store.intake import differing, submit
from store.messages import Submission
from tests.store.fleet import Fleet, make_spec

MANIFEST: dict[str, Any] = {"title": "Say hello", "retry": {"max": 2}, "verify": ["true", "make test"], "body": "hi"}


def submission(job_id: str, *, key: str | None = None, canonical: Any = None, **values: Any) -> Submission:
    """Return a submission of the canonical manifest."""
    return Submission(
        job_id=job_id,
        spec=make_spec(**values),
        canonical=canonical or MANIFEST,
        idempotency_key=key,
        submitted_by="ada",
    )


async def test_submit_writes_job_event_and_start_message(fleet: Fleet) -> None:
    """One submission is one job, ready to run, with its first event and the order to start its workflow."""
    answer = await fleet.submit("j-1", title="Paint the shed")

    assert answer.created
    job = await fleet.job("j-1")
    assert (job.stage, job.title, job.held, job.submitted_by) == (Stage.QUEUED, "Paint the shed", None, "ada")
    (event,) = await fleet.events("j-1")
    assert (event.type, event.seq, event.data["by"]) == ("job.submitted", 1, "ada")
    (row,) = await fleet.deliver()
    assert (row.kind, row.job_id, row.product_id) == ("start", "j-1", "default")


async def test_submit_keeps_the_snapshot_unchanged(fleet: Fleet) -> None:
    """Manifest, provenance and spec come back exactly as they were handed in."""
    spec = make_spec(allowed_scope=("src/**",), verify=("make test",), body="ünï\x00code")
    documents = {"manifest": "---\ntitle: x\n---\nbody \x00", "provenance": [{"field": "verify", "from": "profile"}]}
    await fleet.ledger.submit(
        spec, job_id="j-1", idempotency_key=None, canonical={}, snapshot=documents, submitted_by="", now=fleet.now
    )

    kept = await fleet.ledger.documents("j-1")
    assert kept.spec == spec
    assert kept.documents == documents


async def test_submit_of_same_key_and_content_returns_the_same_job(fleet: Fleet) -> None:
    """Nothing new starts when the same content comes under the same key again."""
    first = await fleet.ledger.submit_all([submission("j-1", key="k")], fleet.now)
    again = await fleet.ledger.submit_all([submission("j-2", key="k")], fleet.tick())

    assert [(s.job_id, s.created) for s in (*first, *again)] == [("j-1", True), ("j-1", False)]
    assert len((await fleet.ledger.jobs()).items) == 1
    assert len(await fleet.deliver()) == 1
    keys = [("default", "k"), ("default", "other"), ("toys", "k")]
    assert await fleet.ledger.jobs_of_keys(keys) == {("default", "k"): "j-1"}


async def test_submit_of_same_key_and_other_content_names_the_fields(fleet: Fleet) -> None:
    """A conflict says which fields differ, by their dotted path, and starts nothing."""
    await fleet.ledger.submit_all([submission("j-1", key="k")], fleet.now)
    other = MANIFEST | {"retry": {"max": 3, "backoff": "1m"}, "verify": ["true", "make lint"]}

    with pytest.raises(IdempotencyConflict) as caught:
        await fleet.ledger.submit_all([submission("j-2", key="k", canonical=other)], fleet.now)

    assert caught.value.fields["differs"] == ["retry.backoff", "retry.max", "verify.1"]
    assert caught.value.fields["job_id"] == "j-1"
    assert "retry.max" in caught.value.message
    assert len((await fleet.ledger.jobs()).items) == 1


async def test_submit_of_same_key_in_another_product_is_another_job(fleet: Fleet) -> None:
    """Keys belong to a product."""
    await fleet.ledger.submit_all([submission("j-1", key="k")], fleet.now)
    (other,) = await fleet.ledger.submit_all([submission("j-2", key="k", product_id="toys")], fleet.now)

    assert other.created


async def test_submit_of_one_key_from_many_callers_at_once_makes_one_job(fleet: Fleet) -> None:
    """However many callers race with one key, one job is made and all of them get it."""
    answers = await asyncio.gather(
        *(fleet.ledger.submit_all([submission(f"j-{n}", key="k")], fleet.now) for n in range(8))
    )

    assert len({answer.job_id for (answer,) in answers}) == 1
    assert sum(answer.created for (answer,) in answers) == 1


async def test_submit_with_unknown_parents_names_all_of_them(fleet: Fleet) -> None:
    """Every unknown parent is reported, with its place in the list, and nothing is kept."""
    await fleet.submit("j-1")
    deps = (Dependency(job_id="nope"), Dependency(job_id="j-1"), Dependency(job_id="gone"))

    with pytest.raises(InvalidInput, match="nope, gone") as caught:
        await fleet.submit("j-2", deps=deps)

    assert [problem.path for problem in caught.value.problems] == ["deps.0", "deps.2"]
    assert len((await fleet.ledger.jobs()).items) == 1


async def test_submit_with_parent_of_another_product_is_refused(fleet: Fleet) -> None:
    """A job of one product cannot wait for, and so learn about, a job of another."""
    await fleet.submit("j-1", product_id="toys")

    with pytest.raises(InvalidInput, match="j-1"):
        await fleet.submit("j-2", deps=(Dependency(job_id="j-1"),))


async def test_submit_of_a_cycle_prints_it_and_keeps_nothing(fleet: Fleet) -> None:
    """A set of jobs that wait for each other in a circle is refused as a whole, with the circle shown."""

    def waits_for(job_id: str, parent: str) -> Submission:
        return submission(job_id, deps=(Dependency(job_id=parent),))

    with pytest.raises(InvalidInput, match=r"a → b → c → a|b → c → a → b|c → a → b → c"):
        await fleet.ledger.submit_all([waits_for("a", "b"), waits_for("b", "c"), waits_for("c", "a")], fleet.now)
    with pytest.raises(InvalidInput, match="d → d"):
        await fleet.ledger.submit_all([waits_for("d", "d")], fleet.now)

    assert (await fleet.ledger.jobs()).items == ()


async def test_submit_of_a_set_takes_parents_in_any_order(fleet: Fleet) -> None:
    """Jobs of one request may name each other before they exist; parents that exist already count by their key."""
    await fleet.ledger.submit_all([submission("old", key="k")], fleet.now)
    answers = await fleet.ledger.submit_all(
        [
            submission("child", deps=(Dependency(job_id="parent"), Dependency(job_id="new"))),
            submission("parent"),
            submission("new", key="k"),
        ],
        fleet.now,
    )

    assert [(a.job_id, a.created) for a in answers] == [("child", True), ("parent", True), ("old", False)]
    child = await fleet.job("child")
    assert [dep.job_id for dep in child.deps] == ["old", "parent"]
    assert child.held == "parents"
    assert await fleet.ledger.dependants("old") == ("child",)


async def test_submit_with_parents_that_are_done_is_ready(fleet: Fleet) -> None:
    """Only parents that are not done yet hold a job back."""
    await fleet.factory()
    await fleet.building("parent")
    await fleet.submit("waits", deps=(Dependency(job_id="parent"),))
    assert (await fleet.job("waits")).held == "parents"
    await fleet.ship("parent")
    await fleet.submit("starts", deps=(Dependency(job_id="parent"),))

    # each has a workflow, which looks up at first where the base is now that it has the parent's work
    assert (await fleet.job("waits")).held == "workflow"
    assert (await fleet.job("starts")).held == "workflow"
    assert [row.job_id for row in await fleet.deliver() if row.kind == "start"] == ["parent", "waits", "starts"]


async def test_submit_that_fails_half_way_leaves_nothing(fleet: Fleet) -> None:
    """All jobs of a request are taken in, or none."""
    good, bad = submission("j-1", key="k"), submission("j-2", deps=(Dependency(job_id="nope"),))

    with pytest.raises(InvalidInput):
        await fleet.ledger.submit_all([good, bad], fleet.now)

    assert (await fleet.ledger.jobs()).items == ()
    assert await fleet.ledger.jobs_of_keys([("default", "k")]) == {}
    assert await fleet.deliver() == []


async def test_submit_of_many_at_once_takes_all(fleet: Fleet) -> None:
    """Two hundred submissions at once are two hundred jobs."""
    await asyncio.gather(*(fleet.ledger.submit_all([submission(f"j-{n:03}")], fleet.now) for n in range(200)))

    assert len((await fleet.ledger.jobs(limit=500)).items) == 200


async def test_submit_with_profile_shows_it(fleet: Fleet) -> None:
    """The job's document names the profile that was resolved into it."""
    profile = ProfileRef(name="solo", version=2, sha256="f" * 64)
    await fleet.submit("j-1", profile=profile)
    await fleet.submit("j-2", profile=profile)

    assert (await fleet.job("j-1")).profile == "solo"


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ({}, {}, ()),
        ({"a": 1}, {"a": 1, "b": None}, ()),
        ({"a": 1}, {"b": 1}, ("a", "b")),
        ({"a": [1, 2]}, {"a": [1, 3]}, ("a.1",)),
        ({"a": [1, 2]}, {"a": [1]}, ("a",)),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": "1"}}}, ("a.b.c",)),
        ({"a": {"b": 1}}, {"a": 1}, ("a",)),
        (1, 2, ("content",)),
    ],
)
def test_differing_names_the_innermost_paths(before: object, after: object, paths: tuple[str, ...]) -> None:
    """The path leads to the smallest part that differs; an absent member equals an empty one."""
    assert differing(before, after) == paths


async def test_large_request_takes_as_many_statements_as_a_small_one(fleet: Fleet) -> None:
    """Ten thousand jobs are one short conversation with the database, not ten thousand."""
    database = open_database(fleet.url)
    counts = {}
    for width in (3, 60):
        fan = [
            submission(f"leaf-{width}-{n}", key=f"{width}-{n}", deps=(Dependency(job_id=f"root-{width}"),))
            for n in range(width)
        ]
        join = submission(f"join-{width}", deps=tuple(Dependency(job_id=leaf.job_id) for leaf in fan))
        statements: list[str] = []

        def counted(connection: Connection, jobs: list[Submission], statements: list[str]) -> None:
            event.listen(connection, "before_cursor_execute", lambda *call: statements.append(call[2]))
            submit(connection, jobs, fleet.now, timedelta(0))

        await database.write(counted, [submission(f"root-{width}"), *fan, join], statements)
        counts[width] = len([one for one in statements if "advisory" not in one])
    await database.close()
    assert counts[3] == counts[60] <= 12
