"""The supervisor with real processes: nothing outlives its purpose, nothing written is lost."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from activities.clock import boot_time
from activities.fence import job_ref, opened, wip_ref
from activities.git import add_worktree, fetch, init_mirror, worktree_admin, write_object
from activities.supervision import ApiAddress, GitPlan, RunExit, RunSpec, SupervisedRun, Supervisors
from store.settings_source import ROOT
from tests.repositories import Checkout
from tests.waiting import PATIENCE_S, until, written
from tests.workers.api_stub import ApiStub
from tests.workers.clock_shim import ShiftedClocks, on_linux
from workers.process_table import birth_of
from workers.supervisor import LATE_S

SCRIPT = ROOT / "workers" / "supervisor.py"
ENV = {"PATH": os.environ["PATH"]}

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", {body!r}], {{}})
    os._exit(0)
os.wait()
"""


def escaping(pid_file: Path) -> str:
    """Return a shell line that starts a daemon: own session, parent gone, empty environment."""
    body = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    return f"{sys.executable} -c {shlex.quote(DAEMON.format(body=body))}; while [ ! -s {pid_file} ]; do :; done"


@pytest.fixture(params=["nursery", "single"])
async def supervisors(request: pytest.FixtureRequest) -> AsyncIterator[Supervisors]:
    """Start supervisors in both ways."""
    made = Supervisors(SCRIPT, nursery=request.param == "nursery")
    yield made
    made.close()


@pytest.fixture
async def place(tmp_path: Path, remote: Checkout) -> GitPlan:
    """A worktree of a mirror, as `run_engine` makes it."""
    base = remote.git("rev-parse", "main")
    mirror, work = tmp_path / "mirror.git", tmp_path / "run" / "work"
    await init_mirror(mirror)
    await fetch(mirror, str(remote.path), "main")
    await add_worktree(mirror, work, base)
    for sha, data in opened("j-1", 1):
        write_object(mirror, sha, data)
    index = worktree_admin(work) / "index"
    (tmp_path / "run" / "start.index").write_bytes(index.read_bytes())
    return GitPlan(
        git_dir=str(index.parent),
        work_tree=str(work),
        base=base,
        url=str(remote.path),
        wip_ref=wip_ref("j-1", 1),
        fence=f"{opened('j-1', 1)[-1][0]}:{job_ref('j-1')}",
        start_index=str(tmp_path / "run" / "start.index"),
    )


def spec(tmp_path: Path, script: str, **more: object) -> RunSpec:
    """Return what a supervisor is told to run a shell line in `run/`."""
    fields = {
        "job_id": "j-1",
        "epoch": 1,
        "run_dir": str(tmp_path / "run"),
        "argv": ("/bin/sh", "-c", script),
        "cwd": str(tmp_path),
        "timeout_s": 60.0,
        "grace_s": 0.0,
    }
    git = more.get("git")
    if isinstance(git, GitPlan):
        fields["cwd"] = git.work_tree
    return RunSpec(**(fields | more))  # type: ignore[arg-type]


async def ended(run: SupervisedRun) -> RunExit:
    """Wait for the end of a run."""
    async with asyncio.timeout(PATIENCE_S):
        return await run.ended


async def test_run_writes_output_to_files_and_reports_exit(tmp_path: Path, supervisors: Supervisors) -> None:
    """Output goes straight into files, the environment is exactly what was given plus the attempt's marks."""
    run = await supervisors.launch(spec(tmp_path, "env; echo oops >&2; exit 3"), ENV | {"A": "secret-1"})
    outcome = await ended(run)
    run.close()
    assert (outcome.reason, outcome.exit_code, outcome.signal, outcome.group_dead) == ("exited", 3, None, True)
    env = dict(line.split("=", 1) for line in (run.folder / "out.log").read_text().splitlines())
    assert env["A"] == "secret-1"
    assert env["GIGAFACTORY_ATTEMPT"] == "j-1.1"
    assert set(env) - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "A", "GIGAFACTORY_ATTEMPT", "GIGAFACTORY_RUN_DIR"}
    assert (run.folder / "err.log").read_text() == "oops\n"
    assert json.loads((run.folder / "exit.json").read_text())["exit_code"] == 3
    kept = [file.read_text(errors="replace") for file in run.folder.iterdir() if file.name != "out.log"]
    assert not any("secret-1" in text for text in kept), "the environment must not touch the disk"


async def test_word_that_comes_before_the_run_began_is_heeded(tmp_path: Path, supervisors: Supervisors) -> None:
    """A supervisor that only just starts finds it in its pipe, together with the environments."""
    run = await supervisors.launch(spec(tmp_path, "sleep 600"), ENV)
    run.stop("cancelled")
    assert (await ended(run)).reason == "cancelled"
    run.close()


async def test_run_that_is_let_go_does_not_go_on(tmp_path: Path, supervisors: Supervisors) -> None:
    """Whether the supervisor reads the farewell with its first words or under the running command."""
    pid_file = tmp_path / "pid"
    for seen in (False, True):
        run = await supervisors.launch(spec(tmp_path, f"echo $$ > {pid_file}; exec sleep 600"), ENV)
        if seen:
            await written(pid_file)
        run.close()
        engine = await run.started
        await until(lambda pid=engine: birth_of(pid) is None)  # type: ignore[misc]


async def test_run_that_cannot_start_says_why(tmp_path: Path, supervisors: Supervisors) -> None:
    """A command that is not there ends with 127 and a message in err.log."""
    run = await supervisors.launch(spec(tmp_path, "", argv=("no-such-engine",)), ENV)
    assert (await ended(run)).exit_code == 127
    run.close()
    assert (run.folder / "err.log").read_text() == "cannot start no-such-engine: No such file or directory\n"


@pytest.mark.parametrize("end", ["exit", "stop", "timeout", "fence", "death"])
async def test_daemon_dies_with_the_run_whatever_ends_it(tmp_path: Path, supervisors: Supervisors, end: str) -> None:
    """A double-forked child in its own session, without our environment, does not outlive the run."""
    pid_file = tmp_path / "daemon.pid"
    wait = "" if end == "exit" else "; sleep 600"
    given = {"timeout": {"timeout_s": 4.0}, "fence": {"lease_until": boot_time() + 4.0}}.get(end, {})  # it begins first
    run = await supervisors.launch(spec(tmp_path, escaping(pid_file) + wait, **given), ENV)
    pid = int(await written(pid_file))
    if end == "stop":
        run.stop("cancelled")
    elif end == "death":
        os.close(run._life_line)
        run._life_line = -1
    outcome = await ended(run)
    reasons = {"exit": "exited", "stop": "cancelled", "fence": "fenced", "death": "agent_died"}
    assert outcome.reason == reasons.get(end, end)
    assert outcome.group_dead
    assert birth_of(pid) is None
    run.close()


async def test_stop_with_grace_lets_the_engine_end(tmp_path: Path, supervisors: Supervisors) -> None:
    """SIGTERM first; an engine that heeds it ends with its own code, one that does not is killed after the grace."""
    heeds = await supervisors.launch(spec(tmp_path, "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"), ENV)
    await written(heeds.folder / "out.log")
    heeds.stop("drain", grace_s=10)
    assert ((await ended(heeds)).reason, (await heeds.ended).exit_code) == ("drain", 7)
    heeds.close()
    deaf_spec = spec(tmp_path, "trap '' TERM; echo up; while :; do sleep 0.05; done", run_dir=str(tmp_path / "deaf"))
    deaf = await supervisors.launch(deaf_spec, ENV)
    await written(deaf.folder / "out.log")
    deaf.stop("drain", grace_s=0.2)
    assert (await ended(deaf)).signal == signal.SIGKILL
    deaf.close()


async def test_lease_that_is_renewed_lets_the_run_go_on(tmp_path: Path, supervisors: Supervisors) -> None:
    """Each beat moves the fence; without beats the run is ended although the agent is there."""
    run = await supervisors.launch(spec(tmp_path, "sleep 600", lease_until=boot_time() + 2.0), ENV)
    renewed_until = boot_time() + 3.0
    for until_s in (renewed_until - 0.5, renewed_until):
        run.beat(until_s)
    assert (await ended(run)).reason == "fenced"
    assert boot_time() >= renewed_until
    run.close()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process with SIGSTOP for as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def in_state(pid: int, letters: str) -> bool:
    """Wait until a process gets into one of these states of /proc; False when it ends instead."""

    def state() -> str:
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "gone"

    return await until(lambda: state() in {*letters, "gone"} and state()) != "gone"


def supervisor_of(run: SupervisedRun) -> int:
    """Return the pid of a run's supervisor."""
    return int(json.loads((run.folder / "state.json").read_text())["supervisor"]["pid"])


WRITES = f"exec {sys.executable} -uSc 'import time\nwhile True: time.sleep(0.02); print(1)'"
"""An engine that writes without end and has no children: a shell that waits for a vfork is never seen as stopped."""


@on_linux
@pytest.mark.parametrize("word", ["it counts", "an old one", "none", "stop"])
async def test_lease_that_ran_out_while_stopped_holds_everything_still_until_it_is_confirmed(
    tmp_path: Path, supervisors: Supervisors, word: str
) -> None:
    """A supervisor that was stopped past the lease lets nothing write before the agent knows that it may.

    A renewal that it finds in its pipe counts from when it was sent: it does not make the lease live again.
    """
    lease_until = boot_time() + 2.0
    run = await supervisors.launch(spec(tmp_path, WRITES, lease_until=lease_until), ENV)
    engine = await run.started
    with stopped(supervisor_of(run)):
        run.beat(lease_until + 0.1)
        await asyncio.sleep(lease_until + LATE_S + 0.5 - boot_time())
    assert await in_state(engine, "T")
    size = (run.folder / "out.log").stat().st_size
    if word == "it counts":
        run.beat(boot_time() + 60)
        assert await in_state(engine, "SR")
        run.stop("cancelled")
    elif word == "an old one":
        run.beat(boot_time() - 0.1)
    elif word == "stop":
        run.stop("fenced")
    reason = (await ended(run)).reason
    assert reason == ("cancelled" if word == "it counts" else "fenced")
    if word != "it counts":
        assert (run.folder / "out.log").stat().st_size == size
    assert birth_of(engine) is None
    run.close()


@on_linux
async def test_lease_ends_while_the_machine_is_suspended(
    tmp_path: Path, clocks: ShiftedClocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour that only the boot-time clock has counted is an hour; one that only the time of day has is nothing."""
    for name, value in clocks.env.items():
        monkeypatch.setenv(name, value)
    supervisors = Supervisors(SCRIPT)
    run = await supervisors.launch(spec(tmp_path, "sleep 600", lease_until=boot_time() + 60), ENV)
    engine = await run.started
    clocks.shift(wall_s=3600)
    await asyncio.sleep(2.0)
    clocks.shift(wall_s=-3600)
    await asyncio.sleep(2.0)
    assert await in_state(engine, "SR")
    clocks.shift(boot_s=3600)
    assert await in_state(engine, "T")
    assert (await ended(run)).reason == "fenced"
    run.close()
    supervisors.close()


async def test_checkpoint_reaches_the_remote_and_leaves_the_index_alone(
    tmp_path: Path, supervisors: Supervisors, place: GitPlan, remote: Checkout
) -> None:
    """While files change they are saved every so often, with an index of our own, ignored files left out."""
    script = (
        "echo x > .gitignore; echo y > x; echo one > ../new; mv ../new new.txt; git add new.txt; "
        "cp $(git rev-parse --git-dir)/index ../i1.new; mv ../i1.new ../i1; sleep 600"
    )
    run = await supervisors.launch(spec(tmp_path, script, git=place, checkpoint_s=0.3), ENV)
    async with asyncio.timeout(PATIENCE_S):
        sha = await run.checkpoints.get()
        while remote.git("ls-tree", "--name-only", sha).split() != [".gitignore", "README.md", "keep.txt", "new.txt"]:
            sha = await run.checkpoints.get()
    assert remote.ref(wip_ref("j-1", 1)) == sha
    assert remote.ref(job_ref("j-1")) == place.fence.partition(":")[0]
    assert remote.git("rev-parse", f"{sha}^") == place.base
    await until((tmp_path / "run" / "i1").exists)
    assert Path(place.git_dir, "index").read_bytes() == (tmp_path / "run" / "i1").read_bytes()
    run.stop("paused")
    outcome = await ended(run)
    assert outcome.checkpoint_sha == sha
    assert outcome.tree == remote.git("rev-parse", f"{sha}^{{tree}}")
    run.close()


HELD = """#!/bin/sh
[ "$1" = prepared ] && [ ! -e {held} ] || exit 0
echo locked > {held}
sleep 600
"""
"""A hook that stops the first push to a remote while it holds the locks of its refs."""


@pytest.mark.parametrize("end", ["exit", "stop"])
async def test_checkpoint_under_way_leaves_no_lock_on_the_remote(
    tmp_path: Path, supervisors: Supervisors, place: GitPlan, remote: Checkout, end: str
) -> None:
    """A push that the end of the run interrupts keeps nobody from pushing the job's refs afterwards."""
    held = tmp_path / "held"
    git_dir = Path(remote.git("rev-parse", "--absolute-git-dir"))
    hook = git_dir / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HELD.format(held=held))
    hook.chmod(0o755)
    script = f"echo one > new.txt; while [ ! -s {held} ]; do sleep 0.05; done"
    wait = "; sleep 600" if end == "stop" else ""
    run = await supervisors.launch(spec(tmp_path, script + wait, git=place, checkpoint_s=0.1), ENV)
    await written(held)
    if end == "stop":
        run.stop("cancelled")
    outcome = await ended(run)
    assert outcome.group_dead
    assert list((git_dir / "refs").rglob("*.lock")) == []
    assert outcome.changed, "the last snapshot is taken all the same"
    run.close()


async def test_secret_and_huge_files_stay_on_the_machine(
    tmp_path: Path, supervisors: Supervisors, place: GitPlan, remote: Checkout
) -> None:
    """The pushed tree has them as they were in the base; the machine keeps everything and names them."""
    key = "sk-ant-" + "a1B2" * 10
    script = (
        f"echo fine > fine.txt; echo '++ {key}' > leak.txt; echo '{key}' >> keep.txt; rm README.md; "
        "ln -s fine.txt README.md; truncate -s 21M huge.bin; printf -- '-----BEGIN RSA %s KEY-----' PRIVATE > 'a key'"
    )
    run = await supervisors.launch(spec(tmp_path, script, git=place), ENV)
    outcome = await ended(run)
    run.close()
    reasons = {entry["path"]: entry["reason"] for entry in outcome.quarantined}
    assert set(reasons) == {"leak.txt", "keep.txt", "huge.bin", "a key"}
    assert "anthropic-key" in reasons["leak.txt"]
    assert "limit is 20 MiB" in reasons["huge.bin"]
    mirror = Checkout(Path(place.git_dir))
    assert mirror.git("ls-tree", "-r", "--name-only", outcome.clean_tree).split() == [
        "README.md", "fine.txt", "keep.txt",
    ]  # fmt: skip
    assert mirror.git("show", f"{outcome.clean_tree}:keep.txt") == "one\ntwo\nthree"
    assert mirror.git("show", f"{outcome.tree}:leak.txt") == f"++ {key}"
    assert {entry["path"] for entry in json.loads((run.folder / "quarantine.json").read_text())} == set(reasons)


async def test_unchanged_worktree_says_so(tmp_path: Path, supervisors: Supervisors, place: GitPlan) -> None:
    """A run that wrote nothing says so."""
    run = await supervisors.launch(spec(tmp_path, "true", git=place), ENV)
    outcome = await ended(run)
    run.close()
    assert (outcome.changed, outcome.tree, outcome.problem) == (False, "", "")


FAKE_AGENT = """
import asyncio, json, sys
from pathlib import Path
from activities.supervision import *

async def main():
    given = json.loads(Path(sys.argv[1]).read_text())
    given["git"] = GitPlan(**given["git"])
    given["api"] = ApiAddress(**given["api"])
    run = await Supervisors(Path(sys.argv[2])).launch(RunSpec(**given), {"PATH": sys.argv[3]})
    await run.started
    sys.stdout.write("running\\n"); sys.stdout.flush()
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_agent_killed_supervisor_salvages_and_certifies(tmp_path: Path, place: GitPlan, remote: Checkout) -> None:
    """SIGKILL of the agent: everything of the engine dies, its work is on the remote, the API is told at once."""
    pid_file = tmp_path / "daemon.pid"
    with ApiStub() as api:
        token = tmp_path / "token"
        token.write_text("gff_secret")
        given = spec(
            tmp_path,
            f"echo work > new.txt; {escaping(pid_file)}; sleep 600",
            git=place,
            api=ApiAddress(api.url, str(token)),
            certify=True,
        )
        (tmp_path / "given.json").write_text(json.dumps(asdict(given)))
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", textwrap.dedent(FAKE_AGENT), tmp_path / "given.json", SCRIPT, ENV["PATH"],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert agent.stdout is not None
        await agent.stdout.readline()
        daemon = int(await written(pid_file))
        agent.kill()
        await agent.wait()
        path, token_seen, body = await asyncio.to_thread(api.requests.get, timeout=PATIENCE_S)
    assert birth_of(daemon) is None
    assert (path, token_seen) == ("/fleet/attempts/j-1/1/death", "Bearer gff_secret")
    assert (body["group_dead"], body["reason"], body["job_id"], body["epoch"]) == (True, "agent_died", "j-1", 1)
    assert remote.ref(wip_ref("j-1", 1)) == body["checkpoint_sha"]
    assert remote.git("show", f"{body['checkpoint_sha']}:new.txt") == "work"
    await written(tmp_path / "run" / "death.sent.json")


async def test_agent_killed_after_the_seal_supervisor_pushes_the_candidate(
    tmp_path: Path, supervisors: Supervisors, place: GitPlan, remote: Checkout
) -> None:
    """Between seal and hand-over the candidate itself is what is saved, not a checkpoint."""
    run = await supervisors.launch(spec(tmp_path, "echo work > new.txt", git=place, certify=True), ENV)
    outcome = await ended(run)
    mirror = Checkout(Path(place.git_dir))
    candidate = mirror.git("-c", "user.name=a", "-c", "user.email=b", "commit-tree", outcome.tree, "-m", "sealed")
    run.sealed(candidate)
    os.close(run._life_line)
    run._life_line = -1
    death = json.loads(await written(run.folder / "death.json"))
    assert death["checkpoint_sha"] == candidate == remote.ref(wip_ref("j-1", 1))


async def test_superseded_epoch_cannot_push_its_work(
    tmp_path: Path, supervisors: Supervisors, place: GitPlan, remote: Checkout
) -> None:
    """Once a newer epoch has moved the fence, git itself refuses the older one; its work stays in the mirror."""
    mirror = Path(place.git_dir).parent.parent
    for sha, data in opened("j-1", 2):
        write_object(mirror, sha, data)
    Checkout(mirror).git("push", "-q", place.url, f"{opened('j-1', 2)[-1][0]}:{job_ref('j-1')}")
    run = await supervisors.launch(spec(tmp_path, "echo late > late.txt", git=place, certify=True), ENV)
    await ended(run)
    os.close(run._life_line)
    run._life_line = -1
    death = json.loads(await written(run.folder / "death.json"))
    assert death["checkpoint_sha"] == ""
    assert remote.ref(wip_ref("j-1", 1)) == ""
    assert Checkout(mirror).git("show", f"{wip_ref('j-1', 1)}:late.txt") == "late"
