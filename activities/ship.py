"""The `ship` activity: one fenced, atomic, idempotent push; and `retract`, its opposite. Does I/O: git.

Idempotent: a push that has happened already is found by `refs/gigafactory/shipped/<job>` on the remote and gives the
same answer. Retried when its factory is lost, also on another one. See docs/explanation/ship.md.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from temporalio import activity

from activities import git
from activities.factory import FactoryContext
from activities.fence import branch_ref, closed, job_ref, opened, shipped, shipped_ref, wip_ref
from activities.judge import Verification
from activities.stoppable import under_heartbeat
from activities.workspace import store
from core.attempt import LOG_TAIL_CHARS, ShipRequest, ShipResult
from core.errors import StaleEpoch, WorkspaceError
from core.job import RepositoryKind, ShipMode

Outcome = Literal["shipped", "conflict", "verify_failed", "fenced"]

ROUNDS: Final = 5
"""How often a base that moves again and again is followed."""


class ShipActivities:
    """Ships candidates from one factory."""

    def __init__(self, context: FactoryContext) -> None:
        self._context = context

    @activity.defn
    async def ship(self, request: ShipRequest) -> ShipResult:
        """Bring an approved candidate to its branch or into the base; running it again gives the same answer."""
        shipment = Shipment(self._context, request)
        return await under_heartbeat(shipment.run(), beat_s=self._context.settings.beat_s)

    @activity.defn
    async def retract(self, request: ShipRequest) -> None:
        """Close the epoch on the remote, so that a candidate that was rejected cannot ship; harmless when repeated."""
        await under_heartbeat(retract(self._context, request), beat_s=self._context.settings.beat_s)


async def retract(context: FactoryContext, request: ShipRequest) -> None:
    """Move the job's fence past the epoch.

    Raises:
        StaleEpoch: a newer epoch has begun, or the job was shipped.

    """
    url = request.spec.repository.url
    if request.spec.repository.kind == RepositoryKind.DIRECTORY:
        return
    mirror = await context.workspaces.mirror(url, request.base_sha)
    tip = store(mirror, closed(request.job_id, request.epoch, git.object_format_of(request.base_sha)))
    pushed = await git.push(mirror, url, [f"{tip}:{job_ref(request.job_id)}"])
    if not pushed.ok:
        raise StaleEpoch(f"epoch {request.epoch} of {request.job_id} is not the newest on {git.strip_userinfo(url)}")


class Standing(StrEnum):
    """What the remote says about the job and its target."""

    FREE = "free"
    SHIPPED = "shipped"
    FENCED = "fenced"
    MOVED = "moved"


def judge_refs(
    refs: dict[str, str], *, job_id: str, epoch: int, target: str, expected: str, object_format: str
) -> Standing:
    """Return how things stand on the remote; `expected` is the commit that the target should hold. *Pure.*"""
    if shipped_ref(job_id) in refs:
        return Standing.SHIPPED
    fence = refs.get(job_ref(job_id), "")
    allowed = {"", *(sha for sha, _ in opened(job_id, epoch, object_format))}
    if fence not in allowed:
        return Standing.FENCED
    return Standing.FREE if refs.get(target, "") == expected else Standing.MOVED


class Shipment:
    """One ship of one candidate."""

    def __init__(self, context: FactoryContext, request: ShipRequest) -> None:
        self._context = context
        self._request = request
        self._repository = request.spec.repository
        self._url = request.spec.repository.url
        self._format = git.object_format_of(request.base_sha)
        self._base_ref = f"refs/heads/{self._repository.base}"
        self._to_base = request.spec.ship == ShipMode.BASE and not self._repository.base_checked_out
        self._target = self._base_ref if self._to_base else branch_ref(request.job_id)
        self._mirror = Path()

    async def run(self) -> ShipResult:
        """Push; when the remote refuses, look why, and follow a base that has moved."""
        request = self._request
        if self._repository.kind == RepositoryKind.DIRECTORY:
            return self._result("shipped", (), "", f"the work was done in place, in {self._url}")
        if request.spec.ship == ShipMode.PR:
            raise WorkspaceError("`ship: pr` is not built yet; use `ship: branch`")
        self._mirror = await self._context.workspaces.mirror(self._url, request.base_sha)
        if request.candidate_sha == request.base_sha:
            return await self._ship_nothing()
        landing, expected = request.candidate_sha, request.base_sha if self._to_base else ""
        for _ in range(ROUNDS):
            pushed = await self._push(landing, expected)
            if pushed.ok:
                return self._shipped(landing)
            following = await self._after_refusal(pushed, landing, expected)
            if isinstance(following, ShipResult):
                return following
            landing, expected = following
        raise WorkspaceError(f"{self._repository.base} moved {ROUNDS} times while the job was being shipped; try again")

    async def _after_refusal(self, pushed: git.PushResult, landing: str, expected: str) -> ShipResult | tuple[str, str]:
        """Return the answer, or what to push next and what the target should hold then."""
        reasons = "; ".join(f"{ref}: {reason}" for ref, reason in pushed.rejected.items())
        if self._to_base and "checked out" in pushed.rejected.get(self._target, ""):
            self._to_base, self._target = False, branch_ref(self._request.job_id)
            return self._request.candidate_sha, ""
        refs = await self._read_refs()
        standing = self._standing(refs, expected)
        if standing == Standing.SHIPPED:
            return self._shipped(refs[shipped_ref(self._request.job_id)])
        if standing == Standing.FENCED:
            return self._fenced()
        if standing == Standing.MOVED:
            return await self._follow(refs.get(self._target, ""))
        if "lock" in reasons:  # somebody else was writing to the same ref just now
            return landing, expected
        raise WorkspaceError(f"{git.strip_userinfo(self._url)} refuses the ship: {reasons}")

    # --- the push -----------------------------------------------------------------------------------------------------

    async def _push(self, landing: str, expected: str) -> git.PushResult:
        """Push target, fence and shipped mark together, or none of them."""
        request = self._request
        mark = store(self._mirror, shipped(request.job_id, request.epoch, self._format))
        refspecs = [
            f"{landing}:{self._target}",
            f"{mark}:{job_ref(request.job_id)}",
            f"{landing}:{shipped_ref(request.job_id)}",
        ]
        return await self._pushed(landing, refspecs, {self._target: expected, shipped_ref(request.job_id): ""})

    async def _pushed(self, landing: str, refspecs: list[str], leases: dict[str, str]) -> git.PushResult:
        ref = wip_ref(self._request.job_id, self._request.epoch)
        return await self._context.workspaces.with_commit(
            self._url, landing, ref, lambda mirror: git.push(mirror, self._url, refspecs, leases=leases)
        )

    async def _ship_nothing(self) -> ShipResult:
        """Mark a job that changed nothing as shipped, at its base; no branch is made."""
        request = self._request
        mark = store(self._mirror, shipped(request.job_id, request.epoch, self._format))
        refspecs = [f"{mark}:{job_ref(request.job_id)}", f"{request.base_sha}:{shipped_ref(request.job_id)}"]
        pushed = await self._pushed(request.base_sha, refspecs, {shipped_ref(request.job_id): ""})
        if not pushed.ok:
            refs = await self._read_refs()
            if self._standing(refs, refs.get(self._target, "")) != Standing.SHIPPED:
                return self._fenced()
        return self._result("shipped", (), "", "nothing had changed")

    async def _read_refs(self) -> dict[str, str]:
        job_id = self._request.job_id
        return await git.ls_remote(self._url, self._target, job_ref(job_id), shipped_ref(job_id))

    def _standing(self, refs: dict[str, str], expected: str) -> Standing:
        return judge_refs(
            refs,
            job_id=self._request.job_id,
            epoch=self._request.epoch,
            target=self._target,
            expected=expected,
            object_format=self._format,
        )

    # --- a base that has moved ----------------------------------------------------------------------------------------

    async def _follow(self, base: str) -> ShipResult | tuple[str, str]:
        """Put the candidate on top of what the target holds now; return the commit and that, or why it cannot ship."""
        request = self._request
        if not self._to_base:
            return self._branch_taken(base)
        if not base:
            raise WorkspaceError(f"the branch {self._repository.base} is gone from {git.strip_userinfo(self._url)}")
        merged = await self._context.workspaces.with_commit(
            self._url, base, self._base_ref, lambda mirror: git.merge_trees(mirror, base, request.candidate_sha)
        )
        if merged.conflicts:
            return await self._conflict(base, merged)
        who, message = await git.read_commit(self._mirror, request.candidate_sha)
        when = datetime.now(UTC)
        commit = git.write_commit(self._mirror, merged.tree, [base], message=message, who=who, when=when)
        verified = await Verification(self._context, request.job_id, request.epoch, request.spec).of(commit)
        if verified is not None and not verified.passed:
            text = f"`{verified.command}` failed on top of {base[:12]}:\n{verified.log_tail}"
            return self._result("verify_failed", (), self._target, text)
        return commit, base

    async def _conflict(self, base: str, merged: git.MergeResult) -> ShipResult:
        patch = await git.patch_text(self._mirror, base, merged.tree, *merged.conflicts[:20])
        hunks = self._context.redactor.redact(patch.decode(errors="replace"))
        head = f"{self._repository.base} has moved to {base[:12]} and conflicts in: {', '.join(merged.conflicts[:50])}"
        return self._result("conflict", (), self._target, f"{head}\n\n{hunks}")

    # --- answers ------------------------------------------------------------------------------------------------------

    def _shipped(self, landed: str) -> ShipResult:
        if self._to_base:
            return self._result("shipped", (landed,), self._target, f"on {self._repository.base} as {landed[:12]}")
        branch = self._target.removeprefix("refs/heads/")
        where = f"git -C {self._url} merge" if self._repository.base_checked_out else "git merge"
        if git.is_network_url(self._url):
            where = f"git fetch {git.strip_userinfo(self._url)} {branch} && git merge FETCH_HEAD"
            return self._result("shipped", (landed,), self._target, f"on branch {branch}; to merge it: {where}")
        return self._result("shipped", (landed,), self._target, f"on branch {branch}; to merge it: {where} {branch}")

    def _branch_taken(self, holds: str) -> ShipResult:
        branch = self._target.removeprefix("refs/heads/")
        text = (
            f"the branch {branch} exists already, at {holds[:12]}, and was not made by this job; move it out of the way"
        )
        return self._result("conflict", (), self._target, text)

    def _fenced(self) -> ShipResult:
        text = f"epoch {self._request.epoch} was superseded or retracted on {git.strip_userinfo(self._url)}"
        return self._result("fenced", (), self._target, text)

    def _result(self, outcome: Outcome, commits: tuple[str, ...], ref: str, message: str) -> ShipResult:
        return ShipResult(
            job_id=self._request.job_id,
            epoch=self._request.epoch,
            outcome=outcome,
            commits=commits,
            ref=ref,
            message=message[:LOG_TAIL_CHARS],
        )
