"""Limits of work in progress, on both databases."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from core.errors import NotFound
from core.router_policy import Limits, ProductPolicy, RoutingPolicy
from core.settings import Settings
from store import open_ledger
from store.limits import of_settings
from store.views import LimitKind
from tests.store.fleet import Fleet

KINDS: list[tuple[LimitKind, str]] = [("product", "default"), ("engine", "shell")]


@pytest.mark.parametrize(("kind", "name"), KINDS)
async def test_no_more_jobs_run_than_the_limit_allows(fleet: Fleet, kind: LimitKind, name: str) -> None:
    """A lower limit lets what runs go on and closes behind it; without one the seats decide again."""
    await fleet.factory("f1", stations={"shell": 5}, seats=5)
    for n in range(5):
        await fleet.submit(f"j-{n}")
    await fleet.ledger.set_limit(kind, name, 2, actor="ada", now=fleet.now)

    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["j-0", "j-1"]
    await fleet.ledger.set_limit(kind, name, 1, actor="ada", now=fleet.now)
    assert await fleet.ledger.dispatch(fleet.now) == ()
    assert await fleet.busy("f1") == 2

    await fleet.ledger.unset_limit(kind, name, "ada", fleet.now)
    assert len(await fleet.ledger.dispatch(fleet.now)) == 3


async def test_product_at_its_limit_does_not_stand_in_the_way_of_others(fleet: Fleet) -> None:
    """The next seat goes to another product's job, though it came later."""
    await fleet.factory("f1", stations={"shell": 2}, seats=2)
    await fleet.ledger.set_limit("product", "shop", 1, actor="ada", now=fleet.now)
    for job_id, product in (("j-1", "shop"), ("j-2", "shop"), ("j-3", "web")):
        await fleet.submit(job_id, product_id=product)

    assert sorted(grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)) == ["j-1", "j-3"]


async def test_planners_together_never_exceed_a_limit(fleet: Fleet, settings: Settings) -> None:
    """Each plans from the fleet as it read it; admission counts again."""
    await fleet.factory("f1", stations={"shell": 20}, seats=20)
    for n in range(20):
        await fleet.submit(f"j-{n}")
    await fleet.ledger.set_limit("engine", "shell", 4, actor="ada", now=fleet.now)
    others = [open_ledger(settings) for _ in range(3)]

    answers = await asyncio.gather(*(ledger.dispatch(fleet.now) for ledger in (fleet.ledger, *others)))

    assert sum(len(grants) for grants in answers) == 4
    assert await fleet.busy("f1") == 4
    for ledger in others:
        await ledger.close()


async def test_limits_are_listed_with_who_set_them_and_what_runs(fleet: Fleet) -> None:
    """The newest setting counts; the audit log has all of them."""
    await fleet.factory("f1")
    await fleet.granted("j-1")
    await fleet.ledger.set_limit("engine", "shell", 2, actor="ada", now=fleet.now)
    await fleet.ledger.set_limit("engine", "shell", 7, actor="bob", now=fleet.now)

    (row,) = await fleet.ledger.limits()
    assert (row.kind, row.name, row.jobs, row.set_by, row.running) == ("engine", "shell", 7, "bob", 1)
    assert [line.type for line in await fleet.ledger.audit()] == ["limit.set", "limit.set"]


async def test_limit_that_nobody_set_cannot_be_unset(fleet: Fleet) -> None:
    """The answer says where else a limit may come from."""
    with pytest.raises(NotFound, match="no operator has limited engine codex") as caught:
        await fleet.ledger.unset_limit("engine", "codex", "ada", fleet.now)
    assert "settings" in (caught.value.hint or "")


async def test_waiting_job_is_told_of_the_limit(fleet: Fleet) -> None:
    """The explanation names the engine's limit as the reason."""
    await fleet.factory("f1")
    await fleet.ledger.set_limit("engine", "shell", 1, actor="ada", now=fleet.now)
    await fleet.granted("j-1")
    await fleet.submit("j-2")

    explanation = (await fleet.ledger.explanation("j-2", fleet.now)).explanation
    assert explanation is not None
    report = explanation.report("f1")
    assert report is not None
    assert [reason.code for reason in report.rejections] == ["engine_limit"]


def test_limits_of_the_settings_are_those_of_engines_and_products() -> None:
    """Products without a limit have none."""
    policy = RoutingPolicy(
        limits=Limits(engines={"codex": 2}), products={"shop": ProductPolicy(limit=3), "web": ProductPolicy(share=2)}
    )
    assert of_settings(policy) == {("engine", "codex"): 2, ("product", "shop"): 3}


@pytest.mark.parametrize(
    ("free", "word"), [({"free_disk_gb": Decimal("0.2")}, "disk"), ({"free_memory_gb": Decimal("0.1")}, "memory")]
)
async def test_factory_below_a_floor_takes_nothing_and_says_why(
    fleet: Fleet, free: dict[str, Decimal], word: str
) -> None:
    """What runs goes on; new seats come back with the room."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    await fleet.beat("f1", None, **{f"free_{word}_gb": Decimal("0.2")})
    assert await fleet.ledger.dispatch(fleet.now) == ()
    activity = (await fleet.ledger.factory("f1")).activity
    assert (activity.doing, f"GB of {word} free" in activity.reason) == ("blocked", True)

    await fleet.beat("f1", None, **{f"free_{word}_gb": Decimal(50)})
    assert len(await fleet.ledger.dispatch(fleet.now)) == 1
