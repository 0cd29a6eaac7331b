"""The first schema of the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import CleanText, Json, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    _factories()
    _jobs()
    _jobs_indexes()
    _profiles()
    _edges()
    _events()
    _idempotency_keys()
    _locks()
    _outbox()
    _records()
    _runs()
    _stations()
    _artifacts()
    _leases()
    _logs()
    _append_only()


def _factories() -> None:
    op.create_table(
        "factories",
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("host", CleanText(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("instance", CleanText(), nullable=False),
        sa.Column("version", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", CleanText(), nullable=False),
        sa.Column("capabilities", Json(), nullable=False),
        sa.Column("seats", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("busy", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", Json(), nullable=False),
        sa.Column("details", Json(), nullable=False),
        sa.Column("registered_at", UtcDateTime(), nullable=False),
        sa.Column("last_beat_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "state IN ('online', 'offline', 'draining', 'quarantined')", name=op.f("ck_factories_state")
        ),
        sa.CheckConstraint("busy >= 0", name=op.f("ck_factories_busy")),
        sa.PrimaryKeyConstraint("name", name="pk_factories"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("title", CleanText(), nullable=False),
        sa.Column("stage", CleanText(), nullable=False),
        sa.Column("held", CleanText(), nullable=True),
        sa.Column("priority", CleanText(), nullable=False),
        sa.Column("spec", Json(), nullable=False),
        sa.Column("documents", Json(), nullable=False),
        sa.Column("routing", CleanText(), nullable=False),
        sa.Column("submitted_by", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("submitted_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("queued_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("conditions", Json(), nullable=False),
        sa.Column("life", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reclaims", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("overtaken", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("excluded_factories", Json(), nullable=False),
        sa.Column("last_factory", CleanText(), nullable=True),
        sa.Column("note", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("base_sha", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("candidate_sha", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("checkpoint_sha", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("checkpoint_epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("commits", Json(), nullable=False),
        sa.Column("verdict", Json(), nullable=True),
        sa.Column("shipped_ref", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("approved_by", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("refused_writes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("event_seq", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("event_hash", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )


def _jobs_indexes() -> None:
    op.create_index("ix_jobs_product_id_submitted_at", "jobs", ["product_id", "submitted_at", "id"])
    op.create_index(
        "ix_jobs_ready",
        "jobs",
        ["submitted_at"],
        sqlite_where=sa.text("stage = 'queued' AND held IS NULL"),
        postgresql_where=sa.text("stage = 'queued' AND held IS NULL"),
    )
    op.create_index("ix_jobs_stage", "jobs", ["stage", "submitted_at"])
    op.create_index("ix_jobs_submitted_at", "jobs", ["submitted_at", "id"])
    op.create_index(
        "ix_jobs_unfinished",
        "jobs",
        ["updated_at"],
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def _profiles() -> None:
    op.create_table(
        "profiles",
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sha256", CleanText(), nullable=False),
        sa.Column("document", Json(), nullable=False),
        sa.Column("first_used_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("product_id", "name", "version", "sha256", name="pk_profiles"),
    )


def _edges() -> None:
    op.create_table(
        "edges",
        sa.Column("child_id", CleanText(), nullable=False),
        sa.Column("parent_id", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("until", CleanText(), nullable=False),
        sa.CheckConstraint("until IN ('shipped', 'testing')", name=op.f("ck_edges_until")),
        sa.ForeignKeyConstraint(["child_id"], ["jobs.id"], name="fk_edges_child_id_jobs"),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name="fk_edges_parent_id_jobs"),
        sa.PrimaryKeyConstraint("child_id", "parent_id", name="pk_edges"),
    )
    op.create_index("ix_edges_parent_id", "edges", ["parent_id"])


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("type", CleanText(), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt_seq", sa.Integer(), nullable=True),
        sa.Column("message", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("data", Json(), nullable=False),
        sa.Column("prev_hash", CleanText(), nullable=False),
        sa.Column("hash", CleanText(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_events_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_events"),
        sa.UniqueConstraint("job_id", "epoch", "attempt_seq", name="uq_events_job_id_epoch_attempt_seq"),
    )


def _idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("key", CleanText(), nullable=False),
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("sha256", CleanText(), nullable=False),
        sa.Column("canonical", Json(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_idempotency_keys_job_id_jobs"),
        sa.PrimaryKeyConstraint("product_id", "key", name="pk_idempotency_keys"),
    )


def _locks() -> None:
    op.create_table(
        "locks",
        sa.Column("kind", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("scope", Json(), nullable=False),
        sa.Column("taken_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("kind IN ('lock', 'scope')", name=op.f("ck_locks_kind")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_locks_job_id_jobs"),
        sa.PrimaryKeyConstraint("kind", "name", "job_id", name="pk_locks"),
    )
    op.create_index("ix_locks_job_id", "locks", ["job_id"])
    op.create_index(
        "uq_locks_name",
        "locks",
        ["name"],
        unique=True,
        sqlite_where=sa.text("kind = 'lock'"),
        postgresql_where=sa.text("kind = 'lock'"),
    )


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("kind", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("payload", Json(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint("kind IN ('start', 'signal')", name=op.f("ck_outbox_kind")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_outbox_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_due_at", "outbox", ["due_at"])
    op.create_index("ix_outbox_job_id", "outbox", ["job_id", "id"])


def _records() -> None:
    op.create_table(
        "records",
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("sha256", CleanText(), nullable=False),
        sa.Column("freed", sa.Boolean(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_records_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_records"),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("life", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("factory", CleanText(), nullable=False),
        sa.Column("engine", CleanText(), nullable=False),
        sa.Column("engine_version", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("host", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("decision", Json(), nullable=False),
        sa.Column("granted_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("outcome", CleanText(), nullable=True),
        sa.Column("message", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("info", Json(), nullable=True),
        sa.Column("result", Json(), nullable=True),
        sa.Column("verdict", Json(), nullable=True),
        sa.Column("usage", Json(), nullable=True),
        sa.Column("steps", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("log_lines", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("log_sha256", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("refused_writes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_runs_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "epoch", name="pk_runs"),
    )


def _stations() -> None:
    op.create_table(
        "stations",
        sa.Column("factory", CleanText(), nullable=False),
        sa.Column("engine", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("seats", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("busy", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("usable", sa.Boolean(), nullable=False),
        sa.Column("version", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("repair", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint("busy >= 0", name=op.f("ck_stations_busy")),
        sa.ForeignKeyConstraint(["factory"], ["factories.name"], name="fk_stations_factory_factories"),
        sa.PrimaryKeyConstraint("factory", "engine", name="pk_stations"),
    )


def _artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("path", CleanText(), nullable=False),
        sa.Column("kind", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("media_type", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", CleanText(), nullable=False),
        sa.Column("location", CleanText(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id", "epoch"], ["runs.job_id", "runs.epoch"], name="fk_artifacts_job_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        sa.UniqueConstraint("job_id", "epoch", "path", name="uq_artifacts_job_id_epoch_path"),
        sqlite_autoincrement=True,
    )


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("factory", CleanText(), nullable=False),
        sa.Column("engine", CleanText(), nullable=False),
        sa.Column("state", CleanText(), nullable=False),
        sa.Column("holds_seat", sa.Boolean(), nullable=False),
        sa.Column("grant_message", Json(), nullable=False),
        sa.Column("granted_at", UtcDateTime(), nullable=False),
        sa.Column("accepted_sha", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("accepted_result", Json(), nullable=True),
        sa.Column("accepted_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("reason", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint("state IN ('living', 'accepted', 'lost', 'ended')", name=op.f("ck_leases_state")),
        sa.ForeignKeyConstraint(["job_id", "epoch"], ["runs.job_id", "runs.epoch"], name="fk_leases_job_id_runs"),
        sa.PrimaryKeyConstraint("job_id", "epoch", name="pk_leases"),
    )
    op.create_index(
        "ix_leases_seats",
        "leases",
        ["factory", "engine"],
        sqlite_where=sa.text("holds_seat"),
        postgresql_where=sa.text("holds_seat"),
    )
    op.create_index(
        "uq_leases_job_id_holds_seat",
        "leases",
        ["job_id"],
        unique=True,
        sqlite_where=sa.text("holds_seat"),
        postgresql_where=sa.text("holds_seat"),
    )


def _logs() -> None:
    op.create_table(
        "logs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("job_id", CleanText(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("stream", CleanText(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("text", CleanText(), nullable=False),
        sa.ForeignKeyConstraint(["job_id", "epoch"], ["runs.job_id", "runs.epoch"], name="fk_logs_job_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_logs"),
        sa.UniqueConstraint("job_id", "epoch", "stream", "seq", name="uq_logs_job_id_epoch_stream_seq"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_logs_job_id", "logs", ["job_id", "id"])


def _append_only() -> None:
    """Let the database itself refuse to change or delete an event."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$"
        )
        for what in ("UPDATE OR DELETE ON events FOR EACH ROW", "TRUNCATE ON events FOR EACH STATEMENT"):
            name = f"events_no_{what.split()[0].lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {what} EXECUTE FUNCTION events_append_only()")
        return
    for what in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER events_no_{what.lower()} BEFORE {what} ON events "
            "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
        )


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
