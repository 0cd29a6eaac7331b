"""A payload codec FOR TESTS ONLY: it seals what Temporal stores with a keystream of SHA-256 and a checksum.

It stands for an encrypting codec without needing a library for one. Do not use it for anything secret: the key is
below, in the open.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

KEY = b"not a secret: for tests only"
SEALED = b"binary/sealed-for-tests"
NONCE_BYTES = 16
SEAL_BYTES = 32


class SealingCodec(PayloadCodec):
    """Seals every payload, its metadata included, and refuses whatever it has not sealed itself."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Seal."""
        return [Payload(metadata={"encoding": SEALED}, data=_seal(payload.SerializeToString())) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Open; raises ValueError for what was not sealed with this key, or was changed since."""
        return [Payload.FromString(_open(payload)) for payload in payloads]


def _seal(plain: bytes) -> bytes:
    nonce = secrets.token_bytes(NONCE_BYTES)
    body = _mixed(nonce, plain)
    return nonce + hmac.digest(KEY, nonce + body, "sha256") + body


def _open(payload: Payload) -> bytes:
    if payload.metadata.get("encoding") != SEALED:
        raise ValueError(f"not sealed: {payload.metadata.get('encoding')!r}")
    nonce, rest = payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:]
    seal, body = rest[:SEAL_BYTES], rest[SEAL_BYTES:]
    if not hmac.compare_digest(seal, hmac.digest(KEY, nonce + body, "sha256")):
        raise ValueError("the seal is broken")
    return _mixed(nonce, body)


def _mixed(nonce: bytes, data: bytes) -> bytes:
    stream = hashlib.shake_256(KEY + nonce).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))
