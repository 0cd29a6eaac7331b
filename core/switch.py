"""The kill switch: which halts are in force, and what each of them covers. *Pure.*

A *halt* is one pull of the switch. While it is in force nothing that it covers is given a seat; with `stop_running`
what runs already is stopped as well, and its work is kept. Each pull and each release raises the *kill epoch*, so that
of two messages about the switch the newer one is known, whichever way they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import AwareDatetime, Field

from core.job import Message
from core.router_snapshot import FactoryView, FleetSnapshot

HaltScope = Literal["fleet", "product", "factory", "engine"]
HaltOrigin = Literal["operator", "sentinel"]

SENTINEL = "KILL"
"""Name of the file that stops every factory of a home, or the one factory in whose folder it lies."""


class Halt(Message):
    """One pull of the switch that was not released yet."""

    epoch: int = 0
    """Kill epoch of the pull; 0 for a sentinel file that the ledger has not heard of."""
    scope: HaltScope = "fleet"
    name: str = ""
    """The product, factory or engine; empty for the fleet."""
    stop_running: bool = False
    """Stop what runs already, beside giving out nothing more."""
    origin: HaltOrigin = "operator"
    """`sentinel`: a file on the factory's machine; it is in force for as long as that file is there."""
    actor: str = ""
    reason: str = ""
    at: AwareDatetime | None = None

    @property
    def subject(self) -> str:
        """Return what is halted: `the fleet`, `product shop`."""
        return f"{self.scope} {self.name}" if self.name else "the fleet"

    def covers(self, *, product_id: str, factory: str, engine: str) -> bool:
        """Return whether work of that product with that engine on that factory is halted."""
        subjects = {"fleet": "", "product": product_id, "factory": factory, "engine": engine}
        return self.name == subjects[self.scope]

    def __str__(self) -> str:
        """Return who halted what and why, as a phrase."""
        by = f" by {self.actor}" if self.actor else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{self.subject} was halted{by}{why}"


class SwitchState(Message):
    """How the switch stands: what the answer to a factory's beat, and the factory's link, carry."""

    epoch: int = 0
    """The kill epoch: it grows with every pull and every release."""
    halts: tuple[Halt, ...] = Field(default=(), max_length=10_000)
    """Those in force, oldest first."""

    def concerning(self, factory: str) -> SwitchState:
        """Return the state without the halts of other factories."""
        halts = tuple(halt for halt in self.halts if halt.scope != "factory" or halt.name == factory)
        return SwitchState(epoch=self.epoch, halts=halts)


def covering(halts: Iterable[Halt], *, product_id: str, factory: str, engine: str) -> Halt | None:
    """Return the first halt that covers such work; None when it may go on."""
    return next((halt for halt in halts if halt.covers(product_id=product_id, factory=factory, engine=engine)), None)


def without_halted(snapshot: FleetSnapshot, halts: Iterable[Halt]) -> FleetSnapshot:
    """Return what a plan may count on: no job of a halted product, no halted factory, no halted engine.

    Factories and engines stay in it, closed and with the reason, so that an explanation can name them.
    """
    found = {(halt.scope, halt.name): halt for halt in halts}
    if not found:
        return snapshot
    everything = ("fleet", "") in found
    jobs = () if everything else tuple(job for job in snapshot.jobs if ("product", job.product_id) not in found)
    factories = tuple(_as_halted(factory, found) for factory in snapshot.factories)
    return snapshot.model_copy(update={"jobs": jobs, "factories": factories})


def _as_halted(factory: FactoryView, halts: Mapping[tuple[HaltScope, str], Halt]) -> FactoryView:
    engines = {name: halt for (scope, name), halt in halts.items() if scope == "engine"}
    stations = tuple(
        at.model_copy(update={"usable": False, "repair": f"{engines[at.engine]}; `gf unhalt --engine {at.engine}`"})
        if at.engine in engines
        else at
        for at in factory.stations
    )
    halted = ("factory", factory.name) in halts and factory.state == "online"
    return factory.model_copy(update={"stations": stations, "state": "halted" if halted else factory.state})
