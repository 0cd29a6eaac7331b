"""Doors and relays: they carry what they should, and lose exactly what they are told to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.chaos.doors import LOOPBACK, Door, HttpRelay, Losses

LARGE = "x" * 100_000
"""Longer than the 16-bit length of a frame."""


class Site:
    """A small API that counts what it served, behind a relay and a door."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.losses = Losses()
        self.socket = socket.create_server((LOOPBACK, 0))
        self.port = self.socket.getsockname()[1]
        self.relay = HttpRelay(lambda: f"{LOOPBACK}:{self.port}", self.losses)
        self.door = Door(lambda: f"{LOOPBACK}:{self.relay.port}")
        self.app = FastAPI()
        self.app.add_api_route("/fleet/jobs", self.submit, methods=["POST"])
        self.app.add_api_websocket_route("/fleet/factories/{name}/link", self.link)

    async def submit(self) -> dict[str, str]:
        self.served.append("submit")
        return {"text": LARGE}

    async def link(self, link: WebSocket) -> None:
        await link.accept()
        try:
            while True:
                message = await link.receive_json()
                self.served.append(message["kind"])
                if message["kind"] == "call":
                    await link.send_json({"kind": "answer", "id": message["id"], "status": 200, "body": {"a": LARGE}})
        except WebSocketDisconnect:
            return

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.door.port}"

    def linked(self) -> connect:
        return connect(f"ws://{LOOPBACK}:{self.door.port}/fleet/factories/otter/link", proxy=None, compression=None)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Return a running site."""
    made = Site()
    server = uvicorn.Server(uvicorn.Config(made.app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[made.socket]))
    await made.relay.open()
    await made.door.open()
    while not server.started:
        await asyncio.sleep(0.01)
    yield made
    await made.door.close()
    await made.relay.close()
    server.should_exit = True
    await serving


async def call(link: ClientConnection, number: int = 1) -> str:
    """Make a call over a link; return its answer."""
    await link.send(f'{{"kind": "call", "id": {number}, "name": "report", "body": {{"a": "{LARGE}"}}}}')
    return str(await link.recv())


async def test_request_and_answer_pass(site: Site) -> None:
    """Several on one connection, large ones too."""
    async with httpx.AsyncClient(base_url=site.url) as http:
        for _ in range(2):
            assert (await http.post("/fleet/jobs", json={"a": LARGE})).json() == {"text": LARGE}


@pytest.mark.parametrize(("way", "served"), [("request", 0), ("response", 1)])
async def test_message_is_lost_once_before_or_after_it_was_served(site: Site, way: str, served: int) -> None:
    """The caller cannot tell which; the next one passes."""
    site.losses.expect("submit", way)
    async with httpx.AsyncClient(base_url=site.url) as http:
        with pytest.raises(httpx.TransportError):
            await http.post("/fleet/jobs")
        assert len(site.served) == served
        assert (await http.post("/fleet/jobs")).status_code == 200
    assert site.losses.lost == {("submit", way): 1}


async def test_frames_of_a_link_pass(site: Site) -> None:
    """Masked ones of the agent and plain ones of the API, of any length."""
    async with site.linked() as link:
        assert LARGE in await call(link)


@pytest.mark.parametrize(("way", "served"), [("request", []), ("response", ["call"])])
async def test_call_over_a_link_is_lost_and_the_link_breaks(site: Site, way: str, served: list[str]) -> None:
    """What was said before has come through."""
    site.losses.expect("link.report", way)
    async with site.linked() as link:
        await link.send('{"kind": "hello"}')
        with pytest.raises(ConnectionClosed):
            await call(link)
    assert site.served == ["hello", *served]


async def test_cut_links_leave_requests_alone(site: Site) -> None:
    """Only links break."""
    async with site.linked() as link:
        await call(link)
        assert site.relay.cut_links() == 1
        with pytest.raises(ConnectionClosed):
            await link.recv()
    async with httpx.AsyncClient(base_url=site.url) as http:
        assert (await http.post("/fleet/jobs")).status_code == 200


async def test_cut_door_refuses_and_breaks_what_is_open(site: Site) -> None:
    """Until it is opened again."""
    async with httpx.AsyncClient(base_url=site.url) as http, site.linked() as link:
        await call(link)
        site.door.shut("cut")
        with pytest.raises(ConnectionClosed):
            await link.recv()
        with pytest.raises(httpx.TransportError):
            await http.post("/fleet/jobs")
        site.door.reopen()
        assert (await http.post("/fleet/jobs")).status_code == 200


async def test_silent_door_holds_back_what_is_sent(site: Site) -> None:
    """It arrives once the door is open again: TCP repeats what got no acknowledgement."""
    async with httpx.AsyncClient(base_url=site.url) as http:
        site.door.shut("silent")
        waiting = asyncio.create_task(http.post("/fleet/jobs"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert site.served == []
        site.door.reopen()
        assert (await waiting).status_code == 200
