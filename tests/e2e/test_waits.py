"""Jobs that wait for jobs, on a whole stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Remote, Stack, until_told, wait_for
from tests.e2e.test_gates import job

pytestmark = pytest.mark.stack

ON_BASE = ("profile: solo", "ship: base", "verify: 'true'", "review-policy: auto")


def test_join_is_built_on_what_all_of_its_parents_shipped(stack: Stack, remote: Remote) -> None:
    """A diamond goes through by itself, and its last job finds the files of all that came before it."""
    keys = {"root": "", "left": "key:root", "right": "key:root"}
    jobs = [
        job(
            remote,
            f"echo {key} > {key}.txt",
            f"idempotency-key: {key}",
            *ON_BASE,
            *([f"deps: ['{dep}']"] if dep else []),
        )
        for key, dep in keys.items()
    ]
    join = job(remote, "cat root.txt left.txt right.txt > join.txt", "deps: ['key:left', 'key:right']", *ON_BASE)
    answer = stack.patiently("POST", "/fleet/jobs", json={"jobs": [{"manifest": text} for text in (join, *jobs)]})
    assert answer.status_code == 201, answer.text
    last = answer.json()["jobs"][0]["id"]
    stack.until(last, "shipped")
    assert remote.show("main:join.txt") == "root\nleft\nright"
    assert sorted(remote.added("main")) == ["README.md", "join.txt", "left.txt", "right.txt", "root.txt"]


def test_waiting_job_can_be_cancelled_and_a_blocked_one_goes_on_without_its_parent(
    stack: Stack, remote: Remote, tmp_path: Path
) -> None:
    """An action on a job that has no workflow yet is taken; a failed parent leaves a choice that works."""
    parent = stack.submit(job(remote, f"{until_told(tmp_path / 'fail')}; exit 3"))
    given_up = stack.submit(job(remote, "true", f"deps: [{parent}]"))
    goes_on = stack.submit(job(remote, "echo on > on.txt", f"deps: [{parent}]", *ON_BASE))
    assert stack.act(given_up, "cancel").status_code == 200
    stack.until(given_up, "cancelled")

    (tmp_path / "fail").touch()
    stack.until(parent, "failed")
    waiting = wait_for("the choices", lambda: (stack.job(goes_on)["waiting"] or {}).get("choices"))
    assert waiting[1] == f"gf unblock {goes_on} --drop {parent}"
    assert stack.gf("unblock", goes_on, "--drop", parent).returncode == 0
    stack.until(goes_on, "shipped")


def test_child_jobs_ship_before_the_job_that_they_are_a_part_of(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """A job that ships by itself waits at its gate until its part has shipped, and then does."""
    whole = stack.submit(job(remote, f"{until_told(tmp_path / 'whole')}; echo whole > whole.txt", *ON_BASE))
    stack.until(whole, "building")
    body = {"manifest": job(remote, f"{until_told(tmp_path / 'part')}; echo part > part.txt", *ON_BASE)}
    answer = stack.patiently("POST", f"/fleet/jobs/{whole}/children", json=body)
    assert answer.status_code == 201, answer.text
    part = answer.json()["jobs"][0]["id"]
    (tmp_path / "whole").touch()
    held = wait_for("the held gate", lambda: stack.job(whole)["waiting"])
    assert (held["kind"], part in held["message"]) == ("children", True)
    assert stack.act(whole, "ship", sha=stack.job(whole)["candidate_sha"]).status_code == 409
    (tmp_path / "part").touch()

    stack.until(whole, "shipped")

    assert stack.job(part)["ended_at"] < stack.job(whole)["ended_at"]
