"""The gateway's parts without gRPC: the seal, the key file, the policy for queues, the allowance, the complaints."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure
from temporalio.converter import PayloadCodec

from core.attempt import factory_queue, station_queue
from core.errors import Unavailable
from store.settings_source import ROOT
from workers.gateway_limits import BURST_S, OTHER_CALLS, SILENCE_S, Allowance, Complaints
from workers.gateway_messages import PayloadCheck, Unfit, rebuilt_failure
from workers.gateway_policy import FactoryIdentity, Refused, denied
from workers.gateway_seal import Task, TaskSeal, ensure_key
from workflows.connection import data_converter

SEAL = TaskSeal(b"k" * 32)
TASK = Task("f", factory_queue("f"), "gf-job-default-j", "run", "1", 1, b"\x0a\x03abc\xff")
ME = FactoryIdentity("f")
JSON = {"encoding": b"json/plain"}


# --- the seal ---------------------------------------------------------------------------------------------------------

texts = st.text(max_size=20)
tasks = st.builds(
    Task, st.just("f"), st.just(factory_queue("f")), texts, texts, texts, st.integers(0, 2**31), st.binary(max_size=99)
)


@given(tasks)
def test_sealed_task_opens_as_it_was(task: Task) -> None:
    """Whatever is in it."""
    assert SEAL.unwrap(SEAL.wrap(task), ME) == task


def test_every_changed_bit_and_every_cut_is_noticed() -> None:
    """All of them, one by one."""
    sealed = SEAL.wrap(TASK)
    places = range(len(sealed))
    changed = [sealed[:at] + bytes([sealed[at] ^ 1 << bit]) + sealed[at + 1 :] for at in places for bit in range(8)]
    for forged in [*changed, *(sealed[:length] for length in range(len(sealed)))]:
        with pytest.raises(Refused) as caught:
            SEAL.unwrap(forged, ME)
        assert caught.value.code == grpc.StatusCode.PERMISSION_DENIED


@given(st.binary(max_size=200))
def test_no_bytes_of_a_strangers_making_open(forged: bytes) -> None:
    """Also with the right beginning."""
    for text in (forged, b"gf1" + forged):
        with pytest.raises(Refused):
            SEAL.unwrap(text, ME)


@pytest.mark.parametrize("name", ["factory", "queue", "workflow_id", "run_id", "activity_id", "token"])
def test_seal_binds_each_of_its_fields(name: str) -> None:
    """The seal of one task is on no other."""
    changed: dict[str, Any] = {name: b"x" if name == "token" else "x"}
    other = SEAL.wrap(replace(TASK, **changed))
    sealed = SEAL.wrap(TASK)
    with pytest.raises(Refused):
        SEAL.unwrap(sealed[:35] + other[35:], ME)


@pytest.mark.parametrize("caller", [FactoryIdentity("g"), FactoryIdentity("F"), FactoryIdentity("")])
def test_only_the_factory_that_got_it_opens_a_task(caller: FactoryIdentity) -> None:
    """Names are compared as they are."""
    with pytest.raises(Refused, match="another factory"):
        SEAL.unwrap(SEAL.wrap(TASK), caller)


def test_other_keys_seal_is_refused() -> None:
    """Gateways of different installations do not trust each other."""
    with pytest.raises(Refused, match="not given out by this gateway"):
        SEAL.unwrap(TaskSeal(b"x" * 32).wrap(TASK), ME)


# --- the key file -----------------------------------------------------------------------------------------------------


def test_key_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    """Then it is read."""
    path = tmp_path / "new" / "gateway-key"
    key = ensure_key(path)
    assert ensure_key(path) == key
    assert len(set(key)) > 10
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["gateway-key"]


def test_gateways_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    """Whoever is first makes it."""
    line = "import sys, pathlib, workers.gateway_seal as s; print(s.ensure_key(pathlib.Path(sys.argv[1])).hex())"
    command = [sys.executable, "-P", "-c", line, str(tmp_path / "key")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}, text=True) for _ in range(4)
    ]
    keys = {process.communicate(timeout=60)[0] for process in processes}
    assert len(keys) == 1
    assert len(keys.pop().strip()) == 64


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """With the command that mends it."""
    path = tmp_path / "key"
    ensure_key(path)
    path.chmod(mode)
    with pytest.raises(Unavailable, match="may be read by others") as caught:
        ensure_key(path)
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "ab" * 31, "ab" * 33])
def test_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    """Rather than sealing with something short."""
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Unavailable, match="64 hexadecimal digits"):
        ensure_key(path)


# --- queues -----------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
engines = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True)


@given(names, names, engines)
def test_no_factory_may_poll_another_ones_queue(mine: str, other: str, engine: str) -> None:
    """Whatever the two are called: every queue has one factory."""
    me = FactoryIdentity(mine)
    assert me.may_poll(factory_queue(mine))
    assert me.may_poll(station_queue(mine, engine))
    assert me.may_poll(factory_queue(other)) == (mine == other)
    assert me.may_poll(station_queue(other, engine)) == (mine == other)


@given(names, st.text(max_size=30))
def test_queue_of_no_known_form_is_nobodys(name: str, queue: str) -> None:
    """Only names that we make."""
    assert not FactoryIdentity(name, frozenset({queue})).may_poll(queue)
    assert not FactoryIdentity(name).may_poll(f"gf.caps.{queue}")


# --- payloads ---------------------------------------------------------------------------------------------------------


class Turned(PayloadCodec):
    """Stands for an encryption: bytes turned around, and a name for it."""

    async def encode(self, payloads: Any) -> list[Payload]:
        return [
            Payload(metadata={"encoding": b"binary/turned", "key-id": b"1"}, data=payload.SerializeToString()[::-1])
            for payload in payloads
        ]

    async def decode(self, payloads: Any) -> list[Payload]:
        return [
            Payload.FromString(payload.data[::-1]) if payload.metadata.get("encoding") == b"binary/turned" else payload
            for payload in payloads
        ]


@pytest.fixture
def coded() -> PayloadCheck:
    """Return the check of an installation that has a codec."""
    return PayloadCheck(replace(data_converter(), payload_codec=Turned()), 1000)


async def test_payload_of_the_codec_passes_as_it_is(coded: PayloadCheck) -> None:
    """Encrypted, with the metadata that the codec needs."""
    turned = Payloads(payloads=await Turned().encode([Payload(metadata=JSON, data=b"1")]))
    assert await coded.result(turned) == turned
    assert await coded.details(turned) == turned


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        (b"\xff", "the payload codec cannot decode it"),
        (Payload(metadata={"encoding": b"binary/plain"}, data=b"1").SerializeToString(), "may not pass"),
        (Payload(metadata=JSON, data=b"{").SerializeToString(), "it cannot be decoded"),
    ],
)
async def test_garbage_behind_a_codec_is_unfit(coded: PayloadCheck, inside: bytes, why: str) -> None:
    """The workflow would have to decode it; so it is decoded here."""
    turned = Payloads(payloads=[Payload(metadata={"encoding": b"binary/turned"}, data=inside[::-1])])
    with pytest.raises(Unfit, match=why):
        await coded.result(turned)
    assert await coded.details(turned) is None


async def test_reasons_hold_nothing_of_the_payload() -> None:
    """They are logged, and shown to operators."""
    check = PayloadCheck(data_converter(), 1000)
    for payload in (Payload(metadata=JSON, data=b"{secret"), Payload(metadata=JSON, data=b"secret" * 1000)):
        with pytest.raises(Unfit) as caught:
            await check.result(Payloads(payloads=[payload]))
        assert "secret" not in str(caught.value)


def test_ordinary_failure_keeps_what_may_pass() -> None:
    """An application failure loses its details and nothing else that matters."""
    plain = ApplicationFailureInfo(type="T", non_retryable=True)
    detailed = ApplicationFailureInfo(type="T", non_retryable=True, details=Payloads(payloads=[Payload(data=b"1")]))

    def failure(info: ApplicationFailureInfo) -> Failure:
        cause = Failure(message="c", application_failure_info=info)
        return Failure(message="m", source="s", stack_trace="t", application_failure_info=info, cause=cause)

    assert rebuilt_failure(failure(detailed)) == failure(plain)
    assert rebuilt_failure(failure(plain)) == failure(plain)


# --- limits -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 5), max_size=100))
def test_no_factory_gets_more_than_burst_and_rate(pauses: list[float]) -> None:
    """In any stretch of time from the beginning."""
    allowance, now, passed = Allowance(10.0, 4, now=0.0), 0.0, 0
    for pause in pauses:
        now += pause / 10
        for _ in range(3):
            try:
                allowance.spend(now)
            except Refused:
                continue
            passed += 1
        assert passed <= 10.0 * (BURST_S + now) + 1e-6


def test_places_are_given_back() -> None:
    """After a call, however it ended."""
    allowance = Allowance(10.0, 2, now=0.0)
    for _ in range(5):
        with pytest.raises(Refused, match="2 polls at once"):
            hold(allowance.poll, 3)
        with pytest.raises(Refused, match=f"{2 + OTHER_CALLS} calls at once"):
            hold(allowance.call, 3 + OTHER_CALLS)
        hold(allowance.poll, 2)
        hold(allowance.call, 2 + OTHER_CALLS)


def hold(place: Callable[[], AbstractContextManager[None]], count: int) -> None:
    """Hold that many places at once, then none."""
    with ExitStack() as places:
        for _ in range(count):
            places.enter_context(place())


@dataclass
class Clock:
    """A clock that stands."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_complaints_do_not_fill_the_disk() -> None:
    """One line per factory and kind in a while, which says how many were left out."""
    clock = Clock()
    complaints = Complaints(clock)
    with capture_logs() as lines:
        for number in range(100):
            complaints.tell("f", f"M{number}" * 100, denied("no"))
            complaints.tell("g", "M", denied("no"))
        clock.now += SILENCE_S
        complaints.tell("f", "M", denied("no"))
    assert [(line["factory"], line["unsaid"]) for line in lines] == [("f", 0), ("g", 0), ("f", 99)]
    assert max(len(line["method"]) for line in lines) <= 100
