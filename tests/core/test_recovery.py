"""A job whose workflow is gone goes on from where the ledger says it stands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.attempt import Grant
from core.decision import decide, legal_actions
from core.job import Condition, Dependency, JobSpec, Repository, Stage
from core.job_events import (
    Act,
    Build,
    Decision,
    Granted,
    JobState,
    Judge,
    ResolveParents,
    Route,
    Ship,
    Standing,
    Started,
    Tick,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CANDIDATE = "c" * 40
BASE = "b" * 40
GRANT = Grant(job_id="j-1", epoch=3, factory="f1", engine="shell", granted_at=NOW)
PAUSED = Condition(type="paused", reason="operator", message="not now")
SCOPE = Condition(type="blocked", reason="scope", message="src/x is outside")


def begin(standing: Standing, *, epoch: int = 0, grant: Grant | None = None, **spec: Any) -> Decision:
    """Begin a workflow with a standing."""
    values: dict[str, Any] = {"title": "t", "body": "b", "repository": Repository(url="/r.git", base_sha=BASE)}
    state = JobState(job_id="j-1", spec=JobSpec.model_validate(values | spec), epoch=epoch)
    return decide(state, Started(grant=grant, standing=standing), NOW)


def at_gate(stage: Stage = Stage.TESTING, **values: Any) -> Standing:
    """Return the standing of a job whose candidate was judged."""
    known = {"grant": GRANT, "candidate_sha": CANDIDATE, "base_sha": BASE, "verify": "passed"}
    return Standing.model_validate({"stage": stage} | known | values)


def test_job_at_its_gate_is_at_its_gate_with_the_same_candidate() -> None:
    """Nothing runs, and the human may ship exactly what was there before."""
    decision = begin(at_gate())
    assert decision.commands == ()
    state = decision.state
    assert (state.stage, state.step, state.epoch, state.candidate_sha) == (Stage.TESTING, "", 3, CANDIDATE)
    assert "ship" in legal_actions(state)
    shipped = decide(state, Act(action="ship", sha=CANDIDATE, by="ada"), NOW)
    assert shipped.commands[-1] == Ship(grant=GRANT, base_sha=BASE, candidate_sha=CANDIDATE, approved_by="ada")


def test_blocked_gate_stays_blocked() -> None:
    """What kept the candidate from shipping still does."""
    decision = begin(at_gate(Stage.REVIEW, conditions=(SCOPE,)), review_policy="auto")
    assert decision.commands == ()
    assert "ship" not in legal_actions(decision.state)


def test_candidate_that_was_not_judged_is_judged() -> None:
    """The engine's work is not done again."""
    decision = begin(at_gate(Stage.REVIEW, verify=""))
    assert decision.commands == (Judge(grant=GRANT, base_sha=BASE, candidate_sha=CANDIDATE),)
    assert decision.state.step == "judge"


def test_ship_that_was_under_way_goes_on_in_the_approvers_name() -> None:
    """It may have landed already; the remote takes it once."""
    decision = begin(at_gate(shipping=True, approved_by="ada"))
    assert decision.commands == (Ship(grant=GRANT, base_sha=BASE, candidate_sha=CANDIDATE, approved_by="ada"),)
    assert decision.state.step == "ship"


@pytest.mark.parametrize(
    ("stage", "conditions", "ships"),
    [(Stage.TESTING, (), True), (Stage.TESTING, (PAUSED,), False), (Stage.REVIEW, (), False)],
)
def test_automatic_policy_ships_what_it_would_have_shipped(
    stage: Stage, conditions: tuple[Condition, ...], ships: bool
) -> None:
    """And nothing else: not a paused job, not one whose gates are not green."""
    decision = begin(at_gate(stage, conditions=conditions), review_policy="auto")
    assert [type(command) for command in decision.commands] == ([Ship] if ships else [])


def test_queued_job_waits_for_a_seat_with_its_counts() -> None:
    """Failures and losses of before still count against the limits."""
    standing = Standing(failures=2, reclaims=1, story=("epoch 1 on f1/shell: crash: boom",))
    decision = begin(standing, epoch=3)
    assert decision.commands == ()
    assert (decision.state.failures, decision.state.reclaims, decision.state.story) == (2, 1, standing.story)
    granted = GRANT.model_copy(update={"epoch": 4})
    building = decide(decision.state, Granted(grant=granted), NOW)
    assert isinstance(building.commands[0], Build)
    assert building.state.failures == 2


def test_grant_that_came_first_is_taken_with_the_counts() -> None:
    """A seat that admission gave before the workflow began."""
    decision = begin(Standing(failures=1), grant=GRANT, epoch=2)
    assert isinstance(decision.commands[0], Build)
    assert decision.state.failures == 1


def test_paused_job_stays_paused_until_it_is_resumed() -> None:
    """A loss of data is no reason to go on against an operator's word."""
    decision = begin(Standing(conditions=(PAUSED,)), deps=(Dependency(job_id="j-0"),))
    assert decision.commands == ()
    assert decision.state.paused
    resumed = decide(decision.state, Act(action="resume"), NOW)
    assert isinstance(resumed.commands[-1], ResolveParents)


def test_sleeping_job_sleeps_until_the_same_time() -> None:
    """A usage limit ends when the provider said."""
    until = NOW + timedelta(hours=1)
    limit = Condition(type="blocked", reason="usage_limit", message="come back", until=until)
    decision = begin(Standing(conditions=(limit,)))
    assert decision.commands == ()
    assert decision.state.wake_at == until
    assert decide(decision.state, Tick(), NOW).commands == ()
    awake = decide(decision.state, Tick(), until)
    assert isinstance(awake.commands[-1], Route)
    assert awake.state.conditions == ()


def test_job_with_parents_asks_for_them_again() -> None:
    """What it waited for may have ended meanwhile."""
    decision = begin(Standing(reclaims=1), deps=(Dependency(job_id="j-0"),))
    assert decision.commands == (ResolveParents(),)
