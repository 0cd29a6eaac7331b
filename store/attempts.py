"""The fence before everything that an attempt writes, and the loss of a lease. Does I/O: SQL.

A write counts only while its epoch is the job's newest and its lease was not lost. What does not count is
refused with `StaleEpoch` and leaves a `write.refused` event with kind and digest, so that it can be seen but never
takes effect. A lease that ended in good order still lets its last logs, steps and files in, until the next grant.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, exists, select, update

from core.attempt import BuildResult, DeathCertificate, Grant
from core.errors import Conflict, StaleEpoch
from core.job import FailureKind
from store import factories
from store.admission import end_run
from store.chain import digest
from store.database import AnyRow, Refused
from store.open_job import OpenJob, no_such_job, open_job
from store.outbox import enqueue_signal
from store.seats import end_lease
from store.tables import events, jobs, leases, runs
from store.views import LeaseState

MAX_REFUSED_EVENTS = 20
"""Refused writes of one epoch that get an event each; further ones are only counted."""

AGENT_DIED = "agent_died"
"""Reason of a certificate by a supervisor whose agent is gone."""

OPEN_STATES: tuple[LeaseState, ...] = ("living", "accepted", "ended")
"""States in which an attempt's output is still taken in."""


class Fenced:
    """A job opened for a write of its newest attempt, with the lease of that attempt."""

    def __init__(self, job: OpenJob, lease: AnyRow) -> None:
        self.job = job
        self.lease = lease
        self.epoch: int = lease.epoch


def fence(
    connection: Connection,
    job_id: str,
    epoch: int,
    *,
    kind: str,
    content: object,
    now: datetime,
    states: tuple[LeaseState, ...] = OPEN_STATES,
) -> Fenced:
    """Open the job for a write of `epoch`.

    Raises:
        NotFound: there is no such job.
        Refused: with `StaleEpoch`, after noting the refusal.

    """
    job = open_job(connection, job_id, now)
    lease = _lease(connection, job_id, epoch) if 0 < epoch <= job.row.epoch else None
    if lease is not None and epoch == job.row.epoch and lease.state in states:
        return Fenced(job, lease)
    raise refusal(job, epoch, lease, kind=kind, content=content)


def _lease(connection: Connection, job_id: str, epoch: int) -> AnyRow | None:
    return connection.execute(select(leases).where(leases.c.job_id == job_id, leases.c.epoch == epoch)).one_or_none()


def refusal(job: OpenJob, epoch: int, lease: AnyRow | None, *, kind: str, content: object) -> Refused:
    """Count a refused write, note it in the event log unless there were many of that epoch; return what to raise."""
    count = _count_refusal(job, epoch, lease)
    known = lease.state if lease is not None else "unknown"
    if count <= MAX_REFUSED_EVENTS:
        last = "; further ones are only counted" if count == MAX_REFUSED_EVENTS else ""
        data = {"kind": kind, "sha256": digest(content), "claimed_epoch": epoch, "lease": known}
        job.event(
            "write.refused",
            f"{kind} of epoch {epoch} was refused: its lease is {known}, the newest epoch is {job.row.epoch}{last}",
            data,
            epoch=lease.epoch if lease is not None else 0,
        )
    job.save()
    return Refused(
        StaleEpoch(
            f"job {job.id}: {kind} of epoch {epoch} is refused; its lease is {known}, "
            f"the newest epoch is {job.row.epoch}",
            hint="stop this attempt: its work goes on elsewhere",
            job_id=job.id,
            epoch=epoch,
            newest_epoch=job.row.epoch,
            lease=known,
        )
    )


def _count_refusal(job: OpenJob, epoch: int, lease: AnyRow | None) -> int:
    if lease is None:
        count = int(job.row.refused_writes) + 1
        job.set(refused_writes=count)
        return count
    counted: int = job.connection.execute(
        update(runs)
        .where(runs.c.job_id == job.id, runs.c.epoch == epoch)
        .values(refused_writes=runs.c.refused_writes + 1)
        .returning(runs.c.refused_writes)
    ).scalar_one()
    return counted


def is_current(connection: Connection, job_id: str, epoch: int) -> bool:
    """Return whether a write of `epoch` would pass the fence now."""
    row = connection.execute(
        select(jobs.c.epoch, leases.c.state)
        .join(leases, (leases.c.job_id == jobs.c.id) & (leases.c.epoch == jobs.c.epoch), isouter=True)
        .where(jobs.c.id == job_id)
    ).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    return bool(row.epoch == epoch and row.state in OPEN_STATES)


def factory_of(connection: Connection, job_id: str, epoch: int) -> str | None:
    """Return the factory that an attempt was granted to; None when there is no such attempt."""
    granted = select(runs.c.factory).where(runs.c.job_id == job_id, runs.c.epoch == epoch)
    return connection.execute(granted).scalar_one_or_none()


def guard(connection: Connection, job_id: str, epoch: int, *, kind: str, content: object, now: datetime) -> None:
    """Refuse, with a trace, what does not pass the fence."""
    fence(connection, job_id, epoch, kind=kind, content=content, now=now)


def note_quarantined(
    connection: Connection, job_id: str, epoch: int, *, ref: str, sha: str, message: str, now: datetime
) -> bool:
    """Note, once, where the work lies that a lost attempt finished; it changes nothing about the job."""
    job = open_job(connection, job_id, now)
    lease = _lease(connection, job_id, epoch) if 0 < epoch <= job.row.epoch else None
    known = exists().where(events.c.job_id == job_id, events.c.epoch == epoch, events.c.type == "attempt.quarantined")
    if lease is None or lease.state == "living" or connection.execute(select(known)).scalar_one():
        return False
    told = f"{message}; its work lies at {ref} and is never applied"
    job.event("attempt.quarantined", told, {"ref": ref, "sha": sha, "factory": lease.factory}, epoch=epoch)
    job.save()
    return True


# --- a lease without a heartbeat -------------------------------------------------------------------------------------


def confirm(connection: Connection, job_id: str, epoch: int, now: datetime) -> bool:
    """Note that an attempt lives which Temporal cannot hear; return whether it is wanted to stop.

    Raises:
        NotFound: there is no such job.
        Refused: with `StaleEpoch`: its lease is gone, it has to stop.

    """
    lease = fence(connection, job_id, epoch, kind="lease", content="", now=now, states=("living", "accepted")).lease
    connection.execute(update(leases).where(_this(lease)).values(confirmed_at=now))
    return lease.stop_requested_at is not None


def adopt(connection: Connection, job_id: str, epoch: int, now: datetime, *, stop: bool) -> timedelta | None:
    """Keep the lease of an attempt whose heartbeat is gone, if it told of itself within a lease's time.

    Returns how long from now that word is good; None when there was none, or the lease does not live. From here on its
    result is signalled to the workflow. `stop` notes that it is wanted to end.
    """
    job = open_job(connection, job_id, now)
    lease = _lease(connection, job_id, epoch) if epoch == job.row.epoch else None
    if lease is None or lease.state != "living" or lease.confirmed_at is None:
        return None
    ttl = timedelta(seconds=Grant.model_validate(lease.grant_message).lease_ttl_s)
    left: timedelta = lease.confirmed_at + ttl - now
    if left <= timedelta(0):
        return None
    wish = {"stop_requested_at": now} if stop and lease.stop_requested_at is None else {}
    connection.execute(update(leases).where(_this(lease)).values(adopted_at=lease.adopted_at or now, **wish))
    if lease.adopted_at is None:
        message = f"its heartbeat is gone, but it told of itself from {lease.factory}: it goes on"
        job.event("attempt.adopted", message, {"factory": lease.factory}, epoch=epoch)
        job.save()
    return min(left, ttl)  # clocks of two machines differ


def _this(lease: AnyRow) -> ColumnElement[bool]:
    return and_(leases.c.job_id == lease.job_id, leases.c.epoch == lease.epoch)


# --- how an attempt ends -------------------------------------------------------------------------------------------


def accepted_result(connection: Connection, job_id: str, epoch: int) -> BuildResult | None:
    """Return the result that was taken from `epoch`, if any."""
    row = connection.execute(
        select(leases, runs.c.result)
        .join(runs, (runs.c.job_id == leases.c.job_id) & (runs.c.epoch == leases.c.epoch))
        .where(leases.c.job_id == job_id, leases.c.epoch == epoch, leases.c.accepted_at.is_not(None))
    ).one_or_none()
    if row is None:
        return None
    if row.result is not None:
        return BuildResult.model_validate(row.result)
    return BuildResult(
        job_id=job_id,
        epoch=epoch,
        outcome="succeeded",
        candidate_sha=row.accepted_sha,
        base_sha=row.grant_message.get("base_sha", ""),
        changed=bool(row.accepted_sha),
    )


def mark_lost(
    connection: Connection,
    job_id: str,
    epoch: int,
    *,
    reason: str,
    checkpoint_sha: str,
    now: datetime,
    certificate: DeathCertificate | None,
    tell_workflow: bool,
) -> bool:
    """End a living lease as lost, free its seat and tell the workflow; return False when it does not live."""
    _check_certificate(job_id, epoch, certificate)
    job = open_job(connection, job_id, now)
    lease = _lease(connection, job_id, epoch) if 0 < epoch <= job.row.epoch else None
    if lease is None or lease.state != "living":
        return False
    end_lease(connection, lease, "lost", now, reason)
    if certificate is not None and certificate.reason == AGENT_DIED:
        factories.silence(connection, lease.factory)
    sha = checkpoint_sha or (certificate.checkpoint_sha if certificate else "")
    if sha:
        job.set(checkpoint_sha=sha, checkpoint_epoch=epoch)
    data = {"reason": reason, "checkpoint_sha": sha, "certified": certificate is not None, "factory": lease.factory}
    job.event("lease.lost", reason, data, epoch=epoch)
    end_run(job, epoch, FailureKind.LEASE_LOST, reason)
    job.set(reclaims=job.row.reclaims + 1)
    job.save()
    if tell_workflow:
        payload = {"epoch": epoch, "reason": reason, "checkpoint_sha": sha}
        enqueue_signal(connection, "lease_lost", job_id=job_id, product_id=job.product_id, payload=payload, now=now)
    return True


def _check_certificate(job_id: str, epoch: int, certificate: DeathCertificate | None) -> None:
    if certificate is None:
        return
    if (certificate.job_id, certificate.epoch) != (job_id, epoch):
        raise Conflict(
            f"the death certificate is for {certificate.job_id} epoch {certificate.epoch}, not {job_id} epoch {epoch}"
        )
    if not certificate.group_dead:
        raise Conflict(
            f"the certificate for {job_id} epoch {epoch} does not say that its processes are dead; the lease decides",
            hint="certify again when the whole process group is gone",
        )
