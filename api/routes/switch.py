"""The kill switch and limits of work in progress. *Does I/O: the ledger.*"""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, Depends
from pydantic import Field, model_validator

from api.auth import FleetCaller, requires
from api.backend import Parts, utc_now
from api.documents import Document
from core.roles import Permission
from core.switch import Halt, HaltScope, SwitchState
from store.views import HaltRow, LimitKind, LimitRow, Pulled

router = APIRouter(prefix="/fleet", tags=["switch"])
TO_READ = [Depends(requires(Permission.READ_FACTORIES))]

Name = Annotated[str, Field(max_length=200)]


class HaltSubject(Document):
    """What is halted, or released."""

    scope: HaltScope = "fleet"
    name: Name = ""
    """The product, factory or engine; empty for the fleet."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        """Refuse a scope without its name, and a name for the whole fleet."""
        if (self.scope == "fleet") == bool(self.name):
            raise ValueError("a name belongs to a product, a factory or an engine, and each of them needs one")
        return self


class HaltRequest(HaltSubject):
    """One pull of the kill switch."""

    stop_running: bool = False
    """Stop what runs already; its work is kept and its jobs are queued again."""
    reason: str = Field(default="", max_length=2000)


class HaltList(Document):
    """How the kill switch stands."""

    epoch: int
    """Kill epoch: grows with every pull and every release."""
    halts: tuple[Halt, ...]
    """Those in force, oldest first."""
    released: tuple[HaltRow, ...]
    """The latest that were released, the latest first."""


class LimitRequest(Document):
    """One limit of jobs at once."""

    kind: LimitKind
    name: str = Field(min_length=1, max_length=200)
    """The product or the engine."""
    jobs: int | None = Field(default=None, ge=1, le=10**6)
    """Jobs at once, over the whole fleet; null: as the settings say again."""


class LimitList(Document):
    """Every limit, by kind and name."""

    limits: tuple[LimitRow, ...]


@router.get("/halts", dependencies=TO_READ)
async def list_halts(parts: Parts) -> HaltList:
    """Return how the kill switch stands, and what was released lately."""
    state = await parts.ledger.switch_state()
    return HaltList(epoch=state.epoch, halts=state.halts, released=await parts.ledger.switch_history())


@router.post("/halts")
async def halt(parts: Parts, caller: FleetCaller, request: HaltRequest) -> Pulled:
    """Pull the kill switch: when this has answered, nothing that it covers is given a seat, whoever plans it.

    With `stop_running` the answer names the attempts that are being stopped.
    """
    pulled = await parts.ledger.pull_switch(Halt(actor=caller.name, **request.model_dump()), utc_now())
    parts.dispatcher.wake()
    parts.links.wake()
    return pulled


@router.post("/halts/release")
async def release_halt(parts: Parts, caller: FleetCaller, request: HaltSubject) -> SwitchState:
    """Release what an operator halted; 404 when nothing is halted there, or a sentinel file on a machine does it."""
    state = await parts.ledger.release_switch(request.scope, request.name, caller.name, utc_now())
    parts.dispatcher.wake()
    parts.links.wake()
    return state


@router.get("/limits", dependencies=TO_READ)
async def list_limits(parts: Parts) -> LimitList:
    """Return how many jobs of each product, and on each engine, may run at once, and how many do."""
    return LimitList(limits=await parts.ledger.limits())


@router.post("/limits")
async def set_limit(parts: Parts, caller: FleetCaller, request: LimitRequest) -> LimitList:
    """Set or forget a limit; what runs beyond it already goes on."""
    if request.jobs is None:
        await parts.ledger.unset_limit(request.kind, request.name, caller.name, utc_now())
    else:
        await parts.ledger.set_limit(request.kind, request.name, request.jobs, actor=caller.name, now=utc_now())
    parts.dispatcher.wake()
    return await list_limits(parts)
