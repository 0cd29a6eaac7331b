"""Whether this version's code takes every running job on where it stands. *Does I/O: Temporal, read only.*

    python -P -m workers.replay_check

To be run with a new version before its control workers replace the old ones: it replays the history of each job
workflow that runs. Exit code 0 when each replays, otherwise 1 with a line on stderr for each that does not: the old
workers must stay until those jobs have ended. See docs/adr/0008.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import Final

from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Replayer

from core.errors import GigafactoryError, Unavailable
from core.settings import Settings
from store.settings_source import read_settings
from workflows.connection import connect
from workflows.job import JobWorkflow
from workflows.sandbox import workflow_runner

RUNNING: Final = "WorkflowType = 'JobWorkflow' AND ExecutionStatus = 'Running'"


@dataclass(frozen=True)
class ReplayReport:
    """How many running jobs were replayed, and of those that do not go on as they began the reason, by workflow id."""

    replayed: int
    failures: dict[str, str]


async def replay_running(client: Client, workflow: type = JobWorkflow, query: str = RUNNING) -> ReplayReport:
    """Replay the history of each workflow that `query` (visibility's list filter) finds, on the code of `workflow`.

    What began within visibility's delay (about a second) is not among them.

    Raises:
        RPCError: Temporal is away.

    """
    replayer = Replayer(
        workflows=[workflow],
        namespace=client.namespace,
        data_converter=client.data_converter,
        workflow_runner=workflow_runner(),
    )
    replayed = 0
    failures: dict[str, str] = {}
    histories = client.list_workflows(query).map_histories()
    async with replayer.workflow_replay_iterator(histories) as results:
        async for result in results:
            replayed += 1
            if result.replay_failure is not None:
                failures[result.history.workflow_id] = str(result.replay_failure)
    return ReplayReport(replayed, failures)


async def check(settings: Settings) -> ReplayReport:
    """Replay what runs in the namespace of the settings.

    Raises:
        Unavailable: Temporal is away.

    """
    try:
        client = await connect(settings, address=settings.temporal_address, identity=f"replay-check/{os.getpid()}")
        return await replay_running(client)
    except (RuntimeError, RPCError) as error:  # the first is what the SDK raises when it cannot connect
        raise Unavailable(
            f"Temporal at {settings.temporal_address} does not answer: {error}", hint="look at `gf status`"
        ) from error


def main() -> int:
    """Check and tell; return the exit code."""
    try:
        report = asyncio.run(check(read_settings()))
    except GigafactoryError as error:
        sys.stderr.write(f"gf: {error.message}{f'; {error.hint}' if error.hint else ''}\n")
        return 1
    for name, why in sorted(report.failures.items()):
        sys.stderr.write(f"{name} does not replay on this version: {why}\n")
    good = report.replayed - len(report.failures)
    sys.stderr.write(f"{good} of {report.replayed} running jobs go on with this version\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the SDK's runtime may abort a normal interpreter exit (sdk-python issue 300)
