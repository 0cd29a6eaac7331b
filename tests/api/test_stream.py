"""The live stream of a job: everything once, in order, from wherever the reader was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import sse
from api.sse import JobStream, Position, in_order
from core.errors import InvalidInput
from core.job import Stage
from core.lifecycle import Record
from store.messages import AttemptReport, LogBlock, LogLine
from store.views import EventView, LogView
from tests.api.conftest import Api, Manifest
from tests.waiting import PATIENCE_S

T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Frame(NamedTuple):
    """One parsed frame."""

    name: str
    id: str
    data: Any


def parse(text: str) -> list[Frame]:
    """Parse a stream's text; comments are left out."""
    frames = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            frames.append(Frame(fields["event"], fields["id"], json.loads(fields["data"])))
    return frames


def keys(frames: list[Frame]) -> list[tuple[str, int]]:
    """Return what each frame is about."""
    return [
        ("log", frame.data["id"]) if frame.name == "log" else ("event", frame.data["seq"])
        for frame in frames
        if frame.name != "end"
    ]


async def get_stream(api: Api, job_id: str, *, last: str = "", follow: bool = False) -> list[Frame]:
    """Read a stream to its end."""
    headers = {"Last-Event-ID": last} if last else {}
    query = {"follow": str(follow).lower()}
    answer = await api.user.get(f"/fleet/jobs/{job_id}/stream", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    return parse(answer.text)


async def print_lines(api: Api, job_id: str, first: int, count: int) -> None:
    """Let epoch 1 print lines."""
    lines = (LogLine(at=datetime.now(UTC), text=f'line {n}\u2028 of "it"') for n in range(first, first + count))
    block = LogBlock(stream="stdout", first_seq=first, lines=tuple(lines))
    await api.ledger.report(job_id, 1, AttemptReport(logs=(block,)), datetime.now(UTC))


async def end(api: Api, job_id: str) -> None:
    """Let the job fail."""
    record = Record(path=(Stage.FAILED,), epoch=1, end_lease=True)
    await api.ledger.record(job_id, 1, record, datetime.now(UTC))


@pytest.fixture
async def talkative(api: Api, manifest: Manifest) -> str:
    """Return a job that is building, has printed twenty lines and goes on."""
    job_id = await api.submit(manifest())
    await api.grant(job_id)
    await print_lines(api, job_id, 1, 20)
    return job_id


async def test_stream_without_follow_gives_what_is_there_and_closes(api: Api, talkative: str) -> None:
    """Submitted, granted, assigned and the lines, each with the position behind it; no `end`, for it goes on."""
    frames = await get_stream(api, talkative)
    names = [frame.name for frame in frames]
    assert names[:3] == ["event", "event", "stage"]
    assert names.count("log") == 20
    assert "end" not in names
    assert frames[2].data["data"] == {"from": "queued", "to": "assigned"}
    assert frames[-1].data["text"] == 'line 20\u2028 of "it"'
    assert "product_id" not in frames[0].data


async def test_stream_of_an_ended_job_ends(api: Api, talkative: str) -> None:
    """With or without follow, an ended job's stream sends everything and then `end`."""
    await end(api, talkative)
    for follow in (True, False):
        frames = await get_stream(api, talkative, follow=follow)
        assert frames[-1].name == "end"
        assert frames[-1].data == {"id": talkative, "stage": "failed"}
        assert [frame.name for frame in frames].count("end") == 1


async def test_resume_from_any_event_neither_loses_nor_repeats(api: Api, talkative: str) -> None:
    """Cut behind every single frame: the part before and the part after are together the whole, in order."""
    await end(api, talkative)
    whole = await get_stream(api, talkative)
    for cut in range(len(whole) - 1):
        rest = await get_stream(api, talkative, last=whole[cut].id)
        assert keys(whole[: cut + 1]) + keys(rest) == keys(whole)


async def test_resume_behind_the_end_gives_only_the_end(api: Api, talkative: str) -> None:
    """A reader that had everything is told that it had."""
    await end(api, talkative)
    last = (await get_stream(api, talkative))[-1].id
    assert [frame.name for frame in await get_stream(api, talkative, last=last)] == ["end"]


@pytest.mark.parametrize("text", ["12", "e-l", "e1", "e1-l2x", "l1-e2", "e99999999999999999999-l1", "e1-l-1"])
async def test_id_that_is_none_of_ours_is_refused(api: Api, talkative: str, text: str) -> None:
    """A made-up position is a 422, not a silent start from the beginning."""
    answer = await api.user.get(f"/fleet/jobs/{talkative}/stream", headers={"Last-Event-ID": text})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "header.Last-Event-ID"


async def test_long_log_comes_whole_and_in_order(api: Api, talkative: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More lines than fit into a batch arrive without gap, and later events behind them."""
    monkeypatch.setattr(sse, "BATCH", 7)
    await print_lines(api, talkative, 21, 30)
    await end(api, talkative)
    frames = await get_stream(api, talkative)
    logs = [frame.data["seq"] for frame in frames if frame.name == "log"]
    assert logs == list(range(1, 51))
    stages = [frame.data["data"]["to"] for frame in frames if frame.name == "stage"]
    assert stages == ["assigned", "failed"]
    assert frames[-1].name == "end"
    last_line = max(index for index, frame in enumerate(frames) if frame.name == "log")
    failed = max(index for index, frame in enumerate(frames) if frame.name == "stage")
    assert last_line < failed


# --- live -------------------------------------------------------------------------------------------------------------


async def next_frames(stream: AsyncIterator[bytes], count: int) -> list[Frame]:
    """Take `count` frames from a stream that goes on."""
    found: list[Frame] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            found += parse((await anext(stream)).decode())
    return found


async def always() -> bool:
    """Let a reader have the stream."""
    return True


def stream_of(api: Api) -> JobStream:
    """Return a reader's stream."""
    return JobStream(api.ledger, api.backend.wakeups, api.backend.stopping, allowed=always)


async def test_reader_sees_what_happens_until_the_end(api: Api, talkative: str) -> None:
    """Lines appear while they are printed, by this process or another one, and the stream ends with the job."""
    reader = stream_of(api).frames(talkative, Position(10**6, 20), follow=True)
    await anext(reader)
    assert await anext(reader) == b": caught up\n\n"
    waiting = asyncio.ensure_future(next_frames(reader, 2))
    await print_lines(api, talkative, 21, 2)
    api.backend.wakeups.notify(talkative)
    assert [frame.data["seq"] for frame in await waiting] == [21, 22]
    await reader.aclose()
    tail = stream_of(api).frames(talkative, Position(0, 22), follow=True)
    await end(api, talkative)
    names = [frame.name async for chunk in tail for frame in parse(chunk.decode())]
    assert names[-1] == "end"


async def test_stopping_api_closes_its_streams_without_an_end(api: Api, talkative: str) -> None:
    """A restart is no end of the job: readers come back with the last id."""
    stream = stream_of(api).frames(talkative, Position(), follow=True)
    api.backend.stopping.set()
    async with asyncio.timeout(PATIENCE_S):
        frames = [frame async for chunk in stream for frame in parse(chunk.decode())]
    assert frames
    assert "end" not in [frame.name for frame in frames]


async def test_quiet_stream_is_kept_alive(api: Api, talkative: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without news a comment comes from time to time."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
    monkeypatch.setattr(sse, "POLL_S", 0.01)
    stream = stream_of(api).frames(talkative, Position(10**6, 10**6), follow=True)
    async with asyncio.timeout(PATIENCE_S):
        chunks = [await anext(stream) for _ in range(4)]
    assert chunks[1:] == [b": caught up\n\n"] * 3
    await stream.aclose()


async def test_readers_leave_nothing_behind(api: Api, talkative: str) -> None:
    """A closed stream no longer listens."""
    stream = stream_of(api).frames(talkative, Position(), follow=True)
    await anext(stream)
    await anext(stream)
    assert api.backend.wakeups.listeners(talkative) == 1
    await stream.aclose()
    assert api.backend.wakeups.listeners(talkative) == 0


# --- order ------------------------------------------------------------------------------------------------------------


def an_event(seq: int, at_s: int) -> EventView:
    """Return an event at a time."""
    return EventView(job_id="j", seq=seq, at=T0 + timedelta(seconds=at_s), type="x", prev_hash="", hash="")


def a_line(number: int, at_s: int) -> LogView:
    """Return a log line at a time."""
    return LogView(id=number, job_id="j", epoch=1, stream="s", seq=number, at=T0 + timedelta(seconds=at_s), text="")


@given(st.lists(st.integers(0, 50), max_size=30), st.lists(st.integers(0, 50), max_size=30))
def test_merge_keeps_both_orders_and_loses_nothing_but_the_future(events: list[int], lines: list[int]) -> None:
    """Whatever the clocks say, each sequence keeps its order, and only a full batch holds the other one back."""
    some_events = [an_event(n + 1, at_s) for n, at_s in enumerate(events)]
    some_lines = [a_line(n + 1, at_s) for n, at_s in enumerate(lines)]
    merged = list(in_order(some_events, some_lines))
    assert [row for row in merged if isinstance(row, EventView)] == some_events
    assert [row for row in merged if isinstance(row, LogView)] == some_lines


def test_full_batch_of_lines_holds_later_events_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened after the last line of a full batch waits for the next batch; the batch itself always goes out."""
    monkeypatch.setattr(sse, "BATCH", 3)
    lines = [a_line(1, 1), a_line(2, 9), a_line(3, 5)]
    merged = list(in_order([an_event(1, 4), an_event(2, 6)], lines))
    assert [row for row in merged if isinstance(row, LogView)] == lines
    assert [row.seq for row in merged if isinstance(row, EventView)] == [1]


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_position_survives_the_way_to_the_reader_and_back(event_seq: int, log_id: int) -> None:
    """A position's text means the position."""
    assert Position.parse(str(Position(event_seq, log_id))) == Position(event_seq, log_id)


def test_no_position_is_the_beginning() -> None:
    """Without an id a stream begins at the beginning."""
    assert Position.parse(None) == Position.parse("") == Position(0, 0)
    with pytest.raises(InvalidInput):
        Position.parse("x")
