"""From job file to gate to end, on a whole stack: scope, verify, dead letter, cancel, signals, intake."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from core.attempt import workflow_id
from tests.e2e.conftest import Remote, Stack, git, until_told, wait_for

pytestmark = pytest.mark.stack


def job(remote: Remote | None, script: str, *fields: str) -> str:
    """Return a shell job's text."""
    where = [f"repo: {remote.path}", "base: main"] if remote else []
    head = "\n".join(["engine: shell", *where, *fields])
    return f"---\n{head}\n---\n# A job\n\n```sh\n{script}\n```\n"


def test_hello_goes_from_file_to_one_commit_on_the_base(stack: Stack) -> None:
    """`run --ship` of the first example exits 0 with one commit on the scratch repository's base."""
    done = stack.gf("run", "examples/hello.md", "--ship", "--json")
    document = json.loads(done.stdout.strip().splitlines()[-1])
    scratch = Remote(stack.home / "scratch" / "hello.git")
    assert document["stage"] == "shipped"
    assert document["commits"] == [scratch.ref("main")]


def test_run_without_a_terminal_waits_for_a_human_and_prints_the_ship_command(stack: Stack) -> None:
    """No terminal: `run` ends with the waiting exit code and says how to ship; that command ships."""
    done = stack.gf("run", "examples/hello.md", check=False)
    assert done.returncode == 3, done.stderr
    shown = done.stdout + done.stderr
    assert "gf ship " in shown
    job_id = shown.split("gf ship ", 1)[1].split()[0].strip("`'\".")
    shipped = stack.gf("ship", job_id, "--json")
    assert json.loads(shipped.stdout)["stage"] in ("shipped", "testing")
    stack.until(job_id, "shipped")


def test_default_ship_pushes_a_branch_and_leaves_the_base(stack: Stack, remote: Remote) -> None:
    """Without `ship:` the candidate lands on `gigafactory/<job>`; shipping again changes nothing."""
    base = remote.ref("main")
    job_id = stack.submit(job(remote, "echo hi > hi.txt", "verify: test -f hi.txt"))
    document = stack.ship(job_id)
    assert remote.ref("main") == base
    assert remote.ref(f"gigafactory/{job_id}") == document["commits"][0]
    again = stack.act(job_id, "ship", sha=document["candidate_sha"])
    assert again.status_code == 409
    assert remote.ref(f"gigafactory/{job_id}") == document["commits"][0]


@pytest.mark.parametrize(
    ("script", "path"),
    [
        ("echo x > README.md", "README.md"),
        ("mkdir -p src && git mv README.md src/README.md", "README.md"),
        ("mkdir -p src && ln -s ../../outside src/link", "src/link"),
        ("chmod +x README.md", "README.md"),
        (
            (
                "mkdir -p src && git init -q lib && git -C lib -c user.name=a -c user.email=a@b.c "
                "commit -q --allow-empty -m x && git add lib"
            ),
            "lib",
        ),
    ],
    ids=["edit", "rename", "symlink", "mode", "submodule"],
)
def test_change_outside_the_scope_stops_at_the_gate(stack: Stack, remote: Remote, script: str, path: str) -> None:
    """Whatever the trick: the job rests in review with the path shown, and ship is refused."""
    job_id = stack.submit(job(remote, script, "allowed-scope: ['src/**']", "verify: 'true'"))
    document = wait_for("the gate", lambda: (seen := stack.job(job_id))["conditions"] and seen)
    assert document["stage"] == "review"
    assert path in document["conditions"][0]["message"]
    refused = stack.act(job_id, "ship", sha=document["candidate_sha"])
    assert refused.status_code == 409
    assert path in refused.json()["detail"]
    assert stack.act(job_id, "cancel").status_code == 200


def test_red_verify_retries_and_ends_in_the_dead_letter(stack: Stack, remote: Remote) -> None:
    """`retry: {max: 1}` gives two attempts; the dead letter keeps log tail, work and history."""
    fields = ("verify: 'echo the reason is here; exit 7'", "retry: {max: 1, backoff: 1s}")
    job_id = stack.submit(job(remote, "echo hi > hi.txt", *fields))
    document = stack.until(job_id, "dead_letter")
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["verify_failed", "verify_failed"]
    assert document["verdict"]["verify_exit_code"] == 7
    assert "the reason is here" in document["verdict"]["log_tail"]
    end = next(event for event in stack.events(job_id) if event["type"] == "job.dead_letter")
    assert len(end["data"]["history"]) == 2
    assert remote.files(end["data"]["checkpoint"]) >= {"hi.txt"}
    diff = stack.patiently("GET", f"/fleet/jobs/{job_id}/diff")
    assert "+hi" in diff.text
    assert stack.act(job_id, "requeue", reason="again").status_code == 200
    wait_for("two more attempts", lambda: len(stack.job(job_id)["attempts"]) >= 4)
    stack.until(job_id, "dead_letter")


def test_failure_without_retry_is_failed_and_requeue_begins_a_new_life(
    stack: Stack, remote: Remote, tmp_path: Path
) -> None:
    """A failed job is requeued by hand and may still ship."""
    flag = tmp_path / "flag"
    job_id = stack.submit(job(remote, f"echo x >> x.txt; test -e {flag}", "verify: 'true'"))
    assert stack.until(job_id, "failed")["attempts"][-1]["outcome"] == "engine_error"
    flag.touch()
    assert stack.act(job_id, "requeue").status_code == 200
    assert [a["outcome"] for a in stack.ship(job_id)["attempts"]] == ["engine_error", "succeeded"]


def test_cancel_kills_every_descendant_and_keeps_the_work(stack: Stack, remote: Remote) -> None:
    """Even a detached grandchild dies, how soon is measured by `gf bench kill`; the work stays under a salvage ref."""
    script = "echo work > work.txt; setsid sh -c 'sleep 987656' & sh -c 'sleep 987657' & sleep 987658"
    job_id = stack.submit(job(remote, script))
    stack.until(job_id, "building")
    wait_for("the whole family", lambda: len(stack.attempt_processes(job_id)) >= 4)
    assert stack.act(job_id, "cancel").status_code == 200
    wait_for("the family's end", lambda: not stack.attempt_processes(job_id))
    document = stack.until(job_id, "cancelled")
    assert remote.show(f"refs/gigafactory/wip/{job_id}/{document['attempts'][-1]['epoch']}:work.txt") == "work"


def test_ship_signal_of_the_temporal_cli_works_when_legal_and_is_recorded_when_not(
    stack: Stack, remote: Remote, temporal_binary: Path, tmp_path: Path
) -> None:
    """Early, foreign and garbage ship signals are in the event log as refused; the right one ships."""
    job_id = stack.submit(job(remote, f"{until_told(tmp_path / 'on')}; echo hi > hi.txt", "verify: test -f hi.txt"))
    stack.until(job_id, "building")
    address = stack.state()["urls"]["temporal"]

    def signal(value: str) -> None:
        command = [str(temporal_binary), "workflow", "signal", "--address", address, "--name", "ship"]
        command += ["--workflow-id", workflow_id("default", job_id), "--input", value]
        subprocess.run(
            command, check=True, capture_output=True, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        )

    signal('"early"')
    (tmp_path / "on").touch()
    document = stack.until(job_id, "testing")
    signal(json.dumps("a" * 40))
    signal('{"sha": [1, 2]}')
    wait_for(
        "three refusals",
        lambda: sum(event["type"] == "decision.refused" for event in stack.events(job_id)) >= 3,
    )
    assert stack.job(job_id)["stage"] == "testing"
    signal(json.dumps(document["candidate_sha"]))
    stack.until(job_id, "shipped")


def test_phase_0_file_runs(stack: Stack, tmp_path: Path) -> None:
    """A file with only engine, cwd and yolo runs in a worktree of that repository; the user's tree is not touched."""
    tree = tmp_path / "mine"
    tree.mkdir()
    git("init", "-q", cwd=tree)
    (tree / "a.txt").write_text("a\n")
    git("add", "-A", cwd=tree)
    git("commit", "-qm", "a", cwd=tree)
    (tree / "a.txt").write_text("dirty\n")
    job_id = stack.submit(f"---\nengine: shell\ncwd: {tree}\nyolo: true\n---\ncat a.txt > b.txt\n")
    document = stack.gate(job_id)
    assert document["stage"] == "review"
    assert "a.txt" in " ".join(document["repository"]["notes"])
    stack.ship(job_id)
    assert (tree / "a.txt").read_text() == "dirty\n"
    assert not (tree / "b.txt").exists()
    assert git("show", f"gigafactory/{job_id}:b.txt", cwd=tree) == "a"


def test_checked_out_base_ships_to_a_branch_and_says_how_to_merge(stack: Stack, tmp_path: Path) -> None:
    """`ship: base` on a base that is checked out lands beside it, with the merge command shown."""
    tree = tmp_path / "mine"
    tree.mkdir()
    git("init", "-q", cwd=tree)
    git("commit", "-q", "--allow-empty", "-m", "a", cwd=tree)
    head = git("rev-parse", "HEAD", cwd=tree)
    fields = (f"cwd: {tree}", "profile: solo", "ship: base", "verify: 'true'")
    document = stack.ship(stack.submit(job(None, "echo b > b.txt", *fields)))
    assert git("rev-parse", "HEAD", cwd=tree) == head
    assert git("status", "--porcelain", cwd=tree) == ""
    end = next(event for event in stack.events(document["id"]) if event["type"] == "job.shipped")
    assert f"gigafactory/{document['id']}" in end["message"]
    assert "merge" in end["message"]


def test_directory_without_git_runs_in_place_and_says_so(stack: Stack, tmp_path: Path) -> None:
    """No repository: the work happens there, with verify, without scope and merge."""
    folder = tmp_path / "plain"
    folder.mkdir()
    job_id = stack.submit(job(None, "echo made > made.txt", f"cwd: {folder}", "verify: test -f made.txt"))
    document = stack.gate(job_id)
    assert (folder / "made.txt").read_text() == "made\n"
    assert "git" in " ".join(document["repository"]["notes"])
    assert document["stage"] == "testing"
    assert stack.act(job_id, "ship", sha="").status_code == 200
    stack.until(job_id, "shipped")


def test_moved_base_merges_cleanly_or_ends_in_review_with_the_conflict(stack: Stack, remote: Remote) -> None:
    """A clean move is merged and verified again; a conflicting one stops in review and names the file."""
    fields = ("profile: solo", "ship: base", "verify: 'true'")
    clean = stack.submit(job(remote, "echo one > one.txt", *fields))
    clash = stack.submit(job(remote, "echo ours > README.md", *fields))
    stack.until(clean, "testing")
    stack.until(clash, "testing")
    work = remote.path.parent / "work"
    git("clone", "-q", str(remote.path), str(work))
    (work / "README.md").write_text("theirs\n")
    git("commit", "-qam", "theirs", cwd=work)
    git("push", "-q", "origin", "main", cwd=work)
    moved = remote.ref("main")
    document = stack.ship(clean)
    assert remote.files("main") >= {"README.md", "one.txt"}
    assert git("rev-parse", f"{document['commits'][0]}^", cwd=remote.path) == moved
    candidate = stack.job(clash)["candidate_sha"]
    assert stack.act(clash, "ship", sha=candidate).status_code == 200
    document = wait_for("the conflict", lambda: (seen := stack.job(clash))["conditions"] and seen)
    assert document["stage"] == "review"
    assert "README.md" in document["conditions"][0]["message"]
    assert stack.act(clash, "reject", reason="not now").status_code == 200
    stack.until(clash, "failed")


def test_child_waits_for_its_parent(stack: Stack, remote: Remote) -> None:
    """A job with `deps` is blocked visibly until the parent shipped, then runs."""
    parent = stack.submit(job(remote, "echo p > p.txt", "profile: solo", "ship: base", "verify: 'true'"))
    child = stack.submit(job(remote, "cat p.txt > c.txt", f"deps: [{parent}]", "verify: test -s c.txt"))
    wait_for("the block", lambda: stack.job(child)["conditions"])
    assert parent in stack.job(child)["conditions"][0]["message"]
    stack.ship(parent)
    document = stack.gate(child)
    assert document["stage"] == "testing"
    assert remote.show(f"{document['candidate_sha']}:c.txt") == "p"


def test_same_key_is_one_job_and_other_content_a_conflict(stack: Stack, remote: Remote) -> None:
    """Same key and content: the same job. Same key, other content: 409 that names the field."""
    text = job(remote, "echo hi > hi.txt", "idempotency-key: k-1")
    first = stack.submit(text)
    assert stack.submit(text) == first
    other = stack.patiently(
        "POST", "/fleet/jobs", json={"manifest": text.replace("base: main", "base: main\ntimeout: 3m")}
    )
    assert other.status_code == 409
    assert "timeout" in other.text


def test_pause_keeps_the_work_and_resume_goes_on(stack: Stack, remote: Remote, tmp_path: Path) -> None:
    """Pause while building stops the engine with its work kept; resume continues from it."""
    told = tmp_path / "told"
    script = f"test -f one || {{ echo 1 > one; echo one >> {told}; sleep 60; }}; echo 2 > two"
    job_id = stack.submit(job(remote, script, "verify: test -f one -a -f two"))
    wait_for("step one", told.exists)
    assert stack.act(job_id, "pause").status_code == 200
    wait_for("the pause", lambda: any(c["type"] == "paused" for c in stack.job(job_id)["conditions"]))
    wait_for("the engine's end", lambda: not stack.attempt_processes(job_id))
    assert stack.act(job_id, "resume").status_code == 200
    stack.ship(job_id)
    assert told.read_text() == "one\n"
