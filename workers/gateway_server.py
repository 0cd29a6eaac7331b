"""A gateway as its settings describe it: parts, address, TLS, limits of a connection. Does I/O: sockets, files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import structlog

from core.errors import InvalidInput, Unauthenticated, Unavailable
from core.roles import Role
from core.settings import Settings
from store.token_book import TokenBook
from workers.gateway_calls import Calls
from workers.gateway_door import Door, Limits
from workers.gateway_frontend import Frontend
from workers.gateway_messages import PayloadCheck
from workers.gateway_policy import Authenticate, FactoryIdentity
from workers.gateway_seal import TaskSeal, ensure_key
from workflows.connection import data_converter

log = structlog.get_logger(__name__)

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
ENVELOPE_BYTES: Final = 256 << 10
"""Most that a request may be beyond its result: token, failure, details, names."""
STOP_GRACE_S: Final = 1.0
"""For calls under way when the gateway stops; polls, which would take a minute, end with it."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM format: the certificate with its chain, and its private key."""

    certificate: Path
    private_key: Path


def by_factory_token(book: TokenBook) -> Authenticate:
    """Return how tokens of factories, and no others, are told: by the ledger's, at most a quarter of a second old."""

    async def authenticate(token: str) -> FactoryIdentity | None:
        try:
            row = await book.identify(token, datetime.now(UTC))
        except Unauthenticated:
            return None
        return FactoryIdentity(row.factory) if Role.FACTORY in row.roles and row.factory else None

    return authenticate


@asynccontextmanager
async def running_gateway(settings: Settings, authenticate: Authenticate) -> AsyncIterator[int]:
    """Serve what the settings say while the block lasts; gives the port.

    Raises:
        InvalidInput: settings that do not go together.
        Unavailable: the address is taken, or a file cannot be used.

    """
    tls = tls_of(settings)
    if tls is None and settings.gateway_host not in LOOPBACK:
        log.warning("gateway.unencrypted", host=settings.gateway_host, hint="set gateway_tls_cert and gateway_tls_key")
    seal = TaskSeal(ensure_key(settings.gateway_seal_key or settings.home / "gateway-key"))
    result_bytes = settings.gateway_result_kib << 10
    frontend = Frontend(settings.temporal_address, settings.temporal_namespace)
    try:
        calls = Calls(frontend, seal, PayloadCheck(data_converter(settings.payload_codec), result_bytes))
        door = Door(calls, authenticate, Limits(settings.gateway_calls_per_s, settings.gateway_polls))
        host, port = settings.gateway_host, settings.gateway_port
        async with serving(door, host, port, tls, result_bytes=result_bytes) as bound:
            yield bound
    finally:
        await frontend.close()


def tls_of(settings: Settings) -> Tls | None:
    """Return the files for TLS; None when it is not wanted.

    Raises:
        InvalidInput: one of two is missing.

    """
    certificate, key = settings.gateway_tls_cert, settings.gateway_tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidInput("gateway_tls_cert and gateway_tls_key need each other", hint="set both, or neither")
    return Tls(certificate, key)


@asynccontextmanager
async def serving(door: Door, host: str, port: int, tls: Tls | None, *, result_bytes: int) -> AsyncIterator[int]:
    """Serve while the block lasts; gives the port (of use when `port` is 0).

    Raises:
        Unavailable: the address is taken, or the files of `tls` cannot be read.

    """
    server = grpc.aio.server(interceptors=(door,), options=_options(result_bytes))
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(where) if tls is None else server.add_secure_port(where, _credentials(tls))
    except (RuntimeError, OSError) as error:
        raise Unavailable(f"the gateway cannot serve at {where}: {error}", hint="see the settings gateway_*") from error
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(STOP_GRACE_S)


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(tls.private_key.read_bytes(), tls.certificate.read_bytes())])


def _options(result_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", 2 * result_bytes + ENVELOPE_BYTES),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.max_concurrent_streams", 128),
        ("grpc.so_reuseport", 0),  # two gateways on one port would be a mistake
        # SDKs ping every 30 s while they poll; gRPC's own idea is one ping in five minutes, and hangs up on more.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A machine that vanished must not hold a poll: a task would be given to nobody.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
