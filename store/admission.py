"""Admission: planned grants become leases, seats and locks, each only if nothing changed meanwhile. Does I/O: SQL.

A grant is a chain of conditional updates in a savepoint: the job is still ready, the seat still free, the locks still
free. The one that lost its race is undone and skipped; the pass that planned it plans again. Nothing is granted that
the kill switch halts, or beyond a limit, whatever the plan says.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, delete, insert, or_, select, update

from core.attempt import Grant
from core.job import FailureKind, Stage
from core.router import Decision, Plan, PlannedGrant, ReadyJob
from core.router_claims import Claims
from core.switch import covering
from store import audit, limits, switch, turns
from store.database import AnyRow, insert_missing, serialise
from store.edges import take_turn
from store.fleet_snapshot import read_locks
from store.open_job import OpenJob, open_job, open_jobs
from store.outbox import enqueue_signal
from store.parents import WAITING, has_parents, wait_state
from store.seats import end_lease, take_seat
from store.stops import make_way
from store.tables import grounds, jobs, leases, locks, runs


class LeaseTerms(NamedTuple):
    """What every lease of this installation promises."""

    ttl_s: float
    beat_s: float


class Admitted(NamedTuple):
    """What became of the planned grants."""

    grants: tuple[Grant, ...]
    skipped: int


class _LostRace(Exception):
    """Something that the plan counted on was gone."""


def admit(connection: Connection, plan: Plan, *, terms: LeaseTerms, now: datetime) -> Admitted:
    """Turn planned grants into grants, one savepoint each, or none when somebody else granted anything meanwhile.

    Who was overtaken and whose turn was taken is counted for those that came true.
    """
    serialise(connection, "admission")
    if not turns.are_current(connection, plan):
        return Admitted((), skipped=max(1, len(plan.grants)))
    snapshot = plan.snapshot
    opened = _open(connection, plan, now)
    ready = {job.job_id: job for job in snapshot.jobs if job.job_id in opened}
    claims = Claims(read_locks(connection) if any(job.locks or job.claim for job in ready.values()) else ())
    state, room = switch.state(connection), limits.Room(connection, limits.planned(snapshot))
    granted: list[Grant] = []
    for planned in plan.grants:
        job = opened.get(planned.job_id)
        if job is None or claims.blocks(ready[job.id]) or not room.has(job.product_id, planned.engine):
            continue
        if covering(state.halts, product_id=job.product_id, factory=planned.factory, engine=planned.engine):
            continue
        try:
            with connection.begin_nested():
                granted.append(_admit_one(job, plan, planned, ready[job.id], terms, kill_epoch=state.epoch))
        except _LostRace:
            continue
        claims.take(ready[job.id])
        room.take(job.product_id, planned.engine)
    admitted = {grant.job_id for grant in granted}
    if admitted:
        _keep_grounds(connection, plan.grounds(admitted), now)
        _note_overtaken(connection, plan.overtaken_if(admitted))
        turns.keep(connection, plan, admitted)
    if len(granted) == len(plan.grants):
        for urgent in plan.preemptions:
            if urgent.victim in opened:
                make_way(opened[urgent.victim], urgent)
    return Admitted(tuple(granted), skipped=len(plan.grants) - len(granted))


def _keep_grounds(connection: Connection, documents: Mapping[str, str], now: datetime) -> None:
    """Store what decisions rest on, unless the same was stored for an earlier plan."""
    common = {"product_id": audit.WHOLE_FLEET, "at": now}
    rows = [common | {"sha256": digest, "document": text} for digest, text in sorted(documents.items())]
    insert_missing(connection, grounds, rows)


def _open(connection: Connection, plan: Plan, now: datetime) -> dict[str, OpenJob]:
    """Lock the jobs that are still ready or still run, all at first: so whoever has a seat locked waits for no job."""
    granted, victims = [planned.job_id for planned in plan.grants], [urgent.victim for urgent in plan.preemptions]
    still_ready = and_(jobs.c.id.in_(granted), jobs.c.stage == "queued", jobs.c.held.is_(None))
    still_run = and_(jobs.c.id.in_(victims), jobs.c.stage == "building")
    return {job.id: job for job in open_jobs(connection, or_(still_ready, still_run), now)}


def _admit_one(
    job: OpenJob, plan: Plan, planned: PlannedGrant, ready: ReadyJob, terms: LeaseTerms, *, kill_epoch: int
) -> Grant:
    host = take_seat(job.connection, planned.factory, planned.engine, job.now)
    if host is None:
        raise _LostRace
    grant = Grant(
        job_id=job.id,
        product_id=job.product_id,
        epoch=job.row.epoch + 1,
        factory=planned.factory,
        engine=planned.engine,
        host=host,
        lease_ttl_s=terms.ttl_s,
        beat_s=terms.beat_s,
        kill_epoch=kill_epoch,
        granted_at=job.now,
        reason=plan.reason(planned),
        base_sha=job.row.base_sha,
        checkpoint_sha=job.row.checkpoint_sha,
        checkpoint_epoch=job.row.checkpoint_epoch,
    )
    _write_lease(job, grant, plan.decision(job.id))
    _take_locks(job, ready, grant.epoch)
    _tell(job, grant)
    return grant


def _write_lease(job: OpenJob, grant: Grant, decision: Decision) -> None:
    place = {
        "job_id": job.id,
        "epoch": grant.epoch,
        "product_id": job.product_id,
        "factory": grant.factory,
        "engine": grant.engine,
        "granted_at": job.now,
    }
    run = place | {"life": job.row.life, "host": grant.host, "decision": decision.model_dump(mode="json")}
    job.connection.execute(insert(runs), run)
    lease = place | {"state": "living", "holds_seat": True, "grant_message": grant.model_dump(mode="json")}
    job.connection.execute(insert(leases), lease)


def _take_locks(job: OpenJob, ready: ReadyJob, epoch: int) -> None:
    """Take the named locks and claim the scope; what the job kept from an earlier attempt is taken over."""
    wanted: list[tuple[str, str, tuple[str, ...]]] = [("lock", name, ()) for name in ready.locks]
    if ready.claim:
        wanted.append(("scope", ready.repository_url, ready.claim))
    if not wanted:
        return
    release_locks(job.connection, job.id)
    owner = {"job_id": job.id, "product_id": job.product_id, "epoch": epoch, "taken_at": job.now}
    rows = [owner | {"kind": kind, "name": name, "scope": list(scope)} for kind, name, scope in wanted]
    job.connection.execute(insert(locks), rows)


def _tell(job: OpenJob, grant: Grant) -> None:
    """Write what the grant changes about the job, the events, and the signal to its workflow."""
    job.event(
        "job.granted",
        grant.reason,
        {"factory": grant.factory, "engine": grant.engine, "host": grant.host},
        epoch=grant.epoch,
    )
    job.move(Stage.ASSIGNED, epoch=grant.epoch)
    job.set(epoch=grant.epoch, overtaken=0, last_factory=grant.factory, excluded_factories=[], conditions=[])
    job.save()
    enqueue_signal(
        job.connection,
        "granted",
        job_id=job.id,
        product_id=job.product_id,
        payload=grant.model_dump(mode="json"),
        now=job.now,
    )


def release_locks(connection: Connection, job_id: str) -> int:
    """Give back all locks and claims of a job; return how many there were."""
    return connection.execute(delete(locks).where(locks.c.job_id == job_id)).rowcount


def _note_overtaken(connection: Connection, overtaken: Mapping[str, int]) -> None:
    """Count for waiting jobs how often a later one was granted a seat that they could have used."""
    if overtaken:
        connection.execute(
            update(jobs).where(jobs.c.id == bindparam("job")).values(overtaken=jobs.c.overtaken + bindparam("times")),
            [{"job": job_id, "times": times} for job_id, times in sorted(overtaken.items())],
        )


# --- ready, held, granted -------------------------------------------------------------------------------------------


def living_grant(connection: Connection, job_id: str) -> Grant | None:
    """Return the grant of the attempt that holds a seat for the job."""
    message = connection.execute(
        select(leases.c.grant_message).where(leases.c.job_id == job_id, leases.c.holds_seat)
    ).scalar_one_or_none()
    return None if message is None else Grant.model_validate(message)


def make_ready(connection: Connection, job_id: str, now: datetime) -> bool:
    """Let the queued job have a seat; return False when it is not queued, or a parent of it is not done."""
    if has_parents(connection, job_id):
        take_turn(connection)  # a parent that is about to be waited for again must be seen
    job = open_job(connection, job_id, now)
    if job.stage != Stage.QUEUED:
        return False
    held = None if wait_state(connection, job_id).outcome == "ready" else job.row.held or "workflow"
    if held != job.row.held:
        job.set(held=held)
        job.save()
    return held is None


def hold(connection: Connection, job_id: str, reason: str, now: datetime) -> None:
    """Let the job have no seat until `make_ready`; a seat that it has already stays."""
    job = open_job(connection, job_id, now)
    if job.row.held != WAITING:
        job.set(held=reason or "held")
        job.save()


def take_back(connection: Connection, job_id: str, epoch: int, now: datetime) -> bool:
    """Take a grant back that has no workflow to go to; the job is queued again, but held until it has one."""
    job = open_job(connection, job_id, now)
    lease = held_lease(connection, job_id)
    if lease is None or lease.epoch != epoch or lease.state != "living" or job.stage != Stage.ASSIGNED:
        return False
    reason = "its workflow does not exist"
    end_lease(connection, lease, "ended", now, reason)
    end_run(job, epoch, FailureKind.CANCELLED, reason)
    release_locks(connection, job_id)
    job.event("grant.released", reason, epoch=epoch)
    job.move(Stage.QUEUED, epoch=epoch)
    job.set(held="undelivered", queued_at=now)
    job.save()
    return True


def held_lease(connection: Connection, job_id: str) -> AnyRow | None:
    """Return the lease that holds a seat for the job; there is at most one."""
    return connection.execute(select(leases).where(leases.c.job_id == job_id, leases.c.holds_seat)).one_or_none()


def end_run(job: OpenJob, epoch: int, outcome: str, message: str = "", **values: Any) -> bool:
    """Write how an attempt ended, once, with its event; return False when it has ended before."""
    ended = job.connection.execute(
        update(runs)
        .where(runs.c.job_id == job.id, runs.c.epoch == epoch, runs.c.outcome.is_(None))
        .values(outcome=outcome, message=message, ended_at=job.now, **values)
        .returning(runs.c.factory, runs.c.engine, runs.c.log_lines, runs.c.log_sha256)
    ).one_or_none()
    if ended is None:
        return False
    data = {"outcome": outcome, "factory": ended.factory, "engine": ended.engine}
    if ended.log_lines:
        data |= {"log_lines": ended.log_lines, "log_sha256": ended.log_sha256}
    job.event("attempt.ended", f"{outcome}: {message}" if message else outcome, data, epoch=epoch)
    return True
