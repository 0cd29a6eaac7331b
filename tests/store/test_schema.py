from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

from core.errors import Conflict, Unavailable
from store import migrate
from store.database import open_database
from store.schema import HEAD, MIGRATIONS, revision
from store.tables import metadata

ENTRY = r"\n|, (?=\w+ (?:TEXT|INTEGER|BIGINT|BOOLEAN|VARCHAR)\b)"
"""Where one entry of a CREATE statement ends: a column that was added later stands on the line of the one before."""


async def run(url: str, work: Callable[[Connection], Any]) -> Any:
    """Run `work` in a transaction of its own."""
    database = open_database(url)
    try:
        return await database.write(work)
    finally:
        await database.close()


def differences(connection: Connection) -> list[Any]:
    """Return what Alembic would change to get from the database to the tables in the code."""
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


async def test_migrations_lead_to_the_tables_in_the_code(empty_url: str) -> None:
    """An empty database that was migrated has exactly the tables, columns, indexes and keys of `store.tables`."""
    await migrate(empty_url)

    assert await run(empty_url, differences) == []


def test_sqlite_migrations_write_the_same_schema_as_the_tables(tmp_path: Path) -> None:
    """Also what Alembic does not compare (checks, partial indexes) is the same, by SQLite's own account."""

    def account(path: Path) -> set[tuple[str, ...]]:
        engine = create_engine(f"sqlite:///{path}")
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT sql FROM sqlite_master WHERE type IN ('table', 'index')"))
            lines = [re.split(ENTRY, row.sql.replace('"', "")) for row in rows if row.sql]
        engine.dispose()
        normal = {tuple(sorted(line.strip(" \t,)") for line in sql if line.strip(" \t,)"))) for sql in lines}
        return {sql for sql in normal if not re.search("alembic_version|sqlite_sequence", " ".join(sql))}

    migrated, created = tmp_path / "migrated.db", tmp_path / "created.db"
    asyncio.run(migrate(f"sqlite:///{migrated}"))
    engine = create_engine(f"sqlite:///{created}")
    metadata.create_all(engine)
    engine.dispose()

    assert account(migrated) == account(created)


async def test_migrate_says_whether_anything_was_to_do(empty_url: str) -> None:
    """The first call migrates, the second finds nothing to do."""
    assert await revision(empty_url) is None
    assert await migrate(empty_url)
    assert await revision(empty_url) == HEAD
    assert not await migrate(empty_url)


async def test_migrate_from_several_callers_at_once_is_done_once(empty_url: str) -> None:
    """Callers that start together all find a migrated database in the end."""
    await asyncio.gather(*(migrate(empty_url) for _ in range(4)))

    assert await revision(empty_url) == HEAD
    assert await run(empty_url, differences) == []


async def test_migrate_of_a_newer_ledger_is_refused(empty_url: str) -> None:
    """A program never works with a schema that it does not know, and says what to do."""
    await migrate(empty_url)
    await run(empty_url, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num='9999'")))

    with pytest.raises(Conflict, match="newer version"):
        await migrate(empty_url)


def test_head_is_the_newest_migration() -> None:
    """The revision in the code is that of the newest migration, so that the quick check is right."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


async def test_ledger_without_tables_says_what_to_do(empty_url: str) -> None:
    """Whoever opens a ledger that was never migrated is told to migrate it."""
    with pytest.raises(Unavailable, match="no tables") as caught:
        await run(empty_url, lambda connection: connection.execute(text("SELECT * FROM jobs")))

    assert "gf up" in caught.value.hint


async def test_every_table_has_a_product(url: str) -> None:
    """Each record says which tenant it belongs to."""

    def lacking(connection: Connection) -> list[str]:
        return [table.name for table in metadata.sorted_tables if "product_id" not in table.c]

    assert await run(url, lacking) == []


@pytest.mark.parametrize("statement", ["UPDATE events SET message = 'x'", "DELETE FROM events"])
async def test_events_cannot_be_changed_or_deleted(url: str, fleet: Any, statement: str) -> None:
    """The database itself refuses to change or delete an event."""
    await fleet.submit("j-1")

    with pytest.raises(Exception, match="append-only"):
        await run(url, lambda connection: connection.execute(text(statement)))


@pytest.mark.postgres
def test_postgres_events_cannot_be_truncated(postgres_template: Any) -> None:
    """Emptying the whole table is refused as well."""
    with pytest.raises(Exception, match="append-only"):
        postgres_template.run("TRUNCATE events", database="ledger_template")


def test_quick_check_loads_neither_sqlalchemy_nor_alembic(tmp_path: Path) -> None:
    """Finding that there is nothing to do costs one query with the plain driver."""
    import subprocess
    import sys

    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    asyncio.run(migrate(url))
    check = (
        "import asyncio, sys; from store import migrate; assert not asyncio.run(migrate(sys.argv[1])); "
        "print(sorted({'sqlalchemy', 'alembic'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", check, url],
        check=True,
        capture_output=True,
        text=True,
        cwd=MIGRATIONS.parents[1],
        env={"PYTHONPATH": str(MIGRATIONS.parents[1])},
    )
    assert found.stdout.strip() == "[]"
