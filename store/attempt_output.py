"""What attempts brought in, read back: log lines and files. Does I/O: SQL."""

from __future__ import annotations

from sqlalchemy import Connection, select

from store.tables import artifacts, logs
from store.views import ArtifactView, LogView


def read_logs(
    connection: Connection, job_id: str, *, after_id: int, limit: int, stream: str | None, epoch: int | None
) -> tuple[LogView, ...]:
    """Return stored lines of the job with an id above `after_id`, oldest first."""
    query = select(logs).where(logs.c.job_id == job_id, logs.c.id > after_id)
    if stream is not None:
        query = query.where(logs.c.stream == stream)
    if epoch is not None:
        query = query.where(logs.c.epoch == epoch)
    rows = connection.execute(query.order_by(logs.c.id).limit(limit))
    return tuple(LogView.model_validate(row._asdict()) for row in rows)


def read_artifacts(connection: Connection, job_id: str) -> tuple[ArtifactView, ...]:
    """Return all captured files of the job, newest attempt first."""
    rows = connection.execute(
        select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.epoch.desc(), artifacts.c.path)
    )
    return tuple(ArtifactView.model_validate(row._asdict()) for row in rows)
