"""When a factory is taken for flaky: only for what the machine did, and only when others do better."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.flakiness import (
    AMBIGUOUS,
    OF_THE_MACHINE,
    ONE_INCIDENT,
    SPOILT,
    SUCCEEDED,
    Ending,
    FlakyPolicy,
    Tally,
    judge_factory,
)
from core.job import FailureKind

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
THREE = FlakyPolicy(failures=3, window_s=3600)
OTHERS_DO_WELL = Tally(succeeded=5, spoilt=0)
JOBS = ("a", "b", "c", "d", "e")
BLAMELESS = sorted(set(FailureKind) - SPOILT)


def ending(job_id: str, outcome: str, *, minute: float = 0, factory: str = "f1", epoch: int = 1) -> Ending:
    """Return how an attempt ended."""
    at = START + timedelta(minutes=minute)
    return Ending(job_id=job_id, epoch=epoch, factory=factory, engine="shell", outcome=outcome, ended_at=at)


def spoilt(count: int, outcome: str = FailureKind.LEASE_LOST) -> list[Ending]:
    """Return so many jobs that f1 spoilt, minutes apart."""
    return [ending(JOBS[n], outcome, minute=2 * n) for n in range(count)]


@pytest.mark.parametrize("outcome", sorted(OF_THE_MACHINE))
def test_factory_that_spoils_often_enough_is_flaky(outcome: FailureKind) -> None:
    """The third incident is one too many; the evidence names each attempt and what others did."""
    assert judge_factory("f1", spoilt(2, outcome), OTHERS_DO_WELL, THREE) is None
    evidence = judge_factory("f1", spoilt(3, outcome), OTHERS_DO_WELL, THREE)
    assert evidence is not None
    assert [e.job_id for e in evidence.spoilt] == ["a", "b", "c"]
    assert str(evidence) == (
        f"it spoilt 3 and brought 0 through within 3600 s ({outcome}), while the others brought 5 through and spoilt 0"
    )


@pytest.mark.parametrize("outcome", BLAMELESS)
def test_what_is_not_the_machines_fault_never_counts(outcome: FailureKind) -> None:
    """A red verify, a timeout, a usage limit, an operator's stop say nothing about the factory."""
    assert judge_factory("f1", spoilt(5, outcome), OTHERS_DO_WELL, THREE) is None


def test_engine_errors_count_once_the_jobs_got_through_elsewhere() -> None:
    """A script that fails everywhere is the script's fault; one that another factory ran is not."""
    failed = spoilt(3, FailureKind.ENGINE_ERROR)
    assert judge_factory("f1", failed, OTHERS_DO_WELL, THREE) is None
    proof = [ending(job, SUCCEEDED, minute=20, factory="f2", epoch=2) for job in JOBS[:3]]
    assert judge_factory("f1", [*failed, *proof], OTHERS_DO_WELL, THREE) is not None


def test_leases_lost_together_are_one_incident() -> None:
    """One dead agent with five seats has failed once."""
    together = [ending(job, FailureKind.LEASE_LOST, minute=n / 60) for n, job in enumerate(JOBS)]
    assert judge_factory("f1", together, OTHERS_DO_WELL, THREE) is None
    crashes = [ending(job, FailureKind.CRASH, minute=n / 60) for n, job in enumerate(JOBS)]
    assert judge_factory("f1", crashes, OTHERS_DO_WELL, THREE) is not None, "jobs that crash in a row are not"


def test_job_that_is_spoilt_everywhere_is_no_evidence() -> None:
    """A poison job kills whatever machine it meets."""
    here = spoilt(3, FailureKind.CRASH)
    there = [ending("b", FailureKind.CRASH, minute=30, factory="f2", epoch=2)]
    assert judge_factory("f1", [*here, *there], OTHERS_DO_WELL, THREE) is None


def test_factory_that_mostly_does_well_is_not_flaky() -> None:
    """As many jobs brought through as spoilt: judged; one more: not."""
    good = [ending(f"good-{n}", SUCCEEDED, minute=n) for n in range(4)]
    assert judge_factory("f1", [*spoilt(3), *good[:3]], OTHERS_DO_WELL, THREE) is not None
    assert judge_factory("f1", [*spoilt(3), *good], OTHERS_DO_WELL, THREE) is None


@pytest.mark.parametrize("elsewhere", [Tally(), Tally(succeeded=2, spoilt=2), Tally(succeeded=3, spoilt=9)], ids=str)
def test_nobody_is_blamed_when_all_fail(elsewhere: Tally) -> None:
    """A broken network or provider is not one factory's flakiness; a lone factory has nobody to compare with."""
    assert judge_factory("f1", spoilt(5), elsewhere, THREE) is None


def test_rule_can_be_switched_off() -> None:
    """0 failures: never."""
    assert judge_factory("f1", spoilt(5), OTHERS_DO_WELL, FlakyPolicy(failures=0)) is None


ENDINGS = st.lists(
    st.builds(
        ending,
        st.sampled_from(JOBS),
        st.sampled_from([SUCCEEDED, *FailureKind]),
        minute=st.floats(0, 60),
        factory=st.sampled_from(["f1", "f2"]),
        epoch=st.integers(1, 4),
    ),
    max_size=25,
)


@given(ENDINGS, st.integers(1, 5), st.builds(Tally, succeeded=st.integers(0, 9), spoilt=st.integers(0, 9)))
def test_every_verdict_is_backed_by_its_evidence(endings: list[Ending], failures: int, elsewhere: Tally) -> None:
    """Whatever happened: a flaky factory spoilt enough distinct jobs by itself, and the others did better."""
    evidence = judge_factory("f1", endings, elsewhere, FlakyPolicy(failures=failures))
    if evidence is None:
        return
    jobs = [e.job_id for e in evidence.spoilt]
    elsewhere_spoilt = {e.job_id for e in endings if e.factory == "f2" and e.outcome in SPOILT}
    assert len(jobs) == len(set(jobs)) >= max(failures, evidence.succeeded)
    assert not elsewhere_spoilt & set(jobs)
    assert all(e in endings and e.factory == "f1" and e.outcome in SPOILT for e in evidence.spoilt)
    assert all(
        any(o.job_id == e.job_id and o.factory == "f2" and o.outcome == SUCCEEDED for o in endings)
        for e in evidence.spoilt
        if e.outcome in AMBIGUOUS
    )
    lost = [e.ended_at for e in evidence.spoilt if e.outcome == FailureKind.LEASE_LOST]
    assert all(later - earlier > ONE_INCIDENT for earlier, later in pairwise(lost))
    assert elsewhere.succeeded > elsewhere.spoilt


@given(ENDINGS, st.builds(Tally, succeeded=st.integers(0, 9), spoilt=st.integers(0, 9)), st.randoms())
def test_order_of_the_endings_does_not_matter(endings: list[Ending], elsewhere: Tally, shuffler: object) -> None:
    """The same facts in another order give the same verdict."""
    before = judge_factory("f1", endings, elsewhere, THREE)
    shuffled = list(endings)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    after = judge_factory("f1", shuffled, elsewhere, THREE)
    assert (before is None) == (after is None)
