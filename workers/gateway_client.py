"""A factory's way to Temporal: to the server itself, or through a gateway. Does I/O: files, gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from temporalio.client import Client
from temporalio.service import TLSConfig

from core.settings import Settings
from workflows.connection import connect

LOOK_S: Final = 2.0
"""Between two looks at the token file; a rotated token stays good for longer than that."""
PORTS: Final = {"http": 80, "https": 443}


async def connect_factory(settings: Settings, token_file: Path, *, identity: str) -> Client:
    """Connect the agent of a factory as the settings say; a gateway is shown the token in `token_file`.

    Raises:
        RuntimeError: nobody answers there, the token is refused, or there is none yet.

    """
    if not settings.gateway_url:
        return await connect(settings, address=settings.temporal_address, identity=identity)
    token = read_token(token_file)
    if not token:
        raise RuntimeError(f"there is no token at {token_file} yet")
    url = urlsplit(settings.gateway_url)
    address = url.netloc if url.port else f"{url.netloc}:{PORTS[url.scheme]}"
    tls = _tls(settings.gateway_ca) if url.scheme == "https" else None
    return await connect(settings, address=address, identity=identity, token=token, tls=tls)


def _tls(authority: Path | None) -> TLSConfig:
    return TLSConfig(server_root_ca_cert=authority.read_bytes() if authority else None)


async def follow_token(client: Client, token_file: Path) -> None:
    """Show a gateway the token that is in the file, for ever: a rotated one is good for the calls to come."""
    while client.api_key is not None:
        await asyncio.sleep(LOOK_S)
        token = read_token(token_file)
        if token and token != client.api_key:
            client.api_key = token


def read_token(path: Path) -> str:
    """Return the token in a file; "" when there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
