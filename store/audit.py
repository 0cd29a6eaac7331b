"""The audit log of the fleet: who did what about tokens, factories and trust. Does I/O: SQL.

What happens to a job is in the job's own events; what belongs to no job is here, in one append-only hash chain. A line
is written in the transaction of the change that it describes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, insert, select

from store.chain import GENESIS, hash_after
from store.column_types import canonical_json, clean_text
from store.database import AnyRow, serialise
from store.tables import audit
from store.views import AuditLine, AuditReport

WHOLE_FLEET: Final = "*"
"""`product_id` of what belongs to no single product."""
PAGE: Final = 1_000
_HASHED: Final = ("seq", "product_id", "at", "type", "actor", "subject", "message", "data")


def note(
    connection: Connection,
    kind: str,
    message: str,
    *,
    actor: str,
    subject: str,
    now: datetime,
    data: dict[str, Any] | None = None,
    product_id: str = WHOLE_FLEET,
) -> None:
    """Write one line; lines of several processes follow each other, whoever commits first."""
    serialise(connection, "audit")
    newest = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).one_or_none()
    seq, prev_hash = (newest.seq + 1, newest.hash) if newest is not None else (1, GENESIS)
    line = {
        "seq": seq,
        "product_id": clean_text(product_id),
        "at": now,
        "type": kind,
        "actor": clean_text(actor),
        "subject": clean_text(subject),
        "message": clean_text(message),
        "data": json.loads(canonical_json(data or {})),
    }
    connection.execute(insert(audit), line | {"prev_hash": prev_hash, "hash": hash_after(prev_hash, line)})


def lines(connection: Connection, after_seq: int, limit: int) -> tuple[AuditLine, ...]:
    """Return the lines with a number above `after_seq`, oldest first."""
    rows = connection.execute(select(audit).where(audit.c.seq > after_seq).order_by(audit.c.seq).limit(limit))
    return tuple(AuditLine.model_validate(row._asdict()) for row in rows)


def check(connection: Connection) -> AuditReport:
    """Return whether the log is whole and unchanged, as far as it goes."""
    count, prev_hash = 0, GENESIS
    for row in _all_rows(connection):
        line = {name: getattr(row, name) for name in _HASHED}
        if (row.seq, row.prev_hash) != (count + 1, prev_hash) or row.hash != hash_after(prev_hash, line):
            return AuditReport(ok=False, lines=count, broken_at=count + 1)
        count, prev_hash = row.seq, row.hash
    return AuditReport(ok=True, lines=count)


def _all_rows(connection: Connection) -> Iterator[AnyRow]:
    last = 0
    while rows := connection.execute(select(audit).where(audit.c.seq > last).order_by(audit.c.seq).limit(PAGE)).all():
        yield from rows
        last = rows[-1].seq
