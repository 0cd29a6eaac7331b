"""How an installation wants its jobs to be placed: weights, limits, and the shares of products. *Pure*.

Part of the snapshot that the router plans from, and of the settings (`routing`): what is not known here is an error.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Strict):
    """How much each part of a score counts; a part runs from 0 to 1000. Reasons: `docs/explanation/router.md`."""

    engine: int = Field(default=60, ge=0, description="Place of the engine in the job's order of preference.")
    prefers: int = Field(default=50, ge=0, description="Share of the job's `prefers` that the factory satisfies.")
    health: int = Field(default=40, ge=0, description="Share of recent attempts that the factory did not spoil.")
    load: int = Field(default=30, ge=0, description="Free seats and idle processors.")
    cost: int = Field(default=20, ge=0, description="Cheapness of the factory's cost class.")
    warm: int = Field(default=15, ge=0, description="Repository already mirrored there; the job's last factory.")
    fit: int = Field(default=10, ge=0, description="Few capabilities that the job would leave unused.")
    starvation: int = Field(default=250, ge=0, description="The factory was passed over `factory_bound` times.")


class Limits(_Strict):
    """Bounds of the hard filter, of the order of service, and of preemption."""

    starvation_bound: int = Field(
        default=20, ge=1, description="Times that a job's eligible seats may go to later jobs of its priority, each."
    )
    factory_bound: int = Field(
        default=100, ge=1, description="Jobs that may pass a factory by before it goes before the others."
    )
    disk_floor_gb: Decimal = Field(
        default=Decimal(1), ge=0, description="Free disk in GB below which a factory takes no further job."
    )
    memory_floor_gb: Decimal = Field(
        default=Decimal("0.5"), ge=0, description="Free memory in GB below which a factory takes no further job."
    )
    engines: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="Jobs at once on an engine, over the whole fleet; engines not named: no limit.",
    )
    preemption: bool = Field(default=False, description="Whether a critical job may pause a low one.")
    preemption_bound: int = Field(
        default=2, ge=1, description="Times that one job may be paused for others; then it is left alone."
    )


class ProductPolicy(_Strict):
    """What one product is entitled to."""

    share: int = Field(default=1, ge=1, le=10_000, description="Grants in proportion to those of other products.")
    limit: int | None = Field(default=None, ge=1, description="Jobs at once; none: as many as there are seats.")
    weights: Weights | None = Field(default=None, description="Weights of its own; the others are the fleet's.")


class RoutingPolicy(_Strict):
    """Everything about placing that an operator decides."""

    weights: Weights = Weights()
    limits: Limits = Limits()
    products: dict[str, ProductPolicy] = Field(default_factory=dict)
