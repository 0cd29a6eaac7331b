from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection

from core.errors import NotFound
from core.job import Condition, Dependency, Priority, Stage
from core.router import FactoryView, Plan, plan
from core.router_policy import Limits, ProductPolicy, RoutingPolicy, Weights
from core.settings import Settings
from store import open_ledger
from store.admission import Admitted, admit
from tests.store.fleet import BASE, CHECKPOINT, Fleet, in_place, value


async def test_dispatch_gives_a_free_seat_to_a_waiting_job(fleet: Fleet) -> None:
    """A grant names epoch, place, lease and reason; job, seat counts and events show it."""
    await fleet.factory("f1")
    await fleet.submit("j-1")

    (grant,) = await fleet.ledger.dispatch(fleet.now)

    assert (grant.job_id, grant.epoch, grant.factory, grant.engine) == ("j-1", 1, "f1", "shell")
    assert (grant.host, grant.base_sha, grant.granted_at) == ("host-f1", BASE, fleet.now)
    assert grant.reason
    assert (grant.lease_ttl_s, grant.beat_s) == (30.0, 5.0)
    job = await fleet.job("j-1")
    assert (job.stage, job.epoch) == (Stage.ASSIGNED, 1)
    assert [(a.epoch, a.factory, a.engine, a.outcome, a.lease) for a in job.attempts] == [
        (1, "f1", "shell", None, "living")
    ]
    assert await fleet.busy("f1") == 1
    assert [event.type for event in await fleet.events("j-1")] == ["job.submitted", "job.granted", "stage.changed"]
    assert await fleet.ledger.grant("j-1") == grant


async def test_dispatch_of_many_grants_takes_several_transactions(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty fleet is filled by one call, but others who write are let in between."""
    sizes: list[int] = []

    def noting(connection: Connection, planned: Plan, **more: Any) -> Admitted:
        sizes.append(len(planned.grants))
        return admit(connection, planned, **more)

    monkeypatch.setattr("store.admission.admit", noting)
    monkeypatch.setattr("store.dispatcher.GRANTS_AT_ONCE", 3)
    await fleet.factory("f1", stations={"shell": 8}, seats=8)
    for number in range(10):
        await fleet.submit(f"j-{number}")

    grants = await fleet.ledger.dispatch(fleet.now)

    assert [grant.job_id for grant in grants] == [f"j-{number}" for number in range(8)]
    assert sizes == [3, 3, 2]
    assert await fleet.busy("f1") == 8


async def test_snapshot_keeps_what_did_not_change_and_follows_what_did(fleet: Fleet) -> None:
    """A factory's view is the same object until something about it is different: state, seats, status, attestation."""
    await fleet.factory("f1", declared=("network:studio",))
    await fleet.factory("f2")

    async def views() -> tuple[FactoryView, FactoryView]:
        first, second = (await fleet.ledger.snapshot(fleet.now)).factories
        return first, second

    first, second = await views()
    fleet.tick()
    await fleet.beat("f1")
    assert (await views())[0] is first

    await fleet.beat("f1", load=Decimal("0.75"))
    loaded, _ = await views()
    assert (loaded.load, loaded.unattested) == (Decimal("0.75"), ("network:studio",))
    await fleet.ledger.attest("f1", ("network:studio",), "ada", fleet.now)
    attested, _ = await views()
    assert (attested.unattested, "network:studio" in attested.capabilities) == ((), True)
    await fleet.granted("j-1")
    taken, _ = await views()
    other = (await views())[1]
    assert taken.busy + other.busy == 1
    await fleet.ledger.factory_state("f2", "draining")
    assert [view.state for view in await views()] == ["online", "draining"]
    assert second.state == "online"


async def test_dispatch_without_anything_to_give_grants_nothing(fleet: Fleet) -> None:
    """No job, no factory, no free seat, an unusable or closed station: nothing happens."""
    assert await fleet.ledger.dispatch(fleet.now) == ()
    await fleet.submit("j-1")
    assert await fleet.ledger.dispatch(fleet.now) == ()
    await fleet.factory("f1", stations={"shell": 0})
    await fleet.factory("f2", seats=0)
    await fleet.factory("f3", stations={"codex": 1})
    assert await fleet.ledger.dispatch(fleet.now) == ()
    await fleet.factory("f4")
    await fleet.ledger.factory_state("f4", "draining")
    assert await fleet.ledger.dispatch(fleet.now) == ()
    assert await fleet.stage("j-1") == Stage.QUEUED


async def test_dispatch_never_gives_more_than_the_seats(fleet: Fleet) -> None:
    """Both the station's and the factory's seats bound the grants."""
    await fleet.factory("f1", stations={"shell": 2}, seats=5)
    await fleet.factory("f2", stations={"shell": 5}, seats=1)
    for n in range(6):
        await fleet.submit(f"j-{n}")

    grants = await fleet.ledger.dispatch(fleet.now)

    assert sorted(grant.factory for grant in grants) == ["f1", "f1", "f2"]
    assert await fleet.ledger.dispatch(fleet.now) == ()
    assert (await fleet.busy("f1"), await fleet.busy("f2")) == (2, 1)


async def test_dispatch_with_limit_grants_no_more(fleet: Fleet) -> None:
    """`limit` bounds one call."""
    await fleet.factory("f1")
    for n in range(3):
        await fleet.submit(f"j-{n}")

    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now, limit=2)] == ["j-0", "j-1"]


async def test_dispatch_calls_at_once_grant_each_job_and_seat_once(fleet: Fleet) -> None:
    """Calls that overlap in one process share passes: every grant is returned by exactly one of them."""
    await fleet.factory("f1", stations={"shell": 4}, seats=4)
    for n in range(10):
        await fleet.submit(f"j-{n}")

    answers = await asyncio.gather(*(fleet.ledger.dispatch(fleet.now) for _ in range(10)))

    granted = [grant.job_id for grants in answers for grant in grants]
    assert sorted(granted) == [f"j-{n}" for n in range(4)]
    assert await fleet.busy("f1") == 4


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (1, 2)])
async def test_dispatch_beside_callers_that_went_away_still_grants(fleet: Fleet, gone: tuple[int, ...]) -> None:
    """Of one call that runs a pass, one that waits for the next and one that shares it, any may be cancelled."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    calls = [asyncio.create_task(fleet.ledger.dispatch(fleet.now)) for _ in range(3)]
    await asyncio.sleep(0)
    for number in gone:
        calls[number].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)

    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [n in gone for n in range(3)]
    assert await fleet.ledger.grant("j-1") is not None
    assert await fleet.busy("f1") == 1
    assert await fleet.ledger.dispatch(fleet.now) == ()


async def test_dispatch_serves_priority_before_age(fleet: Fleet) -> None:
    """The critical job gets the only seat; that is what priority means, so nobody counts as overtaken."""
    await fleet.factory("f1", stations={"shell": 1})
    await fleet.submit("old")
    await fleet.submit("urgent", priority=Priority.CRITICAL)

    (grant,) = await fleet.ledger.dispatch(fleet.now)

    assert grant.job_id == "urgent"
    assert {job.job_id: job.overtaken for job in (await fleet.ledger.snapshot(fleet.now)).jobs} == {"old": 0}


async def test_dispatch_counts_who_was_overtaken_by_a_later_equal(fleet: Fleet) -> None:
    """A product that has nothing yet goes before the older job of one that runs; only who could have run is counted."""
    await fleet.factory("f1", stations={"shell": 2})
    await fleet.granted("runs", product_id="big")
    await fleet.submit("old", product_id="big")
    await fleet.submit("other", product_id="big", engine="codex")
    await fleet.submit("later", product_id="small")

    (grant,) = await fleet.ledger.dispatch(fleet.now)

    assert grant.job_id == "later"
    overtaken = {job.job_id: job.overtaken for job in (await fleet.ledger.snapshot(fleet.now)).jobs}
    assert overtaken == {"old": 1, "other": 0}


@asynccontextmanager
async def routed(url: str, settings: Settings, routing: RoutingPolicy) -> AsyncIterator[Fleet]:
    """Give a fleet whose settings say how to route."""
    ledger = open_ledger(settings.model_copy(update={"routing": routing}))
    yield Fleet(ledger, url)
    await ledger.close()


async def test_dispatch_takes_turns_by_the_shares_of_the_settings(url: str, settings: Settings) -> None:
    """Seats that become free one by one go to the products in proportion to their shares, whatever runs meanwhile."""
    served = []
    async with routed(url, settings, RoutingPolicy(products={"big": ProductPolicy(share=3)})) as fleet:
        await fleet.factory("f1", stations={"shell": 1}, seats=1)
        for number in range(8):
            await fleet.submit(f"big-{number}", product_id="big")
            await fleet.submit(f"small-{number}", product_id="small")
        for _ in range(8):
            (grant,) = await fleet.ledger.dispatch(fleet.now)
            served.append(grant.product_id)
            await fleet.record(grant.job_id, Stage.CANCELLED, epoch=grant.epoch, end_lease=True)

    assert (served.count("big"), served.count("small")) == (6, 2)


@pytest.mark.req("R3", "R5")
async def test_dispatch_weighs_as_the_job_says_else_its_product_else_the_settings(url: str, settings: Settings) -> None:
    """Each part has the weight of whoever is nearest to the job, and the stored explanation names who gave it."""
    thrifty = ProductPolicy(weights=Weights(cost=200, fit=5))
    async with routed(url, settings, RoutingPolicy(weights=Weights(warm=90), products={"shop": thrifty})) as fleet:
        await fleet.factory("f1")
        await fleet.submit("j-1", product_id="shop", weights={"cost": 3})
        assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["j-1"]
        why = (await fleet.ledger.explanation("j-1", fleet.now)).explanation

    assert why is not None
    assert why.weights == Weights(warm=90, fit=5, cost=3).model_dump()
    assert why.weighed_by == {"cost": "job", "fit": "product"}


async def test_dispatch_keeps_the_limits_of_the_settings(url: str, settings: Settings) -> None:
    """Limits of products and engines are planned with, so that the reason is shown."""
    limited = RoutingPolicy(limits=Limits(engines={"codex": 1}), products={"capped": ProductPolicy(limit=1)})
    async with routed(url, settings, limited) as fleet:
        await fleet.factory("f1", stations={"shell": 3, "codex": 3}, seats=6)
        for job_id, product, engine in (
            ("c-1", "capped", "shell"),
            ("c-2", "capped", "shell"),
            ("x-1", "free", "codex"),
            ("x-2", "free", "codex"),
        ):
            await fleet.submit(job_id, product_id=product, engine=engine)
        granted = {grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)}
        why = (await fleet.ledger.explanation("c-2", fleet.now)).explanation

    assert granted == {"c-1", "x-1"}
    assert why is not None
    assert [blocker.kind for blocker in why.blockers] == ["product"]


async def test_second_grant_has_the_next_epoch_and_the_last_checkpoint(fleet: Fleet) -> None:
    """Epochs grow by one with each grant; work goes on from the newest checkpoint, elsewhere if possible."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    await fleet.factory("f2")
    await fleet.checkpoint("j-1", 1, CHECKPOINT)
    await fleet.lose("j-1", 1)
    await fleet.record("j-1", Stage.QUEUED, epoch=1, exclude_factory=True)

    grant = await fleet.ledger.route("j-1", fleet.now)

    assert grant is not None
    assert (grant.epoch, grant.factory) == (2, "f2")
    assert (grant.checkpoint_sha, grant.checkpoint_epoch) == (CHECKPOINT, 1)


async def test_excluded_factory_is_taken_when_there_is_no_other(fleet: Fleet) -> None:
    """A factory that lost the job is avoided, not forbidden."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    await fleet.lose("j-1", 1)
    await fleet.record("j-1", Stage.QUEUED, epoch=1, exclude_factory=True)

    grant = await fleet.ledger.route("j-1", fleet.now)

    assert grant is not None
    assert grant.factory == "f1"


# --- ready, hold, route ---------------------------------------------------------------------------------------------


async def test_held_job_gets_no_seat_until_it_is_ready(fleet: Fleet) -> None:
    """`hold` keeps a job from admission, `ready` lets it in again."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    await fleet.ledger.hold("j-1", "operator", fleet.now)

    assert await fleet.ledger.dispatch(fleet.now) == ()
    assert (await fleet.job("j-1")).held == "operator"
    assert await fleet.ledger.ready("j-1", fleet.now)
    assert len(await fleet.ledger.dispatch(fleet.now)) == 1


async def test_route_returns_the_living_grant_instead_of_another(fleet: Fleet) -> None:
    """A job that has a seat never gets a second one, however often its workflow asks."""
    await fleet.factory("f1")
    grant = await fleet.granted("j-1")

    assert await fleet.ledger.route("j-1", fleet.now) == grant
    await fleet.accept("j-1", 1, "a" * 40)
    assert await fleet.ledger.route("j-1", fleet.now) == grant
    assert await fleet.busy("f1") == 1


async def test_route_without_a_seat_parks_the_job_until_one_is_free(fleet: Fleet) -> None:
    """A parked job is granted by whoever frees a seat, and its workflow is signalled."""
    await fleet.factory("f1", stations={"shell": 1})
    await fleet.building("first")
    await fleet.submit("second")
    await fleet.deliver()
    assert await fleet.ledger.route("second", fleet.now) is None

    await fleet.ship("first")
    (grant,) = await fleet.ledger.dispatch(fleet.now)

    assert grant.job_id == "second"
    (row,) = await fleet.deliver()
    assert (row.kind, row.name, row.job_id) == ("signal", "granted", "second")
    assert row.payload == grant.model_dump(mode="json")


async def test_route_does_not_pass_over_unfinished_parents(fleet: Fleet) -> None:
    """Whatever a workflow says, a job whose parents are not done gets no seat."""
    await fleet.factory("f1")
    await fleet.submit("parent")
    await fleet.submit("child", deps=(Dependency(job_id="parent"),))

    assert await fleet.ledger.route("child", fleet.now) is None
    assert not await fleet.ledger.ready("child", fleet.now)
    assert (await fleet.job("child")).held == "parents"


async def test_unknown_job_is_not_found(fleet: Fleet) -> None:
    """Asking about a job that does not exist is an error that names it."""
    for call in (fleet.ledger.route, fleet.ledger.ready, fleet.ledger.explanation, fleet.ledger.enqueue_start):
        with pytest.raises(NotFound, match="j-x"):
            await call("j-x", fleet.now)
    with pytest.raises(NotFound, match="j-x"):
        await fleet.ledger.hold("j-x", "operator", fleet.now)


async def test_grant_clears_what_the_job_was_waiting_for(fleet: Fleet) -> None:
    """A job that runs shows no reason for waiting any more."""
    await fleet.submit("j-1")
    condition = Condition(type="blocked", reason="capacity", message="no seat")
    await fleet.record("j-1", conditions=(condition,))
    assert (await fleet.job("j-1")).conditions == (condition,)

    await fleet.factory("f1")
    await fleet.ledger.dispatch(fleet.now)

    assert (await fleet.job("j-1")).conditions == ()


async def test_grant_without_workflow_is_taken_back_and_held(fleet: Fleet) -> None:
    """A grant that nobody can receive frees its seat, and is not made again at once."""
    await fleet.factory("f1")
    await fleet.granted("j-1", lock="deploy")

    assert await fleet.ledger.grant_undeliverable("j-1", 1, fleet.now)
    assert not await fleet.ledger.grant_undeliverable("j-1", 1, fleet.now)

    assert await fleet.busy("f1") == 0
    assert await fleet.ledger.dispatch(fleet.now) == ()
    job = await fleet.job("j-1")
    assert (job.stage, job.held) == (Stage.QUEUED, "undelivered")
    assert (await fleet.ledger.snapshot(fleet.now)).locks == ()
    grant = await fleet.ledger.route("j-1", fleet.now)
    assert grant is not None
    assert grant.epoch == 2


async def test_grant_that_has_begun_is_not_taken_back(fleet: Fleet) -> None:
    """Late news of an undeliverable grant does not stop an attempt that runs."""
    await fleet.factory("f1")
    await fleet.building("j-1")

    assert not await fleet.ledger.grant_undeliverable("j-1", 1, fleet.now)
    assert await fleet.busy("f1") == 1


# --- locks and scopes -----------------------------------------------------------------------------------------------


async def test_named_lock_is_held_by_one_job_at_a_time(fleet: Fleet) -> None:
    """Jobs with the same lock run one after the other, also across products."""
    await fleet.factory("f1")
    await fleet.building("first", lock="deploy")
    await fleet.submit("second", lock="deploy", product_id="toys")
    await fleet.submit("third", lock="docs")

    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["third"]
    await fleet.ship("first")
    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["second"]


async def test_overlapping_scopes_of_one_repository_run_one_after_the_other(fleet: Fleet) -> None:
    """Two jobs that may touch the same paths do not run together; other paths and unscoped jobs do."""
    await fleet.factory("f1", stations={"shell": 9}, seats=9)
    await fleet.submit("a", allowed_scope=("src/**",))
    await fleet.submit("b", allowed_scope=("src/api/*.py",))
    await fleet.submit("c", allowed_scope=("docs/**",))
    await fleet.submit("d")

    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["a", "c", "d"]
    assert await fleet.ledger.dispatch(fleet.now) == ()
    await fleet.started("a", 1)
    await fleet.ship("a")
    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["b"]


async def test_directories_without_git_take_an_implied_lock(fleet: Fleet) -> None:
    """Two jobs in one plain directory never run together."""
    await fleet.factory("f1", host="mac")
    await fleet.submit("a", repository=in_place("/home/ada/notes", "mac"))
    await fleet.submit("b", repository=in_place("/home/ada/notes", "mac"))

    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["a"]


async def test_lock_stays_with_its_job_over_a_retry(fleet: Fleet) -> None:
    """Unless the record releases it, a lock is kept for the next attempt and does not stand in its own way."""
    await fleet.factory("f1")
    await fleet.building("a", lock="deploy", allowed_scope=("src/**",))
    await fleet.submit("b", lock="deploy")
    await fleet.record("a", Stage.QUEUED, epoch=1, attempt_outcome="crash", end_lease=True)

    assert await fleet.ledger.dispatch(fleet.now) == ()
    grant = await fleet.ledger.route("a", fleet.now)
    assert grant is not None
    assert grant.epoch == 2
    assert {lock.job_id for lock in (await fleet.ledger.snapshot(fleet.now)).locks} == {"a"}


async def test_job_that_ended_holds_no_lock(fleet: Fleet) -> None:
    """A job never takes a lock with it, whatever its last record says."""
    await fleet.factory("f1")
    await fleet.building("a", lock="deploy", allowed_scope=("src/**",))
    await fleet.record("a", Stage.CANCELLED)

    assert (await fleet.ledger.snapshot(fleet.now)).locks == ()
    assert await fleet.busy("f1") == 0


# --- snapshot and explanation -----------------------------------------------------------------------------------------


async def test_snapshot_shows_fleet_locks_and_use(fleet: Fleet) -> None:
    """The router sees stations, load, locks and what each product uses."""
    await fleet.factory("f1", details={"cost_class": 2})
    await fleet.beat("f1", load=Decimal("0.5"), free_disk_gb=Decimal(80), warm_repositories=("https://x/y.git",))
    await fleet.granted("a", lock="deploy")
    await fleet.submit("b", capabilities=("os:linux",), lock="deploy")

    snapshot = await fleet.ledger.snapshot(fleet.now)

    (factory,) = snapshot.factories
    assert (factory.name, factory.busy, factory.seats, factory.cost_class) == ("f1", 1, 3, 2)
    assert (factory.load, factory.free_disk_gb) == (Decimal("0.5"), Decimal(80))
    assert factory.warm_repositories == ("https://x/y.git",)
    assert [(s.engine, s.busy, s.seats) for s in factory.stations] == [("shell", 1, 3)]
    assert [(lock.job_id, lock.lock) for lock in snapshot.locks] == [("a", "deploy")]
    assert [(p.product_id, p.running) for p in snapshot.products] == [("default", 1)]
    assert [(job.job_id, job.capabilities) for job in snapshot.jobs] == [("b", ("os:linux",))]


async def test_snapshot_reader_forgets_jobs_that_wait_no_more(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept to read the next snapshot quickly does not grow with the jobs that ever were."""
    from store import fleet_snapshot

    monkeypatch.setattr(fleet_snapshot, "FORGET_BEYOND", 3)
    for n in range(12):
        await fleet.submit(f"j-{n}")
        await fleet.ledger.snapshot(fleet.now)
        await fleet.record(f"j-{n}", Stage.CANCELLED)

    assert len(fleet.ledger._fleet._parsed) <= 5


async def test_snapshot_shows_what_changed_about_a_waiting_job(fleet: Fleet) -> None:
    """Though parsed once, a job is shown as it is now."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    await fleet.lose("j-1", 1)
    await fleet.record("j-1", Stage.QUEUED, epoch=1)
    await fleet.ledger.ready("j-1", fleet.now)
    (before,) = (await fleet.ledger.snapshot(fleet.now)).jobs
    await fleet.ledger.route("j-1", fleet.now)
    await fleet.lose("j-1", 2)
    await fleet.record("j-1", Stage.QUEUED, epoch=2, exclude_factory=True)
    await fleet.ledger.ready("j-1", fleet.now)
    (after,) = (await fleet.ledger.snapshot(fleet.now)).jobs

    assert (before.excluded_factories, after.excluded_factories) == ((), ("f1",))
    assert before.queued_at is not None
    assert after.queued_at is not None
    assert after.queued_at > before.queued_at
    assert (before.submitted_at, before.last_factory) == (after.submitted_at, "f1")


async def test_explanation_of_a_waiting_job_is_computed_from_the_present_fleet(fleet: Fleet) -> None:
    """Why a job waits is answered from now, not from when it was parked."""
    await fleet.submit("j-1", capabilities=("has:docker",))
    before = await fleet.ledger.explanation("j-1", fleet.now)
    await fleet.factory("f1")
    after = await fleet.ledger.explanation("j-1", fleet.now)

    assert before.explanation is not None
    assert after.explanation is not None
    assert before.explanation.reports == ()
    assert [r.code for report in after.explanation.reports for r in report.rejections] == ["capability"]
    assert after.decided_at is None
    assert after.message


async def test_explanation_of_a_granted_job_is_the_stored_decision(fleet: Fleet) -> None:
    """Why a job runs where it runs stays as it was decided, though the fleet has changed since."""
    await fleet.factory("f1")
    await fleet.granted("j-1")
    granted_at = fleet.now
    await fleet.factory("f2")

    told = await fleet.ledger.explanation("j-1", fleet.tick(60))

    assert told.explanation is not None
    assert (told.explanation.verdict, told.explanation.factory) == ("granted", "f1")
    assert [report.factories for report in told.explanation.reports] == [("f1",)]
    assert told.decided_at == granted_at


@pytest.mark.req("R5")
async def test_explanations_of_one_pass_are_stored_whole_and_shown_as_they_were_made(fleet: Fleet) -> None:
    """Jobs of a pass share their grounds in the ledger; each explanation comes back byte for byte, parts in order."""
    await fleet.factory("f1", capabilities=("node=20.1.0",))
    await fleet.factory("f2", stations={"shell": 1, "codex": 1}, seats=2)
    await fleet.factory("f3", stations={"codex": 1})
    for number in range(4):
        await fleet.submit(f"j-{number}", capabilities=("node>=20",) if number == 3 else ())
    planned = plan(await fleet.ledger.snapshot(fleet.now))
    expected = {grant.job_id: planned.explain(grant.job_id) for grant in planned.grants}

    granted = await fleet.ledger.dispatch(fleet.now)

    assert sorted(grant.job_id for grant in granted) == sorted(expected) == ["j-0", "j-1", "j-2", "j-3"]
    for job_id, explanation in expected.items():
        told = (await fleet.ledger.explanation(job_id, fleet.tick(60))).explanation
        assert told is not None
        assert told.compact_json() == explanation.compact_json()
        assert told.render() == explanation.render()
    count = await value(fleet, "SELECT count(*) FROM grounds")
    assert count == 3, "one of the fleet, and one of each class of jobs"


async def test_explanation_of_a_held_job_says_what_holds_it(fleet: Fleet) -> None:
    """A job that is kept from the router says so, and still tells where it could run."""
    await fleet.factory("f1")
    await fleet.submit("parent")
    await fleet.submit("child", deps=(Dependency(job_id="parent"),))

    told = await fleet.ledger.explanation("child", fleet.now)

    assert told.held == "parents"
    assert "parents" in told.message
    assert told.explanation is not None


async def test_place_step_prefers_the_last_factory_and_avoids_the_silent_one(fleet: Fleet) -> None:
    """A step after the build goes to the same machine, else to another that can take it, else nowhere."""
    await fleet.factory("f1")
    await fleet.granted("j-1", capabilities=("os:linux",))
    await fleet.factory("f2")
    await fleet.factory("f3", capabilities=("os:macos",))

    assert await fleet.ledger.place_step("j-1", "", fleet.now) == "f1"
    assert await fleet.ledger.place_step("j-1", "f1", fleet.now) == "f2"
    await fleet.ledger.factory_state("f2", "offline")
    assert await fleet.ledger.place_step("j-1", "f1", fleet.now) == "f1"
    await fleet.ledger.factory_state("f1", "offline")
    assert await fleet.ledger.place_step("j-1", "f1", fleet.now) is None
    with pytest.raises(NotFound):
        await fleet.ledger.place_step("j-x", "", fleet.now)


# --- seats ------------------------------------------------------------------------------------------------------------


async def test_recount_sets_drifted_counts_right(fleet: Fleet) -> None:
    """Counts of taken seats are only a shortcut: the leases are the truth."""
    from sqlalchemy import text

    from store.database import open_database

    await fleet.factory("f1")
    await fleet.building("j-1")
    assert await fleet.ledger.recount_seats(fleet.now) == ()
    database = open_database(fleet.url)
    await database.write(lambda connection: connection.execute(text("UPDATE factories SET busy = 3")))
    await database.write(lambda connection: connection.execute(text("UPDATE stations SET busy = 0")))
    await database.close()

    corrections = await fleet.ledger.recount_seats(fleet.now)

    assert {(c.factory, c.engine, c.was, c.now) for c in corrections} == {("f1", "", 3, 1), ("f1", "shell", 0, 1)}
    assert await fleet.busy("f1") == 1
