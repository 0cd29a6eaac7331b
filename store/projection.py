"""`record`: what the workflow decided, written once, in one transaction. Does I/O: SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from core.dag import Wait
from core.errors import Conflict, IllegalAction, IllegalTransition
from core.job import FailureKind, Stage
from core.job_messages import RECORDS_PER_LIFE
from core.lifecycle import ENDED, TRANSITIONS, Decided, Record, RecordAck, check_transition
from store import cooldowns
from store.admission import end_run, held_lease, release_locks
from store.chain import digest
from store.edges import next_wait, settle
from store.open_job import OpenJob, open_job
from store.outbox import drop_signals, enqueue_start
from store.parents import WAITING, wait_state
from store.seats import end_lease
from store.tables import jobs, records, runs


def record(
    connection: Connection, job_id: str, seq: int, change: Record, now: datetime, *, decided: Decided | None = None
) -> RecordAck:
    """Apply `change` unless it was applied before, be it for other moments: those that were written first stay.

    So does another record that has the number: the workflow goes on from there (`core.repeated`).

    Raises:
        IllegalTransition: the job is in a stage from which the path does not lead on.
        Conflict: another record has that number, and where the workflow was with the newest is not known.

    """
    job = open_job(connection, job_id, now)
    sha256 = digest(change.timeless())
    known = connection.execute(select(records).where(records.c.job_id == job_id, records.c.seq == seq)).one_or_none()
    if known is not None:
        if known.sha256 != sha256:
            return RecordAck(applied=False, ahead=_ahead(job, seq), children=_children_at_stage(job))
        return RecordAck(applied=False, freed=known.freed, children=_children_at_gate(job, change))
    ack = _apply(job, change)
    job.set(decided=None if decided is None else decided.model_dump(mode="json"))
    job.save()
    ack = ack.model_copy(
        update={"told": bool(change.path) and settle(job) > 0, "children": _children_at_gate(job, change)}
    )
    key = {"job_id": job_id, "seq": seq, "product_id": job.product_id}
    connection.execute(insert(records), key | {"sha256": sha256, "freed": ack.freed, "at": now})
    return ack


def _ahead(job: OpenJob, seq: int) -> Decided:
    """Return where the workflow was with the newest record of the life that number `seq` belongs to."""
    known = job.connection.execute(select(jobs.c.decided).where(jobs.c.id == job.id)).scalar_one()
    ahead = None if known is None else Decided.model_validate(known)
    if ahead is None or ahead.seq < seq or ahead.seq // RECORDS_PER_LIFE != seq // RECORDS_PER_LIFE:
        raise Conflict(f"job {job.id}: record {seq} was written before with other content", job_id=job.id, seq=seq)
    return ahead


def _apply(job: OpenJob, change: Record) -> RecordAck:
    """Write everything that the record says."""
    path = stages_to_go(job.stage, change.path)
    for entry in change.entries:
        job.event(entry.type, entry.message, entry.data, epoch=change.epoch)
    _end_attempt(job, change)
    for stage in path:
        job.move(stage, epoch=change.epoch)
    _project(job, change)
    freed = _free(job, change)
    if change.cooldown is not None:
        cooldowns.begin(job, change.epoch, change.cooldown)
    if change.end_cooldowns:
        cooldowns.end_for(job)
    if path:
        _arrive(job)
    return RecordAck(applied=True, freed=freed)


def stages_to_go(present: Stage, path: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the part of `path` that is still ahead of `present`, with a missing `building` put in.

    The attempt itself may have brought the job to `building` before the workflow heard of it, or its word may have
    been lost. `assigned` is never gone to: only a grant assigns. Nothing leads on from an end: a requeue begins a new
    life, and is no record of a workflow.
    """
    if not path or _legal(present, path):
        return path
    if present in path:
        behind = max(index for index, stage in enumerate(path) if stage == present)
        if _legal(present, path[behind + 1 :]):
            return path[behind + 1 :]
    if present == Stage.ASSIGNED and _legal(present, (Stage.BUILDING, *path)):
        return (Stage.BUILDING, *path)
    if Stage.ASSIGNED in path:
        raise IllegalTransition(
            f"a job cannot be recorded as assigned from {present}: only a grant assigns",
            start=str(present),
            finish=str(Stage.ASSIGNED),
        )
    if present not in ENDED:
        check_transition(present, path[0])
    raise IllegalTransition(f"a job cannot go {' → '.join((present, *path))}", start=str(present), finish=str(path[-1]))


def _legal(present: Stage, path: tuple[Stage, ...]) -> bool:
    steps = zip((present, *path), path, strict=False)
    return Stage.ASSIGNED not in path and all(
        start not in ENDED and finish in TRANSITIONS[start] for start, finish in steps
    )


def _end_attempt(job: OpenJob, change: Record) -> None:
    """Write outcome, result, verdict and usage of the record's attempt."""
    known: dict[str, Any] = {}
    if change.attempt_result is not None:
        known["result"] = change.attempt_result
        version = change.attempt_result.get("engine_version")
        known |= {"engine_version": version} if version else {}
    if change.verdict is not None:
        known["verdict"] = change.verdict
    if change.usage is not None:
        known["usage"] = change.usage.model_dump(mode="json")
    if known:
        job.connection.execute(update(runs).where(runs.c.job_id == job.id, runs.c.epoch == change.epoch).values(known))
    if change.attempt_outcome is not None:
        end_run(job, change.epoch, change.attempt_outcome, change.attempt_message)


def _project(job: OpenJob, change: Record) -> None:
    """Overwrite what the ledger shows for the job with what the record carries."""
    shown = {
        "verdict": change.verdict,
        "candidate_sha": change.candidate_sha,
        "base_sha": change.base_sha,
        "shipped_ref": change.shipped_ref,
        "approved_by": change.approved_by,
        "commits": None if change.commits is None else list(change.commits),
        "conditions": None if change.conditions is None else [c.model_dump(mode="json") for c in change.conditions],
    }
    job.set(**{name: value for name, value in shown.items() if value is not None})
    if change.checkpoint_sha:
        job.set(checkpoint_sha=change.checkpoint_sha, checkpoint_epoch=change.epoch)
    if change.exclude_factory and job.row.last_factory:
        job.set(excluded_factories=[job.row.last_factory])


def _free(job: OpenJob, change: Record) -> bool:
    """Free seat and locks as the record says; a job that waits or has ended never keeps a seat."""
    resting = job.stage == Stage.QUEUED or job.stage in ENDED
    freed = False
    lease = held_lease(job.connection, job.id) if change.end_lease or resting else None
    if lease is not None:
        freed = end_lease(job.connection, lease, "ended", job.now)
        end_run(job, lease.epoch, FailureKind.CANCELLED, "its job went on without it")
    if change.release_locks or job.stage in ENDED:
        freed = release_locks(job.connection, job.id) > 0 or freed
    return freed


def _arrive(job: OpenJob) -> None:
    """Write what comes with the stage that the job is in now."""
    if job.stage == Stage.QUEUED:
        job.set(queued_at=job.now, held=job.row.held or "workflow", candidate_sha="", verdict=None)
    if job.stage in ENDED:
        job.set(ended_at=job.now)
        drop_signals(job.connection, job.id)


def _children_at_gate(job: OpenJob, change: Record) -> Wait | None:
    """Return what keeps a job from shipping that this record brings to its gate, or that it ships; None: no child job.

    Who adds a child to the job writes to its row too, so that it is either seen here or refused there.
    """
    at_gate = bool(change.path) and change.path[-1] in (Stage.REVIEW, Stage.TESTING)
    ships = any(entry.type == "decision.ship" for entry in change.entries)
    return _children_at_stage(job) if at_gate or ships else None


def _children_at_stage(job: OpenJob) -> Wait | None:
    """Return what keeps the job from shipping, where its stage has a ship gate; None: no child job."""
    if job.stage not in (Stage.REVIEW, Stage.TESTING):
        return None
    children = wait_state(job.connection, job.id, "ship")
    return None if children.outcome == "ready" else Wait(outcome=children.outcome, message=children.message)


# --- requeue ------------------------------------------------------------------------------------------------------


def requeue(connection: Connection, job_id: str, now: datetime, by: str, note: str) -> int:
    """Begin another life of a job that failed; return the number of that life.

    Raises:
        IllegalTransition: the job ended for good.
        IllegalAction: the job has not ended; its workflow takes the action.

    """
    job = open_job(connection, job_id, now)
    if job.stage not in ENDED:
        raise IllegalAction(
            f"job {job_id} is {job.stage}: it has not ended, so its workflow requeues it",
            action="requeue",
            job_id=job_id,
            stage=str(job.stage),
        )
    check_transition(job.stage, Stage.QUEUED)
    told = f"requeued by {by or 'an operator'}" + (f": {note}" if note else "")
    job.event("decision.requeue", told, {"by": by, "reason": note})
    job.move(Stage.QUEUED)
    life: int = job.row.life + 1
    begin_life(job, life, note=note, excluded_factories=[])
    return life


def begin_life(job: OpenJob, life: int, **values: Any) -> None:
    """Queue the job, and have its next workflow started unless it waits for its parents first."""
    job.set(life=life, reclaims=0, ended_at=None, queued_at=job.now, candidate_sha="", verdict=None)
    waits = next_wait(job) | values
    job.set(**waits)
    job.save()
    drop_signals(job.connection, job.id)
    if waits["held"] != WAITING:
        enqueue_start(job.connection, job_id=job.id, product_id=job.product_id, life=life, now=job.now)
    settle(job)
