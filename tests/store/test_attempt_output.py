from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime

import pytest

from core.job import Stage
from store.messages import MAX_LOG_CHARS, MAX_STEP_DATA_CHARS, ArtifactFile, AttemptStep
from store.views import LogView
from tests.store.fleet import Fleet


@pytest.fixture
async def floor(fleet: Fleet) -> Fleet:
    """Return a fleet with one factory and job j-1 building there under epoch 1."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    return fleet


async def logs(fleet: Fleet, **query: object) -> list[str]:
    """Return the texts of the job's log."""
    return [line.text for line in await fleet.ledger.read_logs("j-1", **query)]  # type: ignore[arg-type]


async def append(fleet: Fleet, first_seq: int, *texts: str, stream: str = "stdout") -> int:
    """Append lines and return how many were new."""
    return await fleet.logs("j-1", 1, first_seq, *map(fleet.line, texts), stream=stream)


# --- logs ---------------------------------------------------------------------------------------------------------


async def test_logs_sent_twice_are_stored_once(floor: Fleet) -> None:
    """Numbers decide: what overlaps is not doubled, what is new is kept."""
    assert await append(floor, 1, "a", "b") == 2
    assert await append(floor, 1, "a", "b") == 0
    assert await append(floor, 2, "b", "c", "d") == 2

    assert await logs(floor) == ["a", "b", "c", "d"]


async def test_logs_that_come_in_disorder_are_all_kept(floor: Fleet) -> None:
    """A batch that was overtaken by the next one is still stored."""
    await append(floor, 3, "c", "d")
    assert await append(floor, 1, "a", "b", "c") == 2

    assert sorted(await logs(floor)) == ["a", "b", "c", "d"]


async def test_log_streams_and_epochs_are_numbered_apart(floor: Fleet) -> None:
    """Each stream of each attempt has its own numbers and can be read by itself."""
    await append(floor, 1, "out")
    await append(floor, 1, "err", stream="stderr")

    assert await logs(floor) == ["out", "err"]
    assert await logs(floor, stream="stderr") == ["err"]
    assert await logs(floor, epoch=2) == []


async def test_logs_are_read_on_from_an_id(floor: Fleet) -> None:
    """A reader that comes back with its last id misses nothing and sees nothing twice."""
    await append(floor, 1, *(f"line {n}" for n in range(10)))
    seen: list[LogView] = []
    while found := await floor.ledger.read_logs("j-1", seen[-1].id if seen else 0, 3):
        seen += found

    assert [line.text for line in seen] == [f"line {n}" for n in range(10)]
    assert (await floor.ledger.latest_ids("j-1")).log_id == seen[-1].id


async def test_logs_of_concurrent_writers_appear_in_the_order_of_their_ids(floor: Fleet) -> None:
    """While several streams are written at once, no line appears behind a reader's back."""

    async def write(stream: str) -> None:
        for number in range(1, 16):
            await append(floor, number, f"{stream}{number}", stream=stream)

    async def read() -> list[str]:
        seen: list[LogView] = []
        while len(seen) < 45:
            seen += await floor.ledger.read_logs("j-1", seen[-1].id if seen else 0)
        return [line.text for line in seen]

    *_, seen = await asyncio.gather(write("a"), write("b"), write("c"), read())

    assert sorted(seen) == sorted(f"{stream}{number}" for stream in "abc" for number in range(1, 16))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("nul \x00 byte", "nul � byte"),
        ("half pair \ud83d", "half pair ?"),
        ("snowman ☃ 🏭", "snowman ☃ 🏭"),
        ("x" * (MAX_LOG_CHARS + 7), "x" * MAX_LOG_CHARS + "… (7 characters cut off)"),
        ("", ""),
    ],
)
async def test_log_text_that_no_database_takes_is_made_storable(floor: Fleet, text: str, kept: str) -> None:
    """Whatever an engine prints is stored, in the same form in both databases."""
    await append(floor, 1, text)

    assert await logs(floor) == [kept]


async def test_log_times_come_back_in_utc(floor: Fleet) -> None:
    """A time of another zone is the same moment afterwards."""
    from datetime import timedelta, timezone

    at = datetime(2026, 3, 1, 3, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5)))
    await floor.logs("j-1", 1, 1, floor.line("x").model_copy(update={"at": at}))

    (line,) = await floor.ledger.read_logs("j-1")
    assert line.at == at
    assert line.at.tzinfo is UTC


async def test_naive_times_are_refused(floor: Fleet) -> None:
    """A time without zone never gets into the ledger."""
    with pytest.raises(Exception, match="no time zone"):
        await floor.ledger.hold("j-1", "operator", datetime(2026, 1, 1))  # noqa: DTZ001


async def test_log_enters_the_event_log_as_digest_only(floor: Fleet) -> None:
    """The event that ends an attempt proves its log without holding it."""
    await append(floor, 1, "secret one", "secret two")
    await floor.record(
        "j-1",
        Stage.FAILED,
        epoch=1,
        attempt_outcome="crash",
        attempt_result={"log_tail": "secret two", "exit_code": 1},
        entries=({"type": "gate.verify", "data": {"log_tail": "secret two", "nested": [{"stdout": "secret"}]}},),
        end_lease=True,
    )

    carried = ""
    for text in ("secret one", "secret two"):
        carried = hashlib.sha256(f"{carried}{text}".encode()).hexdigest()
    (ended,) = await floor.events("j-1", "attempt.ended")
    assert (ended.data["log_lines"], ended.data["log_sha256"]) == (2, carried)
    assert not any("secret" in event.model_dump_json() for event in await floor.events("j-1"))


# --- steps --------------------------------------------------------------------------------------------------------


def step(fleet: Fleet, number: int, **data: object) -> AttemptStep:
    """Return one step of an engine."""
    return AttemptStep(at=fleet.now, type="tool_call", message=f"step {number}", data=data)


async def test_steps_sent_twice_are_events_once(floor: Fleet) -> None:
    """Steps keep the attempt's numbers, so that a resent batch adds only what is new."""
    await floor.steps("j-1", 1, 1, step(floor, 1), step(floor, 2))
    fresh = await floor.steps("j-1", 1, 2, step(floor, 2), step(floor, 3))

    assert fresh == 1
    steps = await floor.events("j-1", "attempt.step")
    assert [(e.attempt_seq, e.message, e.data["step"]) for e in steps] == [
        (1, "step 1", "tool_call"),
        (2, "step 2", "tool_call"),
        (3, "step 3", "tool_call"),
    ]
    assert (await floor.ledger.verify_chain("j-1")).ok


async def test_step_with_much_data_is_kept_as_digest(floor: Fleet) -> None:
    """One step cannot make the event log grow without bound."""
    await floor.steps("j-1", 1, 1, step(floor, 1, blob="x" * MAX_STEP_DATA_CHARS))

    (event,) = await floor.events("j-1", "attempt.step")
    assert set(event.data) == {"step", "chars", "sha256"}


# --- artifacts ----------------------------------------------------------------------------------------------------


async def test_artifact_of_one_path_is_one_entry(floor: Fleet) -> None:
    """The same file again is the same entry; a changed file takes its place."""
    file = ArtifactFile(
        path="report/index.html", media_type="text/html", size=5_000_000_000, sha256="1" * 64, location="a/1"
    )
    await floor.report("j-1", 1, files=(file,))
    (first,) = await floor.ledger.artifacts("j-1")
    floor.tick()
    await floor.report("j-1", 1, files=(file,))
    assert await floor.ledger.artifacts("j-1") == (first,)
    await floor.report("j-1", 1, files=(file.model_copy(update={"sha256": "2" * 64}),))

    (changed,) = await floor.ledger.artifacts("j-1")
    assert (changed.id, changed.sha256) == (first.id, "2" * 64)
    assert len(await floor.events("j-1", "artifact.added")) == 2
