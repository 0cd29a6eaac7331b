"""The ledger's tests run on both databases: each test gets a migrated, empty one of its own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from core.settings import Settings
from store import migrate, open_ledger
from store.tables import metadata
from tests.conftest_postgres import PostgresServer, postgres_server
from tests.store.fleet import Fleet

__all__ = ["postgres_server"]

TEMPLATE = "ledger_template"
SHARED = "ledger_shared"
_numbers = count(1)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated, empty SQLite ledger to copy."""
    path = tmp_path_factory.mktemp("ledger") / "template.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> PostgresServer:
    """Return a server that holds a migrated, empty ledger to copy."""
    postgres_server.run(f"CREATE DATABASE {TEMPLATE}")
    asyncio.run(migrate(postgres_server.url(TEMPLATE)))
    return postgres_server


def _postgres_copy(server: PostgresServer, template: str) -> Iterator[str]:
    name = f"ledger_{next(_numbers)}"
    server.run(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a database without any table, on each kind of database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        yield from _postgres_copy(request.getfixturevalue("postgres_server"), "template0")


@pytest.fixture
def own_schema() -> None:
    """Ask for a database that no other test uses, because the test changes more than rows."""


@pytest.fixture(scope="session")
def postgres_shared(postgres_template: PostgresServer) -> PostgresServer:
    """Return a server with a migrated ledger that one test after the other empties and uses."""
    postgres_template.run(f"CREATE DATABASE {SHARED} TEMPLATE {TEMPLATE}")
    return postgres_template


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a migrated, empty ledger, on each kind of database."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
    elif "own_schema" in request.fixturenames:
        yield from _postgres_copy(request.getfixturevalue("postgres_template"), TEMPLATE)
    else:
        server = request.getfixturevalue("postgres_shared")
        emptied = [f"DELETE FROM {table}" for table in metadata.tables]  # noqa: S608 - ours
        server.run("SET session_replication_role = replica", *emptied, database=SHARED)
        yield server.url(SHARED)


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    """Return settings whose ledger is `url`, and with which every queued job has its workflow at once."""
    return Settings(home=tmp_path, database_url=url, seat_wait_s=0)


@pytest.fixture
async def fleet(settings: Settings) -> AsyncIterator[Fleet]:
    """Return a fleet without factories and jobs on an empty ledger."""
    ledger = open_ledger(settings)
    yield Fleet(ledger, settings.ledger_url)
    await ledger.close()
