"""What one class of jobs finds in the fleet: every place with its score, and the best one now. *Pure.*"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from core.router_classes import JobClass
from core.router_fleet import Fleet, Standing
from core.router_match import Answers
from core.router_policy import Weights
from core.router_score import ENGINE, LOAD, PARTS, Score, score_values, tie, weigh

Order = tuple[bool, int, int, int, str, str]


class Place(NamedTuple):
    """One engine on one factory as a place for a job."""

    order: Order
    """Sorts the best first: not avoided, highest score, lowest cost class, seeded tie, names."""
    score: Score


class _Fixed(NamedTuple):
    """What does not change about a place while a plan is made."""

    values: tuple[int, ...]
    without_load: int
    avoided: bool
    tie: int


class Scores:
    """The scores of one class of jobs of products that weigh alike."""

    def __init__(self, job: JobClass, of_product: tuple[tuple[str, int], ...], weights: Weights, fleet: Fleet) -> None:
        """Weigh as the job says, else as its product does, else by the `weights` of the fleet."""
        self.job = job
        self.weighed_by = dict.fromkeys(dict(of_product), "product") | dict.fromkeys(dict(job.weights), "job")
        """Who gave the weights that are not the fleet's."""
        own = dict((*of_product, *job.weights))
        self.factors = tuple(own.get(part, getattr(weights, part)) for part in PARTS)
        self._overdue = fleet.overdue
        self._seed = fleet.seed
        self._fixed: dict[tuple[str, str], _Fixed] = {}

    def order(self, standing: Standing, engine: str) -> Order:
        """Return how that engine on that factory ranks among all places."""
        view = standing.view
        fixed = self._fixed.get((view.name, engine)) or self._fix(standing, engine)
        total = fixed.without_load + standing.load * self.factors[LOAD]
        return (fixed.avoided, -total, view.cost_class, fixed.tie, view.name, engine)

    def place(self, standing: Standing, engine: str) -> Place:
        """Return that engine on that factory with its rank and its score."""
        order = self.order(standing, engine)
        values = self._fixed[standing.view.name, engine].values
        now = (*values[:LOAD], standing.load, *values[LOAD + 1 :])
        return Place(order, Score(-order[1], now, self.factors))

    def merits(self, standing: Standing, engine: str) -> tuple[int, ...]:
        """Return what the factory is worth, apart from the engine and from its load, which count 0 here."""
        fixed = self._fixed.get((standing.view.name, engine)) or self._fix(standing, engine)
        return tuple([0 if part in (ENGINE, LOAD) else value for part, value in enumerate(fixed.values)])

    def _fix(self, standing: Standing, engine: str) -> _Fixed:
        name = standing.view.name
        values = score_values(self.job, standing, engine, overdue=name in self._overdue)
        without_load = weigh(values, self.factors) - standing.load * self.factors[LOAD]
        fixed = _Fixed(values, without_load, name in self.job.excluded, tie(self._seed, name, engine))
        self._fixed[name, engine] = fixed
        return fixed


class Table:
    """The open places of one class of jobs, while seats are being taken.

    A score only falls while a plan is made, so the heap holds upper bounds: when the top's rank is still true, it is
    the best of all; else it sinks to where it belongs now.
    """

    def __init__(self, scores: Scores, fleet: Fleet, answers: Callable[[], Answers]) -> None:
        """`answers` gives what the factories say to jobs of this class, which changes when an engine is closed."""
        self.scores = scores
        self._fleet = fleet
        self._answers = answers
        now = answers()
        self._ranking = [
            scores.order(standing, engine) for standing in fleet.open for engine in now.of(standing).open_engines
        ]
        heapify(self._ranking)

    def best(self) -> Place | None:
        """Return the best place that is open now, or None; it is not taken by asking."""
        answers = self._answers()
        while self._ranking:
            top = self._ranking[0]
            standing, engine = self._fleet.standings[top[-2]], top[-1]
            if engine not in answers.of(standing).open_engines:
                heappop(self._ranking)
            elif self.scores.order(standing, engine) == top:
                return self.scores.place(standing, engine)
            else:
                heapreplace(self._ranking, self.scores.order(standing, engine))
        return None
