"""Child jobs: a job that runs is decomposed, and does not ship before all of its children have. Does I/O: SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, insert, select

from core.dag import Cycle, WaitsFor, refuse_cycle
from core.errors import FieldProblem, IllegalAction, InvalidInput, NotFound
from core.job import Stage
from core.lifecycle import ENDED
from store.database import batches
from store.edges import UNDONE, gate_is_held, take_turn
from store.messages import Submission
from store.open_job import OpenJob, last_event, open_job
from store.parents import MAX_NAMED, MAX_SHOWN, wait_state
from store.tables import edges, jobs


def hold_gates(connection: Connection, children: Sequence[Submission], now: datetime) -> None:
    """Let the ship gates of running jobs wait for new jobs, which are written already, that are a part of them.

    Raises:
        InvalidInput: there is no such running job in the product of its child, or it would wait for itself.
        IllegalAction: it has ended, or is being shipped right now.

    """
    if not children:
        return
    take_turn(connection)
    ordered = sorted(children, key=lambda child: child.child_of or "")
    for holder_id, group in groupby(ordered, key=lambda child: child.child_of or ""):
        _hold_gate(connection, holder_id, tuple(group), now)
    _refuse_cycles(connection, children)


def _hold_gate(connection: Connection, holder_id: str, children: Sequence[Submission], now: datetime) -> None:
    holder = _holder(connection, holder_id, children[0], now)
    before = wait_state(connection, holder.id, "ship")
    common = {"child_id": holder.id, "product_id": holder.product_id, "gate": "ship", "until": "shipped"}
    connection.execute(insert(edges), [common | {"parent_id": child.job_id, "state": "open"} for child in children])
    named = ", ".join(child.job_id for child in children[:MAX_NAMED])
    more = f" and {len(children) - MAX_NAMED} more" if len(children) > MAX_NAMED else ""
    data = {"by": children[0].submitted_by, "children": [child.job_id for child in children[:MAX_SHOWN]]}
    holder.event("children.added", f"child jobs: {named}{more}", data)
    holder.save()
    if before.outcome == "ready":
        gate_is_held(holder)


def _holder(connection: Connection, holder_id: str, child: Submission, now: datetime) -> OpenJob:
    """Return the job that is decomposed, which has to be one whose gate is still closed."""
    try:
        holder = open_job(connection, holder_id, now)
    except NotFound:
        holder = None
    if holder is None or holder.product_id != child.spec.product_id:
        problem = FieldProblem("child-of", "there is no such job", holder_id, "id of a job of the same product")
        raise InvalidInput(f"child-of names an unknown job: {holder_id}", (problem,), hint="`gf jobs` lists the jobs")
    refusal = ""
    if holder.stage in ENDED:
        refusal = f"job {holder.id} has ended in {holder.stage}; it takes no child jobs any more"
    elif _is_being_shipped(holder):
        refusal = f"job {holder.id} is being shipped right now; it takes no child jobs any more"
    if refusal:
        raise IllegalAction(refusal, action="children", job_id=holder.id, stage=str(holder.stage))
    return holder


def _is_being_shipped(holder: OpenJob) -> bool:
    """Return whether somebody, or the policy, has said that the candidate is to be shipped."""
    if holder.stage not in (Stage.REVIEW, Stage.TESTING):
        return False
    if is_shipping(holder.connection, holder.id, holder.row.candidate_sha):
        return True
    spec = holder.connection.execute(select(jobs.c.spec).where(jobs.c.id == holder.id)).scalar_one()
    return bool(spec["review_policy"] == "auto" and holder.stage == Stage.TESTING and not holder.row.conditions)


def is_shipping(connection: Connection, job_id: str, candidate_sha: str) -> bool:
    """Return whether the last word about the candidate was to ship it, and the ship has not ended since."""
    last = last_event(connection, job_id, "decision.ship", "gate.ship", "gate.verify")
    return last is not None and last.type == "decision.ship" and last.data.get("sha") == candidate_sha


def _refuse_cycles(connection: Connection, children: Sequence[Submission]) -> None:
    """Refuse a child that waits, however far round, for the job that waits for it."""
    names = {child.job_id: child.name or child.job_id for child in children}
    try:
        refuse_cycle(_waits_above(connection, list(names)))
    except Cycle as error:
        cycle = " → ".join(names.get(job_id, job_id) for job_id in error.jobs)
        problem = FieldProblem("child-of", f"a job cannot wait for itself: {cycle}", cycle)
        raise InvalidInput(f"the dependencies form a cycle: {cycle}", (problem,)) from None


def _waits_above(connection: Connection, job_ids: Sequence[str]) -> Iterator[WaitsFor]:
    """Yield every edge that holds anything back, from what holds `job_ids` back upwards, and the children's own."""
    own = [edges.c.parent_id.in_(some) for some in batches(job_ids)]
    holders = [
        row.child_id for these in own for row in connection.execute(select(edges.c.child_id).where(these).distinct())
    ]
    seen: set[str] = set()
    level: Sequence[Any] = [*job_ids, *holders]
    while level:
        seen.update(level)
        found: list[Any] = []
        for some in batches(level):
            undone = select(edges).where(edges.c.child_id.in_(some), edges.c.state.in_(UNDONE))
            found += connection.execute(undone).all()
        yield from (WaitsFor(row.child_id, row.parent_id, row.until, row.gate) for row in found)
        level = sorted({row.parent_id for row in found} - seen)
