"""What a change of one job means for those that wait for it: edges, releases, news. Does I/O: SQL.

A job tells those that wait for it only when that changes what they wait for *as a whole*: its last undone parent is
done, a first one failed, a failed one was requeued. So a job with ten thousand parents hears once, not ten thousand
times. Jobs that wait for their parents have no workflow yet: they are released here, and those who have one (an
operator acted on them, or they came back to the queue) are signalled.

Of two parents that end at the same moment each must see the other's edge, or nobody finds out that both are done. So
whoever changes edges, or begins to wait on them, first waits for its turn (`serialise`). A transaction that wants the
row of a job that waits takes its turn before that row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select, update

from core.dag import EdgeState, Gate, Outcome, Until, edge_state, outcome_of
from core.errors import FieldProblem, IllegalAction, InvalidInput
from core.job import Condition, Stage
from core.lifecycle import ENDED
from store.database import AnyRow, batches, serialise
from store.open_job import OpenJob, open_job, open_jobs, save_all
from store.outbox import Starting, enqueue_signal, enqueue_starts
from store.parents import WAITING, has_parents, wait_state, wait_states
from store.tables import edges, jobs
from store.views import WaitState

TURN: Final = "edges"
SIGNALS: Final[dict[Gate, str]] = {"start": "parents_changed", "ship": "children_changed"}
UNDONE: Final = ("open", "failed")


class _Change(NamedTuple):
    """What the jobs that `job_id` waits for at `gate` come to now; it was something else before."""

    job_id: str
    gate: Gate
    outcome: Outcome


def take_turn(connection: Connection) -> None:
    """Wait until no other transaction changes edges."""
    serialise(connection, TURN)


# --- a job came to another stage ----------------------------------------------------------------------------------


def settle(job: OpenJob) -> int:
    """Bring the edges to `job`, which was saved, up to its stage; return how many jobs that told anything new."""
    behind = _behind(job)
    if behind is None or not job.connection.execute(select(exists().where(behind))).scalar_one():
        return 0
    take_turn(job.connection)
    changes = list(_changes(job, behind))
    for until, state in _new_states(job.stage):
        job.connection.execute(update(edges).where(_behind_until(job, until, state)).values(state=state))
    _tell(job.connection, changes, job.now)
    return len(changes)


def _new_states(stage: Stage) -> Iterator[tuple[Until, EdgeState]]:
    untils: tuple[Until, ...] = ("shipped", "testing")
    for until in untils:
        state = edge_state(stage, until)
        if state is not None:
            yield until, state


def _behind(job: OpenJob) -> ColumnElement[bool] | None:
    """Return the condition for the edges whose state is not that of the job's stage; None: it changes none."""
    parts = [_behind_until(job, until, state) for until, state in _new_states(job.stage)]
    return or_(*parts) if parts else None


def _behind_until(job: OpenJob, until: Until, state: EdgeState) -> ColumnElement[bool]:
    return and_(edges.c.parent_id == job.id, edges.c.until == until, edges.c.state.not_in(["dropped", state]))


def _changes(job: OpenJob, behind: ColumnElement[bool]) -> Iterator[_Change]:
    """Yield for whom the new states change anything, the other edges of each being as they are."""
    new = dict(_new_states(job.stage))
    others = edges.alias()

    def other(state: EdgeState) -> ColumnElement[bool]:
        return exists().where(
            others.c.child_id == edges.c.child_id,
            others.c.gate == edges.c.gate,
            others.c.state == state,
            others.c.parent_id != job.id,
        )

    found = select(edges, other("open").label("open"), other("failed").label("failed")).where(behind)
    for row in job.connection.execute(found.order_by(edges.c.child_id)):
        before, after = _outcome(row, row.state), _outcome(row, new[row.until])
        if before != after:
            yield _Change(row.child_id, row.gate, after)


def _outcome(row: AnyRow, state: EdgeState) -> Outcome:
    return outcome_of(any_open=row.open or state == "open", any_failed=row.failed or state == "failed")


# --- telling ------------------------------------------------------------------------------------------------------


def _tell(connection: Connection, changes: Sequence[_Change], now: datetime) -> None:
    """Release or block the jobs without a workflow, and signal the others that have not ended."""
    for some in batches(changes):
        asleep = _asleep(connection, some, now)
        ready = {change.job_id for change in some if change.outcome == "ready"}
        _release(connection, [job for job in asleep if job.id in ready])
        _block(connection, [job for job in asleep if job.id not in ready])
        known = {job.id for job in asleep}
        _signal(connection, [change for change in some if change.gate == "ship" or change.job_id not in known], now)


def _asleep(connection: Connection, changes: Sequence[_Change], now: datetime) -> tuple[OpenJob, ...]:
    """Return those that wait for their parents and have no workflow."""
    starting = [change.job_id for change in changes if change.gate == "start"]
    if not starting:
        return ()
    return open_jobs(connection, and_(jobs.c.id.in_(starting), jobs.c.stage == "queued", jobs.c.held == WAITING), now)


def _release(connection: Connection, released: Sequence[OpenJob]) -> None:
    """Have the workflows of jobs started whose parents are done."""
    for job in released:
        job.event("parents.done", "the parents are done")
        job.set(conditions=[], held=held_when_ready(job.row.epoch, job.row.base_sha), queued_at=job.now)
    save_all(released)
    if released:
        starting = [Starting(job.id, job.product_id, job.row.life) for job in released]
        enqueue_starts(connection, starting, released[0].now)


def held_when_ready(epoch: int, base_sha: str) -> str | None:
    """Return what holds a job back whose parents are done.

    Before its first attempt its workflow looks up where its base is by now, so that it has what the parents shipped. A
    directory without git has no base.
    """
    return "workflow" if epoch == 0 and base_sha else None


def next_wait(job: OpenJob) -> dict[str, Any]:
    """Return `held` and `conditions` of a job that begins another life: as its parents are now."""
    take_turn(job.connection)
    state = wait_state(job.connection, job.id)
    if state.outcome != "ready":
        return {"held": WAITING, "conditions": [blocked_by_parents(state).model_dump(mode="json")]}
    if not has_parents(job.connection, job.id):
        return {"held": None, "conditions": []}
    return {"held": held_when_ready(job.row.epoch, job.row.base_sha), "conditions": []}


def _block(connection: Connection, blocked: Sequence[OpenJob]) -> None:
    """Show what jobs without a workflow wait for now."""
    states = wait_states(connection, [job.id for job in blocked], "start")
    for job in blocked:
        state = states[job.id]
        if state.outcome == "failed":
            job.event("parents.failed", state.message)
        else:
            job.event("parents.waiting", state.message)
        job.set(conditions=[blocked_by_parents(state).model_dump(mode="json")])
    save_all(blocked)


def gate_is_held(holder: OpenJob) -> None:
    """Tell a job that its ship gate, which waited for nothing, waits for child jobs now."""
    _tell(holder.connection, [_Change(holder.id, "ship", "waiting")], holder.now)


def blocked_by_parents(state: WaitState) -> Condition:
    """Return the condition that shows what a job waits for."""
    reason = "parents" if state.outcome == "waiting" else "parent_failed"
    return Condition(type="blocked", reason=reason, message=state.message)


def _signal(connection: Connection, changes: Sequence[_Change], now: datetime) -> None:
    """Have the workflows asked to look again; a job that was ready and is so no more gets no seat meanwhile."""
    again = [change.job_id for change in changes if change.gate == "start" and change.outcome != "ready"]
    if again:
        ready = and_(jobs.c.id.in_(again), jobs.c.stage == "queued", jobs.c.held.is_(None))
        connection.execute(update(jobs).where(ready).values(held="workflow"))
    signalled = [change.job_id for change in changes]
    living = select(jobs.c.id, jobs.c.product_id).where(jobs.c.id.in_(signalled), jobs.c.ended_at.is_(None))
    products = {row.id: row.product_id for row in connection.execute(living)}
    for change in changes:
        if change.job_id in products:
            enqueue_signal(
                connection,
                SIGNALS[change.gate],
                job_id=change.job_id,
                product_id=products[change.job_id],
                payload={"outcome": change.outcome},
                now=now,
            )


# --- an operator decides ------------------------------------------------------------------------------------------


def begin(connection: Connection, job_id: str, now: datetime) -> bool:
    """Have the workflow of a job started although its parents are not done, because somebody acts on it.

    Return False when it has one, or never will.
    """
    job = open_job(connection, job_id, now)
    if job.stage != Stage.QUEUED or job.row.held != WAITING:
        return False
    job.set(held="workflow")
    job.save()
    enqueue_starts(connection, [Starting(job.id, job.product_id, job.row.life)], now)
    return True


def drop(
    connection: Connection, job_id: str, dropped: Sequence[str], now: datetime, *, by: str, reason: str
) -> tuple[WaitState, WaitState]:
    """Let the job wait no more for some of the jobs that it waits for; return what it still waits for, at each gate.

    Raises:
        InvalidInput: it does not wait for one of them at all.
        IllegalAction: it has ended, it has begun already, or one of them is done or was dropped before.

    """
    take_turn(connection)
    job = open_job(connection, job_id, now)
    rows = _droppable(job, dropped)
    gates: set[Gate] = {row.gate for row in rows}
    before = {gate: wait_state(connection, job_id, gate).outcome for gate in gates}
    edge = and_(edges.c.child_id == job_id, edges.c.parent_id.in_(dropped))
    connection.execute(update(edges).where(edge).values(state="dropped"))
    told = ", ".join(f"{row.parent_id} ({row.stage})" for row in rows)
    message = f"{by or 'an operator'} waits no more for {told}" + (f": {reason}" if reason else "")
    data = {"by": by, "reason": reason, "dropped": [{"job_id": row.parent_id, "stage": row.stage} for row in rows]}
    job.event("decision.unblock", message, data)
    job.save()
    after = {gate: wait_state(connection, job_id, gate) for gate in gates}
    changes = [_Change(job_id, gate, after[gate].outcome) for gate in gates if after[gate].outcome != before[gate]]
    _tell(connection, changes, now)
    return wait_state(connection, job_id), wait_state(connection, job_id, "ship")


def _droppable(job: OpenJob, dropped: Sequence[str]) -> Sequence[AnyRow]:
    """Return the edges that are to be dropped, each with the stage of the job that is waited for."""
    rows = job.connection.execute(
        select(edges.c.parent_id, edges.c.gate, edges.c.state, jobs.c.stage)
        .join(jobs, jobs.c.id == edges.c.parent_id)
        .where(edges.c.child_id == job.id, edges.c.parent_id.in_(dropped))
        .order_by(edges.c.parent_id)
    ).all()
    unknown = sorted(set(dropped) - {row.parent_id for row in rows})
    if unknown:
        problems = tuple(FieldProblem("drop", f"{job.id} does not wait for it", parent) for parent in unknown)
        raise InvalidInput(f"{job.id} does not wait for {', '.join(unknown)}", problems, hint=f"see `gf dag {job.id}`")
    for row in rows:
        refusal = _refusal(job, row)
        if refusal:
            raise IllegalAction(refusal, action="unblock", job_id=job.id, stage=str(job.stage))
    return rows


def _refusal(job: OpenJob, row: AnyRow) -> str:
    """Return why the edge may not be dropped; empty when it may."""
    if job.stage in ENDED:
        return f"job {job.id} has ended in {job.stage}"
    if row.state not in UNDONE:
        return f"job {job.id} does not wait for {row.parent_id} any more: that is {row.state}"
    if row.gate == "start" and job.stage != Stage.QUEUED:
        return f"job {job.id} is {job.stage}: it waits for no parent"
    return ""
