"""Routing decisions as data: each file in `scenarios/` is a fleet, and what must become of its jobs."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.router import FleetSnapshot, Plan, plan

FOLDER = Path(__file__).parent / "scenarios"
DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "router.md"
START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    """Return a scenario; jobs without a time of submission are one second apart, in the order of the file."""
    scenario: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    for age, job in enumerate(scenario["snapshot"]["jobs"]):
        job.setdefault("submitted_at", START + timedelta(seconds=age))
    scenario["snapshot"].setdefault("now", START + timedelta(hours=1))
    return scenario


def decide(name: str) -> tuple[dict[str, Any], Plan]:
    """Return what a scenario expects, and what the router made of it."""
    scenario = load(name)
    allowed = {"grants", "parks", "rejections", "used", "overtaken", "preemptions", "why_not", "weighed_by"}
    assert set(scenario["expect"]) <= allowed, "a misspelt expectation would test nothing"
    return scenario["expect"], plan(FleetSnapshot.model_validate(scenario["snapshot"]))


@pytest.mark.req("R9")
def test_scenarios_are_many_and_each_says_its_promise() -> None:
    """The router is specified by at least 25 named examples."""
    assert len(NAMES) >= 25
    assert all(load(name)["promise"].endswith(".") for name in NAMES)


@pytest.mark.req("R2", "R3", "R4", "R7", "R10")
@pytest.mark.parametrize("name", NAMES)
def test_scenario_jobs_go_where_expected(name: str) -> None:
    """The grants are exactly those of the file; everything else waits."""
    expect, decided = decide(name)
    grants = {grant.job_id: f"{grant.factory}/{grant.engine}" for grant in decided.grants}

    if "used" in expect:
        assert Counter(grant.factory for grant in decided.grants) == expect["used"]
    else:
        assert grants == expect.get("grants", {})
        assert set(decided.waiting) == set(expect.get("parks", {}))
    preemptions = {item.job_id: f"{item.victim} on {item.factory}" for item in decided.preemptions}
    assert preemptions == expect.get("preemptions", {})
    if "overtaken" in expect:
        assert decided.overtaken == expect["overtaken"]


@pytest.mark.req("R5")
@pytest.mark.parametrize("name", NAMES)
def test_scenario_explanations_say_what_is_expected(name: str) -> None:
    """Verdict, position, blockers, smallest change and all rejection codes are those of the file."""
    expect, decided = decide(name)

    for job_id, wanted in expect.get("parks", {}).items():
        explanation = decided.explain(job_id)
        said: dict[str, Any] = {
            "verdict": explanation.verdict,
            "position": explanation.position,
            "blockers": [str(blocker) for blocker in explanation.blockers],
            "change": str(explanation.change),
            "alternative": str(explanation.alternative),
        }
        assert {key: said[key] for key in wanted} == wanted
    for job_id, factories in expect.get("rejections", {}).items():
        reports = {factory: decided.explain(job_id).report(factory) for factory in factories}
        codes = {
            factory: [rejection.code for rejection in report.rejections]
            for factory, report in reports.items()
            if report
        }
        assert codes == factories


@pytest.mark.req("R3", "R5")
@pytest.mark.parametrize("name", [name for name in NAMES if "weighed_by" in load(name)["expect"]])
def test_scenario_explanations_say_who_weighed(name: str) -> None:
    """A weight that is not the fleet's is named with whoever gave it."""
    expect, decided = decide(name)

    said = {job_id: [line.strip() for line in decided.explain(job_id).render()] for job_id in expect["weighed_by"]}
    weighed = {job_id: "; ".join(line for line in lines if " weighs " in line) for job_id, lines in said.items()}
    assert weighed == expect["weighed_by"]


@pytest.mark.req("R5")
@pytest.mark.parametrize("name", [name for name in NAMES if "why_not" in load(name)["expect"]])
def test_scenario_why_not_says_what_is_expected(name: str) -> None:
    """The answer about one job and one factory is, line by line, that of the file."""
    expect, decided = decide(name)

    for job_id, factories in expect["why_not"].items():
        answers = {factory: decided.why_not(job_id, factory) for factory in factories}
        assert {factory: answer.render() for factory, answer in answers.items() if answer} == factories


def test_worked_example_of_the_docs_is_what_the_router_prints() -> None:
    """The page about the router shows real output."""
    _, decided = decide("worked-example")
    page = DOCS.read_text(encoding="utf-8")

    for job_id in ("j-20", "j-21"):
        assert "\n".join(decided.explain(job_id).render()) in page


def test_default_weights_of_the_docs_are_those_of_the_code() -> None:
    """The page gives every weight and limit with its default."""
    page = DOCS.read_text(encoding="utf-8")
    snapshot = FleetSnapshot(now=START)

    for model in (snapshot.weights, snapshot.limits):
        for name in type(model).model_fields:
            assert f"| `{name}` | {getattr(model, name)} |" in page
