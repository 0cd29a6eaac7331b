from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from core.errors import Conflict, InvalidInput, NotFound, Unavailable
from core.settings import Settings
from store import open_ledger
from store.database import Database, Refused, SqlDatabase, ledger_url, open_database
from tests.conftest_postgres import postgres_binaries, running_postgres
from tests.store.fleet import Fleet

Opener = Callable[..., Database]


def make(connection: Connection) -> None:
    """Make a table."""
    connection.execute(text("CREATE TABLE t (n INTEGER)"))


def add(connection: Connection, number: int) -> int:
    """Add a row."""
    connection.execute(text("INSERT INTO t VALUES (:n)"), {"n": number})
    return number


def count(connection: Connection) -> int:
    """Count the rows."""
    return int(connection.execute(text("SELECT count(*) FROM t")).scalar_one())


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Return how to open a database that is closed when the test ends, whatever its end."""
    databases: list[Database] = []

    def open_(url: str, **options: Any) -> Database:
        databases.append(open_database(url, **options))
        return databases[-1]

    yield open_
    for database in databases:
        await database.close()


async def test_write_that_fails_leaves_nothing(empty_url: str, opened: Opener) -> None:
    """A unit of work is done whole or not at all; a refusal alone keeps what it wrote."""
    database = opened(empty_url)
    await database.write(make)

    def breaks(connection: Connection) -> None:
        add(connection, 1)
        raise NotFound("nothing there")

    def refuses(connection: Connection) -> None:
        add(connection, 2)
        raise Refused(Conflict("no"))

    with pytest.raises(NotFound):
        await database.write(breaks)
    assert await database.read(count) == 0
    with pytest.raises(Conflict):
        await database.write(refuses)
    assert await database.read(count) == 1


async def test_read_cannot_write(empty_url: str, opened: Opener) -> None:
    """The read path is read only, by the database's own word."""
    database = opened(empty_url)
    await database.write(make)

    with pytest.raises(Exception, match=r"read-?only"):
        await database.read(add, 1)


async def test_write_of_a_caller_that_went_away_is_whole(empty_url: str, opened: Opener) -> None:
    """A cancelled caller leaves either everything or nothing, and the next write goes on as usual."""
    database = opened(empty_url)
    await database.write(make)

    def two(connection: Connection) -> None:
        add(connection, 1)
        add(connection, 2)

    for pause in range(6):
        task = asyncio.create_task(database.write(two))
        for _ in range(pause):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await database.write(two)

    assert await database.read(count) % 2 == 0


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"])
def test_url_of_an_unknown_database_is_refused(url: str) -> None:
    """Only a SQLite file or PostgreSQL can hold a ledger; the message says what to write."""
    with pytest.raises(InvalidInput) as caught:
        ledger_url(url)
    assert "postgresql://" in caught.value.hint


def test_password_of_a_refused_url_is_not_shown() -> None:
    """A message never holds the password of a database."""
    with pytest.raises(InvalidInput) as caught:
        ledger_url("mysql://ada:secret@db/ledger")
    assert "secret" not in caught.value.message


def test_sqlite_that_is_too_old_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    """An old SQLite is found when the ledger is opened, not by a syntax error later."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))

    with pytest.raises(Unavailable, match=r"SQLite 3\.35 or newer"):
        opened(f"sqlite:///{tmp_path / 'ledger.db'}")


async def test_sqlite_uses_write_ahead_log_and_holds_references(tmp_path: Path, opened: Opener) -> None:
    """Readers never wait, references hold, and `synchronous` is the setting's."""
    for setting, level in (("normal", 1), ("full", 2)):
        database = opened(f"sqlite:///{tmp_path / setting}.db", synchronous=setting)

        def pragmas(connection: Connection) -> list[Any]:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return [connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]

        assert await database.write(pragmas) == ["wal", level, 1]


async def test_sqlite_write_waits_for_other_processes_and_looks_often(tmp_path: Path, opened: Opener) -> None:
    """A write waits for one of another program, far beyond what SQLite is told to wait, and looks all the time."""
    path = tmp_path / "ledger.db"
    database = opened(f"sqlite:///{path}")
    await database.write(make)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    looks: list[str] = []

    def begins(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        looks.append(statement)
        if len(looks) == 20:
            other.execute("ROLLBACK")

    assert isinstance(database, SqlDatabase)
    event.listen(database._writes, "before_cursor_execute", begins)

    assert await database.write(add, 1) == 1
    assert looks[:20] == ["BEGIN IMMEDIATE"] * 20
    other.close()


async def test_sqlite_write_holds_the_lock_from_its_first_statement(tmp_path: Path, opened: Opener) -> None:
    """A write transaction is immediate: nobody writes between what it reads first and what it writes then."""
    path = tmp_path / "ledger.db"
    database = opened(f"sqlite:///{path}")
    await database.write(make)

    def read_then_look(connection: Connection) -> str:
        count(connection)
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return str(error)
        finally:
            other.close()
        return "the other one could write"

    assert await database.write(read_then_look) == "database is locked"


async def test_sqlite_that_stays_locked_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    """A ledger that another program keeps locked is reported as such, and works again afterwards."""
    monkeypatch.setattr("store.database.BUSY_TIMEOUT_MS", 20)
    path = tmp_path / "ledger.db"
    database = opened(f"sqlite:///{path}")
    assert isinstance(database, SqlDatabase)
    await database.write(make)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(Unavailable, match="locked"):
        await database.write(add, 1)
    other.execute("ROLLBACK")
    other.close()

    assert await database.write(add, 2) == 2


@pytest.mark.postgres
async def test_postgres_that_went_away_is_unavailable_and_comes_back(opened: Opener) -> None:
    """While the server is away every call says so and may be tried again; afterwards reads work at once."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server binaries are not installed")
    with running_postgres(binaries) as server:
        database = opened(server.url())
        await database.write(make)
        await database.write(add, 1)
        assert await database.read(count) == 1
        others = "pid <> pg_backend_pid() AND usename IS NOT NULL"
        server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")  # noqa: S608 - ours
        assert await database.read(count) == 1
    for call in (database.read(count), database.write(add, 2)):
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.retryable


@pytest.mark.postgres
async def test_postgres_deadlock_is_solved_by_trying_again(postgres_server: Any, opened: Opener) -> None:
    """Two units of work that lock the same rows in opposite order both come to their end."""
    postgres_server.run("CREATE DATABASE deadlock")
    database = opened(postgres_server.url("deadlock"))
    await database.write(make)
    await database.write(add, 1)
    await database.write(add, 2)
    met = threading.Barrier(2)
    tries: list[int] = []

    def cross(connection: Connection, first: int, second: int) -> None:
        tries.append(first)
        lock = text("UPDATE t SET n = n WHERE n = :n")
        connection.execute(lock, {"n": first})
        if len(tries) <= 2:
            met.wait(timeout=30)
        connection.execute(lock, {"n": second})

    await asyncio.gather(database.write(cross, 1, 2), database.write(cross, 2, 1))

    assert len(tries) > 2


async def test_closed_sqlite_ledger_is_one_file(sqlite_template: Path, tmp_path: Path) -> None:
    """A ledger that was closed, even twice, can be copied as one file and opened elsewhere with all that it held."""
    path = tmp_path / "ledger.db"
    shutil.copyfile(sqlite_template, path)
    ledger = open_ledger(Settings(home=tmp_path))
    await Fleet(ledger, "").submit("j-1")
    await ledger.close()
    await ledger.close()
    (tmp_path / "copy").mkdir()
    shutil.copyfile(path, tmp_path / "copy" / "ledger.db")
    copied = open_ledger(Settings(home=tmp_path / "copy"))

    assert (await copied.job("j-1")).id == "j-1"
    await copied.close()
