"""Every error that Gigafactory expects, as one tree. *Pure.*

    GigafactoryError
    ├── InvalidInput            the caller sent something malformed (422)
    │   └── InvalidManifest     …a job file; carries one FieldProblem per mistake
    ├── NotFound                no such job, factory, profile, artifact (404)
    ├── Conflict                the request contradicts what is (409)
    │   ├── IdempotencyConflict same key, other content
    │   ├── IllegalTransition   a stage change that the lifecycle does not have
    │   ├── IllegalAction       an operator's action that is not legal now
    │   └── StaleEpoch          a write of an attempt whose lease is gone
    ├── Unauthenticated         no or unknown token (401)
    ├── Forbidden               known caller, not allowed (403)
    └── Unavailable             a part of the environment is away (503)
        ├── WorkspaceError      git, disk or directory trouble on a factory
        └── EngineError         an agent CLI or its provider failed

`code` is stable and documented in `docs/reference/errors.md`; `fault` says who can mend it; `retryable` whether the
same call may succeed later. Anything that is not a `GigafactoryError` is a bug and must be loud.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Fault = Literal["caller", "environment", "provider"]


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One mistake in an input: where, what was given, what was expected, and the nearest valid spelling."""

    path: str
    message: str
    value: object = None
    expected: str = ""
    suggestion: str = ""
    line: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the problem as a JSON object without empty members."""
        pairs = {
            "path": self.path,
            "line": self.line,
            "message": self.message,
            "value": self.value,
            "expected": self.expected,
            "suggestion": self.suggestion,
        }
        return {key: value for key, value in pairs.items() if value not in (None, "")}


class GigafactoryError(Exception):
    """Base of every expected error; `hint` is the next step for whoever reads it."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    fault: ClassVar[Fault] = "environment"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def as_problem(self) -> dict[str, Any]:
        """Return the error as an RFC 9457 problem object."""
        problem: dict[str, Any] = {
            "type": f"urn:gigafactory:error:{self.code}",
            "title": self.code.replace("_", " "),
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "fault": self.fault,
            "retryable": self.retryable,
        }
        if self.hint:
            problem["hint"] = self.hint
        return problem | self.fields


class InvalidInput(GigafactoryError):
    """The input is malformed; `problems` names every mistake at once."""

    code, status, fault = "invalid_input", 422, "caller"

    def __init__(self, message: str, problems: tuple[FieldProblem, ...] = (), *, hint: str = "") -> None:
        super().__init__(message, hint=hint, errors=[problem.as_dict() for problem in problems])
        self.problems = problems


class InvalidManifest(InvalidInput):
    """A job file (or a job sent as JSON) does not follow the schema."""

    code = "invalid_manifest"


class NotFound(GigafactoryError):
    """There is no such thing under that id."""

    code, status, fault = "not_found", 404, "caller"


class Conflict(GigafactoryError):
    """The request contradicts the present state."""

    code, status, fault = "conflict", 409, "caller"


class IdempotencyConflict(Conflict):
    """The idempotency key is taken by a job with other content; `differs` names the fields."""

    code = "idempotency_conflict"


class IllegalTransition(Conflict):
    """The lifecycle has no such stage change; both ends are named."""

    code = "illegal_transition"


class IllegalAction(Conflict):
    """The action exists but is not legal for the job as it is now."""

    code = "illegal_action"


class StaleEpoch(Conflict):
    """The write carries an epoch whose lease is lost, ended or superseded."""

    code = "stale_epoch"


class Unauthenticated(GigafactoryError):
    """The caller showed no token, or one that is not known."""

    code, status, fault = "unauthenticated", 401, "caller"


class Forbidden(GigafactoryError):
    """The caller is known but may not do this."""

    code, status, fault = "forbidden", 403, "caller"


class Unavailable(GigafactoryError):
    """A part that is needed does not answer; the same call may work later."""

    code, status, retryable = "unavailable", 503, True


class WorkspaceError(Unavailable):
    """Git, disk or directory trouble on the factory that holds the workspace."""

    code = "workspace"


class EngineError(Unavailable):
    """An engine cannot be run, or its provider refused the work."""

    code, fault = "engine", "provider"
