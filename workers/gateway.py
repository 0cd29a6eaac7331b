"""The gateway: lets untrusted factories poll, beat and respond on their own task queues, and nothing else. *A process.*

Start: `python -P -m workers.gateway`. Any number may run side by side with the same ledger and the same seal key; none
keeps state of its own, so that one can be killed at any time. SIGTERM ends it within a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Final

import structlog

from core.errors import GigafactoryError
from store import event_loop, open_ledger
from store.logging_setup import configure_logging
from store.settings_source import read_settings
from store.token_book import TokenBook
from workers.stack_state import announce_ready

# gRPC reads this when it is imported. Below ERROR it has a line for each TLS handshake that fails: for each port scan.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
from workers.gateway_server import by_factory_token, running_gateway

log = structlog.get_logger(__name__)

EXIT_UNUSABLE: Final = 1


async def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    configure_logging("gateway")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        settings = read_settings()
        ledger = open_ledger(settings)
        try:
            async with running_gateway(settings, by_factory_token(TokenBook(ledger, settings.home))) as port:
                log.info("gateway.ready", pid=os.getpid(), port=port, temporal=settings.temporal_address)
                announce_ready()
                await stop.wait()
        finally:
            await ledger.close()
    except GigafactoryError as error:
        log.error("gateway.unusable", error=error.message, hint=error.hint)  # noqa: TRY400 - expected
        return EXIT_UNUSABLE
    return 0


if __name__ == "__main__":
    code = event_loop.run(main())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
