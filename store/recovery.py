"""Jobs whose workflow is gone: where they stand, and how their next life begins there. Does I/O: SQL.

A life is one workflow of a job. The ledger knows the stage, the candidate with its verdict, conditions and failures, so
a job in review or testing keeps its candidate, and a job that was being worked on is queued for its next epoch.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, select, update

from core.attempt import Grant
from core.job import Condition, FailureKind, Stage
from core.job_events import Standing
from core.lifecycle import ENDED, TERMINAL
from store.admission import end_run, held_lease, release_locks
from store.audit import note
from store.children import is_shipping
from store.database import AnyRow
from store.open_job import OpenJob, last_event, open_job
from store.outbox import drop_signals, enqueue_start, start_pending
from store.parents import WAITING
from store.projection import begin_life
from store.seats import end_lease
from store.tables import jobs, leases, runs
from store.views import Restarted

AT_GATE: Final = (Stage.REVIEW, Stage.TESTING)
GENERATION: Final = 1000
"""Epochs and lives that one generation has: more than a job is granted between a backup and the loss of what came after
it. The fence on the git remote is a chain of all epochs, which is why this is no bigger number.
"""
REASON: Final = "its workflow is gone"
STORY_LINES: Final = 20
SLEEPS: Final = ("backoff", "usage_limit")
STOPS: Final = ("decision.cancel", "decision.pause")


# --- the next life --------------------------------------------------------------------------------------------------


def restart(connection: Connection, job_id: str, now: datetime, life: int | None) -> Restarted | None:
    """Begin another life of an unfinished job; None when it ended, or its start is on its way or waits for parents.

    `life` is the one whose workflow was found missing: when another has begun since, nothing is done.
    """
    job = open_job(connection, job_id, now)
    if job.stage in ENDED or start_pending(connection, job_id) or life not in (None, job.row.life):
        return None
    if job.stage == Stage.QUEUED and job.row.held == WAITING:
        return None
    conditions = _conditions(job)
    if job.stage in AT_GATE and _has_place_at_gate(job):
        return _restart_at_gate(job, conditions)
    return _restart_queued(job, [condition for condition in conditions if _keeps_waiting(condition)])


def _has_place_at_gate(job: OpenJob) -> bool:
    """Return whether the candidate was judged, or can be under its epoch (a new generation has ended that)."""
    verdict = select(jobs.c.verdict).where(jobs.c.id == job.id)
    newest = select(func.max(runs.c.epoch)).where(runs.c.job_id == job.id)
    judged = job.connection.execute(verdict).scalar_one() is not None
    return judged or job.connection.execute(newest).scalar_one() == job.row.epoch


def _conditions(job: OpenJob) -> list[dict[str, Any]]:
    """Return the job's conditions; one that an operator was stopping is paused, for nothing goes on against that word.

    What is looked up anew, such as parents, is left out by who queues the job.
    """
    known = list(job.row.conditions)
    last = last_event(job.connection, job.id, "job.granted", "decision.cancel", "decision.pause", "decision.resume")
    if last is None or last.type not in STOPS or any(condition["type"] == "paused" for condition in known):
        return known
    word = last.type.removeprefix("decision.")
    message = f"{word} was under way when the workflow was lost: cancel the job, or resume it"
    return [*known, Condition(type="paused", reason="operator", message=message).model_dump(mode="json")]


def _restart_at_gate(job: OpenJob, conditions: list[dict[str, Any]]) -> Restarted:
    """Let the next life begin with the candidate that the job has; the lease of one that is being judged stays."""
    life = _tell(job, f"in {job.stage}, with its candidate {job.row.candidate_sha[:10]}")
    job.set(life=life, conditions=conditions)
    job.save()
    drop_signals(job.connection, job.id)
    enqueue_start(job.connection, job_id=job.id, product_id=job.product_id, life=life, now=job.now)
    return Restarted(job_id=job.id, life=life, at="gate")


def _restart_queued(job: OpenJob, waits: list[dict[str, Any]]) -> Restarted:
    """Queue the job; what the old workflow had running answers to nobody: its lease is lost, its writes are refused."""
    superseded = 0
    lease = held_lease(job.connection, job.id)
    if lease is not None:
        superseded = int(lease.epoch)
        end_lease(job.connection, lease, "lost", job.now, REASON)
        end_run(job, lease.epoch, FailureKind.LEASE_LOST, REASON)
    release_locks(job.connection, job.id)
    life = _tell(job, f"queued, after epoch {superseded}" if superseded else "queued")
    kept: dict[str, Any] = {"reclaims": job.row.reclaims}
    if waits:
        kept |= {"conditions": waits, "held": job.row.held or "workflow"}
    if job.stage == Stage.QUEUED:
        kept |= {"queued_at": job.row.queued_at}
    else:
        job.move(Stage.QUEUED)
    begin_life(job, life, **kept)
    return Restarted(job_id=job.id, life=life, at="queue", superseded=superseded)


def _tell(job: OpenJob, how: str) -> int:
    """Note the next life, and return its number."""
    life: int = job.row.life + 1
    job.event("job.restarted", f"{REASON}; life {life} begins {how}", {"life": life, "stage": str(job.stage)})
    return life


def _keeps_waiting(condition: dict[str, Any]) -> bool:
    """Return whether the job waits for a human or a time, not for something that is looked up anew."""
    return condition["type"] == "paused" or condition["reason"] in SLEEPS


# --- where a job stands ---------------------------------------------------------------------------------------------


def standing(connection: Connection, row: AnyRow) -> Standing | None:
    """Return where the job of a row of `jobs` stands; None for one that begins from nothing."""
    if row.life == 1:
        return None
    known = Standing(
        stage=Stage(row.stage),
        conditions=tuple(Condition.model_validate(condition) for condition in row.conditions),
        story=_story(connection, row.id),
    ).model_copy(update=_counts(connection, row.id))
    if known.stage in AT_GATE:
        return known.model_copy(update=_candidate(connection, row))
    return known if known.conditions or known.failures or known.reclaims else None


def _candidate(connection: Connection, row: AnyRow) -> dict[str, Any]:
    grant = connection.execute(
        select(leases.c.grant_message).where(leases.c.job_id == row.id).order_by(leases.c.epoch.desc()).limit(1)
    ).scalar_one()
    return {
        "grant": Grant.model_validate(grant),
        "candidate_sha": row.candidate_sha,
        "base_sha": row.base_sha,
        "verify": (row.verdict or {}).get("verify", ""),
        "shipping": is_shipping(connection, row.id, row.candidate_sha),
        "approved_by": row.approved_by,
    }


def _counts(connection: Connection, job_id: str) -> dict[str, int]:
    """Return how often the job failed and was lost so far, as the workflow counted when it went on last."""
    last = last_event(connection, job_id, "job.requeued", "job.failed", "job.dead_letter")
    if last is None or last.type != "job.requeued":
        return {}
    return {name: int(last.data.get(name, 0)) for name in ("failures", "reclaims")}


def _story(connection: Connection, job_id: str) -> tuple[str, ...]:
    """Return a line for each attempt that failed, as the workflow tells it."""
    failed: ColumnElement[bool] = runs.c.outcome.is_not(None) & (runs.c.outcome != "succeeded")
    rows = connection.execute(
        select(runs).where(runs.c.job_id == job_id, failed).order_by(runs.c.epoch.desc()).limit(STORY_LINES)
    ).all()
    lines = (f"epoch {run.epoch} on {run.factory}/{run.engine}: {run.outcome}: {run.message}" for run in reversed(rows))
    return tuple(line[:500] for line in lines)


# --- after a backup was restored ------------------------------------------------------------------------------------


def raise_generation(connection: Connection, by: str, now: datetime) -> int:
    """Lift epoch and life of every job that may go on above all that was ever given out; return the generation.

    A ledger that was restored from a backup does not know what it granted afterwards. From here on nothing of that
    can write: every attempt and every workflow of before has a number that is none of the present ones.
    """
    highest = connection.execute(select(func.max(jobs.c.epoch), func.max(jobs.c.life))).one()
    generation = max(number or 0 for number in highest) // GENERATION + 1
    first = generation * GENERATION
    connection.execute(update(jobs).where(jobs.c.stage.not_in(TERMINAL)).values(epoch=first, life=first))
    message = f"the ledger was restored from a backup: generation {generation} begins with epoch {first}"
    note(connection, "ledger.restored", message, actor=by, subject="ledger", now=now, data={"generation": generation})
    return generation
