"""How a job goes on whose workflow is gone: from where the ledger says it stands. *Pure.*

The ledger has everything that others rely on: the stage, the candidate with its verdict, what the job waits for, how
often it failed. So a new workflow can take the place of a lost one without an engine working twice on what was done.
"""

from __future__ import annotations

from core.job import Stage
from core.job_events import Decision, JobState, Standing, step_command

POLICY_APPROVAL = "policy: review-policy auto, verify passed"
"""Who approved a ship that nobody was asked about."""


def restored(state: JobState, standing: Standing) -> JobState:
    """Return the state of a workflow that just began, with what the ledger knows put in."""
    known = state.model_copy(
        update={
            "conditions": standing.conditions,
            "failures": standing.failures,
            "reclaims": standing.reclaims,
            "story": standing.story,
        }
    )
    grant = standing.grant
    if grant is None:
        ends = [condition.until for condition in standing.conditions if condition.until is not None]
        return known.model_copy(update={"wake_at": max(ends, default=None)})
    return known.model_copy(
        update={
            "stage": standing.stage,
            "epoch": grant.epoch,
            "grant": grant,
            "candidate_sha": standing.candidate_sha,
            "base_sha": standing.base_sha,
            "verify": standing.verify,
        }
    )


def gate_again(state: JobState, standing: Standing) -> Decision:
    """Go on with a candidate: judge it, ship it as was approved, or wait for the human's word.

    Both steps may be repeated: the verdict is about that one commit, and the remote takes it once.
    """
    assert state.grant is not None
    if not state.verify:
        judging = state.model_copy(update={"step": "judge"})
        return Decision(state=judging, commands=(step_command(judging),))
    by = standing.approved_by if standing.shipping else _approved_by_policy(state)
    if by is None:
        return Decision(state=state)
    shipping = state.model_copy(update={"step": "ship", "approved_by": by})
    return Decision(state=shipping, commands=(step_command(shipping),))


def _approved_by_policy(state: JobState) -> str | None:
    """Return the policy's name when it would have shipped the candidate without asking."""
    automatic = state.spec.review_policy == "auto" and state.stage == Stage.TESTING and not state.conditions
    return POLICY_APPROVAL if automatic else None
