"""Whether one process does its work, for a container's health check. Does I/O: HTTP to our API, or Temporal.

    python -P -m workers.health api              the API of this container answers, and its ledger does
    python -P -m workers.health control          a control worker of this host polls for workflow tasks
    python -P -m workers.health gateway          the gateway of this container takes connections
    python -P -m workers.health factory NAME     the agent of that factory polls for workspace steps; of one behind a
                                                 gateway, which may not ask Temporal: the API hears of it

Exit code 0 when it does; otherwise 1, with a line on stderr that says what is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Final

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from core.attempt import factory_queue
from core.errors import GigafactoryError
from core.job_messages import CONTROL_QUEUE
from core.settings import Settings
from store.settings_source import read_settings
from store.token_files import factory_token_file
from workers.api_client import FactoryApi
from workers.stack_parts import http_request
from workflows.connection import connect

FRESH: Final = timedelta(seconds=90)
"""A long poll lasts for a minute; Temporal notes a poller when its poll begins."""


def control_identity(host: str = "") -> str:
    """Return how the control workers of a host (default: this one) begin the identity that Temporal sees."""
    return f"control/{host or socket.gethostname()}/"


async def missing(settings: Settings, part: str, name: str) -> str:
    """Return what keeps the part from its work, or an empty string."""
    if part == "api":
        status, body = await http_request("GET", f"http://127.0.0.1:{settings.api_port}/fleet/health")
        return "" if status == 200 else f"the API answers {status or 'nothing'} {body[:500].decode(errors='replace')}"
    if part == "control":
        return await _unpolled(settings, CONTROL_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, control_identity())
    if part == "gateway":
        return await _deaf("127.0.0.1", settings.gateway_port)
    if settings.gateway_url:
        return await _unheard(settings, name)
    return await _unpolled(settings, factory_queue(name), TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY, f"factory/{name}")


async def _deaf(host: str, port: int) -> str:
    """Return an empty string when somebody takes connections there."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return f"nobody listens at {host}:{port}: {error}"
    writer.close()
    return ""


async def _unheard(settings: Settings, name: str) -> str:
    """Return an empty string when the API hears of the factory."""
    api = FactoryApi(settings.api_url, factory_token_file(settings.home, name))
    try:
        state = await api.state(name)
    except GigafactoryError as error:
        return f"the API at {settings.api_url} says of {name}: {error.message}"
    finally:
        await api.close()
    return f"factory {name} is offline" if state == "offline" else ""


async def _unpolled(settings: Settings, queue: str, kind: TaskQueueType.ValueType, identity: str) -> str:
    """Return an empty string when somebody whose identity begins like that polls the queue."""
    try:
        client = await connect(settings, address=settings.temporal_address, identity=f"health/{os.getpid()}")
        found = await _pollers(client, queue, kind)
    except (RuntimeError, RPCError) as error:
        return f"Temporal at {settings.temporal_address} does not answer: {error}"
    oldest = datetime.now(UTC) - FRESH
    if any(who.startswith(identity) and seen > oldest for who, seen in found.items()):
        return ""
    return f"nobody called {identity}… polls {queue}"


async def _pollers(client: Client, queue: str, kind: TaskQueueType.ValueType) -> dict[str, datetime]:
    """Return who polls a queue, by identity, and when they last began to."""
    reply = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind)
    )
    return {poller.identity: poller.last_access_time.ToDatetime(UTC) for poller in reply.pollers}


def main() -> int:
    """Check the part that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="workers.health")
    parser.add_argument("part", choices=("api", "control", "gateway", "factory"))
    parser.add_argument("name", nargs="?", default="")
    given = parser.parse_args()
    problem = asyncio.run(missing(read_settings(), given.part, given.name))
    if problem:
        sys.stderr.write(problem + "\n")
    return 1 if problem else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
