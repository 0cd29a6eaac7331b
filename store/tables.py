"""Every table of the ledger; `docs/reference/ledger.md` says in words what each is for. *Pure* data.

Each table carries `product_id`, the tenant of the record. A change here needs a migration beside it
(`store/migrations`); a test compares the two on both databases.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    text,
)

from store.column_types import CleanText, Json, UtcDateTime

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}

metadata = MetaData(naming_convention=NAMING)

_Id = BigInteger().with_variant(Integer(), "sqlite")
"""A growing number; SQLite counts up only in a column that is declared exactly `INTEGER PRIMARY KEY`."""


def _product() -> Column[str]:
    return Column("product_id", CleanText, nullable=False)


def _job(*, primary_key: bool = False) -> Column[str]:
    return Column("job_id", CleanText, ForeignKey("jobs.id"), nullable=False, primary_key=primary_key)


def _run() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["job_id", "epoch"], ["runs.job_id", "runs.epoch"])


def _text(name: str, default: str = "") -> Column[str]:
    return Column(name, CleanText, nullable=False, server_default=text(f"'{default}'"))


def _count(name: str, default: int = 0) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text(str(default)))


jobs = Table(
    "jobs",
    metadata,
    Column("id", CleanText, primary_key=True),
    _product(),
    Column("title", CleanText, nullable=False),
    Column("stage", CleanText, nullable=False),
    Column("held", CleanText),  # why admission passes over a queued job; NULL: it may have a seat
    Column("priority", CleanText, nullable=False),
    Column("spec", Json, nullable=False),  # core.job.JobSpec, never changed
    Column("documents", Json, nullable=False),  # manifest as written, provenance of each field, profile
    Column("routing", CleanText, nullable=False),  # core.router_snapshot.ReadyJob as JSON, the unchanging part
    _text("submitted_by"),
    Column("submitted_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("queued_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("conditions", Json, nullable=False),
    _count("life", 1),
    _count("epoch"),
    _count("reclaims"),
    _count("overtaken"),
    _count("preempted"),  # how often it was paused for a more urgent job
    Column("excluded_factories", Json, nullable=False),
    Column("last_factory", CleanText),
    _text("note"),  # a human's words to the next attempt
    _text("base_sha"),
    _text("candidate_sha"),
    _text("checkpoint_sha"),
    _count("checkpoint_epoch"),
    Column("commits", Json, nullable=False),
    Column("verdict", Json),
    _text("shipped_ref"),
    _text("approved_by"),
    Column("decided", Json),  # core.lifecycle.Decided of its workflow's newest record
    _count("refused_writes"),  # of epochs that were never granted; of real ones see runs
    _count("event_seq"),  # number and hash of the job's newest event
    _text("event_hash"),
    Index("ix_jobs_product_id_submitted_at", "product_id", "submitted_at", "id"),
    Index("ix_jobs_submitted_at", "submitted_at", "id"),
    Index("ix_jobs_stage", "stage", "submitted_at"),
    Index(
        "ix_jobs_unfinished",
        "updated_at",
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
    Index(
        "ix_jobs_ready",  # all that is read of each waiting job, in each pass of the dispatcher
        *("stage", "held", "id", "queued_at", "excluded_factories", "overtaken", "last_factory"),
        sqlite_where=text("stage = 'queued' AND held IS NULL"),
        postgresql_where=text("stage = 'queued' AND held IS NULL"),
    ),
)

runs = Table(
    "runs",
    metadata,
    _job(primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    _product(),
    _count("life", 1),
    Column("factory", CleanText, nullable=False),
    Column("engine", CleanText, nullable=False),
    _text("engine_version"),
    _text("host"),
    Column("decision", Json, nullable=False),  # core.router.Decision: why this factory and engine, by grounds
    Column("granted_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("outcome", CleanText),
    Column("cooldown_until", UtcDateTime),  # until then its engine was not asked there again
    _text("message"),
    Column("info", Json),  # what the attempt said of itself when it started
    Column("result", Json),  # core.attempt.BuildResult
    Column("verdict", Json),  # core.attempt.Verdict
    Column("usage", Json),
    _count("steps"),  # attempt.step events stored so far
    _count("log_lines"),
    _text("log_sha256"),  # running digest over all log lines, in the order they were stored
    _count("refused_writes"),
    Index("ix_runs_ended_at", "ended_at"),
)

grounds = Table(
    "grounds",
    metadata,
    Column("sha256", CleanText, primary_key=True),
    _product(),
    Column("document", CleanText, nullable=False),  # core.router.FleetGrounds or ClassGrounds, as it was digested
    Column("at", UtcDateTime, nullable=False),
)

turns = Table(
    "turns",
    metadata,
    Column("kind", CleanText, nullable=False),
    Column("priority", CleanText, nullable=False),
    Column("name", CleanText, nullable=False),
    _product(),
    Column("level", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),  # grows with every change of any row
    PrimaryKeyConstraint("kind", "priority", "name"),
    CheckConstraint("kind IN ('product', 'factory')", name="kind"),
    Index("ix_turns_number", "number", unique=True),
)

leases = Table(
    "leases",
    metadata,
    Column("job_id", CleanText, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    _product(),
    Column("factory", CleanText, nullable=False),
    Column("engine", CleanText, nullable=False),
    Column("state", CleanText, nullable=False),
    Column("holds_seat", Boolean(create_constraint=False), nullable=False),
    Column("grant_message", Json, nullable=False),  # core.attempt.Grant
    Column("granted_at", UtcDateTime, nullable=False),
    _text("accepted_sha"),
    Column("accepted_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("stop_requested_at", UtcDateTime),  # the attempt is to stop; see store.stops
    _text("yields_to"),  # the more urgent job for which it is being paused
    Column("confirmed_at", UtcDateTime),  # the attempt last told of itself, since Temporal could not
    Column("adopted_at", UtcDateTime),  # its heartbeat is gone for good, and the ledger keeps the lease
    _text("reason"),
    _run(),
    CheckConstraint("state IN ('living', 'accepted', 'lost', 'ended')", name="state"),
    Index(
        "uq_leases_job_id_holds_seat",
        "job_id",
        unique=True,
        sqlite_where=text("holds_seat"),
        postgresql_where=text("holds_seat"),
    ),
    Index(
        "ix_leases_seats",
        "factory",
        "engine",
        sqlite_where=text("holds_seat"),
        postgresql_where=text("holds_seat"),
    ),
)

locks = Table(
    "locks",
    metadata,
    Column("kind", CleanText, nullable=False),  # lock | scope
    Column("name", CleanText, nullable=False),  # name of the lock, or the repository whose paths are claimed
    _job(),
    _product(),
    Column("epoch", Integer, nullable=False),
    Column("scope", Json, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("kind", "name", "job_id"),
    CheckConstraint("kind IN ('lock', 'scope')", name="kind"),
    Index(
        "uq_locks_name",
        "name",
        unique=True,
        sqlite_where=text("kind = 'lock'"),
        postgresql_where=text("kind = 'lock'"),
    ),
    Index("ix_locks_job_id", "job_id"),
)

factories = Table(
    "factories",
    metadata,
    Column("name", CleanText, primary_key=True),
    _product(),
    Column("host", CleanText, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("instance", CleanText, nullable=False),  # random id of one agent process
    _text("version"),
    Column("state", CleanText, nullable=False),
    Column("capabilities", Json, nullable=False),  # what the agent detected
    _count("seats"),
    _count("busy"),
    Column("status", Json, nullable=False),  # load and the like, from the last heartbeat
    Column("details", Json, nullable=False),
    Column("registered_at", UtcDateTime, nullable=False),
    Column("last_beat_at", UtcDateTime, nullable=False),
    Column("declared", Json, nullable=False, server_default=text("'[]'")),  # capabilities that its settings claim
    _text("boot"),  # of the machine that the agent runs on
    Column("drain", Json),  # an operator's order to drain: store.views.DrainOrder
    Column("quarantine", Json),  # why it was quarantined: store.views.Quarantine
    Column("released_at", UtcDateTime),  # what it spoilt before counts no more
    _count("passed_over"),  # jobs that it could have had since its last one, and that others got
    CheckConstraint("busy >= 0", name="busy"),
    CheckConstraint("state IN ('online', 'offline', 'draining', 'quarantined')", name="state"),
)

stations = Table(
    "stations",
    metadata,
    Column("factory", CleanText, ForeignKey("factories.name"), primary_key=True),
    Column("engine", CleanText, primary_key=True),
    _product(),
    _count("seats"),
    _count("busy"),
    Column("usable", Boolean(create_constraint=False), nullable=False),
    _text("version"),
    _text("repair"),
    Column("cooldown_until", UtcDateTime),  # no job is placed there before; NULL or past: it may be asked
    _text("cooldown_reason"),
    CheckConstraint("busy >= 0", name="busy"),
)

profiles = Table(
    "profiles",
    metadata,
    _product(),
    Column("name", CleanText, nullable=False),
    Column("version", Integer, nullable=False),
    Column("sha256", CleanText, nullable=False),
    Column("document", Json, nullable=False),
    Column("first_used_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("product_id", "name", "version", "sha256"),
)

events = Table(
    "events",
    metadata,
    _job(primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _product(),
    Column("at", UtcDateTime, nullable=False),
    Column("type", CleanText, nullable=False),
    _count("epoch"),
    Column("attempt_seq", Integer),  # the attempt's own number of an attempt.step
    _text("message"),
    Column("data", Json, nullable=False),
    Column("prev_hash", CleanText, nullable=False),
    Column("hash", CleanText, nullable=False),
    UniqueConstraint("job_id", "epoch", "attempt_seq"),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", _Id, primary_key=True),
    _product(),
    Column("job_id", CleanText, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("path", CleanText, nullable=False),
    _text("kind"),
    _text("media_type"),
    Column("size", BigInteger, nullable=False),
    Column("sha256", CleanText, nullable=False),
    Column("location", CleanText, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    _run(),
    UniqueConstraint("job_id", "epoch", "path"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _product(),
    Column("key", CleanText, nullable=False),
    _job(),
    Column("sha256", CleanText, nullable=False),
    Column("canonical", Json, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("product_id", "key"),
)

edges = Table(
    "edges",
    metadata,
    Column("child_id", CleanText, ForeignKey("jobs.id"), primary_key=True),
    Column("parent_id", CleanText, ForeignKey("jobs.id"), primary_key=True),
    _product(),
    Column("until", CleanText, nullable=False),
    _text("gate", "start"),  # core.dag.Gate: what of the child is held back
    _text("state", "open"),  # core.dag.EdgeState: kept in step with the parent's stage by store.edges
    CheckConstraint("until IN ('shipped', 'testing')", name="until"),
    Index("ix_edges_parent_id", "parent_id"),
    Index("ix_edges_waits", "child_id", "gate", "state", "parent_id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _Id, primary_key=True),
    _product(),
    _job(),
    Column("kind", CleanText, nullable=False),  # start | signal
    Column("name", CleanText, nullable=False),
    Column("payload", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),  # a claim and a failure both move it into the future
    _count("attempts"),
    _text("error"),
    CheckConstraint("kind IN ('start', 'signal')", name="kind"),
    Index("ix_outbox_due_at", "due_at"),
    Index("ix_outbox_job_id", "job_id", "id"),
    sqlite_autoincrement=True,
)

logs = Table(
    "logs",
    metadata,
    Column("id", _Id, primary_key=True),
    _product(),
    Column("job_id", CleanText, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("stream", CleanText, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("text", CleanText, nullable=False),
    _run(),
    UniqueConstraint("job_id", "epoch", "stream", "seq"),
    Index("ix_logs_job_id", "job_id", "id"),
    sqlite_autoincrement=True,
)

records = Table(
    "records",
    metadata,
    _job(primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _product(),
    Column("sha256", CleanText, nullable=False),
    Column("freed", Boolean(create_constraint=False), nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", CleanText, primary_key=True),
    _product(),  # of a token for one product; `*` of any other
    Column("sha256", CleanText, nullable=False),  # core.tokens.digest_of; the token itself is nowhere
    Column("name", CleanText, nullable=False),
    Column("roles", Json, nullable=False),
    Column("products", Json),  # NULL: all
    Column("factory", CleanText),
    _text("origin"),  # file of a local token, which was made outside of the ledger
    Column("created_at", UtcDateTime, nullable=False),
    _text("created_by"),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    _text("reason"),
    Column("successor", CleanText),  # the token that took its place by rotation
    Column("revision", Integer, nullable=False),  # grows with every change of any token
    UniqueConstraint("sha256"),
    Index("ix_tokens_revision", "revision"),
    Index("ix_tokens_factory", "factory"),
)

attestations = Table(
    "attestations",
    metadata,
    Column("factory", CleanText, primary_key=True),
    Column("capability", CleanText, primary_key=True),  # as core.capability.plain_offer writes it
    _product(),
    _text("attested_by"),
    Column("attested_at", UtcDateTime, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", _Id, primary_key=True, autoincrement=False),
    _product(),
    Column("at", UtcDateTime, nullable=False),
    Column("type", CleanText, nullable=False),
    _text("actor"),
    _text("subject"),
    _text("message"),
    Column("data", Json, nullable=False),
    Column("prev_hash", CleanText, nullable=False),
    Column("hash", CleanText, nullable=False),
)

halts = Table(
    "halts",
    metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    _product(),
    Column("scope", CleanText, nullable=False),
    _text("name"),
    Column("origin", CleanText, nullable=False),
    Column("stop_running", Boolean(create_constraint=False), nullable=False),
    _text("actor"),
    _text("reason"),
    Column("at", UtcDateTime, nullable=False),
    Column("released_epoch", Integer),  # NULL: in force
    Column("released_at", UtcDateTime),
    _text("released_by"),
    CheckConstraint("scope IN ('fleet', 'product', 'factory', 'engine')", name="scope"),
    CheckConstraint("origin IN ('operator', 'sentinel')", name="origin"),
    Index("ix_halts_released_epoch", "released_epoch"),
    Index(
        "uq_halts_in_force",
        "scope",
        "name",
        "origin",
        unique=True,
        sqlite_where=text("released_epoch IS NULL"),
        postgresql_where=text("released_epoch IS NULL"),
    ),
)

limits = Table(
    "limits",
    metadata,
    Column("kind", CleanText, nullable=False),
    Column("name", CleanText, nullable=False),
    _product(),
    Column("jobs", Integer, nullable=False),
    _text("set_by"),
    Column("set_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("kind", "name"),
    CheckConstraint("kind IN ('product', 'engine')", name="kind"),
    CheckConstraint("jobs >= 1", name="jobs"),
)
