"""What a factory sends, built anew from the fields that may pass. *Pure*, but for the codec of an installation.

A payload passes when a workflow can decode it: one that it cannot decode would fail the same workflow task for ever. So
everything is decoded here first, with the converter that the workflows use. Only a result can be refused for what it
holds; a failure, a cancel and a beat must get through whatever was attached to them, and lose what is unfit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure
from temporalio.converter import DataConverter

DETAILS_BYTES: Final = 1024
"""Most that a heartbeat's or a cancel's details may be, all payloads with their metadata."""
MESSAGE_CHARS: Final = 4000
TYPE_CHARS: Final = 200
STACK_TRACE_CHARS: Final = 8000
CAUSES: Final = 3
"""Failures that may stand behind a failure, each caused by the next."""

RESULT_ENCODINGS: Final = frozenset({"json/plain", "json/protobuf", "binary/null"})
DETAILS_ENCODINGS: Final = frozenset({"json/plain", "binary/null"})
_PLAIN_METADATA: Final = ("encoding", "messageType")


class Unfit(Exception):
    """Payloads that must not reach a workflow; the message says why, and nothing of what is in them."""


@dataclass(frozen=True, slots=True)
class PayloadCheck:
    """Lets through what the workflows of an installation can decode."""

    converter: DataConverter
    """That of the workflows, with their codec."""
    result_bytes: int

    async def result(self, payloads: Payloads) -> Payloads:
        """Return an activity's result: one payload.

        Raises:
            Unfit: it is too large, not exactly one, or a workflow could not decode it.

        """
        if len(payloads.payloads) != 1:
            raise Unfit(f"the result has {len(payloads.payloads)} payloads, expected 1")
        return await self._fit(payloads, RESULT_ENCODINGS, self.result_bytes)

    async def details(self, payloads: Payloads) -> Payloads | None:
        """Return details of a heartbeat or a cancel; None when there are none, or they are unfit."""
        if not payloads.payloads:
            return None
        try:
            return await self._fit(payloads, DETAILS_ENCODINGS, DETAILS_BYTES)
        except Unfit:
            return None

    async def _fit(self, payloads: Payloads, encodings: frozenset[str], most_bytes: int) -> Payloads:
        size = payloads.ByteSize()
        if size > most_bytes:
            raise Unfit(f"{size} bytes of payloads, at most {most_bytes} may pass")
        fit = Payloads(payloads=[self._rebuilt(payload) for payload in payloads.payloads])
        try:
            codec = self.converter.payload_codec
            plain = list(fit.payloads) if codec is None else await codec.decode(list(fit.payloads))
        except Exception as error:
            raise Unfit(f"the payload codec cannot decode it ({type(error).__name__})") from error
        for payload in plain:
            encoding = payload.metadata.get("encoding", b"").decode(errors="replace")
            if encoding not in encodings:
                raise Unfit(f"the encoding {encoding[:50]!r} may not pass")
        try:
            self.converter.payload_converter.from_payloads(plain)
        except Exception as error:
            raise Unfit(f"it cannot be decoded ({type(error).__name__})") from error
        return fit

    def _rebuilt(self, payload: Payload) -> Payload:
        """Return data and metadata alone; without a codec, only the metadata that a converter reads."""
        names = _PLAIN_METADATA if self.converter.payload_codec is None else tuple(payload.metadata)
        metadata = {name: payload.metadata[name] for name in names if name in payload.metadata}
        return Payload(metadata=metadata, data=payload.data)


def rebuilt_failure(failure: Failure, causes: int = CAUSES) -> Failure:
    """Return a failure as a plain application failure: words, and whether to retry.

    Every other kind (a time-out, a cancel, a termination) is a statement of the server's, which a factory must not
    make; encoded attributes and details would be decoded by the workflow, and are left out.
    """
    info = failure.application_failure_info
    rebuilt = Failure(
        message=failure.message[:MESSAGE_CHARS],
        source=failure.source[:TYPE_CHARS],
        stack_trace=failure.stack_trace[:STACK_TRACE_CHARS],
        application_failure_info=ApplicationFailureInfo(
            type=info.type[:TYPE_CHARS] or (failure.WhichOneof("failure_info") or ""), non_retryable=info.non_retryable
        ),
    )
    if causes and failure.HasField("cause"):
        rebuilt.cause.CopyFrom(rebuilt_failure(failure.cause, causes - 1))
    return rebuilt


def failure_of(kind: str, message: str) -> Failure:
    """Return a failure that the gateway itself reports."""
    info = ApplicationFailureInfo(type=kind)
    return Failure(message=message, source="gateway", application_failure_info=info)
