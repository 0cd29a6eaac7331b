"""The plan of a chaos run: to be repeated from its seed, and nothing left out."""

from __future__ import annotations

from tests.chaos.plan import DATABASE_KILLS, DATABASE_PARTITIONS, FREEZES, KILLS, LOSSES, PARTITIONS, make_plan

LEASE_S = 4.0


def test_plan_of_a_seed_is_the_same_every_time() -> None:
    """A run that found something can be run again; another seed is another run."""
    assert make_plan(7, 50, lease_s=LEASE_S) == make_plan(7, 50, lease_s=LEASE_S)
    assert make_plan(7, 50, lease_s=LEASE_S) != make_plan(8, 50, lease_s=LEASE_S)


def test_plan_has_as_many_kills_as_were_asked_for_and_grows_with_the_jobs() -> None:
    """Faults are due in order, and none so late that the last job ships before it."""
    plan = make_plan(1, 40, lease_s=LEASE_S)
    assert sum(fault.what == "kill" for fault in plan) == 40
    due = [fault.due for fault in plan]
    assert due == sorted(due)
    assert due[0] == 0
    assert due[-1] < 1


def test_plan_of_a_long_run_leaves_nothing_out() -> None:
    """Every part is killed and frozen, every way cut, every message lost both ways, below a lease and beyond it."""
    plan = make_plan(1, 200, lease_s=LEASE_S, database=True)
    targets = {what: {fault.target for fault in plan if fault.what == what} for what in ("kill", "freeze", "partition")}
    assert targets["kill"] == set(KILLS | DATABASE_KILLS)
    assert targets["freeze"] == set(FREEZES)
    assert targets["partition"] == set(PARTITIONS + DATABASE_PARTITIONS)
    assert {(fault.target, fault.how) for fault in plan if fault.what == "lose"} == set(LOSSES)
    assert {fault.hold_s > LEASE_S for fault in plan if fault.hold_s} == {True, False}
