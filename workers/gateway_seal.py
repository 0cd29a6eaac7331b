"""Task tokens that only the factory which got the task can use. Does I/O: the key file.

Temporal's own task tokens are plain serialised messages: who knows how they are made can answer for anybody's activity.
A factory never sees one. It gets the token in a sealed envelope, which names the factory and the task:

    "gf1" · HMAC-SHA256(key, "gf1" · body) · body
    body = JSON [factory, queue, workflow id, run id, activity id, attempt, token]

All gateways of an installation share the key, so that a factory may talk to any of them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from core.errors import Unavailable
from workers.gateway_policy import FactoryIdentity, denied

KEY_BYTES: Final = 32
_VERSION: Final = b"gf1"
_MAC_END: Final = len(_VERSION) + hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt of an activity, as its token names it."""

    factory: str
    queue: str
    workflow_id: str
    run_id: str
    activity_id: str
    attempt: int
    token: bytes
    """Temporal's own token."""


class TaskSeal:
    """Seals and opens task tokens with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def wrap(self, task: Task) -> bytes:
        """Return the token that the factory gets."""
        *names, token = astuple(task)
        body = json.dumps([*names, base64.b64encode(token).decode()], separators=(",", ":")).encode()
        return _VERSION + self._mac(body) + body

    def unwrap(self, sealed: bytes, caller: FactoryIdentity) -> Task:
        """Return the task that a token of `caller` stands for.

        Raises:
            Refused: the token was not sealed with our key, or for another factory, or for a queue that is not the
                caller's any more.

        """
        mac, body = sealed[len(_VERSION) : _MAC_END], sealed[_MAC_END:]
        if not sealed.startswith(_VERSION) or not hmac.compare_digest(mac, self._mac(body)):
            raise denied("this task token was not given out by this gateway")
        factory, queue, workflow_id, run_id, activity_id, attempt, token = json.loads(body)
        task = Task(factory, queue, workflow_id, run_id, activity_id, attempt, base64.b64decode(token))
        if task.factory != caller.name:
            raise denied("this task token was given to another factory")
        if not caller.may_poll(task.queue):
            raise denied(f"the task queue {task.queue} is not one of this factory's any more")
        return task

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, _VERSION + body, "sha256")


def ensure_key(path: Path) -> bytes:
    """Read the key that all gateways share, and make it first if there is none; safe against several at once.

    Raises:
        Unavailable: others than the owner may read the file, or it holds no key.

    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{secrets.token_hex(KEY_BYTES)}\n")
            with contextlib.suppress(FileExistsError):  # another gateway was first: its key stands
                os.link(draft, path)
        finally:
            draft.unlink()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise Unavailable(f"{path} may be read by others (mode {mode:o})", hint=f"chmod 600 {path}")
    try:
        key = bytes.fromhex(path.read_text(encoding="utf-8"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise Unavailable(
            f"{path} does not hold {2 * KEY_BYTES} hexadecimal digits",
            hint=f"delete {path}; a new key is made then, and attempts under way through the gateway are lost",
        )
    return key
