"""What may be kept from one plan to the next. *Pure.*

It belongs to whoever plans again and again. It changes how long a plan takes and never what the plan says: everything
is kept by content, or is checked against the snapshot before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.router_classes import Needs
from core.router_fleet import Closed, Kinds
from core.router_match import Answers
from core.router_policy import Limits
from core.router_queue import Queue
from core.router_snapshot import ReadyJob, check_distinct

MOST_KINDS = 20_000
MOST_NEEDS = 5_000
"""Above these the cache begins anew, so that a fleet that changes for months takes no more memory than one of today."""


class RouterCache:
    """Kinds of factories, their answers to kinds of jobs, and the waiting jobs in their lines."""

    def __init__(self) -> None:
        self._queue = Queue()
        self._kinds: Kinds | None = None
        self._answers: dict[tuple[Needs, tuple[Closed, ...]], Answers] = {}

    def queue_of(self, jobs: Sequence[ReadyJob]) -> Queue:
        """Return the queue that holds exactly these jobs; it is one object, and good until the next plan.

        Raises:
            ValueError: two jobs have the same name.

        """
        self._queue.update(jobs)
        if len(self._queue.jobs) != len(jobs):
            self._queue = Queue()
            check_distinct("the snapshot has the same job", [job.job_id for job in jobs])
        return self._queue

    def kinds_for(self, limits: Limits) -> Kinds:
        """Return the kinds of factories under these limits."""
        floors = limits.disk_floor_gb, limits.memory_floor_gb
        if self._kinds is None or self._kinds.floors != floors or len(self._kinds) > MOST_KINDS:
            self._kinds = Kinds(limits)
            self._answers = {}
        return self._kinds

    def answers(self, needs: Needs, closed: tuple[Closed, ...]) -> Answers:
        """Return the answers to jobs with these needs while these engines are closed."""
        key = needs, closed
        known = self._answers.get(key)
        if known is None:
            if len(self._answers) > MOST_NEEDS:
                self._answers = {}
            known = self._answers[key] = Answers(needs, closed)
        return known
