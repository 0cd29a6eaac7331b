"""What the router looks at: jobs that are ready, factories, locks, and how to weigh them. *Pure.*

A snapshot is complete and immutable: the same one gives the same plan, byte for byte, on every machine and in whatever
order its members come. Shares (`load`, `health`) are decimals; times are aware.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from pydantic import AwareDatetime, Field

from core.capability import Requirement, read_requirement
from core.engine_classes import ENGINE_CLASSES
from core.job import JobSpec, Message, Priority, RepositoryKind

FactoryState = Literal["online", "offline", "draining", "quarantined"]


class Weights(Message):
    """How much each part of a score counts; a part runs from 0 to 1000. Reasons: `docs/explanation/router.md`."""

    engine: int = Field(default=60, ge=0, description="Place of the engine in the job's order of preference.")
    prefers: int = Field(default=50, ge=0, description="Share of the job's `prefers` that the factory satisfies.")
    health: int = Field(default=40, ge=0, description="Share of recent attempts that the factory did not spoil.")
    load: int = Field(default=30, ge=0, description="Free seats and idle processors.")
    cost: int = Field(default=20, ge=0, description="Cheapness of the factory's cost class.")
    warm: int = Field(default=15, ge=0, description="Repository already mirrored there; the job's last factory.")
    fit: int = Field(default=10, ge=0, description="Few capabilities that the job would leave unused.")


class Limits(Message):
    """Bounds of the hard filter and of the order of service."""

    starvation_bound: int = Field(
        default=20, ge=1, description="Overtakings after which a job goes before all others of its priority."
    )
    disk_floor_gb: Decimal = Field(
        default=Decimal(1), ge=0, description="Free disk in GB below which a factory takes no further job."
    )


class StationView(Message):
    """The seats of one engine on one factory."""

    engine: str
    seats: int = 1
    busy: int = 0
    usable: bool = True
    version: str = ""
    repair: str = ""
    """What makes an unusable engine usable again, as a command or a sentence."""


class FactoryView(Message):
    """One factory as the ledger knows it."""

    name: str
    host: str = ""
    state: FactoryState = "online"
    capabilities: tuple[str, ...] = ()
    """Facts: `os:linux`, `node=20.11.0`, `has:docker`, `mem_gb=24`."""
    stations: tuple[StationView, ...] = ()
    """One per engine."""
    seats: int = 3
    """Jobs at once over all engines."""
    busy: int = 0
    warm_repositories: tuple[str, ...] = ()
    load: Decimal = Decimal(0)
    """Load average per core: 1 is fully busy."""
    cost_class: int = Field(default=0, ge=0)
    """0 costs nothing extra … 9 and more: dearest."""
    health: Decimal = Decimal(1)
    """0 … 1."""
    free_disk_gb: Decimal | None = None
    """None: not known, and then not held against the factory."""

    @property
    def offers(self) -> tuple[str, ...]:
        """Return the capabilities and the versions of the engines, in one order; equal offers are one class."""
        return _offers(self.capabilities, tuple([(s.engine, s.version) for s in self.stations if s.version]))

    @property
    def identity(self) -> tuple[str, ...]:
        """Return the offers that only this factory makes."""
        return (f"factory:{self.name}", f"host:{self.host}") if self.host else (f"factory:{self.name}",)


@dataclass(frozen=True, slots=True)
class JobClass:
    """All that decides where a job can and should run; jobs of equal class are interchangeable, locks apart.

    The router asks for it once per waiting job, so equal classes are one object and the hash is computed once.
    """

    requirements: tuple[Requirement, ...]
    """Requirements that equal factories satisfy equally."""
    own_requirements: tuple[Requirement, ...]
    """Requirements about one factory: `factory:mac-2`, `host:…`."""
    prefers: tuple[Requirement, ...]
    engines: tuple[str, ...]
    """Engines that may do it, in order of preference: the fallback chain."""
    engine_label: str
    """How the job asked for them: `engine codex`, `engine-class agentic-coder`."""
    host: str | None
    excluded: tuple[str, ...]
    repository_url: str
    last_factory: str | None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = (
            self.requirements,
            self.own_requirements,
            self.prefers,
            self.engines,
            self.engine_label,
            self.host,
            self.excluded,
            self.repository_url,
            self.last_factory,
        )
        object.__setattr__(self, "_hash", hash(members))

    def __hash__(self) -> int:
        return self._hash


class ReadyJob(Message):
    """One job that may start now; its parents are done."""

    job_id: str
    product_id: str = "default"
    priority: Priority = Priority.MEDIUM
    submitted_at: AwareDatetime
    """Its age counts from here, so that a job which lost its machine does not lose its place."""
    queued_at: AwareDatetime | None = None
    capabilities: tuple[str, ...] = ()
    prefers: tuple[str, ...] = ()
    engine: str | None = None
    engine_class: str | None = None
    engine_preference: tuple[str, ...] = ()
    lock: str | None = None
    implied_locks: tuple[str, ...] = ()
    """Locks that follow from what the job works on, such as a directory without git."""
    allowed_scope: tuple[str, ...] = ()
    repository_url: str = ""
    host: str | None = None
    """The only host it can run on, because its repository is a path there."""
    excluded_factories: tuple[str, ...] = ()
    """Factories that lost it before: used again only when no other can take it."""
    overtaken: int = 0
    """How often a later job was granted a seat that this one could have used."""
    last_factory: str | None = None

    @property
    def job_class(self) -> JobClass:
        """Return the class of the job."""
        return _job_class(
            self.capabilities,
            self.prefers,
            (self.engine, self.engine_class, self.engine_preference),
            (self.host, self.last_factory, self.excluded_factories),
            self.repository_url,
        )

    @property
    def locks(self) -> tuple[str, ...]:
        """Return the names of all locks that the job takes."""
        if not self.implied_locks:
            return (self.lock,) if self.lock else ()
        return tuple(sorted({*self.implied_locks, *((self.lock,) if self.lock else ())}))


class LockView(Message):
    """What a granted job holds: a named lock, a claim on paths of a repository, or both."""

    job_id: str
    lock: str | None = None
    repository_url: str = ""
    allowed_scope: tuple[str, ...] = ()
    """Globs that the holder may touch in `repository_url`; empty claims nothing."""


class ProductView(Message):
    """What a product uses now and how large its share is; a product that is not listed uses nothing and has share 1."""

    product_id: str
    running: int = 0
    share: int = Field(default=1, ge=1)


class FleetSnapshot(Message):
    """Everything that one plan is made from."""

    jobs: tuple[ReadyJob, ...] = ()
    factories: tuple[FactoryView, ...] = ()
    locks: tuple[LockView, ...] = ()
    products: tuple[ProductView, ...] = ()
    weights: Weights = Weights()
    limits: Limits = Limits()
    now: AwareDatetime
    seed: int = 0


@lru_cache(maxsize=16_384)
def _offers(capabilities: tuple[str, ...], versions: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(sorted({*capabilities, *(f"{engine}={version}" for engine, version in versions)}))


@lru_cache(maxsize=16_384)
def _job_class(
    capabilities: tuple[str, ...],
    prefers: tuple[str, ...],
    engine_request: tuple[str | None, str | None, tuple[str, ...]],
    places: tuple[str | None, str | None, tuple[str, ...]],
    repository_url: str,
) -> JobClass:
    shared, own = _requirements(capabilities)
    engine, engine_class, _ = engine_request
    host, last_factory, excluded = places
    return JobClass(
        requirements=shared,
        own_requirements=own,
        prefers=_both(prefers),
        engines=engine_chain(*engine_request),
        engine_label=_engine_label(engine, engine_class),
        host=host,
        excluded=tuple(sorted(set(excluded))),
        repository_url=repository_url,
        last_factory=last_factory,
    )


@lru_cache(maxsize=4096)
def _requirements(texts: tuple[str, ...]) -> tuple[tuple[Requirement, ...], tuple[Requirement, ...]]:
    """Return the distinct requirements, apart by whether they are about one factory."""
    distinct = sorted({read_requirement(text) for text in texts}, key=lambda requirement: requirement.text)
    own = tuple(requirement for requirement in distinct if requirement.name in ("factory", "host"))
    return tuple(requirement for requirement in distinct if requirement not in own), own


def _both(texts: tuple[str, ...]) -> tuple[Requirement, ...]:
    shared, own = _requirements(texts)
    return shared + own


@lru_cache(maxsize=4096)
def engine_chain(
    engine: str | None, engine_class: str | None, engine_preference: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the engines that may do a job, best first: the explicit one, else preference, else class order.

    A job that names neither gets none: guessing could hand a prompt to a shell.
    """
    if engine:
        return (engine,)
    return tuple(dict.fromkeys((*engine_preference, *ENGINE_CLASSES.get(engine_class or "", ()))))


def _engine_label(engine: str | None, engine_class: str | None) -> str:
    if engine:
        return f"engine {engine}"
    return f"engine-class {engine_class}" if engine_class else "no engine and no engine-class"


def ready_job(job_id: str, spec: JobSpec, now: datetime) -> ReadyJob:
    """Return what the router needs to know of a job that is submitted at `now` (aware), and what never changes of it.

    A directory without git is its own lock: two jobs never work in it at once.
    """
    place = spec.repository
    in_place = place.kind == RepositoryKind.DIRECTORY
    return ReadyJob(
        job_id=job_id,
        product_id=spec.product_id,
        priority=spec.priority,
        submitted_at=now,
        capabilities=spec.capabilities,
        prefers=spec.prefers,
        engine=spec.engine,
        engine_class=spec.engine_class,
        engine_preference=spec.engine_preference,
        lock=spec.lock,
        implied_locks=(f"directory {place.host or ''}:{place.url}",) if in_place else (),
        allowed_scope=spec.allowed_scope,
        repository_url=place.url,
        host=place.host,
    )
