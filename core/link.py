"""What a factory's agent and the API say to each other over the factory link. *Pure.*

The link is a shortcut and holds no truth. What an agent says over it could be said by a request, in the same words;
what the API says over it, the agent would hear with its next beat, or from Temporal with a heartbeat of the attempt.
So a lost message, or no link at all, costs time and nothing else.

One JSON text frame is one message. An agent begins with `Hello`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from core.job import Message

MAX_RUNNING: Final = 10_000
"""Attempts that one agent may say it runs."""

JobId = Annotated[str, Field(min_length=1, max_length=100)]
Epoch = Annotated[int, Field(ge=1, le=2**31 - 1)]


class AttemptRef(Message):
    """One epoch of one job."""

    job_id: JobId
    epoch: Epoch


class Hello(Message):
    """First message of an agent: who it is, what it has running since before the link was there, what it knows."""

    kind: Literal["hello"] = "hello"
    instance: str = Field(min_length=1, max_length=100)
    running: tuple[AttemptRef, ...] = Field(default=(), max_length=MAX_RUNNING)
    switch_epoch: int = Field(default=0, ge=0)
    """How far the kill switch had come in the answer to its last beat (`SwitchState.epoch`); 0: never used."""


class Running(Message):
    """All attempts that the agent runs now; said whenever one begins or ends."""

    kind: Literal["running"] = "running"
    attempts: tuple[AttemptRef, ...] = Field(max_length=MAX_RUNNING)


class Call(Message):
    """A request of an agent, answered by the `Answer` with its `id`; at most one open call has an id."""

    kind: Literal["call"] = "call"
    id: int = Field(ge=0, lt=2**53)
    name: Literal["report", "beat"]
    job_id: JobId | None = None
    """Of a report; so is `epoch`."""
    epoch: Epoch | None = None
    body: dict[str, Any] = Field(default_factory=dict)
    """Body of the request with the same meaning."""


class Answer(Message):
    """The API's answer to a call: what the request would have been answered, with its HTTP status."""

    kind: Literal["answer"] = "answer"
    id: int
    status: int
    body: dict[str, Any] = Field(default_factory=dict)


StopReason = Literal["cancelled", "fenced", "preempted"]
"""`fenced`: nothing that the attempt does counts any more. `preempted`: a more urgent job needs its seat."""


class StopOrder(AttemptRef):
    """An attempt that is to stop, and why."""

    reason: StopReason


class Stop(Message):
    """The API says which of the running attempts have to stop."""

    kind: Literal["stop"] = "stop"
    attempts: tuple[StopOrder, ...]


class Look(Message):
    """The API asks for a beat at once: its answer has something new in it."""

    kind: Literal["look"] = "look"


class Complaint(Message):
    """A message of the agent made no sense; after a few of them the link is closed."""

    kind: Literal["complaint"] = "complaint"
    problem: dict[str, Any]


FROM_AGENT: Final[TypeAdapter[Hello | Running | Call]] = TypeAdapter(
    Annotated[Hello | Running | Call, Field(discriminator="kind")]
)
FROM_API: Final[TypeAdapter[Answer | Stop | Look | Complaint]] = TypeAdapter(
    Annotated[Answer | Stop | Look | Complaint, Field(discriminator="kind")]
)
