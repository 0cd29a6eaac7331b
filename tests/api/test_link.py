"""The factory link against real API processes: calls, orders, who may link, and what happens to nonsense."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api.link import MAX_COMPLAINTS, Link, Pace
from core.errors import Unauthenticated
from core.link import Call
from tests.api.test_revocation import made, second_process
from tests.api_process import ApiProcess, running_api
from tests.waiting import PATIENCE_S

JOB = "---\nengine: shell\nrepo: scratch:demo\n---\n# Say hi\n\necho hi > hi.txt\n"
FACTORY, INSTANCE = "mac-1", "agent-1"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiProcess, ApiProcess]]:
    """Return two API processes over one ledger, with one factory of many seats."""
    with running_api(tmp_path_factory.mktemp("link") / "home") as first, second_process(first) as second:
        report = {
            "name": FACTORY,
            "instance": INSTANCE,
            "host": sockets.gethostname(),  # a scratch repository is on this machine
            "pid": 100,
            "seats": 100,
            "stations": [{"engine": "shell", "version": "1", "seats": 100, "usable": True}],
            "capabilities": ["os:linux"],
        }
        answer = first.call("POST", "/fleet/factories", token=first.of_factory(FACTORY), json=report)
        assert answer.is_success, answer.text
        yield first, second


@contextmanager
def open_link(api: ApiProcess, secret: str, factory: str = FACTORY) -> Iterator[ClientConnection]:
    """Open a link's WebSocket without saying anything."""
    uri = f"ws://127.0.0.1:{api.port}/fleet/factories/{factory}/link"
    headers = {"Authorization": f"Bearer {secret}"}
    with connect(uri, additional_headers=headers, proxy=None, compression=None, open_timeout=PATIENCE_S) as socket:
        yield socket


@contextmanager
def linked(
    api: ApiProcess,
    *running: dict[str, Any],
    secret: str = "",
    switch_epoch: int | None = None,
    agent: tuple[str, str] = (FACTORY, INSTANCE),
) -> Iterator[ClientConnection]:
    """Open a link as a factory's agent does; it has heard of the kill switch up to `switch_epoch`, or all."""
    known = api.get("/fleet/halts")["epoch"] if switch_epoch is None else switch_epoch
    factory, instance = agent
    with open_link(api, secret or api.token(api.of_factory(factory)), factory) as socket:
        say(socket, kind="hello", instance=instance, running=list(running), switch_epoch=known)
        yield socket


def say(socket: ClientConnection, **message: Any) -> None:
    """Send a message."""
    socket.send(json.dumps(message))


def heard(socket: ClientConnection) -> dict[str, Any]:
    """Return the next message."""
    message: dict[str, Any] = json.loads(socket.recv(PATIENCE_S))
    return message


def asked(socket: ClientConnection, number: int = 1, **call: Any) -> dict[str, Any]:
    """Make a call and return its answer."""
    say(socket, kind="call", id=number, **call)
    answer = heard(socket)
    assert (answer["kind"], answer["id"]) == ("answer", number), answer
    return answer


def hear_out(socket: ClientConnection) -> None:
    """Read until the link ends."""
    while True:
        socket.recv(PATIENCE_S)


def closed(socket: ClientConnection) -> tuple[int, str]:
    """Return code and reason of the close that comes."""
    with pytest.raises(ConnectionClosed) as caught:
        hear_out(socket)
    frame = caught.value.rcvd
    assert frame is not None
    return frame.code, frame.reason


def granted(api: ApiProcess) -> dict[str, Any]:
    """Return the attempt of a job that has just been given a seat."""
    job_id = api.submit(JOB)
    deadline = time.monotonic() + PATIENCE_S
    while not (attempts := api.get(f"/fleet/jobs/{job_id}")["attempts"]):
        assert time.monotonic() < deadline, api.get(f"/fleet/jobs/{job_id}/explanation")["message"]
        time.sleep(0.05)
    return {"job_id": job_id, "epoch": attempts[-1]["epoch"]}


def lose(api: ApiProcess, attempt: dict[str, Any]) -> None:
    """Have the attempt's lease lost, by its death certificate."""
    certificate = attempt | {
        "factory": FACTORY,
        "reason": "killed",
        "group_dead": True,
        "issued_at": "2026-01-01T00:00:00Z",
    }
    path = f"/fleet/attempts/{attempt['job_id']}/{attempt['epoch']}/death"
    answer = api.call("POST", path, token=api.of_factory(FACTORY), json=certificate)
    assert answer.is_success, answer.text


class OneCall:
    """The WebSocket of an agent that makes one call and leaves when it has its answer."""

    def __init__(self) -> None:
        self._texts = [Call(id=1, name="beat").model_dump_json()]
        self._answered = asyncio.Event()
        self.answer: dict[str, Any] = {}

    async def receive_text(self) -> str:
        """Return the call; then wait for the answer and leave."""
        if self._texts:
            return self._texts.pop()
        async with asyncio.timeout(PATIENCE_S):
            await self._answered.wait()
        raise WebSocketDisconnect

    async def send_text(self, text: str) -> None:
        """Take the answer."""
        self.answer = json.loads(text)
        self._answered.set()


LINES = {"logs": [{"stream": "stdout", "first_seq": 1, "lines": [{"at": "2026-01-01T00:00:00Z", "text": "hello"}]}]}


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.req("H1")
def test_report_over_the_link_is_taken_once_however_often_it_comes(two: tuple[ApiProcess, ApiProcess]) -> None:
    """An agent that did not hear the answer says it again, here or at another process."""
    first, second = two
    attempt = granted(first)
    with linked(first, attempt) as here, linked(second, attempt) as there:
        for number, socket in enumerate((here, here, there)):
            assert asked(socket, number, name="report", body=LINES, **attempt)["status"] == 200
    log = first.call("GET", f"/fleet/jobs/{attempt['job_id']}/logs").text
    assert log.count("hello") == 1


@pytest.mark.req("H1")
def test_beat_over_the_link_brings_load_and_answers_with_the_state(two: tuple[ApiProcess, ApiProcess]) -> None:
    """The same as the request."""
    first, _ = two
    with linked(first) as socket:
        answer = asked(socket, name="beat", body={"instance": INSTANCE, "load": "0.75"})
    assert (answer["status"], answer["body"]["state"]) == (200, "online")
    [factory] = [one for one in first.get("/fleet/factories")["factories"] if one["name"] == FACTORY]
    assert float(factory["status"]["load"]) == 0.75


@pytest.mark.req("H1", "F4")
def test_stale_attempt_is_refused_over_the_link_too(two: tuple[ApiProcess, ApiProcess]) -> None:
    """The fence is the ledger's, whichever way a write comes."""
    first, _ = two
    attempt = granted(first)
    lose(first, attempt)
    with linked(first) as socket:
        answer = asked(socket, name="report", body=LINES, **attempt)
    assert (answer["status"], answer["body"]["code"]) == (409, "stale_epoch")


@pytest.mark.req("S5")
def test_call_that_does_not_fit_is_answered_with_every_field(two: tuple[ApiProcess, ApiProcess]) -> None:
    """As the request would be, and the link goes on."""
    first, _ = two
    attempt = granted(first)
    broken = {"logs": [{"stream": "NO", "first_seq": 0, "lines": []}]}
    with linked(first) as socket:
        answer = asked(socket, name="report", body=broken, **attempt)
        paths = {problem["path"] for problem in answer["body"]["errors"]}
        assert (answer["status"], paths) == (422, {"body.logs.0.stream", "body.logs.0.first_seq"})
        answer = asked(socket, name="report", body=LINES)
        assert {problem["path"] for problem in answer["body"]["errors"]} == {"job_id", "epoch"}
        assert asked(socket, name="report", body=LINES, **attempt)["status"] == 200


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("H1", "F4")
def test_attempt_that_lost_its_lease_is_told_to_stop_at_whichever_process(two: tuple[ApiProcess, ApiProcess]) -> None:
    """One process hears of the death, the other one has the link."""
    first, second = two
    attempt, other = granted(first), granted(first)
    with linked(second, attempt) as socket:
        say(socket, kind="running", attempts=[attempt, other])
        lose(first, other)
        assert heard(socket) == {"kind": "stop", "attempts": [other | {"reason": "fenced"}]}


@pytest.mark.req("H1", "F7")
def test_agent_that_comes_back_hears_which_of_its_attempts_are_gone(two: tuple[ApiProcess, ApiProcess]) -> None:
    """What happened while there was no link is told with the first words."""
    first, _ = two
    living, gone = granted(first), granted(first)
    lose(first, gone)
    for _ in range(2):
        with linked(first, living, gone) as socket:
            assert heard(socket) == {"kind": "stop", "attempts": [gone | {"reason": "fenced"}]}


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("H1", "F9")
def test_agent_that_has_not_heard_of_the_kill_switch_is_asked_for_a_beat(two: tuple[ApiProcess, ApiProcess]) -> None:
    """Also when the switch was pulled before the link was there, after the agent's last beat; only once for each."""
    first, second = two
    before = first.get("/fleet/halts")["epoch"]
    halt = {"scope": "factory", "name": "nobody-1"}
    assert first.call("POST", "/fleet/halts", json=halt | {"stop_running": True, "reason": "t"}).is_success
    with linked(second, switch_epoch=before) as behind, linked(second) as informed:
        assert heard(behind) == {"kind": "look"}
        assert first.call("POST", "/fleet/halts/release", json=halt).is_success
        assert [heard(behind), heard(informed)] == [{"kind": "look"}] * 2
        assert asked(informed, name="beat", body={"instance": INSTANCE})["status"] == 200


@pytest.mark.req("S2", "F3")
def test_only_the_factory_itself_may_link(two: tuple[ApiProcess, ApiProcess]) -> None:
    """Nobody without a token, no other factory, no person who may only look."""
    first, _ = two
    viewer, other = made(first)["secret"], made(first, roles=["factory"], factory="win-9")["secret"]
    for secret in ("", "gf_nonsense", viewer, other):
        with pytest.raises(InvalidStatus) as caught, open_link(first, secret):
            pass
        assert caught.value.response.status_code == 403


@pytest.mark.req("F3")
def test_attempt_of_another_factory_cannot_be_reported(two: tuple[ApiProcess, ApiProcess]) -> None:
    """A factory's link reaches as far as its token."""
    first, _ = two
    attempt = granted(first)
    report = {"name": "win-8", "instance": "w", "host": "win", "pid": 1, "seats": 0, "stations": []}
    token = first.of_factory("win-8")
    assert first.call("POST", "/fleet/factories", token=token, json=report).is_success
    with linked(first, agent=("win-8", "w")) as socket:
        answer = asked(socket, name="report", body=LINES, **attempt)
    assert (answer["status"], answer["body"]["code"]) == (403, "forbidden")


@pytest.mark.req("F2")
def test_second_agent_of_a_name_cannot_link(two: tuple[ApiProcess, ApiProcess]) -> None:
    """The fleet knows one agent of a name; a clone is told so."""
    first, _ = two
    with open_link(first, first.token(first.of_factory(FACTORY))) as socket:
        say(socket, kind="hello", instance="a-clone")
        code, reason = closed(socket)
    assert code == 1008
    assert "another agent" in reason


@pytest.mark.req("S2", "F3")
def test_link_of_a_revoked_token_is_closed(two: tuple[ApiProcess, ApiProcess]) -> None:
    """At the process that has the link, although another one took the revocation."""
    first, second = two
    token = made(first, roles=["factory"], factory=FACTORY)
    with linked(second, secret=token["secret"]) as socket:
        assert asked(socket, name="beat", body={"instance": INSTANCE})["status"] == 200
        first.call("POST", f"/fleet/tokens/{token['token']['id']}/revoke", json={})
        assert closed(socket)[0] == 1008


@pytest.mark.req("S2", "F3")
async def test_call_that_comes_before_the_look_that_closes_its_link_is_refused() -> None:
    """The looks of a busy process are late; its link must not do meanwhile what a request is refused."""
    done: list[str] = []

    async def handle(call: Call) -> dict[str, Any]:
        done.append(call.name)
        return {}

    async def revoked() -> None:
        raise Unauthenticated("this token was revoked")

    socket = OneCall()
    with pytest.raises(WebSocketDisconnect):
        await Link(cast("WebSocket", socket), FACTORY, handle, revoked).serve()
    assert done == []
    assert (socket.answer["id"], socket.answer["status"]) == (1, 401)


# --- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("S5")
@pytest.mark.parametrize(
    "first_words", ["", "nonsense", "[]", '{"kind": "running", "attempts": []}', '{"kind": "hello"}']
)
def test_link_that_does_not_begin_with_a_hello_is_closed(two: tuple[ApiProcess, ApiProcess], first_words: str) -> None:
    """Nothing is done for somebody who does not say who they are."""
    first, _ = two
    with open_link(first, first.token(first.of_factory(FACTORY))) as socket:
        socket.send(first_words)
        assert closed(socket)[0] == 1008


@pytest.mark.req("S5")
def test_nonsense_is_complained_about_field_by_field_and_then_ends_the_link(
    two: tuple[ApiProcess, ApiProcess],
) -> None:
    """A few slips are forgiven; the API is none the worse."""
    first, _ = two
    nonsense = '{"kind": "call", "id": -1, "name": "shutdown", "epoch": 0}'
    with linked(first) as socket:
        for _ in range(MAX_COMPLAINTS):
            socket.send(nonsense)
        complaints = [heard(socket) for _ in range(MAX_COMPLAINTS)]
        assert {one["kind"] for one in complaints} == {"complaint"}
        paths = {problem["path"].rsplit(".", 1)[-1] for problem in complaints[0]["problem"]["errors"]}
        assert paths == {"id", "name", "epoch"}
        assert closed(socket)[0] == 1008
    with linked(first) as socket:
        assert asked(socket, name="beat", body={"instance": INSTANCE})["status"] == 200


@pytest.mark.req("S5")
def test_bytes_and_monsters_end_the_link_and_nothing_else(two: tuple[ApiProcess, ApiProcess]) -> None:
    """A frame above the limit, and one that is no text."""
    first, _ = two
    for frame in (b"\x00\xff", "x" * (9 * 1024 * 1024)):
        with linked(first) as socket:
            with suppress(ConnectionClosed):  # while it is still being sent
                socket.send(frame)
            with pytest.raises(ConnectionClosed):
                hear_out(socket)
    assert first.get("/fleet/health")


def test_pace_lets_a_burst_through_and_then_slows_down() -> None:
    """Nothing is refused: who is too quick waits for the time that its messages would have taken."""
    now = 100.0
    pace = Pace(10.0, 5, clock=lambda: now)
    assert [pace.wait_s() for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2])
    now += 0.2
    assert pace.wait_s() == pytest.approx(0.1)
    now += 100
    assert [pace.wait_s() for _ in range(6)] == pytest.approx([0, 0, 0, 0, 0, 0.1])
