"""The agent's side of the factory link: calls go out, orders come in; it is there when it can be. Does I/O: WebSocket.

Nothing depends on it. A call that the link cannot make is made over HTTP, and an order that it does not bring comes
with the next beat or a heartbeat of the attempt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import structlog
from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from core.errors import GigafactoryError
from core.job import Message
from core.link import FROM_API, Answer, AttemptRef, Call, Complaint, Hello, Look, Running, Stop

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
OPEN_S: Final = 5.0
PING_S: Final = 5.0
"""Time between two pings, and for the answer to one: a link that died quietly is noticed after twice that."""
ANSWER_S: Final = 10.0
"""Longest time that a call waits for its answer; then it is made over HTTP."""
MAX_FRAME: Final = 1024 * 1024
LOOPBACK: Final = ("http://127.0.0.1", "http://localhost", "http://[::1]")


class LinkDown(Exception):
    """The call did not get through, or its answer did not: nobody knows which."""


class FactoryLink:
    """Keeps one link to the API, as long as `run` runs."""

    def __init__(
        self,
        url: str,
        factory: str,
        instance: str,
        *,
        credentials: Callable[[], Mapping[str, str]],
        running: Callable[[], tuple[tuple[str, int], ...]],
        switch_epoch: Callable[[], int],
        stop: Callable[[str, int, str], None],
        look: Callable[[], None],
    ) -> None:
        """Serve the agent that these are of.

        Args:
            url: Of the API.
            factory: Its name; `instance` tells its agent from any other.
            instance: See `factory`.
            credentials: Give the headers of a request.
            running: Gives the attempts (job, epoch) that run now.
            switch_epoch: Gives how far the agent knows the kill switch to have come.
            stop: Ends an attempt.
            look: Wants a beat made at once.

        """
        self._uri = f"{url.replace('http', 'ws', 1)}/fleet/factories/{factory}/link"
        self._proxy: Literal[True] | None = None if url.startswith(LOOPBACK) else True
        self._instance = instance
        self._credentials = credentials
        self._running = running
        self._switch_epoch = switch_epoch
        self._stop = stop
        self._look = look
        self._socket: ClientConnection | None = None
        self._open: dict[int, asyncio.Future[Answer]] = {}
        self._ids = itertools.count()
        self._changed = asyncio.Event()

    @property
    def up(self) -> bool:
        """Return whether calls can be made."""
        return self._socket is not None

    async def run(self) -> None:
        """Link up, again and again, until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                async with connect(
                    self._uri,
                    additional_headers=self._credentials(),
                    compression=None,
                    open_timeout=OPEN_S,
                    ping_interval=PING_S,
                    ping_timeout=PING_S,
                    close_timeout=1.0,
                    max_size=MAX_FRAME,
                    proxy=self._proxy,
                ) as socket:
                    await self._serve(socket)
                    pause = FIRST_PAUSE_S
            except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, GigafactoryError) as error:
                log.info("link.waiting", error=str(error) or type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _serve(self, socket: ClientConnection) -> None:
        """Use an open connection until it closes."""
        known = self._switch_epoch()
        await _send(socket, Hello(instance=self._instance, running=self._refs(), switch_epoch=known))
        telling = asyncio.create_task(self._tell_running(socket))
        self._socket = socket
        try:
            async for text in socket:
                self._take(text)
        finally:
            self._socket = None
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            for answer in self._open.values():
                if not answer.done():
                    answer.set_exception(LinkDown("the link broke"))
            log.info("link.down", code=socket.close_code, reason=socket.close_reason)

    def _take(self, text: str | bytes) -> None:
        """Heed one message; one that makes no sense is logged and passed over, since a newer API may say more."""
        try:
            message = FROM_API.validate_json(text)
        except ValidationError as error:
            log.warning("link.nonsense", problem=str(error)[:500])
            return
        if isinstance(message, Answer):
            waiting = self._open.get(message.id)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif isinstance(message, Stop):
            for order in message.attempts:
                log.info("link.stop", job_id=order.job_id, epoch=order.epoch, reason=order.reason)
                self._stop(order.job_id, order.epoch, order.reason)
        elif isinstance(message, Look):
            self._look()
        elif isinstance(message, Complaint):
            log.error("link.complaint", problem=message.problem)

    # --- saying -------------------------------------------------------------------------------------------------------

    def running_changed(self) -> None:
        """Have the API told what runs now."""
        self._changed.set()

    async def _tell_running(self, socket: ClientConnection) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await _send(socket, Running(attempts=self._refs()))

    async def call(
        self, name: Literal["report", "beat"], body: Mapping[str, Any], *, job_id: str = "", epoch: int = 0
    ) -> Answer:
        """Make a call and return its answer, whatever its status.

        Raises:
            LinkDown: there is no link, or it broke before the answer came; the call may have been taken.

        """
        socket = self._socket
        if socket is None:
            raise LinkDown("there is no link")
        number = next(self._ids)
        call = Call(id=number, name=name, job_id=job_id or None, epoch=epoch or None, body=dict(body))
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[number] = waiting
        try:
            async with asyncio.timeout(ANSWER_S):
                await _send(socket, call)
                return await waiting
        except (TimeoutError, ConnectionClosed) as error:
            raise LinkDown(str(error) or "no answer came") from error
        finally:
            del self._open[number]

    def _refs(self) -> tuple[AttemptRef, ...]:
        return tuple(AttemptRef(job_id=job_id, epoch=epoch) for job_id, epoch in self._running())


async def _send(socket: ClientConnection, message: Message) -> None:
    await socket.send(message.model_dump_json())
