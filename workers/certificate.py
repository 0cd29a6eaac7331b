"""A death certificate on its way from a supervisor to the API. Does I/O: HTTP, disk.

Standard library only, since no agent is left to do it. Written to `death.json` first: what cannot be delivered now is
delivered by the agent when it is back.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

DELIVERY_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 5.0
PAUSES_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
FILE: Final = "death.json"


def deliver(spec: Mapping[str, Any], *, group_dead: bool, checkpoint_sha: str, reason: str) -> bool:
    """Tell the API that nothing of the attempt lives any more; return whether it heard.

    `spec` is the supervisor's specification: job, epoch, run folder, and `api` with `url` and `token_file`.
    """
    body = {
        "job_id": spec["job_id"],
        "epoch": spec["epoch"],
        "group_dead": group_dead,
        "checkpoint_sha": checkpoint_sha,
        "reason": reason or "agent_died",
        "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    letter = Path(spec["run_dir"], FILE)
    draft = letter.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(body), encoding="utf-8")
    draft.replace(letter)
    api = spec.get("api")
    if not api or not _post_patiently(api["url"], Path(api["token_file"]), body):
        return False
    letter.replace(letter.with_suffix(".sent.json"))
    return True


def _post_patiently(url: str, token_file: Path, body: Mapping[str, Any]) -> bool:
    limit = time.monotonic() + DELIVERY_S
    attempt = 0
    while True:
        with suppress(OSError, http.client.HTTPException):
            if _post(url, token_file.read_text(encoding="utf-8").strip(), body) < 500:
                return True  # also when it was refused: saying it again would change nothing
        if time.monotonic() > limit:
            return False
        time.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
        attempt += 1


def _post(url: str, token: str, body: Mapping[str, Any]) -> int:
    target = urlsplit(url)
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.hostname or "", target.port, timeout=REQUEST_TIMEOUT_S)
    try:
        path = f"{target.path.rstrip('/')}/fleet/attempts/{body['job_id']}/{body['epoch']}/death"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection.getresponse().status
    finally:
        connection.close()
