"""Makes the Temporal namespace of an installation: its retention and its search attributes. Does I/O: Temporal.

For a server of one's own, run once before the first start and after each change of server:
`python -P -m workers.temporal_namespace`. Idempotent; what exists already is left as it is. The embedded server needs
none of this, it gets the same from its command line.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from core.errors import GigafactoryError
from store.settings_source import read_settings
from workers.temporal_server import RETENTION_DAYS, SEARCH_ATTRIBUTES, TemporalUnreachable

TYPES: Final = {
    "Keyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "Int": IndexedValueType.INDEXED_VALUE_TYPE_INT,
}
PATIENCE_S: Final = 60.0
PAUSE_S: Final = 0.2
NOT_YET: Final = {
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.INVALID_ARGUMENT,
    RPCStatusCode.DEADLINE_EXCEEDED,
}
"""What a server answers until it, and all its caches, know of a new namespace and its search attributes."""


async def ensure_namespace(address: str, namespace: str, *, patience_s: float = PATIENCE_S) -> bool:
    """Make `namespace` on the server at `address` (host:port) ready for jobs; return whether it is new.

    Waits for a server that is just starting, and until workflows with our search attributes can be started.

    Raises:
        TemporalUnreachable: the server does not answer, or is not ready, within `patience_s` seconds.

    """
    deadline = time.monotonic() + patience_s
    made = False
    while True:
        try:
            client = await Client.connect(address, namespace=namespace)
            made = await _register(client) or made
            await _add_search_attributes(client)
            await client.count_workflows("GfStage = 'queued'")
        except (RuntimeError, RPCError) as error:  # the first is what the SDK raises when it cannot connect
            expected = not isinstance(error, RPCError) or error.status in NOT_YET
            if not expected or time.monotonic() > deadline:
                raise TemporalUnreachable(
                    f"the Temporal server at {address} does not serve namespace {namespace!r}: {error}",
                    hint="look into its log; does its database have this server version's schema?",
                    address=address,
                ) from error
            await asyncio.sleep(PAUSE_S)
        else:
            return made


async def _register(client: Client) -> bool:
    retention = Duration()
    retention.FromTimedelta(timedelta(days=RETENTION_DAYS))
    request = RegisterNamespaceRequest(
        namespace=client.namespace,
        description="jobs of Gigafactory",
        workflow_execution_retention_period=retention,
    )
    try:
        await client.workflow_service.register_namespace(request)
    except RPCError as error:
        if error.status != RPCStatusCode.ALREADY_EXISTS:
            raise
        return False
    return True


async def _add_search_attributes(client: Client) -> None:
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    missing = {name: TYPES[kind] for name, kind in SEARCH_ATTRIBUTES.items() if name not in known.custom_attributes}
    if missing:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(namespace=client.namespace, search_attributes=missing)
        )


def main() -> int:
    """Prepare the namespace that the settings name; return the exit code."""
    settings = read_settings()
    try:
        made = asyncio.run(ensure_namespace(settings.temporal_address, settings.temporal_namespace))
    except GigafactoryError as error:
        sys.stderr.write(f"gf: {error.message}{f'; {error.hint}' if error.hint else ''}\n")
        return 1
    sys.stderr.write(f"namespace {settings.temporal_namespace} {'was made' if made else 'was there'} and is ready\n")
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
