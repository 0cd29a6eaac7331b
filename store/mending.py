"""What the reconciler writes: each change looks again whether it still fits; a pass takes time. Does I/O: SQL."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection

from core.attempt import Grant
from core.job import Stage
from core.job_messages import RECORDS_PER_LIFE
from core.lifecycle import ENDED, Record
from store.admission import held_lease
from store.open_job import open_job
from store.outbox import enqueue_signal
from store.projection import record

MENDED_SEQ = 900_000
"""The record that ends a life in its workflow's stead has this number within it, far above what a workflow writes."""


def end_life(connection: Connection, job_id: str, life: int, change: Record, now: datetime) -> bool:
    """Apply the record that ends the job, unless it has ended or begun another life meanwhile; return whether it did.

    Raises:
        IllegalTransition: the job is in a stage from which the record's path does not lead on.

    """
    job = open_job(connection, job_id, now)
    if job.stage in ENDED or job.row.life != life:
        return False
    return record(connection, job_id, life * RECORDS_PER_LIFE + MENDED_SEQ, change, now).applied


def resend_grant(connection: Connection, job_id: str, now: datetime) -> bool:
    """Tell the job's workflow of its grant again when no engine started within the lease; return whether it did.

    A workflow that knew of the grant would have given it up by then. One that takes it up now takes it up once.
    """
    job = open_job(connection, job_id, now)
    lease = held_lease(connection, job_id)
    if job.stage != Stage.ASSIGNED or lease is None or lease.state != "living":
        return False
    grant = Grant.model_validate(lease.grant_message)
    if now < job.row.updated_at + timedelta(seconds=grant.lease_ttl_s):
        return False
    job.event("grant.resent", "its workflow did not take it up", epoch=grant.epoch)
    job.save()
    enqueue_signal(
        connection, "granted", job_id=job.id, product_id=job.product_id, payload=lease.grant_message, now=now
    )
    return True
