"""A task that is done again: what the ledger has holds, nothing is decided on twice, and nothing is forgotten."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from core.job import JobSpec, Stage
from core.job_events import (
    Build,
    Command,
    Event,
    Finish,
    Interrupt,
    JobState,
    Judge,
    ResolveParents,
    Route,
    Ship,
    Started,
    StopStep,
    Write,
)
from core.lifecycle import TRANSITIONS
from core.repeated import fingerprint, recalled, remembered, split_taken, under_way
from store.projection import stages_to_go
from tests.core.test_decision import NOW, events, grant, specs, step

STEPS: dict[str, type[Build | Judge | Ship]] = {"build": Build, "judge": Judge, "ship": Ship}


def lived(job: JobSpec, sequence: list[Event]) -> JobState:
    """Return the state that a sequence of events leads to."""
    state = JobState(job_id="j-1", spec=job)
    for number, event in enumerate((Started(grant=grant()), *sequence)):
        state = step(state, event, NOW + timedelta(seconds=number)).state
    return state


@settings(max_examples=100)
@given(specs, st.lists(events, max_size=25))
def test_state_that_the_ledger_keeps_is_the_state(job: JobSpec, sequence: list[Event]) -> None:
    """Every state comes back whole, put on what never changes of the job."""
    state = lived(job, sequence)
    assert recalled(JobState(job_id="j-1", spec=job), remembered(state)) == state


@settings(max_examples=100)
@given(specs, st.lists(events, max_size=25))
def test_what_goes_on_in_a_state_is_what_the_state_says(job: JobSpec, sequence: list[Event]) -> None:
    """A step that runs is begun, and stopped if it was to stop; an end ends; a job without a place asks for one."""
    state = lived(job, sequence)
    commands: list[Command] = list(under_way(state))
    if state.ended:
        assert commands == [Finish()]
    elif state.step:
        begun = commands.pop(0)
        assert isinstance(begun, Build | Judge | Ship)
        assert (type(begun), begun.grant.epoch) == (STEPS[state.step], state.epoch)
        assert commands == ([StopStep(wait=True)] if state.stopping else [])
    elif state.stage == Stage.QUEUED and not state.paused and state.wake_at is None:
        assert commands == [ResolveParents() if job.deps else Route()]
    else:
        assert commands == []


@settings(max_examples=100)
@given(specs, st.lists(events, max_size=12), st.lists(events, min_size=1, max_size=6), st.data())
def test_task_done_again_ends_on_one_line_of_legal_changes(
    job: JobSpec, before: list[Event], task: list[Event], data: st.DataObject
) -> None:
    """Whatever the second task meets: it takes over from the ledger, and what it then writes fits behind it."""
    start = lived(job, before)
    first, stage, now = start, start.stage, NOW + timedelta(minutes=1)
    taken: list[str] = []
    for event in task:
        decision = step(first, event, now)
        first = decision.state
        taken.append(fingerprint(event))
        assert sum(isinstance(command, Write) for command in decision.commands) <= 1
        for command in decision.commands:
            if isinstance(command, Write):
                stage = _written(stage, command)
        stage = _without_record(stage, first)
    new = data.draw(st.lists(events, max_size=4))
    met = data.draw(st.permutations([*task, *new]))
    done, left = split_taken(met, taken)
    assert len(done) + len(left) == len(met)
    assert sorted(map(fingerprint, left)) == sorted(
        fingerprint(event) for event in [*new, *(event for event in task if isinstance(event, Interrupt))]
    )
    state = recalled(start, remembered(first))
    assert state == first
    for number, event in enumerate(left):
        decision = step(state, event, now + timedelta(seconds=number))
        state = decision.state
        for command in decision.commands:
            if isinstance(command, Write):
                stage = _written(stage, command)
        stage = _without_record(stage, state)
    assert stage == state.stage


def _written(stage: Stage, command: Write) -> Stage:
    """Return the ledger's stage after a record, as the ledger goes."""
    for following in stages_to_go(stage, command.record.path):
        assert following in TRANSITIONS[stage]
        stage = following
    return stage


def _without_record(stage: Stage, state: JobState) -> Stage:
    """Return the ledger's stage after what attempts and admission write themselves: `building`, then `review`."""
    return state.stage if state.step in ("build", "judge") else stage
