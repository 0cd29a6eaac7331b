"""The agent's side of the factory link against a WebSocket server that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve

from core.errors import Unavailable
from tests.waiting import PATIENCE_S
from workers.link import FactoryLink, LinkDown


@dataclass
class Api:
    """The other side: keeps what was said, says what it is told to."""

    said: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    tokens: list[str] = field(default_factory=list)
    socket: ServerConnection | None = None
    port: int = 0
    server: Server | None = None

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self.server = await serve(self._serve, "127.0.0.1", self.port)
        self.port = next(iter(self.server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Close every connection and listen no more."""
        assert self.server is not None
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.tokens.append(socket.request.headers["Authorization"])
        self.socket = socket
        async for text in socket:
            self.said.put_nowait(json.loads(text))

    async def heard(self) -> dict[str, Any]:
        """Return the next thing that the agent said."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.said.get()

    async def say(self, text: str = "", **message: Any) -> None:
        """Say something to the agent."""
        assert self.socket is not None
        await self.socket.send(text or json.dumps(message))


@dataclass
class Agent:
    """What a link does to its agent."""

    running: tuple[tuple[str, int], ...] = ()
    stopped: asyncio.Queue[tuple[str, int, str]] = field(default_factory=asyncio.Queue)
    looks: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    tokens: list[str] = field(default_factory=lambda: ["one"])

    def credentials(self) -> dict[str, str]:
        """Return the header with the present token."""
        if not self.tokens:
            raise Unavailable("there is no token yet")
        return {"Authorization": f"Bearer {self.tokens[-1]}"}


@asynccontextmanager
async def link_to(api: Api, agent: Agent) -> AsyncIterator[FactoryLink]:
    """Run a link for as long as the block lasts."""
    link = FactoryLink(
        f"http://127.0.0.1:{api.port}",
        "mac-1",
        "agent-1",
        credentials=agent.credentials,
        running=lambda: agent.running,
        switch_epoch=lambda: 7,
        stop=lambda job_id, epoch, reason: agent.stopped.put_nowait((job_id, epoch, reason)),
        look=lambda: agent.looks.put_nowait(None),
    )
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """Return a listening API."""
    api = Api()
    await api.start()
    yield api
    await api.stop()


@pytest.mark.req("H1")
async def test_agent_says_who_it_is_what_it_runs_and_when_that_changes(api: Api) -> None:
    """The API can tell from it which attempts have to stop."""
    agent = Agent(running=(("j-1", 2),))
    async with link_to(api, agent) as link:
        attempt = {"job_id": "j-1", "epoch": 2}
        assert await api.heard() == {
            "kind": "hello",
            "instance": "agent-1",
            "running": [attempt],
            "switch_epoch": 7,
        }
        agent.running = (("j-1", 2), ("j-2", 1))
        link.running_changed()
        assert await api.heard() == {"kind": "running", "attempts": [attempt, {"job_id": "j-2", "epoch": 1}]}


@pytest.mark.req("H1", "F9")
async def test_orders_are_heeded_and_what_is_unknown_is_passed_over(api: Api) -> None:
    """A newer API may say more than this agent understands."""
    agent = Agent()
    async with link_to(api, agent):
        await api.heard()
        for text in ("nonsense", "[]", '{"kind": "dance"}', '{"kind": "stop", "attempts": [{}]}'):
            await api.say(text)
        await api.say(kind="look", soon=True)
        await api.say(kind="stop", attempts=[{"job_id": "j-1", "epoch": 2, "reason": "cancelled"}])
        async with asyncio.timeout(PATIENCE_S):
            assert await agent.stopped.get() == ("j-1", 2, "cancelled")
            await agent.looks.get()


@pytest.mark.req("H1")
async def test_answers_find_their_calls_in_any_order(api: Api) -> None:
    """Many calls are open at once; an answer to nothing is passed over."""
    async with link_to(api, Agent()) as link:
        await api.heard()
        calls = [asyncio.create_task(link.call("report", {"n": n}, job_id="j-1", epoch=2)) for n in range(3)]
        heard = [await api.heard() for _ in calls]
        assert {call["kind"] for call in heard} == {"call"}
        await api.say(kind="answer", id=999, status=200)
        for call in reversed(heard):
            await api.say(kind="answer", id=call["id"], status=200 + call["body"]["n"], body={})
        assert [(await call).status for call in calls] == [200, 201, 202]


@pytest.mark.req("H1")
async def test_call_on_a_link_that_breaks_is_told_so(api: Api) -> None:
    """Then it is made over HTTP; nobody waits for an answer that cannot come."""
    async with link_to(api, Agent()) as link:
        await api.heard()
        call = asyncio.create_task(link.call("beat", {}))
        await api.heard()
        await api.stop()
        with pytest.raises(LinkDown):
            await call
        with pytest.raises(LinkDown):
            await link.call("beat", {})


@pytest.mark.req("H1", "F3")
async def test_link_comes_back_with_the_token_of_that_time(api: Api) -> None:
    """The API restarts, and the token is rotated meanwhile."""
    agent = Agent()
    async with link_to(api, agent):
        await api.heard()
        await api.stop()
        agent.tokens.append("two")
        agent.running = (("j-9", 1),)
        await api.start()
        assert (await api.heard())["running"] == [{"job_id": "j-9", "epoch": 1}]
    assert api.tokens == ["Bearer one", "Bearer two"]


async def test_link_waits_for_a_token(api: Api) -> None:
    """A factory may be started before it was given one."""
    agent = Agent(tokens=[])
    async with link_to(api, agent):
        await asyncio.sleep(0.1)
        agent.tokens.append("late")
        assert (await api.heard())["kind"] == "hello"
