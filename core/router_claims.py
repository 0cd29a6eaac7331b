"""What granted jobs hold while a plan is made: named locks, and paths of repositories. *Pure.*"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from core.router_explain import Blocker
from core.router_snapshot import LockView, ReadyJob
from core.scope import overlaps


class _Claim(NamedTuple):
    """Paths of one repository that a granted job may change."""

    job_id: str
    scope: tuple[str, ...]


class Claims:
    """Named locks and claimed paths that granted jobs hold; they only become more."""

    def __init__(self, held: Iterable[LockView]) -> None:
        self.holders: set[str] = set()
        """Jobs that hold something, waiting ones included: they keep it from one attempt to the next."""
        self._locks: dict[str, list[str]] = {}
        self._scopes: dict[str, list[_Claim]] = {}
        self._clear_of: dict[tuple[str, tuple[str, ...]], int] = {}
        for view in held:
            self._hold(view.job_id, (view.lock,) if view.lock else ())
            self._claim(view.job_id, view.repository_url, view.allowed_scope)

    def take(self, job: ReadyJob) -> None:
        """Take everything that a job needs, which is granted."""
        self._hold(job.job_id, job.locks)
        self._claim(job.job_id, job.repository_url, job.claim)

    def _hold(self, job_id: str, names: tuple[str, ...]) -> None:
        self.holders.add(job_id)
        for name in names:
            self._locks.setdefault(name, []).append(job_id)

    def _claim(self, job_id: str, repository_url: str, scope: tuple[str, ...]) -> None:
        if repository_url and scope:
            self._scopes.setdefault(repository_url, []).append(_Claim(job_id, scope))

    def blocks(self, job: ReadyJob) -> bool:
        """Return whether another job holds what this one needs; what it holds itself does not block it."""
        if job.job_id in self.holders:
            return bool(self.blockers(job))
        if any(name in self._locks for name in job.locks):
            return True
        return bool(job.claim) and self._scope_is_claimed(job.repository_url, job.claim)

    def _scope_is_claimed(self, repository_url: str, scope: tuple[str, ...]) -> bool:
        """Compare `scope` with the claims on that repository, with each of them only once."""
        claims = self._scopes.get(repository_url, [])
        clear_of = self._clear_of.get((repository_url, scope), 0)
        while clear_of < len(claims) and not overlaps(scope, claims[clear_of].scope):
            clear_of += 1
        self._clear_of[repository_url, scope] = clear_of
        return clear_of < len(claims)

    def blockers(self, job: ReadyJob) -> tuple[Blocker, ...]:
        """Return everything that other jobs hold and this one needs, in one order."""
        locks = [
            Blocker(kind="lock", name=name, held_by=holder)
            for name in job.locks
            for holder in sorted(set(self._locks.get(name, ())))
            if holder != job.job_id
        ]
        scopes = [
            Blocker(
                kind="scope",
                name=job.repository_url,
                held_by=claim.job_id,
                detail=f"{' '.join(job.claim)} overlaps {' '.join(claim.scope)}",
            )
            for claim in sorted(set(self._scopes.get(job.repository_url, ())))
            if claim.job_id != job.job_id and overlaps(job.claim, claim.scope)
        ]
        return (*locks, *scopes)
