"""How the ledger reaches SQLite or PostgreSQL: units of work in, their results out. Does I/O: SQL.

A unit of work is a plain function that takes a `Connection` and runs in one transaction, in a thread from its first
statement to its last: on SQLite, handing each statement to the thread by itself (as an asynchronous driver does) was
measured at nine times the cost; on PostgreSQL, rows that become objects on the event loop keep everybody else waiting.

SQLite: every write is `BEGIN IMMEDIATE` on the one writer connection of the process, whose thread is also its queue;
reads have connections of their own that cannot write. Deferred transactions lose updates between processes. A writer
that waits for another process looks every few milliseconds: SQLite's own waiting looks every 100 ms in the end, which
beside a busy process is mostly bad luck.
PostgreSQL: read committed; units of work take row locks and say so where they need more.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, Row, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from core.errors import GigafactoryError, InvalidInput, Unavailable
from store.column_types import clean_text

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[Concatenate[Connection, P], T]
Synchronous = Literal["normal", "full"]

BUSY_TIMEOUT_MS = 15_000
"""How long a SQLite write waits for the writers of other processes."""
LOOK_MS = 4
"""How long SQLite itself waits before we ask again: it looks after 1, 2 and 1 ms, beyond that ever more rarely."""
OLDEST_SQLITE = (3, 35)
"""First version with `RETURNING`."""
READERS = 2
"""Read connections of one process to SQLite."""
SESSIONS = 8
"""Connections of one process to PostgreSQL that write, and as many that read."""
ATTEMPTS = 4
"""How often PostgreSQL may abort a unit of work for a deadlock before that is an error."""
RETRY_STATES = ("40001", "40P01")
"""SQLSTATE of serialization failure and deadlock: the transaction left no trace and may run again."""


MAX_BOUND = 10_000
"""Values in one statement; both drivers stop at 32,766."""

AnyRow = Row[*tuple[Any, ...]]
"""A row of whatever was selected; its members are reached by name."""


class Refused(Exception):
    """Raised by a unit of work to keep what it wrote so far and then raise `error`."""

    def __init__(self, error: GigafactoryError) -> None:
        super().__init__(error.message)
        self.error = error


class Database(Protocol):
    """Runs units of work."""

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one read-write transaction."""
        ...

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on one unchanging state of the database; it must not write."""
        ...

    async def close(self) -> None:
        """Let all connections go."""
        ...


def ledger_url(url: str) -> URL:
    """Return the parsed URL with the driver that we use.

    Raises:
        InvalidInput: neither a SQLite file nor PostgreSQL.

    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(drivername="sqlite+pysqlite")
    raise InvalidInput(
        f"the ledger needs PostgreSQL or a SQLite file, not {parsed.render_as_string()!r}",
        hint="set database_url to postgresql://user@host/name, or leave it empty for SQLite",
    )


def open_database(url: str, *, synchronous: Synchronous = "normal") -> Database:
    """Return the database at `url`; nothing is connected before the first unit of work.

    Raises:
        InvalidInput: neither a SQLite file nor PostgreSQL.
        Unavailable: this Python comes with a SQLite that is too old.

    """
    parsed = ledger_url(url)
    if parsed.get_backend_name() == "postgresql":
        return _postgres(parsed)
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        raise Unavailable(
            f"the ledger needs SQLite {needed} or newer; this Python has {sqlite3.sqlite_version}",
            hint="use another Python (GIGAFACTORY_PYTHON), or PostgreSQL (the setting database_url)",
        )
    return _sqlite(parsed, synchronous)


def serialise(connection: Connection, what: str) -> None:
    """Wait until no other transaction that asked for `what` is under way; on SQLite no other writer ever is."""
    if connection.dialect.name == "postgresql":
        connection.execute(_ADVISORY_LOCK, {"name": f"gigafactory.{clean_text(what)}"})


_ADVISORY_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")


def insert_new(connection: Connection, table: Table, **values: Any) -> bool:
    """Insert a row unless one with its key is there already; return whether it is new."""
    return connection.execute(_insert(connection, table).values(values).on_conflict_do_nothing()).rowcount == 1


def insert_missing(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert those of the rows whose key is not there already; `rows` in the order of their keys."""
    connection.execute(_insert(connection, table).on_conflict_do_nothing(), rows)


def upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, or put their other columns in the place of what is there under their key."""
    insert = _insert(connection, table)
    others = {column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key}
    connection.execute(insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=others), rows)


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def batches(items: Sequence[T], size: int = MAX_BOUND) -> Iterator[Sequence[T]]:
    """Yield `items` in pieces that fit into one statement."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


# --- SQLite -------------------------------------------------------------------------------------------------------


def sqlite_engine(url: URL, synchronous: Synchronous, *, begin: str, connections: int, read_only: bool) -> Engine:
    """Return an engine whose transactions start with the statement `begin`."""
    engine = create_engine(url, pool_size=connections, max_overflow=0)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes late and is a deferred one
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        # The first of several processes to open a new file switches it; SQLite's own waiting does not hold for that.
        _patiently(lambda: connection.execute("PRAGMA journal_mode=WAL"), pause_s=0.01)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA query_only=ON" if read_only else f"PRAGMA busy_timeout={LOOK_MS}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        _patiently(lambda: connection.exec_driver_sql(begin))

    return engine


def _patiently(step: Callable[[], object], *, pause_s: float = 0.0) -> None:
    """Do `step` again for as long as another process keeps the database busy, BUSY_TIMEOUT_MS at most."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            step()
        except (sqlite3.OperationalError, OperationalError) as error:
            cause = error.orig if isinstance(error, OperationalError) else error
            busy = getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY  # the rest tells kinds of it
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(pause_s)
        else:
            return


def _sqlite(url: URL, synchronous: Synchronous) -> SqlDatabase:
    """Return a SQLite file with one connection that writes and a few that cannot."""
    writes = sqlite_engine(url, synchronous, begin="BEGIN IMMEDIATE", connections=1, read_only=False)
    reads = sqlite_engine(url, synchronous, begin="BEGIN", connections=READERS, read_only=True)
    return SqlDatabase(writes, reads, writers=1, readers=READERS)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def postgres_engine(url: URL, *, connections: int) -> Engine:
    """Return an engine of so many connections at most."""
    return create_engine(url, pool_size=connections, max_overflow=0)


def _postgres(url: URL) -> SqlDatabase:
    writes = postgres_engine(url, connections=2 * SESSIONS)
    reads = writes.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return SqlDatabase(writes, reads, writers=SESSIONS, readers=SESSIONS)


# --- both ---------------------------------------------------------------------------------------------------------


class SqlDatabase:
    """A database whose connections have a thread each."""

    def __init__(self, writes: Engine, reads: Engine, *, writers: int, readers: int) -> None:
        self._writes = writes
        self._reads = reads
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="ledger-write")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="ledger-read")

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a transaction, again when PostgreSQL broke a deadlock at its cost.

        A caller that is cancelled does not undo it.
        """
        return await _in_thread(self._writers, lambda: _write(self._writes, work, args, kwargs))

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on one snapshot; once more on a fresh connection when the server had closed the old one."""
        return await _in_thread(self._readers, lambda: _read(self._reads, work, args, kwargs))

    async def close(self) -> None:
        """Let what is under way end, then close all connections; to be called again does no harm."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for threads, engine in ((self._writers, self._writes), (self._readers, self._reads)):
            threads.shutdown()
            engine.dispose()


async def _in_thread(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, call)


def _write(engine: Engine, work: Callable[..., T], args: Any, kwargs: Any) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with engine.begin() as connection:
                result = _result(connection, work, args, kwargs)
        except DBAPIError as error:
            if attempt == ATTEMPTS or _sqlstate(error) not in RETRY_STATES:
                raise _translated(error) from error
        else:
            return _value(result)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _read(engine: Engine, work: Callable[..., T], args: Any, kwargs: Any) -> T:
    try:
        try:
            return _once(engine, work, args, kwargs)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return _once(engine, work, args, kwargs)
    except DBAPIError as error:
        raise _translated(error) from error


def _once(engine: Engine, work: Callable[..., T], args: Any, kwargs: Any) -> T:
    with engine.connect() as connection:
        return work(connection, *args, **kwargs)


def _sqlstate(error: Exception) -> str:
    return str(getattr(getattr(error, "orig", None), "sqlstate", "") or "")


def _result(connection: Connection, work: Callable[..., T], args: Any, kwargs: Any) -> T | Refused:
    """Run `work`; a refusal is an answer here, so that the transaction commits."""
    try:
        return work(connection, *args, **kwargs)
    except Refused as refused:
        return refused


def _value(result: T | Refused) -> T:
    if isinstance(result, Refused):
        raise result.error
    return result


def _translated(error: Exception) -> Exception:
    """Return what a caller can expect: the ledger is away, or the bug itself."""
    cause = str(getattr(error, "orig", None) or error).strip()
    if "no such table" in cause or _sqlstate(error) == "42P01":
        return Unavailable(f"the ledger has no tables yet: {cause}", hint="run `gf up`, which migrates the ledger")
    broken = isinstance(error, DBAPIError) and error.connection_invalidated
    if broken or isinstance(error, (OperationalError, InterfaceError)) or _sqlstate(error) in RETRY_STATES:
        return Unavailable(f"the ledger does not answer: {cause}", hint="see `gf doctor`")
    return error
