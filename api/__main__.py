"""The API process: `python -P -m api`. *Does I/O: everything that the API does.*

It answers as soon as it listens, also while the ledger's tables or Temporal are not there yet. SIGTERM lets running
requests end, and tells open streams to come back to the next process.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import structlog
import uvicorn

from api.app import create_app
from api.backend import Backend
from api.background import Dispatcher, TemporalLink
from api.guards import SPOOL_LIMIT
from api.shelf import ProfileShelf
from core.errors import GigafactoryError
from core.settings import Settings
from store import event_loop, open_ledger
from store.logging_setup import configure_logging
from store.settings_source import read_settings
from store.token_book import TokenBook
from store.token_files import ensure_person_token

log = structlog.get_logger(__name__)

GRACE_S = 5
PING_S = 10
"""Longest time that SIGTERM gives to requests that are being answered."""
COULD_NOT_START = 3


class Server(uvicorn.Server):
    """Uvicorn, but signals are ours: this process leaves with its own exit code."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers alone."""
        yield


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    async with running_backend(settings) as backend:
        config = uvicorn.Config(
            create_app(backend),
            host=settings.api_host,
            port=settings.api_port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=75,
            ws_max_size=SPOOL_LIMIT,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
        )
        server = Server(config)

        def stop() -> None:
            backend.stopping.set()
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        await server.serve()
        return 0 if server.started else COULD_NOT_START


@contextlib.asynccontextmanager
async def running_backend(settings: Settings) -> AsyncIterator[Backend]:
    """Open the ledger, start what runs beside the requests, and stop it all again."""
    ensure_person_token(settings.home)
    ledger = open_ledger(settings)
    temporal = TemporalLink(ledger, settings)
    dispatcher = Dispatcher(ledger, temporal, settings)
    backend = Backend(
        settings=settings,
        ledger=ledger,
        book=TokenBook(ledger, settings.home, person=_person()),
        temporal=temporal,
        dispatcher=dispatcher,
        shelf=ProfileShelf(settings.home),
    )
    loops = [
        asyncio.create_task(work, name=name)
        for name, work in (
            ("connect", temporal.run()),
            ("dispatch", dispatcher.dispatch_forever()),
            ("deliver", dispatcher.deliver_forever()),
            ("links", backend.links.run()),
        )
    ]
    try:
        yield backend
    finally:
        await backend.links.close()
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await ledger.close()


def main() -> int:
    """Run the process; returns its exit code."""
    configure_logging("api")
    try:
        return event_loop.run(serve(read_settings()))
    except GigafactoryError as error:
        log.error("api.cannot_start", **error.as_problem())  # noqa: TRY400 - expected: no traceback
        return COULD_NOT_START
    except Exception:
        log.exception("api.bug")
        return 1


def _person() -> str:
    """Return whom the token in `<home>/token` stands for."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "local"


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # Temporal's SDK may abort a normal interpreter exit (sdk-python issue 300)
