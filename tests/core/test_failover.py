"""One job, its chain of engines, and places that turn it away: `decide` and the router together."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.attempt import BuildResult, Grant, parse_answer
from core.decision import decide
from core.job import Cooldown, FailureKind, JobSpec, Repository, RetrySpec, Stage
from core.job_events import Build, Built, Command, Event, Granted, JobState, Parked, Route, Started, Tick, Write
from core.router import FactoryView, FleetSnapshot, Limits, ReadyJob, StationView, plan
from core.router_rest import Rest, rest_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAIN = ("claude", "codex", "gemini")
Place = tuple[str, str]
"""Factory and engine."""
Turn = tuple[FailureKind, timedelta | None]
"""How a place turns an attempt away, and after what time it says that it will not any more."""


@dataclass
class World:
    """A ledger and providers, as small as can be: what each place answers, and what is known of it."""

    turns: dict[Place, list[Turn]]
    """What each place answers, one after another; then it does the work."""
    now: datetime = NOW
    known: dict[Place, Cooldown] = field(default_factory=dict)
    asked: list[Place] = field(default_factory=list)
    rests: list[datetime] = field(default_factory=list)
    row: list[Place] = field(default_factory=list)
    """Places that were asked since the last rest."""

    def live(self, state: JobState, most: int = 500) -> JobState:
        """Let the job live until it has a candidate; `most` bounds what a mistake can cost."""
        events: list[Event] = [Started(), self._route(state)]
        for _ in range(most):
            decision = decide(state, events.pop(0) if events else self._time(state), self.now)
            state = decision.state
            events += [event for command in decision.commands for event in self._do(state, command)]
            if state.stage == Stage.REVIEW:
                return state
        raise AssertionError(f"no end after {most} events: {state}")

    def _time(self, state: JobState) -> Tick:
        assert state.wake_at is not None, "nothing is under way and nothing will be"
        self.now = max(self.now, state.wake_at)
        return Tick()

    def _do(self, state: JobState, command: Command) -> list[Event]:
        if isinstance(command, Route):
            return [self._route(state)]
        if isinstance(command, Build):
            return [self._attempt(state, command)]
        if isinstance(command, Write) and command.record.cooldown is not None:
            assert state.grant is not None
            self.known[state.grant.factory, state.grant.engine] = command.record.cooldown
        return []

    def _route(self, state: JobState) -> Event:
        job, factories = self.job(), self.factories()
        (grant, *_) = plan(FleetSnapshot(jobs=(job,), factories=factories, now=self.now)).grants or (None,)
        if grant is not None:
            return Granted(
                grant=Grant(
                    job_id="j",
                    epoch=state.epoch + 1,
                    factory=grant.factory,
                    engine=grant.engine,
                    granted_at=self.now,
                )
            )
        rest = rest_of(job, factories, Limits())
        assert rest is not None, "no place, and no time either"
        self.rests.append(rest.until)
        self.row.clear()
        return Parked(until=rest.until, message=rest.message)

    def _attempt(self, state: JobState, command: Build) -> Event:
        place = command.grant.factory, command.grant.engine
        assert place not in self.known or self.known[place].until <= self.now, f"{place} rests"
        self.asked.append(place)
        self.row.append(place)
        answers = self.turns.get(place) or []
        failure, after = answers.pop(0) if answers else (None, None)
        return Built(
            result=BuildResult(
                job_id="j",
                epoch=command.grant.epoch,
                outcome="failed" if failure else "succeeded",
                failure=failure,
                retry_at=None if after is None else self.now + after,
                candidate_sha="" if failure else "c" * 40,
                base_sha="b" * 40,
            )
        )

    def job(self) -> ReadyJob:
        """Return the job as the router sees it."""
        return ReadyJob(
            job_id="j", submitted_at=NOW, engine_class="agentic-coder", engine_preference=CHAIN, last_factory=None
        )

    def factories(self) -> tuple[FactoryView, ...]:
        """Return the fleet as it is known now."""
        names = sorted({factory for factory, _ in self.turns})
        return tuple(
            FactoryView(
                name=name, stations=tuple(self._station(f, engine) for f, engine in sorted(self.turns) if f == name)
            )
            for name in names
        )

    def _station(self, factory: str, engine: str) -> StationView:
        cooldown = self.known.get((factory, engine))
        return StationView(engine=engine, cooldown=cooldown if cooldown and cooldown.until > self.now else None)


def waiting_job(**changes: object) -> JobState:
    """Return the state of a job that may use any engine of the chain."""
    values: dict[str, object] = {
        "title": "t",
        "body": "b",
        "repository": Repository(url="/r.git"),
        "engine_preference": CHAIN,
    }
    return JobState(job_id="j", spec=JobSpec.model_validate(values | changes))


turns = st.lists(
    st.tuples(
        st.sampled_from([FailureKind.RATE_LIMITED, FailureKind.ENGINE_UNAVAILABLE]),
        st.sampled_from([None, *(timedelta(seconds=s) for s in (-60, 0, 1, 90, 7200, 86_400))]),
    ),
    max_size=6,
)
places = st.tuples(st.sampled_from(["f-1", "f-2", "f-3"]), st.sampled_from(CHAIN))
worlds = st.dictionaries(places, turns, min_size=1, max_size=9)


@pytest.mark.req("F6", "L5")
@settings(max_examples=120)
@given(worlds, st.sampled_from([None, RetrySpec(max=0), RetrySpec(max=1)]))
def test_places_that_turn_a_job_away_cost_it_nothing_but_time(
    answers: dict[Place, list[Turn]], retry: RetrySpec | None
) -> None:
    """However many turn it away, it gets through; no retry and no reclaim is counted, and no place is asked early."""
    refusals = sum(len(told) for told in answers.values())
    world = World(answers)
    state = world.live(waiting_job(retry=retry))
    assert (state.failures, state.reclaims, state.moves) == (0, 0, 0)
    assert len(world.asked) <= refusals + 1


@pytest.mark.req("F6", "L5")
@settings(max_examples=120)
@given(worlds)
def test_job_moves_at_most_once_to_each_place_before_it_rests(answers: dict[Place, list[Turn]]) -> None:
    """There is no circle: while no time passes, no place is asked twice, and then the job sleeps for the first."""
    seen: list[list[Place]] = []

    class Watched(World):
        def _attempt(self, state: JobState, command: Build) -> Event:
            event = super()._attempt(state, command)
            seen.append(list(self.row))
            return event

    world = Watched(answers)
    world.live(waiting_job())
    assert all(len(set(row)) == len(row) <= len(answers) for row in seen)
    assert all(until > NOW for until in world.rests)


@pytest.mark.req("F6", "R10")
@settings(max_examples=200)
@given(st.permutations(CHAIN), st.integers(min_value=0, max_value=3))
def test_chain_is_followed_in_order(order: list[str], limited: int) -> None:
    """On one factory the engines are tried in the job's order of preference, each once."""
    chain = tuple(order)

    class Ordered(World):
        def job(self) -> ReadyJob:
            return super().job().model_copy(update={"engine_preference": chain})

    wall: Turn = (FailureKind.RATE_LIMITED, timedelta(hours=1))
    world = Ordered({("f-1", engine): [wall] if place < limited else [] for place, engine in enumerate(chain)})
    world.live(waiting_job(engine_preference=chain))
    tried = [engine for _, engine in world.asked]
    if limited < len(chain):
        assert (tried, world.rests) == (list(chain[: limited + 1]), [])
    else:
        assert (tried[: len(chain)], len(world.rests)) == (list(chain), 1)


def test_reset_without_a_zone_is_a_malformed_answer() -> None:
    """A factory's time that cannot be compared ends its attempt, and never wedges the workflow."""
    raw = b'{"job_id":"j","epoch":1,"outcome":"failed","failure":"rate_limited","retry_at":"2026-01-01T00:00:00%s"}'
    read = [parse_answer(BuildResult, raw % zone, job_id="j", epoch=1) for zone in (b"", b"Z")]
    assert isinstance(read[0], str)
    assert "retry_at" in read[0]
    assert isinstance(read[1], BuildResult)


# --- until when -------------------------------------------------------------------------------------------------------


def station(engine: str, minutes: int | None = None, **values: object) -> StationView:
    """Return a station that rests for some minutes, or not at all."""
    cooldown = None if minutes is None else Cooldown(until=NOW + timedelta(minutes=minutes), reason="limited")
    return StationView.model_validate({"engine": engine, "cooldown": cooldown} | values)


def rest_at(*stations: StationView, state: Literal["online", "offline"] = "online", **factory: object) -> Rest | None:
    """Return until when a job rests on a fleet of one factory."""
    view = FactoryView.model_validate({"name": "f-1", "state": state, "stations": stations} | factory)
    return rest_of(World({}).job(), (view,), Limits())


@pytest.mark.req("L5", "R5")
def test_rest_ends_with_the_first_cooldown_and_names_all() -> None:
    """The earliest end counts, on a busy station too; the sentence has every place with its time."""
    rest = rest_at(station("claude", 90), station("codex", 30, busy=1))
    assert rest is not None
    assert rest.until == NOW + timedelta(minutes=30)
    assert rest.message == (
        "every engine that could do it rests: codex on f-1 until 2026-01-01 00:30:00 UTC (limited), "
        "claude on f-1 until 2026-01-01 01:30:00 UTC (limited)"
    )


@pytest.mark.req("L5")
def test_job_that_only_waits_for_a_seat_or_for_somebody_has_no_time() -> None:
    """A taken seat is handed over; what does not end by itself has no end to wake at."""
    assert rest_at(station("claude", 90), station("codex", busy=1)) is None
    assert rest_at(station("claude", 90), state="offline") is None
    assert rest_at(station("claude", 90, usable=False)) is None
    assert rest_at(station("shell", 90)) is None
    assert rest_at() is None
