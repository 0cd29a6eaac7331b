"""What the router looks at: jobs that are ready, factories, locks, and how to weigh them. *Pure.*

A snapshot is complete and immutable: the same one gives the same plan, byte for byte, on every machine and in whatever
order its members come. Shares (`load`, `health`) are decimals; times are aware.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal

from pydantic import AwareDatetime, Field

from core.job import Cooldown, JobSpec, Message, Priority, RepositoryKind
from core.router_classes import JobClass, job_class, offers_of
from core.router_policy import Limits, Weights

FactoryState = Literal["online", "offline", "draining", "quarantined", "halted"]


class StationView(Message):
    """The seats of one engine on one factory."""

    engine: str
    seats: int = 1
    busy: int = 0
    usable: bool = True
    version: str = ""
    repair: str = ""
    """What makes an unusable engine usable again, as a command or a sentence."""
    cooldown: Cooldown | None = None
    """The engine rests there; its end lies after the snapshot's `now`."""


class FactoryView(Message):
    """One factory as the ledger knows it."""

    name: str
    host: str = ""
    state: FactoryState = "online"
    capabilities: tuple[str, ...] = ()
    """Facts: `os:linux`, `node=20.11.0`, `has:docker`, `mem_gb=24`."""
    unattested: tuple[str, ...] = ()
    """Sensitive facts that it claims and nobody attested; they count for nothing, and are named as a reason."""
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
    free_memory_gb: Decimal | None = None
    """None: not known, and then not held against the factory."""

    @property
    def offers(self) -> tuple[str, ...]:
        """Return the capabilities and the versions of the engines, without `identity`, in one order."""
        return offers_of(self.capabilities, tuple([(s.engine, s.version) for s in self.stations if s.version]))

    @property
    def identity(self) -> tuple[str, ...]:
        """Return the offers that only this factory makes."""
        return (f"factory:{self.name}", f"host:{self.host}") if self.host else (f"factory:{self.name}",)


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
    shares_scope: bool = False
    """It may work on the same paths as other jobs at the same time: it claims nothing and waits for no claim."""
    repository_url: str = ""
    host: str | None = None
    """The only host it can run on, because its repository is a path there."""
    excluded_factories: tuple[str, ...] = ()
    """Factories that lost it before: used again only when no other can take it."""
    overtaken: int = 0
    """How often a later job of its priority was granted a seat that this one could have used."""
    last_factory: str | None = None
    weights: dict[str, int] = Field(default_factory=dict)
    """Parts of a score that this job weighs otherwise than its product does."""

    @property
    def job_class(self) -> JobClass:
        """Return the class of the job."""
        return job_class(
            self.capabilities,
            self.prefers,
            (self.engine, self.engine_class, self.engine_preference),
            (self.host, self.last_factory, self.excluded_factories, self.repository_url),
            tuple(sorted(self.weights.items())),
        )

    @property
    def locks(self) -> tuple[str, ...]:
        """Return the names of all locks that the job takes."""
        if not self.implied_locks:
            return (self.lock,) if self.lock else ()
        return tuple(sorted({*self.implied_locks, *((self.lock,) if self.lock else ())}))

    @property
    def claim(self) -> tuple[str, ...]:
        """Return the globs of its repository that the job claims for itself while it runs."""
        return self.allowed_scope if self.repository_url and not self.shares_scope else ()


class LockView(Message):
    """What a granted job holds: a named lock, a claim on paths of a repository, or both."""

    job_id: str
    lock: str | None = None
    repository_url: str = ""
    allowed_scope: tuple[str, ...] = ()
    """Globs that the holder may touch in `repository_url`; empty claims nothing."""


class RunningJob(Message):
    """One job that holds a seat; the router looks at them only for preemption."""

    job_id: str
    product_id: str = "default"
    priority: Priority
    factory: str
    engine: str
    granted_at: AwareDatetime
    preempted: int = 0
    """How often it was paused for another job."""
    yields_to: str = ""
    """The job for which it is being paused; empty: none."""


class ProductView(Message):
    """What a product uses now and what it may; one that is not listed uses nothing and has share 1."""

    product_id: str
    running: int = 0
    share: int = Field(default=1, ge=1, le=10_000)
    limit: int | None = Field(default=None, ge=1)
    """Jobs at once."""
    weights: dict[str, int] = Field(default_factory=dict)
    """Parts of a score that it weighs otherwise than the fleet does."""


class Turns(Message):
    """What the order of service remembers from one plan to the next; whoever plans keeps it (`Plan.turns_after`)."""

    levels: dict[Priority, dict[str, int]] = Field(default_factory=dict)
    """Grants of each product at each priority in proportion to its share, on the scale of `core.router_shares`."""
    latest: dict[Priority, tuple[tuple[str, int], ...]] = Field(default_factory=dict)
    """Factories at which a seat was given away by fair shares, the latest first, and the level that got it."""
    passed_over: dict[str, int] = Field(default_factory=dict)
    """Jobs that each factory could have had since its last one, and that others got."""
    number: int = 0
    """The newest change that is in it, for whoever shares it between several planners."""


class FleetSnapshot(Message):
    """Everything that one plan is made from."""

    jobs: tuple[ReadyJob, ...] = ()
    factories: tuple[FactoryView, ...] = ()
    locks: tuple[LockView, ...] = ()
    running: tuple[RunningJob, ...] = ()
    products: tuple[ProductView, ...] = ()
    weights: Weights = Weights()
    limits: Limits = Limits()
    turns: Turns = Turns()
    now: AwareDatetime
    seed: int = 0


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
        shares_scope=spec.shares_scope,
        repository_url=place.url,
        host=place.host,
        weights=spec.weights,
    )


def check_distinct(what: str, names: Sequence[str]) -> None:
    """Refuse names that are there twice.

    Raises:
        ValueError: names those.

    """
    if len(set(names)) != len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{what} twice: {', '.join(twice)}")
