"""Bringing a database to the present schema, and knowing that it is there. Does I/O: SQL.

The usual answer is "nothing to do"; it takes one query with the plain driver, before SQLAlchemy or Alembic is loaded.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from core.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection, Engine

HEAD = "0011"
"""The revision that this version of the program works with; a test compares it with the newest migration."""

MIGRATIONS = Path(__file__).parent / "migrations"
_REVISION = "SELECT version_num FROM alembic_version"


async def migrate(url: str) -> bool:
    """Bring the database at `url` to the present schema; return whether there was anything to do.

    Several processes may do so at once: one does it, the others wait and find it done.

    Raises:
        Conflict: a newer version of the program has migrated it further.
        Unavailable: the database does not answer.

    """
    present = await revision(url)
    if present == HEAD:
        return False
    await asyncio.to_thread(_upgrade_postgres if _is_postgres(url) else _upgrade_sqlite, url)
    return True


async def revision(url: str) -> str | None:
    """Return the revision that the database is at; None for an empty or missing one."""
    return await asyncio.to_thread(_postgres_revision if _is_postgres(url) else _sqlite_revision, url)


def _is_postgres(url: str) -> bool:
    return urlsplit(url).scheme.partition("+")[0] == "postgresql"


def _sqlite_revision(url: str) -> str | None:
    path = Path(url.partition(":///")[2].partition("?")[0])
    if not path.is_file():
        return None
    connection = sqlite3.connect(path, timeout=15)
    try:
        row = connection.execute(_REVISION).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise Unavailable(f"cannot read the ledger {path}: {error}") from error
    finally:
        connection.close()
    return str(row[0]) if row else None


def _postgres_revision(url: str) -> str | None:
    from psycopg import Error, connect  # noqa: PLC0415 - only who uses it loads it
    from psycopg.errors import UndefinedTable  # noqa: PLC0415

    try:
        with connect(f"postgresql:{url.partition(':')[2]}") as connection:
            row = connection.execute(_REVISION).fetchone()
    except UndefinedTable:
        return None
    except Error as error:
        raise Unavailable(f"the ledger does not answer: {error}") from error
    return str(row[0]) if row else None


def _upgrade_sqlite(url: str) -> None:
    from store.database import ledger_url, sqlite_engine  # noqa: PLC0415 - see the module's docstring

    parsed = ledger_url(url)
    Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    _upgrade_on(sqlite_engine(parsed, "full", begin="BEGIN IMMEDIATE", connections=1, read_only=False))


def _upgrade_postgres(url: str) -> None:
    from store.database import ledger_url, postgres_engine  # noqa: PLC0415 - see the module's docstring

    _upgrade_on(postgres_engine(ledger_url(url), connections=1))


def _upgrade_on(engine: Engine) -> None:
    try:
        with engine.begin() as connection:
            upgrade(connection)
    finally:
        engine.dispose()


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, inside the transaction that `connection` is in.

    Raises:
        Conflict: the database is at a revision that this program does not know.

    """
    from alembic import command  # noqa: PLC0415 - see the module's docstring
    from alembic.util import CommandError  # noqa: PLC0415

    from store.database import serialise  # noqa: PLC0415

    serialise(connection, "migration")
    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise Conflict(
            f"the ledger was migrated by a newer version of Gigafactory: {error}",
            hint="run that version, or restore the backup that was made before the upgrade",
        ) from error


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for our migrations; there is no `alembic.ini`."""
    from alembic.config import Config  # noqa: PLC0415 - see the module's docstring

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
