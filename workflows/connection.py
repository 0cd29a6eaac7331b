"""How every process of ours meets Temporal: one converter, one codec hook, one sandbox. *Does I/O.*"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import ClassVar, Self

from temporalio.client import Client
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from core.errors import InvalidInput
from core.settings import Settings


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


CONVERTER = replace(pydantic_data_converter, payload_converter_class=SharedPayloadConverter)


def data_converter(payload_codec: str = "") -> DataConverter:
    """Return the converter of all our clients and workers.

    `payload_codec` is `module:attribute` of a `temporalio.converter.PayloadCodec` (instance or class without
    arguments), for encryption or compression of everything that Temporal stores; every process needs the same.

    Raises:
        InvalidInput: the setting does not name a payload codec.

    """
    if not payload_codec:
        return CONVERTER
    module_name, _, attribute = payload_codec.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"setting payload_codec: {payload_codec!r} cannot be loaded: {error}") from error
    codec = found() if isinstance(found, type) else found
    if not isinstance(codec, PayloadCodec):
        raise InvalidInput(f"setting payload_codec: {payload_codec!r} is not a temporalio.converter.PayloadCodec")
    return replace(CONVERTER, payload_codec=codec)


async def connect(settings: Settings, *, address: str, identity: str) -> Client:
    """Connect to the Temporal server at `address` (host:port); `identity` shows in Temporal's Web UI.

    Raises:
        RuntimeError: the server does not answer (the SDK's own error).

    """
    return await Client.connect(
        address,
        namespace=settings.temporal_namespace,
        data_converter=data_converter(settings.payload_codec),
        identity=identity,
    )


def workflow_runner() -> SandboxedWorkflowRunner:
    """Return the sandbox; our pure packages and their libraries pass through it."""
    restrictions = SandboxRestrictions.default.with_passthrough_modules("core", "pydantic", "pydantic_core", "yaml")
    return SandboxedWorkflowRunner(restrictions=restrictions)
