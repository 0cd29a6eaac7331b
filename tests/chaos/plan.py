"""What is done to a stack, and when: drawn from a seed, so that a run can be repeated. *Pure.*

When is told in work, not in seconds: a fault is due once a share of all jobs has shipped. So the faults lie evenly
over the jobs on a quick and on a slow machine, and a stack that stands still is left alone and found to be stuck.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

CardT = TypeVar("CardT")
What = Literal["kill", "freeze", "partition", "lose", "link", "herd"]

KILLS: dict[str, int] = {
    "agent": 8,
    "supervisor": 7,
    "factory": 4,
    "nursery": 2,
    "api": 4,
    "control": 4,
    "temporal": 2,
    "guard": 1,
}
"""What is killed, and how often in one round of the deck. `factory`: the agent and all its supervisors at once."""
DATABASE_KILLS: dict[str, int] = {"postgres": 2}
"""The same, where there is a database server: one of its backends, which takes all others with it."""
FREEZES: tuple[str, ...] = ("agent", "machine", "supervisor", "api", "control", "temporal")
"""What is stopped and goes on later. `machine`: an agent and everything below it, engines too."""
PARTITIONS: tuple[str, ...] = (
    "factory-api",
    "factory-temporal",
    "factory-*",
    "api-temporal",
    "control-temporal",
    "client-api",
)
"""Who does not reach whom; `*`: nobody."""
DATABASE_PARTITIONS: tuple[str, ...] = ("api-postgres", "control-postgres", "temporal-postgres")
WAYS = ("request", "response")
REQUESTS: tuple[str, ...] = (
    "register",
    "beat",
    "report",
    "artifact",
    "death",
    "drain",
    "submit",
    "action",
    "link.open",
    "link.report",
    "link.beat",
    "StartWorkflowExecution",
    "SignalWorkflowExecution",
    "UpdateWorkflowExecution",
    "DescribeWorkflowExecution",
    "PollWorkflowTaskQueue",
    "PollActivityTaskQueue",
    "RespondWorkflowTaskCompleted",
    "RespondActivityTaskCompleted",
    "RecordActivityTaskHeartbeat",
)
"""Messages that are answered: by HTTP, over the factory link, over gRPC."""
TOLD: tuple[str, ...] = ("link.hello", "link.running", "link.stop", "link.look")
"""Messages of the factory link that nobody answers."""
LOSSES: tuple[tuple[str, str], ...] = tuple(
    [(message, way) for message in REQUESTS for way in WAYS] + [(message, "request") for message in TOLD]
)


@dataclass(frozen=True)
class Fault:
    """One thing that is done to the stack."""

    what: What
    target: str
    due: float
    """Share of all jobs (0 to 1) that has shipped by then."""
    how: str = ""
    """`cut` or `silent` for a partition, `request` or `response` for a loss."""
    hold_s: float = 0.0
    """How long a freeze or a partition lasts."""
    pick: float = 0.0
    """Which one, of several targets: a share of their number."""


def make_plan(seed: int, kills: int, *, lease_s: float, database: bool = False) -> tuple[Fault, ...]:
    """Return `kills` kills with other faults between them; half of what lasts, lasts longer than a lease.

    Each kind comes from a shuffled deck of its own, so that none is left out for long.
    """
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    victims = KILLS | (DATABASE_KILLS if database else {})
    killed = _deck(chance, [name for name, count in victims.items() for _ in range(count)])
    others = _deck(chance, ["lose"] * 10 + ["freeze"] * 3 + ["partition"] * 3 + ["link"] * 2 + ["herd"])
    losses = _deck(chance, LOSSES)
    frozen = _deck(chance, FREEZES)
    cut = _deck(chance, PARTITIONS + DATABASE_PARTITIONS * database)
    faults: list[Fault] = []
    for number in range(kills):
        due = 0.95 * number / kills
        faults.append(Fault("kill", next(killed), due, pick=chance.random()))
        what, pick, hold_s = next(others), chance.random(), _hold_s(chance, lease_s)
        if what == "lose":
            message, way = next(losses)
            faults.append(Fault("lose", message, due, how=way))
        elif what == "freeze":
            faults.append(Fault("freeze", next(frozen), due, hold_s=hold_s, pick=pick))
        elif what == "partition":
            how = chance.choice(("cut", "silent"))
            faults.append(Fault("partition", next(cut), due, how=how, hold_s=hold_s, pick=pick))
        else:
            faults.append(Fault("link" if what == "link" else "herd", what, due))
    return tuple(faults)


def _deck(chance: random.Random, cards: Sequence[CardT]) -> Iterator[CardT]:
    """Yield the cards in a random order, again and again."""
    while True:
        yield from chance.sample(cards, len(cards))


def _hold_s(chance: random.Random, lease_s: float) -> float:
    """Return a time well below the lease's, or well beyond it."""
    low, high = chance.choice(((0.1, 0.6), (1.3, 2.5)))
    return round(chance.uniform(low, high) * lease_s, 2)
