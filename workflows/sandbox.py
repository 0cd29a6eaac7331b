"""The SDK's sandbox, in which tests run the workflows; production does without (ADR 0005)."""

from __future__ import annotations

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions


def workflow_runner() -> SandboxedWorkflowRunner:
    """Return the sandbox; our pure packages and their libraries pass through it."""
    restrictions = SandboxRestrictions.default.with_passthrough_modules("core", "pydantic", "pydantic_core", "yaml")
    return SandboxedWorkflowRunner(restrictions=restrictions)
