"""Tokens of this machine, as files that only their owner can read: the one place that makes them. Does I/O: files.

    <home>/token                    the person whose stack this is: an admin
    <home>/factories/<name>/token   the factory of that name

A local token is made as a file, before there is a ledger to keep it in; `store.token_book` adopts it when it is first
shown. An enrolled factory's file holds what the API gave it. Standard library only, because this lies on the way to a
quick start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core.errors import Unavailable
from core.roles import Role
from core.tokens import PERSON_PREFIX, PREFIXES, RANDOM_BYTES, is_token_shaped


class LocalToken(NamedTuple):
    """A token that lies in a file of this home."""

    path: Path
    token: str
    factory: str | None
    """None: the person's."""


def person_token_file(home: Path) -> Path:
    """Return the file with the token of the person whose stack this is."""
    return home / "token"


def factory_token_file(home: Path, name: str) -> Path:
    """Return the file with the token of one factory."""
    return home / "factories" / name / "token"


def ensure_person_token(home: Path) -> str:
    """Return the person's token of `home`, made now if there is none; one of the first version stays good.

    Raises:
        Unavailable: the file holds something else.

    """
    return _ensure(person_token_file(home), PERSON_PREFIX)


def ensure_factory_token(home: Path, name: str) -> str:
    """Return the token of a factory of `home`, made now if there is none.

    Raises:
        Unavailable: the file holds something else.

    """
    return _ensure(factory_token_file(home, name), PREFIXES[Role.FACTORY])


def new_token(prefix: str) -> str:
    """Return a token that nobody has seen."""
    return prefix + secrets.token_urlsafe(RANDOM_BYTES)


def write_token(path: Path, token: str) -> None:
    """Write a token in the place of what `path` held; readable by its owner alone from the first byte on."""
    draft = _draft(path, token)
    draft.replace(path)


def local_tokens(home: Path) -> Iterator[LocalToken]:
    """Yield the tokens in the files of `home` that nobody else could have written."""
    files: list[tuple[Path, str | None]] = [(person_token_file(home), None)]
    files += [(path, path.parent.name) for path in sorted(home.glob("factories/*/token"))]
    for path, factory in files:
        with contextlib.suppress(OSError):
            if is_trustworthy(path.stat(), path.parent.stat(), os.getuid()):
                yield LocalToken(path, path.read_text(encoding="utf-8").strip(), factory)


def is_trustworthy(file: os.stat_result, folder: os.stat_result, us: int) -> bool:
    """Return whether nobody else can have put a token where `file` is; `us` is our user id.

    A file of another user counts where only we or root can place one: that is what a secret looks like that was mounted
    into a container.
    """
    owners = (us, 0)
    placed_by_us = folder.st_uid in owners and not folder.st_mode & 0o022
    return not file.st_mode & 0o022 and (file.st_uid in owners or placed_by_us)


def _ensure(path: Path, prefix: str) -> str:
    """Return the token in `path`; of several processes that make one at once the first wins, and all have its token."""
    if not path.exists():
        draft = _draft(path, new_token(prefix))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    path.chmod(0o600)
    token = path.read_text(encoding="utf-8").strip()
    if not is_token_shaped(token):
        raise Unavailable(
            f"{path} does not hold a usable token", hint=f"delete {path} and start again; a new token is made then"
        )
    return token


def _draft(path: Path, token: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{token}\n")
    return draft
