"""The factory link: one WebSocket for each agent, over which calls come in and orders go out. *Does I/O: the ledger.*

Orders are levels, not edges: every agent says which attempts it runs, and a few times a second, or at once when
somebody in this process changed something, one read of the ledger tells which of them have to stop. So it does not
matter which API process an operator's request reached, or whether a link was down meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol

import structlog
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api.problems import invalid_input_of, problem_of_bug, problem_of_error
from core.errors import GigafactoryError, InvalidInput, Unauthenticated, Unavailable
from core.job import Message
from core.link import FROM_AGENT, Answer, Call, Complaint, Hello, Look, Running, Stop, StopOrder
from store.stops import LinkNews

log = structlog.get_logger("api.link")

LOOK_S: Final = 0.2
"""Longest time after which the ledger is asked for orders; half a second is promised until everything is dead."""
HELLO_S: Final = 10.0
CALLS_AT_ONCE: Final = 32
"""Calls of one agent that are answered side by side; more wait unread in the socket."""
MESSAGES_PER_S: Final = 500.0
BURST: Final = 1000
"""Messages that may come at once before an agent is slowed down to `MESSAGES_PER_S`."""
MAX_COMPLAINTS: Final = 10
POLICY_VIOLATION: Final = 1008
"""Code with which a WebSocket is closed that has no good token, or makes no sense."""
GOING_AWAY: Final = 1001
REASON_BYTES: Final = 120
"""A close frame has room for 123."""

Handler = Callable[[Call], Awaitable[dict[str, Any]]]


class OrderSource(Protocol):
    """What knows who has to stop; `store.ledger.Ledger` in the product."""

    async def link_news(self, running: list[tuple[str, int]]) -> LinkNews:
        """Return which of these attempts have to stop, and how far the kill switch has come."""


class Pace:
    """A token bucket: tells how long to wait before the next message is read."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._tokens, self._at = float(burst), clock()

    def wait_s(self) -> float:
        """Take one token and return the seconds until it would have been there; 0 while there are any."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s) - 1
        self._at = now
        return max(0.0, -self._tokens / self._per_s)


class Link:
    """One agent's link; `serve` runs until it ends."""

    def __init__(
        self, socket: WebSocket, factory: str, handle: Handler, still_known: Callable[[], Awaitable[None]]
    ) -> None:
        self._socket = socket
        self.factory = factory
        self._handle = handle
        self._still_known = still_known
        self.running: frozenset[tuple[str, int]] = frozenset()
        self._told: set[tuple[str, int]] = set()
        self._switch_epoch = 0
        """How far the kill switch has come, as far as the agent knows or was asked to find out."""
        self._pace = Pace(MESSAGES_PER_S, BURST)
        self._complaints = 0
        self._free = asyncio.Semaphore(CALLS_AT_ONCE)

    async def hello(self) -> Hello:
        """Return the agent's first message.

        Raises:
            InvalidInput: it is something else, or none came in time.
            WebSocketDisconnect: it left.

        """
        try:
            async with asyncio.timeout(HELLO_S):
                first = _read(await self._socket.receive_text())
        except TimeoutError:
            raise InvalidInput(f"no hello came within {HELLO_S:.0f} s") from None
        if not isinstance(first, Hello):
            raise InvalidInput(f"the first message has to be a hello, it was a {first.kind}")
        self.running = frozenset((one.job_id, one.epoch) for one in first.running)
        self._switch_epoch = first.switch_epoch
        return first

    async def serve(self) -> None:
        """Answer calls until the agent leaves or has to.

        Raises:
            WebSocketDisconnect: the agent left.

        """
        calls: set[asyncio.Task[None]] = set()
        try:
            while self._complaints < MAX_COMPLAINTS:
                text = await self._socket.receive_text()
                await asyncio.sleep(self._pace.wait_s())
                message = await self._understood(text)
                if isinstance(message, Call):
                    await self._free.acquire()
                    task = asyncio.create_task(self._answer(message))
                    calls.add(task)
                    task.add_done_callback(calls.discard)
                elif isinstance(message, Running):
                    self.running = frozenset((one.job_id, one.epoch) for one in message.attempts)
                    self._told &= self.running
            await self.close(POLICY_VIOLATION, f"{MAX_COMPLAINTS} messages made no sense")
        finally:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _understood(self, text: str) -> Hello | Running | Call | None:
        try:
            return _read(text)
        except InvalidInput as error:
            self._complaints += 1
            log.warning("link.nonsense", factory=self.factory, count=self._complaints, problem=error.message)
            await self._send(Complaint(problem=problem_of_error(error)))
            return None

    async def _answer(self, call: Call) -> None:
        try:
            await self._still_known()  # a token that is refused everywhere else must not go on here until a look
            answer = Answer(id=call.id, status=200, body=await self._handle(call))
        except GigafactoryError as error:
            answer = Answer(id=call.id, status=type(error).status, body=problem_of_error(error))
        except Exception:
            log.exception("link.bug", factory=self.factory, call=call.name)
            answer = Answer(id=call.id, status=500, body=problem_of_bug(f"link-{self.factory}-{call.id}"))
        finally:
            self._free.release()
        await self._send(answer)

    def is_concerned(self, news: LinkNews) -> bool:
        """Return whether the agent may have to be told something of the news."""
        return self._switch_epoch != news.switch_epoch or not news.stops.keys().isdisjoint(self.running)

    async def tell(self, news: LinkNews) -> None:
        """Tell the agent what of the news is for it and was not told yet."""
        fresh = [one for one in sorted(self.running) if one in news.stops and one not in self._told]
        if fresh:
            orders = (StopOrder(job_id=job, epoch=epoch, reason=news.stops[job, epoch]) for job, epoch in fresh)
            await self._send(Stop(attempts=tuple(orders)))
            self._told.update(fresh)
        if self._switch_epoch != news.switch_epoch:
            await self.look()
            self._switch_epoch = news.switch_epoch

    async def look(self) -> None:
        """Ask the agent for a beat at once."""
        await self._send(Look())

    async def check_token(self) -> None:
        """Close the link when its token is not good any more."""
        try:
            await self._still_known()
        except Unauthenticated as error:
            log.info("link.refused", factory=self.factory, problem=error.message)
            await self.close(POLICY_VIOLATION, error.message)
        except Unavailable:
            return  # the ledger is away: nobody new gets in, who is in stays

    async def close(self, code: int, reason: str) -> None:
        """End the link; one that has ended is left alone."""
        if self._socket.application_state != WebSocketState.DISCONNECTED:
            cut = reason.encode()[:REASON_BYTES].decode(errors="ignore")
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await self._socket.close(code, cut)

    async def _send(self, message: Message) -> None:
        """Send, unless the agent is gone: then whoever reads finds out."""
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.send_text(message.model_dump_json())


def _read(text: str) -> Hello | Running | Call:
    try:
        return FROM_AGENT.validate_json(text)
    except ValidationError as error:
        raise invalid_input_of(error, what="message") from None


class Links:
    """All links of this process, and the orders that go out over them."""

    def __init__(self, source: OrderSource) -> None:
        self._source = source
        self._links: set[Link] = set()
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Ask for a look at the ledger now: something changed that an agent may have to hear."""
        self._wanted.set()

    @contextlib.contextmanager
    def joined(self, link: Link) -> Iterator[None]:
        """Let a link take part for as long as the block lasts."""
        self._links.add(link)
        self.wake()
        try:
            yield
        finally:
            self._links.discard(link)

    async def look(self, factory: str) -> None:
        """Ask one factory for a beat at once, if it is linked here."""
        await asyncio.gather(*(link.look() for link in tuple(self._links) if link.factory == factory))

    async def run(self) -> None:
        """Tell orders and check tokens for as long as the process runs."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK_S)
            self._wanted.clear()
            if not self._links:
                await self._wanted.wait()
            try:
                await self._round(tuple(self._links))
            except GigafactoryError as error:
                log.warning("link.round_failed", problem=error.message)
            except Exception:  # this loop must never end
                log.exception("link.round_failed")

    async def _round(self, links: tuple[Link, ...]) -> None:
        running = sorted({attempt for link in links for attempt in link.running})
        news = await self._source.link_news(running)
        await asyncio.gather(*(link.tell(news) for link in links if link.is_concerned(news)))
        for link in links:  # no task for each: they wait for nothing, and there may be a thousand
            await link.check_token()

    async def close(self) -> None:
        """End all links, because this process stops; agents come back to the next one."""
        await asyncio.gather(*(link.close(GOING_AWAY, "the API stops") for link in tuple(self._links)))
