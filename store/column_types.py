"""Column types that read and write alike on SQLite and PostgreSQL. *Pure.*

What one database would take and the other refuse (naive times, NUL characters, half surrogate pairs) is settled here,
so that nothing above has to know which database it talks to.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import TIMESTAMP, Dialect, String, Text
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine


def canonical_json(value: object) -> str:
    """Return `value` as JSON with sorted keys and no spaces, in ASCII: equal values give equal text everywhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def clean_text(text: str) -> str:
    """Return `text` without what a database cannot store: NUL becomes U+FFFD, a half surrogate pair `?`."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def utc_text(moment: datetime) -> str:
    """Return an aware time as ISO 8601 in UTC with microseconds; such texts sort like the times they name.

    Raises:
        ValueError: `moment` has no time zone.

    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; the ledger takes aware times only")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def as_utc(value: str | datetime) -> datetime:
    """Return a time as a driver gives it, text or aware, as an aware time in UTC."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value.astimezone(UTC)


class CleanText(TypeDecorator[str]):
    """Text of any length; see `clean_text`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Clean on the way in."""
        return None if value is None else clean_text(value)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time: `timestamptz` on PostgreSQL, sortable ISO text on SQLite."""

    impl = String(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type that the database itself uses."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(String(32))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuse naive times, write UTC."""
        if value is None:
            return None
        text = utc_text(value)
        return value if dialect.name == "postgresql" else text

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return UTC."""
        return None if value is None else as_utc(value)


class Json(TypeDecorator[Any]):
    """A JSON document as canonical text: the stored text is the hashed text, and both databases take all of it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Write canonical JSON; None is SQL's NULL."""
        return None if value is None else canonical_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the document."""
        return None if value is None else json.loads(value)


Unread = NullType()
"""Leaves a column's value as the driver gives it: to compare thousands of rows without reading each."""
