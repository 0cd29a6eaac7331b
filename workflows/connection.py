"""How every process of ours meets Temporal: one converter, one codec hook. *Does I/O.*"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import ClassVar, Self

import structlog
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.client import Client
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import DataConverter, DefaultFailureConverter, PayloadCodec, PayloadConverter
from temporalio.service import TLSConfig

from core.errors import InvalidInput
from core.settings import Settings

log = structlog.get_logger(__name__)


class SharedPayloadConverter(PydanticPayloadConverter):
    """The one payload converter of a process; the SDK asks for two with every workflow task, and making them costs."""

    _shared: ClassVar[PydanticPayloadConverter | None] = None

    def __new__(cls) -> Self:
        """Return the converter that was made first."""
        if cls._shared is None:
            cls._shared = super().__new__(cls)
        assert isinstance(cls._shared, cls)
        return cls._shared

    def __init__(self) -> None:
        """Build it, the first time."""
        if not hasattr(self, "converters"):
            super().__init__()


class CarefulFailureConverter(DefaultFailureConverter):
    """Reads a failure as far as it can be read: a part of it may be garbage, because factories write it."""

    _OPTIONAL: ClassVar = {
        "application_failure_info": ("details", "category", "next_retry_delay"),
        "timeout_failure_info": ("last_heartbeat_details",),
        "canceled_failure_info": ("details",),
    }

    def from_failure(self, failure: Failure, payload_converter: PayloadConverter) -> BaseException:
        """Return the exception, without what we never look at when that cannot be read."""
        try:
            return super().from_failure(failure, payload_converter)
        except Exception:  # noqa: BLE001 - whatever a stranger sent must not stop the job
            kind = failure.WhichOneof("failure_info") or ""
        readable = Failure()
        readable.CopyFrom(failure)
        for field in self._OPTIONAL.get(kind, ()):
            getattr(readable, kind).ClearField(field)
        return super().from_failure(readable, payload_converter)


class EncodedFailureConverter(CarefulFailureConverter):
    """Hands messages and stack traces to the codec too."""

    def __init__(self) -> None:
        """Encode them."""
        super().__init__(encode_common_attributes=True)


CONVERTER = replace(
    pydantic_data_converter,
    payload_converter_class=SharedPayloadConverter,
    failure_converter_class=CarefulFailureConverter,
)
UNDECODABLE = b"binary/undecodable"
"""Encoding of the marker for a payload that the codec refused; no converter reads it."""


def data_converter(payload_codec: str = "") -> DataConverter:
    """Return the converter of all our clients and workers.

    `payload_codec` is `module:attribute` or `/path/to/file.py:attribute` of a `temporalio.converter.PayloadCodec`
    (instance or class without arguments), for encryption or compression of everything that Temporal stores, messages
    of failures included; every process needs the same.

    Raises:
        InvalidInput: the setting does not name a payload codec.

    """
    if not payload_codec:
        return CONVERTER
    place, _, attribute = payload_codec.rpartition(":")
    try:
        found = getattr(_load(place), attribute)
        codec = found() if isinstance(found, type) else found
    except Exception as error:  # whatever the file does when it is run
        raise InvalidInput(f"setting payload_codec: {payload_codec!r} cannot be loaded: {error}") from error
    if not isinstance(codec, PayloadCodec):
        raise InvalidInput(f"setting payload_codec: {payload_codec!r} is not a temporalio.converter.PayloadCodec")
    return replace(CONVERTER, payload_codec=_Careful(codec), failure_converter_class=EncodedFailureConverter)


def _load(place: str) -> ModuleType:
    """Return the module of that name, or of that file."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location("gigafactory_payload_codec", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Careful(PayloadCodec):
    """Puts a marker in the place of each payload that the codec refuses; whoever reads it complains, in its own place.

    The SDK decodes all payloads of a workflow task before any code of ours sees one: an exception there would be
    repeated for ever, and one garbled signal or answer would stop a job.
    """

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec = codec

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Encode as the codec does."""
        return await self._codec.encode(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decode what can be decoded."""
        try:
            return await self._codec.decode(payloads)
        except Exception:
            if len(payloads) == 1:
                log.exception("payload.undecodable")
                return [Payload(metadata={"encoding": UNDECODABLE})]
        return [(await self.decode([payload]))[0] for payload in payloads]


async def connect(
    settings: Settings, *, address: str, identity: str, token: str | None = None, tls: TLSConfig | None = None
) -> Client:
    """Connect to the Temporal server at `address` (host:port); `identity` shows in Temporal's Web UI.

    A `token` is for a gateway that stands there in the server's place.

    Raises:
        RuntimeError: the server does not answer (the SDK's own error).

    """
    return await Client.connect(
        address,
        namespace=settings.temporal_namespace,
        data_converter=data_converter(settings.payload_codec),
        identity=identity,
        api_key=token,
        tls=tls or False,
    )
