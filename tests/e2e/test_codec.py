"""A stack whose setting `payload_codec` names a codec: everything works, and Temporal holds nothing readable."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from temporalio.client import Client

from core.attempt import workflow_id
from tests.e2e.conftest import ROOT, Remote, running_stack, wait_for

pytestmark = pytest.mark.stack

SECRET = "grey-heron-at-dawn"
JOB = """---
engine: shell
repo: {remote}
base: main
verify: test -s {secret}.txt
---
# Write {secret}

```sh
{script}
```
"""


def test_stack_with_a_codec_ships_and_cancels_with_nothing_readable_in_temporal(
    tmp_path: Path, remote: Remote, temporal_binary: Path
) -> None:
    """All processes of a stack, and the real factory's heartbeats and answers, go through the codec."""
    codec = f"{ROOT / 'tests' / 'sealing.py'}:SealingCodec"
    with running_stack(tmp_path / "home", factories=1, payload_codec=codec) as stack:
        done = stack.submit(JOB.format(remote=remote.path, secret=SECRET, script=f"echo x > {SECRET}.txt"))
        stopped = stack.submit(JOB.format(remote=remote.path, secret=SECRET, script="sleep 987701"))
        stack.ship(done)
        wait_for("the engine", lambda: stack.attempt_processes(stopped))
        assert stack.act(stopped, "cancel", reason=SECRET).status_code == 200
        stack.until(stopped, "cancelled")
        wait_for("the engine's end", lambda: not stack.attempt_processes(stopped))
        assert f"{SECRET}.txt" in remote.files(f"gigafactory/{done}")
        for job_id in (done, stopped):
            kept = asyncio.run(kept_by_temporal(stack.state()["urls"]["temporal"], job_id))
            assert len(kept) > 2000
            assert SECRET.encode() not in kept


async def kept_by_temporal(address: str, job_id: str) -> bytes:
    """Return all that Temporal holds of a job's workflow, as somebody without the codec reads it."""
    handle = (await Client.connect(address)).get_workflow_handle(workflow_id("default", job_id))
    described = (await handle.describe()).raw_description.SerializeToString()
    return described + b"".join(event.SerializeToString() for event in (await handle.fetch_history()).events)
