"""The kill switch in the ledger, on both databases."""

from __future__ import annotations

import asyncio

import pytest

from core.errors import NotFound
from core.job import Stage
from core.switch import Halt, HaltScope
from tests.store.fleet import Fleet

ADA = "ada"


async def pull(fleet: Fleet, scope: HaltScope = "fleet", name: str = "", *, stop_running: bool = False) -> int:
    """Pull the switch; return how many running attempts it stops."""
    halt = Halt(scope=scope, name=name, stop_running=stop_running, actor=ADA, reason="bad prompt")
    return len((await fleet.ledger.pull_switch(halt, fleet.now)).stopped)


@pytest.mark.parametrize(
    ("scope", "name"), [("fleet", ""), ("product", "default"), ("factory", "f1"), ("engine", "shell")]
)
async def test_nothing_halted_is_granted_until_it_is_released(fleet: Fleet, scope: HaltScope, name: str) -> None:
    """Each scope keeps the job waiting; a release lets it go."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    await pull(fleet, scope, name)

    assert await fleet.ledger.dispatch(fleet.now) == ()
    released = await fleet.ledger.release_switch(scope, name, ADA, fleet.now)
    (grant,) = await fleet.ledger.dispatch(fleet.now)
    assert (grant.job_id, grant.kill_epoch) == ("j-1", released.epoch)


async def test_halted_work_does_not_stand_in_the_way_of_other_work(fleet: Fleet) -> None:
    """The only seat goes to the later job, because the earlier one's product is halted."""
    await fleet.factory("f1", seats=1)
    await fleet.submit("j-1", product_id="shop")
    await fleet.submit("j-2", product_id="web")
    await pull(fleet, "product", "shop")

    assert [grant.job_id for grant in await fleet.ledger.dispatch(fleet.now)] == ["j-2"]


async def test_plan_from_before_the_pull_grants_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that read the fleet before the pull comes too late: admission asks the switch itself."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    monkeypatch.setattr("store.fleet_snapshot.without_halted", lambda snapshot, _halts: snapshot)
    await pull(fleet)

    assert await fleet.ledger.dispatch(fleet.now) == ()
    assert await fleet.busy("f1") == 0


async def test_pulls_and_grants_at_once_leave_no_seat_given_after_the_pull(fleet: Fleet) -> None:
    """Whatever the order, everything that runs when the pull has answered is named by it."""
    await fleet.factory("f1", stations={"shell": 9}, seats=9)
    for n in range(9):
        await fleet.submit(f"j-{n}")
    halt = Halt(stop_running=True, actor=ADA)

    pulling = asyncio.create_task(fleet.ledger.pull_switch(halt, fleet.now))
    await asyncio.gather(pulling, *(fleet.ledger.dispatch(fleet.now, limit=1) for _ in range(4)))
    pulled = await pulling

    running = {f"j-{n}" for n in range(9) if await fleet.stage(f"j-{n}") == Stage.ASSIGNED}
    assert {stopped.job_id for stopped in pulled.stopped} == running
    assert await fleet.ledger.dispatch(fleet.now) == ()


async def test_pull_that_stops_what_runs_tells_each_workflow(fleet: Fleet) -> None:
    """Exactly the attempts that the halt covers are interrupted, with the reason."""
    await fleet.factory("f1", stations={"shell": 3, "codex": 3}, seats=6)
    await fleet.building("j-1")
    await fleet.building("j-2", engine="codex")
    await fleet.deliver()

    assert await pull(fleet, "engine", "codex", stop_running=True) == 1
    (row,) = await fleet.deliver()
    assert (row.job_id, row.name) == ("j-2", "interrupt")
    assert row.payload == {"epoch": 1, "reason": "engine codex was halted by ada: bad prompt"}
    assert await fleet.busy("f1") == 2


async def test_pull_without_stopping_leaves_running_work_alone(fleet: Fleet) -> None:
    """A halt only closes admission, unless it is told to stop what runs; a second pull keeps that wish."""
    await fleet.factory("f1")
    await fleet.building("j-1")
    await fleet.deliver()
    assert await pull(fleet) == 0
    assert await fleet.deliver() == []

    assert await pull(fleet, stop_running=True) == 1
    assert await pull(fleet) == 1
    (halt,) = (await fleet.ledger.switch_state()).halts
    assert halt.stop_running


async def test_kill_epoch_grows_with_every_pull_and_release(fleet: Fleet) -> None:
    """Of two messages about the switch the newer one is known; what was released stays on record."""
    epochs = [(await fleet.ledger.switch_state()).epoch]
    await pull(fleet)
    epochs.append((await fleet.ledger.switch_state()).epoch)
    await pull(fleet, "engine", "codex")
    epochs.append((await fleet.ledger.switch_state()).epoch)
    epochs.append((await fleet.ledger.release_switch("fleet", "", "bob", fleet.tick())).epoch)

    assert epochs == sorted(set(epochs))
    (row,) = await fleet.ledger.switch_history()
    assert (row.scope, row.actor, row.released_by, row.released_at) == ("fleet", ADA, "bob", fleet.now)
    assert [line.type for line in await fleet.ledger.audit()] == ["switch.pulled", "switch.pulled", "switch.released"]


async def test_release_of_what_is_not_halted_names_what_is(fleet: Fleet) -> None:
    """A mistyped name is answered with the halts in force."""
    await pull(fleet, "engine", "codex")
    with pytest.raises(NotFound, match="engine claude is not halted") as caught:
        await fleet.ledger.release_switch("engine", "claude", ADA, fleet.now)
    assert "engine codex" in (caught.value.hint or "")


async def test_sentinel_file_halts_its_factory_for_as_long_as_it_is_there(fleet: Fleet) -> None:
    """The agent's beats say whether the file is there; no operator can release that from elsewhere."""
    await fleet.factory("f1")
    await fleet.factory("f2")
    answer = await fleet.beat("f1", sentinel="/home/x/KILL")

    (halt,) = answer.switch.halts
    assert (halt.scope, halt.name, halt.origin, halt.stop_running) == ("factory", "f1", "sentinel", True)
    assert (await fleet.beat("f2", sentinel="")).switch.halts == ()
    with pytest.raises(NotFound, match="by a file on its machine"):
        await fleet.ledger.release_switch("factory", "f1", ADA, fleet.now)
    await fleet.submit("j-1")
    (grant,) = await fleet.ledger.dispatch(fleet.now)
    assert grant.factory == "f2"

    assert (await fleet.beat("f1")).switch.halts  # a beat that does not say leaves it
    assert (await fleet.beat("f1", sentinel="")).switch.halts == ()


async def test_halts_outlive_the_agents(fleet: Fleet) -> None:
    """A factory that registers anew is as halted as before; one that was retired takes its halts along."""
    await fleet.factory("f1")
    await pull(fleet, "factory", "f1")
    await fleet.factory("f1")
    await fleet.submit("j-1")
    assert await fleet.ledger.dispatch(fleet.now) == ()

    await fleet.ledger.retire_factory("f1", ADA, fleet.now)
    assert (await fleet.ledger.switch_state()).halts == ()


async def test_waiting_job_is_told_who_halted_it(fleet: Fleet) -> None:
    """A halt of everything is the whole answer; one of a factory or an engine is a reason among others."""
    await fleet.factory("f1")
    await fleet.submit("j-1")
    await pull(fleet, "product", "default")
    told = await fleet.ledger.explanation("j-1", fleet.now)
    assert told.message == "j-1 waits until the halt is released: product default was halted by ada: bad prompt"

    await fleet.ledger.release_switch("product", "default", ADA, fleet.now)
    await pull(fleet, "factory", "f1")
    explanation = (await fleet.ledger.explanation("j-1", fleet.now)).explanation
    assert explanation is not None
    report = explanation.report("f1")
    assert report is not None
    assert [reason.code for reason in report.rejections] == ["halted"]
    assert explanation.verdict == "not_now"

    await fleet.ledger.release_switch("factory", "f1", ADA, fleet.now)
    await pull(fleet, "engine", "shell")
    explanation = (await fleet.ledger.explanation("j-1", fleet.now)).explanation
    assert explanation is not None
    assert "engine shell was halted by ada" in str(explanation.change)
