"""The messages between control plane and factory about one attempt. *Pure.*

A factory's answers are taken raw by the workflow and validated here (`parse_build_result` …), because one malformed
answer must fail the attempt and never wedge the job. Every message names `job_id` and `epoch`; the epoch is the fence.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from core.job import FailureKind, JobSpec, Message

Sha = str
LOG_TAIL_CHARS = 4000
"""Longest log tail that a result may carry; the whole log lies in the ledger."""


def station_queue(factory: str, engine: str) -> str:
    """Return the task queue of the seats that `factory` has for `engine`."""
    return f"gf.station.{factory}.{engine}"


def factory_queue(factory: str) -> str:
    """Return the task queue for workspace steps that run on `factory`."""
    return f"gf.factory.{factory}"


def workflow_id(product_id: str, job_id: str) -> str:
    """Return the id of the job's workflow; unique per product."""
    return f"gf-job-{product_id}-{job_id}"


class Grant(Message):
    """One admission: this job, this epoch, on that factory's seat, under a lease."""

    job_id: str
    product_id: str = "default"
    epoch: int
    factory: str
    engine: str
    host: str = ""
    lease_ttl_s: float = 30.0
    beat_s: float = 5.0
    kill_epoch: int = 0
    """Kill epoch at which it was granted: no halt up to there covers it, so an agent that hears late is not misled."""
    granted_at: datetime
    reason: str = ""
    """One line for people: why this factory and engine."""
    base_sha: Sha = ""
    checkpoint_sha: Sha = ""
    """Last checkpoint of an earlier epoch, empty for a first attempt."""
    checkpoint_epoch: int = 0
    """Epoch whose wip ref holds `checkpoint_sha`; 0 when there is none."""

    @property
    def engine_queue(self) -> str:
        """Return the queue that the engine activity goes to."""
        return station_queue(self.factory, self.engine)

    @property
    def workspace_queue(self) -> str:
        """Return the queue for the steps that follow on the same machine."""
        return factory_queue(self.factory)


class Resume(Message):
    """What a later attempt is told about the earlier ones."""

    session_id: str | None = None
    """Engine session that may be resumed, when the engine is the same."""
    engine: str | None = None
    note: str = ""
    """A human's words from reject or requeue."""
    failure: str = ""
    """What went wrong last time, with the log tail."""


class BuildRequest(Message):
    """Argument of the `run_engine` activity."""

    job_id: str
    product_id: str = "default"
    epoch: int
    spec: JobSpec
    grant: Grant
    resume: Resume = Resume()


class Usage(Message):
    """What an attempt consumed. `None` is unknown and is never shown as 0."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cost_usd: Decimal | None = None
    cost_source: Literal["reported", "estimated", "unknown"] = "unknown"


class BuildResult(Message):
    """Answer of `run_engine`: either a sealed candidate or a failure, with the work so far in both cases."""

    job_id: str
    epoch: int
    outcome: Literal["succeeded", "failed"]
    candidate_sha: Sha = Field(default="", max_length=64, pattern=r"^[0-9a-f]*$")
    """The squashed commit on top of the base; from here on this SHA is what is judged and shipped."""
    checkpoint_sha: Sha = Field(default="", max_length=64, pattern=r"^[0-9a-f]*$")
    base_sha: Sha = Field(default="", max_length=64, pattern=r"^[0-9a-f]*$")
    changed: bool = False
    failure: FailureKind | None = None
    message: str = Field(default="", max_length=4000)
    retry_at: AwareDatetime | None = None
    """For `rate_limited`: when the provider says that work is possible again."""
    exit_code: int | None = None
    duration_s: float = 0.0
    session_id: str | None = Field(default=None, max_length=200)
    engine_version: str = Field(default="", max_length=200)
    tool_calls: int = 0
    usage: Usage = Usage()
    log_tail: str = Field(default="", max_length=LOG_TAIL_CHARS)


class JudgeRequest(Message):
    """Argument of the `judge` activity: scope and verify of one candidate."""

    job_id: str
    product_id: str = "default"
    epoch: int
    spec: JobSpec
    base_sha: Sha
    candidate_sha: Sha


class ChangedPath(Message):
    """One entry of the candidate's diff; `kind` is A, M, D, R, T (type change), X (mode) or S (submodule)."""

    path: str
    kind: str
    previous: str = ""
    target: str = ""
    """Where a new or changed symbolic link points; empty for everything else."""
    added: int = 0
    removed: int = 0


class Verdict(Message):
    """Answer of `judge`."""

    job_id: str
    epoch: int
    candidate_sha: Sha = Field(max_length=64, pattern=r"^[0-9a-f]*$")
    changes: tuple[ChangedPath, ...] = ()
    """At most 200 entries; `changed_paths` counts all."""
    changed_paths: int = 0
    out_of_scope: tuple[str, ...] = ()
    """Paths with the reason, e.g. `src/x.py (rename from docs/x.py)`; at most 200."""
    verify: Literal["passed", "failed", "none"]
    verify_command: str = ""
    """The command that failed."""
    verify_exit_code: int | None = None
    verify_duration_s: float = 0.0
    log_tail: str = Field(default="", max_length=LOG_TAIL_CHARS)


class ShipRequest(Message):
    """Argument of the `ship` activity."""

    job_id: str
    product_id: str = "default"
    epoch: int
    spec: JobSpec
    base_sha: Sha
    candidate_sha: Sha
    approved_by: str = ""


class ShipResult(Message):
    """Answer of `ship`; running it again gives the same answer."""

    job_id: str
    epoch: int
    outcome: Literal["shipped", "conflict", "verify_failed", "fenced"]
    commits: tuple[Sha, ...] = ()
    """What landed, newest first; empty when nothing had changed."""
    ref: str = Field(default="", max_length=500)
    message: str = Field(default="", max_length=LOG_TAIL_CHARS)
    """For a conflict: paths and hunks; for a branch: the command that merges it."""


class DeathCertificate(Message):
    """A supervisor's word that nothing of an attempt is alive any more; allows takeover at once."""

    job_id: str
    epoch: int
    group_dead: bool
    checkpoint_sha: Sha = ""
    reason: str = ""
    """`agent_died`, `supervisor_died`, `orphan_found`, `stopped`."""
    issued_at: datetime


AnswerT = TypeVar("AnswerT", BuildResult, Verdict, ShipResult)


def parse_answer(model: type[AnswerT], raw: bytes, *, job_id: str, epoch: int) -> AnswerT | str:
    """Validate a factory's raw JSON answer against `model`.

    Returns the answer, or one sentence that says what is wrong with it: not JSON, wrong shape, other job or epoch.
    """
    try:
        answer = model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "answer"
        return f"malformed {model.__name__}: {where}: {first['msg']} ({error.error_count()} problem(s))"
    if (answer.job_id, answer.epoch) != (job_id, epoch):
        return f"{model.__name__} is for {answer.job_id} epoch {answer.epoch}, expected {job_id} epoch {epoch}"
    return answer


def content_hash(value: object) -> str:
    """Return the SHA-256 (hex) of `value` as canonical JSON; `value` must be JSON-serialisable."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
