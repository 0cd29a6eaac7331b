"""Engines that rest at a place, on both databases: what one job's limit means for all of them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from core.attempt import Grant
from core.errors import Conflict, NotFound
from core.job import Cooldown, FailureKind, Stage
from core.router import RejectionCode
from core.settings import Settings
from store import open_ledger
from store.database import open_database
from store.seats import take_seat
from tests.store.fleet import Fleet

CHAIN = {"engine": None, "engine_preference": ("claude", "codex")}
HOUR = timedelta(hours=1)


async def turned_away(
    fleet: Fleet, job_id: str, until: datetime, outcome: FailureKind = FailureKind.RATE_LIMITED
) -> Grant | None:
    """Let the job's running attempt end because of its place, and route the job as its workflow does."""
    grant = await fleet.ledger.grant(job_id)
    assert grant is not None
    cooldown = Cooldown(until=until, reason=f"{outcome}: come back later")
    record = {"epoch": grant.epoch, "attempt_outcome": outcome, "cooldown": cooldown, "end_lease": True}
    await fleet.record(job_id, Stage.QUEUED, **record, release_locks=True)
    return await fleet.ledger.route(job_id, fleet.now)


@pytest.mark.req("L5", "F6")
async def test_limit_at_one_place_sends_every_job_elsewhere(fleet: Fleet) -> None:
    """The job goes on with its next engine, and no other one is given to the engine that rests, before its time."""
    await fleet.factory("f1", stations={"claude": 2, "codex": 1})
    grant = await fleet.granted("j-1", **CHAIN)
    assert grant.engine == "claude"
    until = fleet.now + HOUR

    moved = await turned_away(fleet, "j-1", until)
    assert moved is not None
    assert (moved.epoch, moved.factory, moved.engine) == (2, "f1", "codex")
    await fleet.submit("j-2", engine="claude")
    assert await fleet.ledger.dispatch(fleet.now) == ()
    fleet.now = until
    (grant,) = await fleet.ledger.dispatch(fleet.now)
    assert (grant.job_id, grant.engine) == ("j-2", "claude")


@pytest.mark.req("L5", "F6")
async def test_same_engine_goes_on_at_another_factory(fleet: Fleet) -> None:
    """A limit is of one place: another factory may have another account."""
    await fleet.factory("f1", stations={"claude": 1})
    await fleet.granted("j-1", engine="claude")
    await fleet.factory("f2", stations={"claude": 1})

    moved = await turned_away(fleet, "j-1", fleet.now + HOUR)
    assert moved is not None
    assert (moved.factory, moved.engine) == ("f2", "claude")


@pytest.mark.req("L5", "R5")
async def test_job_without_a_place_rests_and_says_until_when(fleet: Fleet) -> None:
    """The first end counts; `why` names each place as not now, with the time."""
    await fleet.factory("f1", stations={"claude": 1, "codex": 1, "shell": 1})
    await fleet.granted("j-1", **CHAIN)
    first, second = fleet.now + 2 * HOUR, fleet.now + HOUR
    await turned_away(fleet, "j-1", first)
    assert await fleet.ledger.rest("j-1", fleet.now) is None, "it runs"

    assert await turned_away(fleet, "j-1", second, FailureKind.ENGINE_UNAVAILABLE) is None
    rest = await fleet.ledger.rest("j-1", fleet.now)
    assert rest is not None
    assert rest.until == second
    assert "codex on f1 until 2026-03-01 13:00" in rest.message
    assert "claude on f1 until 2026-03-01 14:00" in rest.message
    assert (await fleet.job("j-1")).held is None

    found = (await fleet.ledger.explanation("j-1", fleet.now)).explanation
    assert found is not None
    report = found.report("f1")
    assert report is not None
    assert found.verdict == "not_now"
    assert {(r.code, r.engine, r.until) for r in report.rejections} == {
        (RejectionCode.COOLDOWN, "claude", first),
        (RejectionCode.COOLDOWN, "codex", second),
    }
    with pytest.raises(NotFound):
        await fleet.ledger.rest("nobody", fleet.now)


@pytest.mark.req("L5", "F6")
async def test_resting_job_is_given_to_a_factory_that_appears(fleet: Fleet) -> None:
    """It is not held back: whoever can do it takes it, long before the reset."""
    await fleet.factory("f1", stations={"claude": 1})
    await fleet.granted("j-1", **CHAIN)
    assert await turned_away(fleet, "j-1", fleet.now + HOUR) is None

    await fleet.factory("f2", stations={"codex": 1})
    (grant,) = await fleet.ledger.dispatch(fleet.now)
    assert (grant.job_id, grant.factory, grant.engine) == ("j-1", "f2", "codex")


async def test_waiting_for_a_seat_is_no_rest(fleet: Fleet) -> None:
    """A job that some engine could do as soon as a seat is free has no time to wake at."""
    await fleet.factory("f1", stations={"claude": 1, "codex": 1})
    await fleet.granted("j-1", engine="codex")
    await fleet.granted("j-2", **CHAIN)
    assert await turned_away(fleet, "j-2", fleet.now + HOUR) is None
    assert await fleet.ledger.rest("j-2", fleet.now) is None


async def test_admission_refuses_a_plan_from_before_the_limit(fleet: Fleet, settings: Settings) -> None:
    """Whatever was planned: the seat of an engine that rests is not given away."""
    await fleet.factory("f1", stations={"claude": 2})
    await fleet.granted("j-1", engine="claude")
    await turned_away(fleet, "j-1", fleet.now + HOUR)
    database = open_database(settings.ledger_url)

    async def taken(now: datetime) -> str | None:
        return await database.write(take_seat, "f1", "claude", now)

    try:
        assert await taken(fleet.now) is None
        assert await taken(fleet.now + HOUR) == "host-f1"
    finally:
        await database.close()


async def test_earlier_end_does_not_shorten_a_cooldown_and_a_restart_keeps_it(fleet: Fleet) -> None:
    """Two attempts that ran side by side may be told different times; a new agent is no new account."""
    await fleet.factory("f1", stations={"claude": 2})
    await fleet.granted("j-1", engine="claude")
    await fleet.granted("j-2", engine="claude")
    until = fleet.now + HOUR
    await turned_away(fleet, "j-1", until)
    await turned_away(fleet, "j-2", fleet.now + timedelta(minutes=1))
    fleet.tick(120)

    row = await fleet.factory("f1", stations={"claude": 2})
    assert row.stations[0].cooldown_until == until
    assert row.stations[0].cooldown_reason == "rate_limited: come back later"
    assert await fleet.ledger.dispatch(fleet.now) == ()


@pytest.mark.req("L5")
async def test_operator_ends_cooldowns_of_a_job_or_of_a_factory(fleet: Fleet) -> None:
    """A requeue is about the engines of that job, wherever they rest; a release about one factory."""
    for name in ("f1", "f2"):
        await fleet.factory(name, stations={"claude": 1})
        await fleet.granted(f"j-{name}", engine="claude")
    await fleet.factory("f3", stations={"codex": 1})
    await fleet.granted("j-f3", engine="codex")
    for name in ("f1", "f2", "f3"):
        await turned_away(fleet, f"j-{name}", fleet.now + HOUR)

    await fleet.record("j-f1", end_cooldowns=True)
    assert {grant.factory for grant in await fleet.ledger.dispatch(fleet.now)} == {"f1", "f2"}
    await fleet.ledger.release_factory("f3", "ada", fleet.now)
    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["j-f3"]
    with pytest.raises(Conflict, match="no engine rests there"):
        await fleet.ledger.release_factory("f3", "ada", fleet.now)


@pytest.mark.req("F6", "F11")
async def test_trail_shows_each_place_and_counts_against_nobody(fleet: Fleet, settings: Settings) -> None:
    """Each attempt has factory, engine, outcome, why, and until when; limits are no strike against the factory."""
    strict = open_ledger(settings.model_copy(update={"quarantine_failures": 1}))
    try:
        await _trail(Fleet(strict, fleet.url))
    finally:
        await strict.close()


async def _trail(fleet: Fleet) -> None:
    await fleet.factory("f1", stations={"claude": 1})
    await fleet.factory("f2", stations={"codex": 1})
    await fleet.granted("j-0", engine="codex")
    await fleet.ship("j-0")  # what another factory brings through makes evidence count
    await fleet.granted("j-1", **CHAIN)
    limited, broken = fleet.now + HOUR, fleet.now + 2 * HOUR
    await turned_away(fleet, "j-1", limited)
    await turned_away(fleet, "j-1", broken, FailureKind.ENGINE_UNAVAILABLE)

    job = await fleet.job("j-1")
    assert [(a.factory, a.engine, a.outcome, a.cooldown_until) for a in job.attempts] == [
        ("f1", "claude", "rate_limited", limited),
        ("f2", "codex", "engine_unavailable", broken),
    ]
    assert job.reclaims == 0
    assert {row.state for row in await fleet.ledger.factories()} == {"online"}
