"""The fence that a job has on its remote: which refs there are, and what each epoch puts on them. *Pure.*

`refs/gigafactory/job/<job>` holds a commit that stands for the newest epoch known there. These commits are made from
job and epoch alone (fixed author, date and an empty tree), so every machine computes the same ids without asking:

    open(1) ◀── closed(1) ◀── open(2) ◀── closed(2) ◀── open(3) …
       ▲                         ▲
    shipped(1)               shipped(2)

They are pushed *without force*, and git's own fast-forward rule is the fence: from absent, from any older epoch and
from the same place the move is legal; an epoch that was closed or superseded is refused by the remote, also when
our API is not asked. A shipped mark descends from no later epoch, so nothing can move past it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from activities.git import Identity, commit_object

EMPTY_TREE: Final = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
_WHO: Final = Identity()
_WHEN: Final = datetime(2020, 1, 1, tzinfo=UTC)

Objects = list[tuple[str, bytes]]
"""Commits as (id, bytes), oldest first; the last one is the tip."""


def job_ref(job_id: str) -> str:
    """Return the ref that holds the fence."""
    return f"refs/gigafactory/job/{job_id}"


def quarantine_ref(job_id: str, epoch: int) -> str:
    """Return the ref that keeps what one epoch finished after it had lost its lease; nothing ever reads it."""
    return f"refs/gigafactory/quarantine/{job_id}/{epoch}"


def wip_ref(job_id: str, epoch: int) -> str:
    """Return the ref that holds checkpoints and the candidate of one epoch."""
    return f"refs/gigafactory/wip/{job_id}/{epoch}"


def shipped_ref(job_id: str) -> str:
    """Return the ref that says, once and for all, what was shipped."""
    return f"refs/gigafactory/shipped/{job_id}"


def branch_ref(job_id: str) -> str:
    """Return the branch that an approved candidate goes to."""
    return f"refs/heads/gigafactory/{job_id}"


def opened(job_id: str, epoch: int, object_format: str = "sha1") -> Objects:
    """Return the chain up to the mark «epoch has begun»."""
    chain: Objects = []
    for number in range(1, epoch):
        _extend(chain, job_id, number, "open", object_format)
        _extend(chain, job_id, number, "closed", object_format)
    _extend(chain, job_id, epoch, "open", object_format)
    return chain


def closed(job_id: str, epoch: int, object_format: str = "sha1") -> Objects:
    """Return the chain up to the mark «epoch is over, nothing of it may ship»."""
    chain = opened(job_id, epoch, object_format)
    _extend(chain, job_id, epoch, "closed", object_format)
    return chain


def shipped(job_id: str, epoch: int, object_format: str = "sha1") -> Objects:
    """Return the chain up to the mark «epoch was shipped»."""
    chain = opened(job_id, epoch, object_format)
    _extend(chain, job_id, epoch, "shipped", object_format)
    return chain


def _extend(chain: Objects, job_id: str, epoch: int, word: str, object_format: str) -> None:
    parents = [chain[-1][0]] if chain else []
    message = f"{word} {job_id} {epoch}"
    tree = EMPTY_TREE[object_format]
    chain.append(commit_object(tree, parents, message=message, who=_WHO, when=_WHEN, object_format=object_format))
