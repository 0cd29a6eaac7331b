"""A payload codec: nothing of a job is readable in Temporal, everything works, and garbage stops no workflow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message as Proto
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RawValue
from temporalio.converter import PayloadCodec
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import Worker

from core.errors import InvalidInput
from core.job import FailureKind, RetrySpec
from core.settings import Settings
from tests.conftest import TemporalServer
from tests.sealing import SEALED
from tests.waiting import PATIENCE_S
from tests.workflows.conftest import CANDIDATE, Floor, open_floor
from tests.workflows.test_job import ship, until
from workflows.connection import connect, data_converter

SEALING = f"{Path(__file__).resolve().parents[1] / 'sealing.py'}:SealingCodec"
SECRET = "grey-heron-at-dawn"
BOOKKEEPING = {
    "seq",
    "attempt",
    "activity_id",
    "activity_type",
    "complete_time",
    "backoff",
    "original_schedule_time",
    "activation_index",
}
"""What the SDK itself notes of a local activity, past any codec: which one and when, nothing of what was said."""


@pytest.fixture
async def sealed(temporal_server: TemporalServer, tmp_path: Path) -> AsyncIterator[Floor]:
    """Return a floor whose processes all have the codec, set as `settings.yaml` sets it."""
    settings = Settings(home=tmp_path, payload_codec=SEALING)
    async with open_floor(await connect(settings, address=temporal_server.address, identity="sealed")) as opened:
        yield opened


@pytest.fixture
async def unsealed(temporal_server: TemporalServer, tmp_path: Path) -> AsyncIterator[Floor]:
    """Return a floor whose processes connect as ours do when no codec is set."""
    settings = Settings(home=tmp_path)
    async with open_floor(await connect(settings, address=temporal_server.address, identity="unsealed")) as opened:
        yield opened


@pytest.fixture
async def stranger(temporal_server: TemporalServer) -> Client:
    """Return a client without the codec: the `temporal` command line, or who does not have the key."""
    return await Client.connect(temporal_server.address, namespace=temporal_server.namespace)


def payloads_of(message: Proto) -> Iterator[Payload]:
    """Yield every payload in a message but search attributes, which Temporal itself has to read."""
    if isinstance(message, Payload):
        yield message
        return
    for field, value in message.ListFields():
        if field.name == "search_attributes" or field.message_type is None:
            continue
        for part in _parts(field, value):
            yield from payloads_of(part)


def _parts(field: Any, value: Any) -> Sequence[Any]:
    if field.message_type.GetOptions().map_entry:
        return [part for part in value.values() if isinstance(part, Proto)]
    return value if field.is_repeated else [value]


async def seen_from_outside(handle: WorkflowHandle[Any, Any], stranger: Client) -> tuple[list[Proto], str]:
    """Return history and description as somebody without the key gets them, and all their text."""
    outside = stranger.get_workflow_handle(handle.id)
    description: WorkflowExecutionDescription = await outside.describe()
    messages: list[Proto] = [*(await outside.fetch_history()).events, description.raw_description]
    return messages, b" ".join(message.SerializeToString() for message in messages).decode("utf-8", "replace")


async def test_whole_life_of_a_job_leaves_nothing_readable_in_temporal(sealed: Floor, stranger: Client) -> None:
    """Body, commands, answers, failures, heartbeats, words of people, summaries: every payload is sealed."""
    told: list[str] = []

    async def build(request: dict[str, Any]) -> Any:
        activity.heartbeat({"step": SECRET})
        told.append(request["resume"]["failure"])
        if request["epoch"] == 1:
            raise ApplicationError(f"the disk says {SECRET}", {"detail": SECRET}, type="workspace", non_retryable=True)
        return await sealed.built(request) | {"message": SECRET}

    async def judge(request: dict[str, Any]) -> Any:
        return await sealed.judged(request) | {"log_tail": SECRET}

    await sealed.factory(build=build, judge=judge)
    sealed.control.routes.append(sealed.grant(2))
    retry = RetrySpec(max=1, backoff_s=0.1, on=(FailureKind.WORKSPACE,))
    spec = {"title": SECRET, "body": f"# {SECRET}", "verify": (f"echo {SECRET}",), "retry": retry}
    handle = await sealed.start(grant=sealed.grant(), **spec)
    await until(handle, "testing")
    assert SECRET in told[1], "the failure's own words reached the next attempt"
    await handle.signal("approve", {"sha": CANDIDATE, "by": "ann", "reason": SECRET})
    await handle.execute_update("act", {"action": "ship", "sha": CANDIDATE, "by": "ann", "reason": SECRET})
    assert (await handle.result())["stage"] == "shipped"

    messages, text = await seen_from_outside(handle, stranger)
    payloads = [payload for message in messages for payload in payloads_of(message)]
    unsealed = [json.loads(payload.data) for payload in payloads if payload.metadata["encoding"] != SEALED]
    assert len(payloads) - len(unsealed) > 20
    assert {key for entry in unsealed for key in entry} <= BOOKKEEPING
    assert SECRET not in text
    assert "decision.approve" in sealed.control.entries


async def test_words_that_the_codec_refuses_are_refused_and_stop_nothing(sealed: Floor, stranger: Client) -> None:
    """Unsealed and garbled signals are recorded as refused, an unsealed update is refused; then the job ships."""
    await sealed.factory()
    handle = await sealed.start(grant=sealed.grant())
    await until(handle, "testing")
    outside = stranger.get_workflow_handle(handle.id)
    await outside.signal("ship", CANDIDATE)
    garbled = Payload(metadata={"encoding": SEALED}, data=b"\x00" * 80)
    await outside.signal("ship", RawValue(garbled))
    await outside.signal("ship", args=[RawValue(garbled), CANDIDATE])
    with pytest.raises((WorkflowUpdateFailedError, RPCError)):
        await outside.execute_update("act", {"action": "ship", "sha": CANDIDATE}, id="unsealed")
    async with asyncio.timeout(PATIENCE_S):
        while sealed.control.entries.count("decision.refused") < 3:
            await asyncio.sleep(0.02)
    assert (await until(handle, "testing")).candidate_sha == CANDIDATE
    await ship(handle)
    assert (await handle.result())["stage"] == "shipped"
    assert await failed_tasks(handle) == 0


@pytest.mark.parametrize("how", ["plain answer", "garbled answer", "garbled failure", "garbled heartbeat"])
async def test_answer_that_the_codec_refuses_fails_the_attempt(sealed: Floor, stranger: Client, how: str) -> None:
    """A factory without the key, or one that sends noise, fails its attempt; the workflow goes on."""
    noise = RawValue(Payload(metadata={"encoding": SEALED}, data=b"noise"))
    await strange_factory(stranger, sealed, how, noise)
    await assert_attempt_failed(sealed, lost=how == "garbled heartbeat")


@pytest.mark.parametrize("how", ["garbled answer", "garbled failure", "garbled heartbeat"])
async def test_noise_fails_the_attempt_without_a_codec_too(unsealed: Floor, stranger: Client, how: str) -> None:
    """What no converter can read is no reason for a workflow task to fail."""
    noise = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"{noise"))
    await strange_factory(stranger, unsealed, how, noise)
    await assert_attempt_failed(unsealed, lost=how == "garbled heartbeat")


async def strange_factory(stranger: Client, floor: Floor, how: str, noise: RawValue) -> None:
    """Start a factory whose build step answers as `how` says."""

    @activity.defn(name="run_engine")
    async def run_engine(request: RawValue) -> Any:
        if how == "garbled failure":
            raise ApplicationError("no", noise, type="workspace", non_retryable=True)
        if how == "garbled heartbeat":
            activity.heartbeat(noise)
            await asyncio.Event().wait()
        return noise if how == "garbled answer" else await floor.built({"job_id": floor.job_id, "epoch": 1})

    queue = f"gf.station.{floor.name}.shell"
    await floor.enter(Worker(stranger, task_queue=queue, activities=[run_engine]))


async def assert_attempt_failed(floor: Floor, *, lost: bool) -> None:
    """The attempt fails, or is lost to the lease and the job waits for its next seat; no workflow task fails."""
    handle = await floor.start(grant=floor.grant(ttl_s=1 if lost else 30))
    if lost:
        state = await until(handle, "queued")
        assert (state.reclaims, floor.control.reclaims[0].epoch) == (1, 1)
        await handle.execute_update("act", {"action": "cancel", "by": "ann"})
    assert (await handle.result())["stage"] == ("cancelled" if lost else "failed")
    assert await failed_tasks(handle) == 0


async def failed_tasks(handle: WorkflowHandle[Any, Any]) -> int:
    """Return how many workflow tasks failed."""
    kinds = [event.event_type for event in (await handle.fetch_history()).events]
    return kinds.count(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED)


class NotACodec:
    """Something else."""


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("tests.sealing", "cannot be loaded"),
        ("no.such.module:codec", "cannot be loaded"),
        ("/no/such/file.py:codec", "cannot be loaded"),
        ("tests.sealing:NoSuchCodec", "cannot be loaded"),
        (f"{__name__}:NotACodec", "is not a temporalio.converter.PayloadCodec"),
    ],
)
def test_setting_that_names_no_codec_is_refused(named: str, complaint: str) -> None:
    """A process with a codec that it cannot load does not start: it would write in the open."""
    with pytest.raises(InvalidInput, match=complaint):
        data_converter(named)


@pytest.mark.parametrize("named", ["tests.sealing:SealingCodec", SEALING])
async def test_codec_is_named_by_module_or_by_file(named: str) -> None:
    """Both spellings give a converter that seals and opens."""
    converter = data_converter(named)
    assert isinstance(converter.payload_codec, PayloadCodec)
    (payload,) = await converter.encode([SECRET])
    assert payload.metadata["encoding"] == SEALED
    assert await converter.decode([payload]) == [SECRET]
