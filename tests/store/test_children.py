"""Child jobs hold the ship gate of the job that they are a part of, and the graph shows who waits for whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.errors import IllegalAction, InvalidInput
from core.job import Dependency, Stage
from core.lifecycle import Decided, Entry, Record, RecordAck
from store.messages import Submission
from store.views import Submitted
from tests.store.fleet import CANDIDATE, Fleet, make_spec


@pytest.fixture
async def floor(fleet: Fleet) -> Fleet:
    """Return a fleet with seats for all, and the job `whole` building there."""
    await fleet.factory("f1", stations={"shell": 20}, seats=20)
    await fleet.building("whole")
    await fleet.deliver()
    return fleet


async def decompose(fleet: Fleet, *children: str, of: str = "whole", **values: Any) -> tuple[Submitted, ...]:
    """Submit jobs that are a part of another."""
    parts = [
        Submission(job_id=child, spec=make_spec(**values), child_of=of, submitted_by="ada", name=f"{child}.md")
        for child in children
    ]
    return await fleet.ledger.submit_all(parts, fleet.tick())


async def at_gate(fleet: Fleet) -> RecordAck:
    """Bring the whole to its gate."""
    await fleet.accept("whole", 1)
    return await fleet.record(
        "whole", Stage.REVIEW, Stage.TESTING, epoch=1, attempt_outcome="succeeded", candidate_sha=CANDIDATE
    )


async def end(fleet: Fleet, job_id: str) -> None:
    """Build and ship a job."""
    await fleet.ledger.dispatch(fleet.now)
    await fleet.started(job_id, (await fleet.job(job_id)).epoch)
    await fleet.ship(job_id)


def news(rows: list[Any]) -> list[tuple[str, str, object]]:
    """Return the signals among messages, with the outcome that they tell."""
    return [
        (row.job_id, row.name, row.payload["outcome"]) for row in rows if row.kind == "signal" and row.name != "granted"
    ]


async def test_workflow_that_is_told_how_far_the_ledger_is_learns_what_holds_its_gate(floor: Fleet) -> None:
    """It was another decision that had brought the whole to its gate; the gate is held all the same."""
    await decompose(floor, "a")
    await floor.accept("whole", 1)
    to_gate = Record(path=(Stage.REVIEW, Stage.TESTING), epoch=1)
    decided = Decided(seq=1, state={"stage": "testing"})
    await floor.ledger.record("whole", 1, to_gate, floor.tick(), decided=decided)

    ack = await floor.ledger.record("whole", 1, Record(approved_by="eve"), floor.tick())

    assert ack.ahead == decided
    assert ack.children is not None
    assert ack.children.outcome == "waiting"


async def test_record_that_brings_the_whole_to_its_gate_tells_of_its_children(floor: Fleet) -> None:
    """The workflow learns in the same transaction that its gate is held, and by whom; the repeated record too."""
    await decompose(floor, "a", "b")
    assert news(await floor.deliver()) == [("whole", "children_changed", "waiting")]

    ack = await at_gate(floor)

    assert ack.children is not None
    assert ack.children.outcome == "waiting"
    assert ack.children.message == "waits for its child jobs: a (queued), b (queued)"
    job = await floor.job("whole")
    assert [(child.job_id, child.state) for child in job.children] == [("a", "open"), ("b", "open")]
    assert (job.deps, job.children_total) == ((), 2)
    (added,) = await floor.events("whole", "children.added")
    assert (added.message, added.data["by"]) == ("child jobs: a, b", "ada")


async def test_last_child_opens_the_gate(floor: Fleet) -> None:
    """The whole hears once: when all of its children have shipped."""
    await decompose(floor, "a", "b")
    await at_gate(floor)
    await floor.deliver()
    await end(floor, "a")
    assert news(await floor.deliver()) == []
    await end(floor, "b")
    assert news(await floor.deliver()) == [("whole", "children_changed", "ready")]
    assert (await floor.ledger.children_state("whole")).outcome == "ready"


async def test_failed_child_is_told_and_may_be_done_without(floor: Fleet) -> None:
    """A child that failed holds the gate visibly until it is requeued, or the edge to it is dropped."""
    await decompose(floor, "a")
    await at_gate(floor)
    await floor.deliver()
    await floor.record("a", Stage.FAILED)
    assert news(await floor.deliver()) == [("whole", "children_changed", "failed")]
    assert (await floor.ledger.children_state("whole")).message == "child jobs ended without shipping: a (failed)"

    start, ship = await floor.ledger.drop_edges("whole", ["a"], floor.tick(), by="ada")

    assert (start.outcome, ship.outcome) == ("ready", "ready")
    assert news(await floor.deliver()) == [("whole", "children_changed", "ready")]


async def test_job_that_has_ended_or_ships_takes_no_children(floor: Fleet) -> None:
    """A child comes before the word to ship, and is waited for, or after it, and is refused as a whole."""
    await at_gate(floor)
    say = Entry(type="decision.ship", data={"sha": CANDIDATE})
    assert (await floor.record("whole", entries=(say,))).children is None
    with pytest.raises(IllegalAction, match="is being shipped right now"):
        await decompose(floor, "a")
    await floor.record("whole", entries=(Entry(type="gate.ship", message="conflict"),))
    await decompose(floor, "a")
    assert (await floor.record("whole", entries=(say,))).children is not None
    await floor.record("whole", Stage.CANCELLED)
    with pytest.raises(IllegalAction, match="has ended in cancelled"):
        await decompose(floor, "b")
    with pytest.raises(InvalidInput, match="unknown job: nobody"):
        await decompose(floor, "b", of="nobody")
    with pytest.raises(InvalidInput, match="unknown job: whole"):
        await decompose(floor, "b", product_id="toys")
    assert {job.id for job in (await floor.ledger.jobs()).items} == {"whole", "a"}


async def test_ship_by_policy_is_a_word_to_ship(floor: Fleet) -> None:
    """A job that ships by itself takes no children once its verify has passed, since its ship may have begun."""
    await floor.building("auto", review_policy="auto")
    await decompose(floor, "early", of="auto")
    await floor.accept("auto", 1)
    held = await floor.record("auto", Stage.REVIEW, Stage.TESTING, epoch=1, candidate_sha=CANDIDATE)
    assert held.children is not None
    with pytest.raises(IllegalAction, match="is being shipped right now"):
        await decompose(floor, "late", of="auto")


async def test_child_that_waits_for_its_whole_is_refused_with_the_cycle(floor: Fleet) -> None:
    """However far round: the cycle is printed with the names of the files; a wait until `testing` is none."""
    await floor.submit("between", deps=(Dependency(job_id="whole"),))
    with pytest.raises(
        InvalidInput, match=r"whole → a\.md → between → whole|a\.md → between → whole → a\.md|between → whole"
    ):
        await decompose(floor, "a", deps=(Dependency(job_id="between"),))
    with pytest.raises(InvalidInput, match=r"a\.md"):
        await decompose(floor, "a", deps=(Dependency(job_id="whole"),))
    await decompose(floor, "a", deps=(Dependency(job_id="whole", until="testing"),))
    assert {job.id for job in (await floor.ledger.jobs()).items} == {"whole", "between", "a"}


async def test_children_that_end_while_others_are_added_leave_no_gate_open(floor: Fleet) -> None:
    """The last news that the whole gets is what its children come to."""
    await decompose(floor, *(f"a{n}" for n in range(6)))
    await floor.ledger.dispatch(floor.now)
    for number in range(6):
        await floor.started(f"a{number}", 1)
    await floor.deliver()

    await asyncio.gather(
        *(floor.ship(f"a{number}") for number in range(6)), *(decompose(floor, f"b{number}") for number in range(3))
    )

    told = news(await floor.deliver())
    assert (await floor.ledger.children_state("whole")).outcome == "waiting"
    assert [outcome for _, _, outcome in told[-1:]] in ([], ["waiting"])


async def test_graph_shows_parents_children_and_who_waits(floor: Fleet) -> None:
    """From any job of it the same graph is seen; what nobody is connected with is not in it."""
    await decompose(floor, "part")
    await floor.submit("next", deps=(Dependency(job_id="whole", until="testing"),))
    await floor.submit("stranger")
    for job_id in ("whole", "part", "next"):
        found = await floor.ledger.graph(job_id)
        assert {job.id for job in found.jobs} == {"whole", "part", "next"}
        assert found.jobs[0].id == job_id
        edges = {(edge.job_id, edge.waits_for, edge.gate, edge.until, edge.state) for edge in found.edges}
        assert edges == {("whole", "part", "ship", "shipped", "open"), ("next", "whole", "start", "testing", "open")}
        assert not found.truncated
    assert [job.id for job in (await floor.ledger.graph("stranger")).jobs] == ["stranger"]
    assert {job.id for job in (await floor.ledger.waiting_graph(None)).jobs} == {"whole", "part", "next"}
    assert (await floor.ledger.waiting_graph(["toys"])).jobs == ()
