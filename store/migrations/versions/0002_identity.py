"""Tokens, attested capabilities, the audit log; what an agent declares and which boot of its machine it runs in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.column_types import CleanText, Json, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _tokens()
    _attestations()
    _audit()
    op.add_column("factories", sa.Column("declared", Json(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("factories", sa.Column("boot", CleanText(), server_default=sa.text("''"), nullable=False))
    _append_only()


def _tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("sha256", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("roles", Json(), nullable=False),
        sa.Column("products", Json()),
        sa.Column("factory", CleanText()),
        sa.Column("origin", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("created_by", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.Column("reason", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("successor", CleanText()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("sha256", name="uq_tokens_sha256"),
    )
    op.create_index("ix_tokens_revision", "tokens", ["revision"])
    op.create_index("ix_tokens_factory", "tokens", ["factory"])


def _attestations() -> None:
    op.create_table(
        "attestations",
        sa.Column("factory", CleanText(), nullable=False),
        sa.Column("capability", CleanText(), nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("attested_by", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("attested_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("factory", "capability", name="pk_attestations"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("product_id", CleanText(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("type", CleanText(), nullable=False),
        sa.Column("actor", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("subject", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("message", CleanText(), server_default=sa.text("''"), nullable=False),
        sa.Column("data", Json(), nullable=False),
        sa.Column("prev_hash", CleanText(), nullable=False),
        sa.Column("hash", CleanText(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )


def _append_only() -> None:
    """Let the database itself refuse to change or delete a line of the audit log."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        )
        for what in ("UPDATE OR DELETE ON audit FOR EACH ROW", "TRUNCATE ON audit FOR EACH STATEMENT"):
            name = f"audit_no_{what.split()[0].lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {what} EXECUTE FUNCTION audit_append_only()")
        return
    for what in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{what.lower()} BEFORE {what} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def downgrade() -> None:
    raise NotImplementedError("the ledger goes forward only; restore a backup to go back")
