"""Factories: the list for people; for their agents reporting, beats, draining, leaving. *Does I/O: the ledger.*"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import Field, field_validator

from api.auth import Caller, FactoryCaller, FleetCaller, requires
from api.backend import Backend, Parts, utc_now
from api.documents import Document, FactoryDocument, FactoryList, factory_document
from core.absence import Absence
from core.errors import Conflict, Forbidden, NotFound
from core.roles import Permission
from core.switch import SwitchState
from store.messages import FactoryState, FactoryStatus, Registration, StationOffer
from store.views import DrainOrder

router = APIRouter(prefix="/fleet/factories", tags=["factories"])
TO_READ = [Depends(requires(Permission.READ_FACTORIES))]
TO_READ_OWN = [Depends(requires(Permission.READ_FACTORIES, Permission.ACT_AS_FACTORY))]
AS_FACTORY = [Depends(requires(Permission.ACT_AS_FACTORY))]
TO_END = [Depends(requires(Permission.OPERATE_FACTORIES, Permission.ACT_AS_FACTORY))]
EndingCaller = Annotated[Caller, Depends(requires(Permission.OPERATE_FACTORIES, Permission.ACT_AS_FACTORY))]

AttestingCaller = Annotated[Caller, Depends(requires(Permission.ATTEST_CAPABILITIES))]
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name of the factory.")]
Instance = Annotated[str, Field(min_length=1, max_length=100, description="Random id of the agent process.")]


ShortText = Annotated[str, Field(max_length=200)]
Gigabytes = Annotated[Decimal, Field(ge=0, le=10**9)]


class StationReport(Document):
    """One engine of a factory."""

    engine: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    version: ShortText = ""
    usable: bool = True
    repair: str = Field(default="", max_length=2000)
    """What makes an unusable engine usable again."""
    seats: int = Field(default=1, ge=0, le=1000)
    supports_resume: bool = False


class FactoryReport(Document):
    """What an agent says of its machine when it reports for work."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    instance: Instance
    host: str = Field(max_length=255)
    pid: int = Field(ge=0, le=2**31 - 1)
    version: str = Field(default="", max_length=100)
    os: str = Field(default="", max_length=100)
    arch: str = Field(default="", max_length=100)
    cores: int | None = Field(default=None, ge=0, le=2**31 - 1)
    mem_gb: Gigabytes | None = None
    free_disk_gb: Gigabytes | None = None
    free_memory_gb: Gigabytes | None = None
    sentinel: str | None = Field(default=None, max_length=4096)
    """The sentinel file that stops the factory; empty: none is there."""
    seats: int = Field(default=3, ge=0, le=1000)
    capabilities: tuple[ShortText, ...] = Field(default=(), max_length=500)
    """What the agent detected."""
    declared: tuple[ShortText, ...] = Field(default=(), max_length=500)
    """What the machine's settings claim beside that."""
    stations: tuple[StationReport, ...] = Field(default=(), max_length=100)
    credentials: tuple[ShortText, ...] = Field(default=(), max_length=100)
    """Names of providers it has credentials for; never the credentials."""
    tools: tuple[dict[str, Any], ...] = Field(default=(), max_length=200)
    boot: ShortText = ""
    """Id of the present boot of the machine."""
    replaces: str = Field(default="", max_length=100)
    """Random id of the agent before it on this machine, when that one is proven dead."""

    @field_validator("stations")
    @classmethod
    def _one_station_per_engine(cls, stations: tuple[StationReport, ...]) -> tuple[StationReport, ...]:
        """Refuse two stations for one engine: the router could not tell them apart."""
        engines = [station.engine for station in stations]
        if len(engines) != len(set(engines)):
            raise ValueError("two stations for one engine")
        return stations


class Registered(Document):
    """Answer to a report for work."""

    name: str
    state: FactoryState


class FactoryOrders(Registered):
    """Answer to a beat: what the agent has to know and to do."""

    hand_over: bool
    """It drains, and what still runs is to end now with a checkpoint and go on elsewhere."""
    switch: SwitchState
    """How the kill switch stands, as far as it concerns this factory."""


class Heartbeat(Document):
    """What an agent says every few seconds."""

    instance: Instance
    load: Decimal | None = Field(default=None, ge=0, le=10**6)
    """Load average per core."""
    busy: dict[str, int] = Field(default_factory=dict, max_length=100)
    """Seats in use, by engine."""
    free_disk_gb: Gigabytes | None = None
    free_memory_gb: Gigabytes | None = None
    sentinel: str | None = Field(default=None, max_length=4096)
    """The sentinel file that stops the factory; empty: none is there."""
    absences: tuple[Absence, ...] = Field(default=(), max_length=20)
    """What the machine's clocks told since the last beat: it was suspended, stopped, or its time of day was set."""
    warm_repositories: tuple[str, ...] | None = Field(default=None, max_length=1000)


class Attestation(Document):
    """Capabilities that somebody vouches for, or does no more."""

    capabilities: tuple[ShortText, ...] = Field(min_length=1, max_length=100)
    withdraw: bool = False


class Retirement(Document):
    """How a factory is taken away."""

    force: bool = False
    """Take its running attempts away from it: they go on elsewhere from their last checkpoint."""


class Retired(Document):
    """Answer to a retirement."""

    name: str
    attempts: int
    """Attempts that still hold a seat there; 0: the factory is gone."""


class Leaving(Document):
    """An agent that takes no further jobs."""

    instance: Instance | None = None


class Draining(Leaving):
    """A factory that is to take no further jobs."""

    reason: str = Field(default="", max_length=2000)
    hand_over_s: float | None = Field(default=None, ge=0, le=10**6)
    """Seconds after which what still runs ends with a checkpoint and goes on elsewhere; null: it may finish."""


@router.get("", dependencies=TO_READ)
async def list_factories(parts: Parts) -> FactoryList:
    """List all factories, by name."""
    found = await parts.ledger.factories()
    return FactoryList(factories=tuple(factory_document(factory) for factory in found))


@router.get("/{factory}", dependencies=TO_READ_OWN)
async def get_factory(parts: Parts, factory: Name) -> FactoryDocument:
    """Return one factory."""
    return factory_document(await parts.ledger.factory(factory))


@router.post("")
async def register_factory(parts: Parts, caller: FactoryCaller, report: FactoryReport) -> Registered:
    """Take a factory in; 409 when another living agent has its name."""
    if report.name != caller.access.factory:
        raise Forbidden(f"this token is for factory {caller.access.factory}, not {report.name}")
    details = report.model_dump(
        mode="json", include={"os", "arch", "cores", "mem_gb", "credentials", "tools"}, exclude_none=True
    )
    details["resumable"] = [station.engine for station in report.stations if station.supports_resume]
    registration = Registration(
        name=report.name,
        host=report.host,
        pid=report.pid,
        instance=report.instance,
        version=report.version,
        capabilities=report.capabilities,
        declared=report.declared,
        boot=report.boot,
        replaces=report.replaces,
        stations=tuple(StationOffer(**station.model_dump(exclude={"supports_resume"})) for station in report.stations),
        seats=report.seats,
        status=FactoryStatus(
            free_disk_gb=report.free_disk_gb, free_memory_gb=report.free_memory_gb, sentinel=report.sentinel
        ),
        details=details,
    )
    row = await parts.ledger.register_factory(registration, now=utc_now(), token_id=caller.token.id)
    parts.dispatcher.wake()
    return Registered(name=row.name, state=row.state)


@router.post("/{factory}/heartbeat", dependencies=AS_FACTORY)
async def beat(parts: Parts, factory: Name, heartbeat: Heartbeat) -> FactoryOrders:
    """Note that an agent lives; 404: report for work again, 409: another agent has the name now."""
    return await take_beat(parts, factory, heartbeat)


async def take_beat(parts: Backend, factory: str, heartbeat: Heartbeat) -> FactoryOrders:
    """Note that an agent lives, as it says by a request or over its link."""
    status = FactoryStatus.model_validate(heartbeat.model_dump(exclude={"instance", "busy"}))
    answer = await parts.ledger.factory_heartbeat(factory, heartbeat.instance, status, now=utc_now())
    if answer.returned:
        parts.dispatcher.wake()
    return FactoryOrders(name=factory, state=answer.state, hand_over=answer.hand_over, switch=answer.switch)


@router.post("/{factory}/drain")
async def drain_factory(parts: Parts, caller: EndingCaller, factory: Name, draining: Draining) -> Registered:
    """Give a factory no further jobs; what runs there goes on, until `hand_over_s` have passed.

    An operator's order holds until `undrain`, also when the agent starts anew; an agent's own word until then.
    """
    if draining.instance is not None or caller.access.factory is not None:
        return await _set_state(parts, factory, draining, "draining")
    now, wait_s = utc_now(), draining.hand_over_s
    due = None if wait_s is None else now + timedelta(seconds=wait_s)
    order = DrainOrder(by=caller.name, reason=draining.reason, at=now, hand_over_at=due)
    state = await parts.ledger.drain_factory(factory, order, now)
    await parts.links.look(factory)
    return Registered(name=factory, state=state)


@router.post("/{factory}/undrain")
async def undrain_factory(parts: Parts, caller: FleetCaller, factory: Name) -> Registered:
    """Let a factory that an operator drained take jobs again."""
    state = await parts.ledger.undrain_factory(factory, caller.name, utc_now())
    parts.dispatcher.wake()
    await parts.links.look(factory)
    return Registered(name=factory, state=state)


@router.post("/{factory}/release")
async def release_factory(parts: Parts, caller: FleetCaller, factory: Name) -> Registered:
    """Let a quarantined factory take jobs again, and engines that rest there; what was before counts no more."""
    await parts.ledger.release_factory(factory, caller.name, utc_now())
    parts.dispatcher.wake()
    return Registered(name=factory, state=(await parts.ledger.factory(factory)).state)


@router.post("/{factory}/leave", dependencies=TO_END)
async def leave(parts: Parts, factory: Name, leaving: Leaving) -> Registered:
    """Note that a factory is gone."""
    return await _set_state(parts, factory, leaving, "offline")


@router.post("/{factory}/attestations")
async def attest(parts: Parts, caller: AttestingCaller, factory: Name, attestation: Attestation) -> FactoryDocument:
    """Vouch for capabilities of a factory, or withdraw that; sensitive ones count for routing only when vouched for."""
    await parts.ledger.factory(factory)
    change = parts.ledger.withdraw_attestation if attestation.withdraw else parts.ledger.attest
    await change(factory, attestation.capabilities, caller.name, utc_now())
    parts.dispatcher.wake()
    return factory_document(await parts.ledger.factory(factory))


@router.post("/{factory}/retire")
async def retire_factory(parts: Parts, caller: FleetCaller, factory: Name, retirement: Retirement) -> Retired:
    """Take a factory away for good: it drains, and when it holds nothing any more its tokens are revoked.

    While it still holds attempts the answer says how many, and nothing but the drain has happened: ask again.
    """
    with contextlib.suppress(NotFound):  # enrolled, but it never reported for work
        await parts.ledger.factory_state(factory, "draining")
    if retirement.force:
        for job_id, epoch in await parts.ledger.attempts_on(factory):
            await parts.ledger.mark_lost(job_id, epoch, f"factory {factory} was retired", "", utc_now())
            parts.wakeups.notify(job_id)
    gone = await parts.ledger.retire_factory(factory, caller.name, utc_now())
    parts.dispatcher.wake()
    held = 0 if gone else len(await parts.ledger.attempts_on(factory))
    return Retired(name=factory, attempts=held)


async def _set_state(parts: Parts, name: str, leaving: Leaving, state: Literal["draining", "offline"]) -> Registered:
    row = await parts.ledger.factory(name)
    if leaving.instance is not None and leaving.instance != row.instance:
        raise Conflict(f"factory {name} is run by another agent now (process {row.pid})", name=name, pid=row.pid)
    await parts.ledger.factory_state(name, state)
    return Registered(name=name, state=state)
