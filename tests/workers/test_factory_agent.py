"""The agent as a process: a real Temporal server, real engines; the API is a stub that notes what it is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

from activities.fence import wip_ref
from core.absence import Absence
from core.attempt import BuildRequest, BuildResult, Grant
from core.factory_names import memorable_name
from core.job import FailureKind, JobSpec, Repository
from core.settings import Settings
from core.switch import SwitchState
from store.settings_source import ROOT
from store.token_files import factory_token_file, write_token
from tests.conftest import TemporalServer
from tests.repositories import Checkout
from tests.waiting import PATIENCE_S, until, written
from tests.workers.api_stub import ApiStub
from tests.workers.clock_shim import ShiftedClocks, on_linux
from workers.factory_agent import EXIT_IN_USE, EXIT_REFUSED, Agent, beat_pause_s, lock_identity
from workers.process_table import birth_of, kill, living_descendants
from workers.supervisor import HOLD_S, SCAN_S


@workflow.defn(sandboxed=False)
class OneAttempt:
    """Runs one attempt the way job workflows do."""

    @workflow.run
    async def run(self, request: BuildRequest) -> BuildResult:
        result: BuildResult = await workflow.execute_activity(
            "run_engine",
            request,
            task_queue=request.grant.engine_queue,
            result_type=BuildResult,
            start_to_close_timeout=timedelta(minutes=2),
            heartbeat_timeout=timedelta(seconds=request.grant.lease_ttl_s),
            retry_policy=RetryPolicy(maximum_attempts=1),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        return result


@dataclass
class RunningAgent:
    """An agent process and what the stub was told."""

    process: asyncio.subprocess.Process
    api: ApiStub
    home: Path
    name: str

    async def told(self, path: str) -> dict[str, Any]:
        """Wait until the API was called at a path that ends so; return the body."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    seen, _, body = self.api.requests.get_nowait()
                except Empty:
                    await asyncio.sleep(0.02)
                    continue
                if seen.endswith(path):
                    return body

    async def ready(self) -> dict[str, Any]:
        """Wait until it has registered; return what it said of itself."""
        return await self.told("/fleet/factories")


@asynccontextmanager
async def running_agent(
    home: Path,
    server: TemporalServer,
    *,
    name: str = "",
    answers: dict[str, dict[str, Any]] | None = None,
    environ: dict[str, str] | None = None,
    **settings: object,
) -> AsyncIterator[RunningAgent]:
    """Run an agent until the block ends."""
    name = name or f"f-{uuid.uuid4().hex[:8]}"
    home.mkdir(exist_ok=True)
    if not factory_token_file(home, name).exists():
        write_token(factory_token_file(home, name), "gff_x")
    with ApiStub() as api:
        api.answers |= answers or {}
        env = {**os.environ, "PYTHONPATH": str(ROOT), "GIGAFACTORY_HOME": str(home), "GIGAFACTORY_API_URL": api.url}
        env |= {"GIGAFACTORY_TEMPORAL_ADDRESS": server.address, "GIGAFACTORY_FACTORY_BEAT_S": "0.1"}
        env |= environ or {}
        env |= {f"GIGAFACTORY_{key.upper()}": str(value) for key, value in settings.items()}
        log = (home / f"{name}.log").open("ab")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "workers.factory_agent", "--name", name,
            env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        try:
            yield RunningAgent(process, api, home, name)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def agent(tmp_path: Path, temporal_server: TemporalServer) -> AsyncIterator[RunningAgent]:
    """Run an agent that has registered."""
    async with running_agent(tmp_path / "home", temporal_server, stop_grace_s=0.1) as running:
        running.body = await running.ready()  # type: ignore[attr-defined]
        yield running


async def start(
    client: Client, agent: RunningAgent, remote: Checkout, script: str, *, ttl_s: float = 30.0, beat_s: float = 0.2
) -> WorkflowHandle[OneAttempt, BuildResult]:
    """Start an attempt on the agent."""
    base = remote.git("rev-parse", "main")
    repository = Repository(url=str(remote.path), base="main", base_sha=base)
    spec = JobSpec(title="Do it", body=script, repository=repository, engine="shell")
    grant = Grant(
        job_id="j-1",
        epoch=1,
        factory=agent.name,
        engine="shell",
        granted_at=datetime.now(UTC),
        base_sha=base,
        lease_ttl_s=ttl_s,
        beat_s=beat_s,
    )
    request = BuildRequest(job_id="j-1", epoch=1, spec=spec, grant=grant)
    return await client.start_workflow(OneAttempt.run, request, id=uuid.uuid4().hex, task_queue="test-factory-agent")


@pytest.fixture
async def workflows(temporal_client: Client) -> AsyncIterator[Client]:
    """Run the test's own workflow."""
    async with Worker(temporal_client, task_queue="test-factory-agent", workflows=[OneAttempt]):
        yield temporal_client


async def test_agent_registers_beats_and_leaves(agent: RunningAgent) -> None:
    """It says what it is, beats, and on SIGTERM drains, leaves and ends with 0."""
    body = agent.body  # type: ignore[attr-defined]
    assert (body["name"], body["pid"], body["seats"]) == (agent.name, agent.process.pid, 3)
    assert f"factory:{agent.name}" in body["capabilities"]
    assert {"engine": "shell", "usable": True}.items() <= next(
        s for s in body["stations"] if s["engine"] == "shell"
    ).items()
    beat = await agent.told(f"/{agent.name}/heartbeat")
    assert beat["instance"] == body["instance"]
    agent.process.terminate()
    assert (await agent.told(f"/{agent.name}/leave"))["instance"] == body["instance"]
    assert await agent.process.wait() == 0


async def test_attempt_runs_and_reports_once(agent: RunningAgent, workflows: Client, remote: Checkout) -> None:
    """From queue to sealed candidate; everything is told once, the result last."""
    handle = await start(workflows, agent, remote, "echo work > new.txt; echo said")
    built = await handle.result()
    assert built.outcome == "succeeded", built.message
    reports: list[dict[str, Any]] = []
    while not (reports and "result" in reports[-1]):
        reports.append(await agent.told("/fleet/attempts/j-1/1/report"))
    assert reports[-1]["result"]["sha"] == built.candidate_sha
    said = [line["text"] for report in reports for block in report.get("logs", ()) for line in block["lines"]]
    assert said == ["said"]


async def test_acknowledged_beats_keep_a_long_attempt_alive(
    agent: RunningAgent, workflows: Client, remote: Checkout
) -> None:
    """Longer than the lease and than the SDK's own timer: nobody cancels an attempt that beats."""
    handle = await start(workflows, agent, remote, "sleep 11; echo work > new.txt", ttl_s=4.0)
    assert (await handle.result()).outcome == "succeeded"


async def test_cancel_reaches_the_engine_with_the_next_beat(
    tmp_path: Path, agent: RunningAgent, workflows: Client, remote: Checkout
) -> None:
    """A cancelled workflow: the engine's processes are dead, the answer says so, the work is kept."""
    pid_file = tmp_path / "pid"
    script = f"echo half > new.txt; (setsid sleep 600 & echo $! > {pid_file}); sleep 600"
    handle = await start(workflows, agent, remote, script)
    pid = int(await written(pid_file))
    await handle.cancel()
    built = await handle.result()
    assert built.failure == FailureKind.CANCELLED
    assert birth_of(pid) is None
    assert remote.git("show", f"{built.checkpoint_sha}:new.txt") == "half"


async def test_sigterm_hands_the_running_attempt_on(
    tmp_path: Path, agent: RunningAgent, workflows: Client, remote: Checkout
) -> None:
    """A drained attempt ends with its checkpoint, interrupted and not failed; the agent waits for that."""
    pid_file = tmp_path / "pid"
    handle = await start(workflows, agent, remote, f"echo half > new.txt; echo $$ > {pid_file}; sleep 600")
    await written(pid_file)
    agent.process.terminate()
    built = await handle.result()
    assert (built.failure, built.message) == (FailureKind.INTERRUPTED, "factory drained")
    assert remote.git("show", f"{built.checkpoint_sha}:new.txt") == "half"
    assert await agent.process.wait() == 0


@pytest.mark.req("F9")
async def test_sentinel_file_stops_engines_while_the_api_is_away(
    tmp_path: Path, agent: RunningAgent, workflows: Client, remote: Checkout
) -> None:
    """The file alone is enough; the API hears of it as soon as it answers again, and so of its removal."""
    pid_file, sentinel = tmp_path / "pid", agent.home / "KILL"
    handle = await start(workflows, agent, remote, f"echo half > new.txt; echo $$ > {pid_file}; sleep 600")
    pid = int(await written(pid_file))
    agent.api.status = 503
    sentinel.touch()
    built = await handle.result()
    assert (built.failure, str(sentinel) in built.message) == (FailureKind.INTERRUPTED, True)
    assert birth_of(pid) is None
    assert remote.git("show", f"{built.checkpoint_sha}:new.txt") == "half"
    agent.api.status = 200
    beat = f"/fleet/factories/{agent.name}/heartbeat"
    while (await agent.told(beat))["sentinel"] != str(sentinel):
        continue
    sentinel.unlink()
    while (await agent.told(beat))["sentinel"]:
        continue


@pytest.mark.req("F8", "F9")
@pytest.mark.parametrize("order", ["halt", "hand over"])
async def test_order_in_the_answer_to_a_beat_stops_what_runs(
    tmp_path: Path, agent: RunningAgent, workflows: Client, remote: Checkout, order: str
) -> None:
    """Without any link the next beat is soon enough."""
    pid_file = tmp_path / "pid"
    handle = await start(workflows, agent, remote, f"echo $$ > {pid_file}; sleep 600")
    pid = int(await written(pid_file))
    halt = {"epoch": 3, "scope": "engine", "name": "shell", "stop_running": True, "actor": "ada"}
    halted = {"state": "online", "hand_over": False, "switch": {"epoch": 3, "halts": [halt]}}
    handed = {"state": "draining", "hand_over": True, "switch": {"epoch": 0, "halts": []}}
    agent.api.answers[f"/fleet/factories/{agent.name}/heartbeat"] = halted if order == "halt" else handed
    built = await handle.result()
    assert built.failure == FailureKind.INTERRUPTED
    assert built.message == ("engine shell was halted by ada" if order == "halt" else "factory drained")
    assert birth_of(pid) is None


async def test_agent_reports_room_and_seats_of_each_engine(tmp_path: Path, temporal_server: TemporalServer) -> None:
    """`seats_per_engine` bounds one engine; disk, memory and the sentinel come with registration and beats."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "KILL").touch()
    async with running_agent(home, temporal_server, seats_per_engine="shell=1", seats_per_factory=4) as agent:
        said = await agent.ready()
        seats = {station["engine"]: station["seats"] for station in said["stations"]}
        assert (said["seats"], seats["shell"], {seats[name] for name in seats.keys() - {"shell"}}) == (4, 1, {4})
        beat = await agent.told("/heartbeat")
        for told in (said, beat):
            assert told["sentinel"] == str(home / "KILL")
            assert told["free_memory_gb"] > 0
            assert told["free_disk_gb"] > 0


async def test_agent_killed_supervisor_certifies_and_next_agent_says_who_died(
    tmp_path: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout
) -> None:
    """SIGKILL: a certificate arrives without an agent; the next agent proves that the former is dead."""
    pid_file = tmp_path / "pid"
    home = tmp_path / "home"
    async with running_agent(home, temporal_server) as agent:
        first = await agent.ready()
        await start(workflows, agent, remote, f"echo half > new.txt; echo $$ > {pid_file}; sleep 600")
        pid = int(await written(pid_file))
        agent.process.kill()
        letter = await agent.told("/fleet/attempts/j-1/1/death")
        assert (letter["reason"], letter["group_dead"]) == ("agent_died", True)
        assert birth_of(pid) is None
        assert remote.git("show", f"{letter['checkpoint_sha']}:new.txt") == "half"
    async with running_agent(home, temporal_server, name=agent.name) as again:
        report = await again.ready()
        assert (report["replaces"], report["boot"]) == (first["instance"], first["boot"])
        assert first["boot"]


async def test_agent_and_supervisor_killed_next_agent_certifies(
    tmp_path: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout
) -> None:
    """When nobody was left to do it, the next agent kills, saves and certifies before it takes work."""
    pid_file = tmp_path / "pid"
    home = tmp_path / "home"
    async with running_agent(home, temporal_server) as agent:
        await agent.ready()
        await start(
            workflows, agent, remote, f"echo half > new.txt; (setsid sleep 600 & echo $! > {pid_file}); sleep 600"
        )
        pid = int(await written(pid_file))
        supervisor = await supervisor_of(agent)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # neither has the time to see the other one die
            os.kill(supervisor, number)
            os.kill(agent.process.pid, number)
    assert birth_of(pid) is not None, "the daemon outlived both"
    async with running_agent(home, temporal_server, name=agent.name) as again:
        letter = await again.told("/fleet/attempts/j-1/1/death")
        assert letter["reason"] == "orphan_found"
        assert birth_of(pid) is None
        assert remote.git("show", f"{letter['checkpoint_sha']}:new.txt") == "half"


async def test_absence_that_comes_while_another_is_told_is_told_next(tmp_path: Path) -> None:
    """Each is told once, also one that is seen while the answer to a beat is on its way."""
    agent = Agent("f-1", Settings(home=tmp_path, api_url="http://127.0.0.1:9"), {})
    first, second = Absence(kind="stopped", by_s=4.0), Absence(kind="suspended", by_s=3600.0)
    agent._absences.append(first)
    told: list[list[dict[str, Any]]] = []

    async def beat(_name: str, body: dict[str, Any]) -> SimpleNamespace:
        told.append(body["absences"])
        if len(told) == 1:
            agent._absences.append(second)
        return SimpleNamespace(switch=SwitchState(), hand_over=False)

    agent.api = cast("Any", SimpleNamespace(beat=beat))
    for _ in range(3):
        await agent._beat_once(cast("Any", None))
    assert told == [[first.model_dump()], [second.model_dump()], []]


async def noticed(agent: RunningAgent, kind: str) -> float:
    """Wait until the agent has told of such an absence; return by how much."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            beat = await agent.told("/heartbeat")
            for absence in beat["absences"]:
                if absence["kind"] == kind:
                    return float(absence["by_s"])


@on_linux
@pytest.mark.req("F4")
async def test_time_of_day_that_jumps_changes_no_lease_and_is_told(
    tmp_path: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout, clocks: ShiftedClocks
) -> None:
    """A day ahead and a day back while an attempt runs: it ends as if nothing had been, and the fleet is told."""
    pid_file = tmp_path / "pid"
    async with running_agent(tmp_path / "home", temporal_server, environ=clocks.env) as agent:
        await agent.ready()
        script = f"echo $$ > {pid_file}; while [ ! -e {tmp_path}/stop ]; do sleep 0.05; done; echo work > new.txt"
        handle = await start(workflows, agent, remote, script, ttl_s=6.0)
        await written(pid_file)
        clocks.shift(wall_s=86400)
        assert await noticed(agent, "clock_jumped") == pytest.approx(86400, abs=5)
        clocks.shift(wall_s=-86400)
        assert await noticed(agent, "clock_jumped") == pytest.approx(-2 * 86400, abs=5)
        await asyncio.sleep(7.0)
        (tmp_path / "stop").touch()
        assert (await handle.result()).outcome == "succeeded"


@on_linux
@pytest.mark.req("F4", "F5")
@pytest.mark.parametrize("counts", [True, False])
async def test_suspended_machine_asks_before_its_engine_goes_on(
    tmp_path: Path,
    temporal_server: TemporalServer,
    workflows: Client,
    remote: Checkout,
    clocks: ShiftedClocks,
    *,
    counts: bool,
) -> None:
    """An hour in a closed laptop: the engine is held still until the ledger says that it counts, or killed."""
    pid_file = tmp_path / "pid"
    async with running_agent(tmp_path / "home", temporal_server, environ=clocks.env) as agent:
        await agent.ready()
        script = f"echo $$ > {pid_file}; while [ ! -e {tmp_path}/stop ]; do sleep 0.05; done; echo work > new.txt"
        handle = await start(workflows, agent, remote, script, ttl_s=600.0, beat_s=600.0)
        pid = int(await written(pid_file))
        if not counts:
            agent.api.refused.add("/fleet/attempts/j-1/1/alive")
        clocks.shift(boot_s=3600)
        assert await noticed(agent, "suspended") == pytest.approx(3600, abs=5)
        if counts:
            await asyncio.sleep(HOLD_S + 1.5)
            assert birth_of(pid) is not None
            (tmp_path / "stop").touch()
        built = await handle.result()
        assert built.failure == (None if counts else FailureKind.LEASE_LOST), built.message
        assert birth_of(pid) is None


async def supervisor_of(agent: RunningAgent) -> int:
    """Return the pid of the supervisor of its attempt."""
    state = json.loads(await written(agent.home / f"factories/{agent.name}/attempts/j-1.1/state.json"))
    return int(state["supervisor"]["pid"])


@on_linux
@pytest.mark.req("F4", "F5")
async def test_agent_and_supervisor_stopped_past_the_lease_write_nothing(
    tmp_path: Path, temporal_server: TemporalServer, workflows: Client, remote: Checkout
) -> None:
    """SIGSTOP of both for longer than the lease, then SIGCONT: the engine writes no more, and nothing is pushed."""
    pid_file, out = tmp_path / "pid", tmp_path / "out"
    async with running_agent(tmp_path / "home", temporal_server, checkpoint_s=0.2) as agent:
        await agent.ready()
        script = f"echo $$ > {pid_file}; while :; do echo x >> new.txt; echo x >> {out}; sleep 0.05; done"
        handle = await start(workflows, agent, remote, script, ttl_s=4.0)
        pid = int(await written(pid_file))
        supervisor = await supervisor_of(agent)
        agent.api.refused.add("/fleet/attempts/j-1/1/alive")
        stopped = [agent.process.pid, supervisor]
        for victim in stopped:
            os.kill(victim, signal.SIGSTOP)
        while fresh := living_descendants(supervisor).keys() - set(stopped):
            for victim in fresh:
                kill(victim, signal.SIGSTOP)
            stopped += fresh
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        await asyncio.sleep(4.0)
        written_before, kept = out.stat().st_size, remote.ref(wip_ref("j-1", 1))
        for victim in reversed(stopped):  # whoever holds the others still is not overtaken by this loop
            kill(victim, signal.SIGCONT)
        while await noticed(agent, "stopped") < 5.0:
            continue  # a busy machine held it up before
        await until(lambda: birth_of(pid) is None)
        assert out.stat().st_size - written_before <= 2 * SCAN_S / 0.05, "the engine went on after it was continued"
        assert remote.ref(wip_ref("j-1", 1)) == kept


async def test_second_agent_of_a_name_is_refused(agent: RunningAgent, temporal_server: TemporalServer) -> None:
    """One living agent per identity on a machine."""
    async with running_agent(agent.home, temporal_server, name=agent.name) as second:
        assert await second.process.wait() == EXIT_IN_USE


async def test_agent_whose_name_was_taken_elsewhere_stops(agent: RunningAgent) -> None:
    """A beat that is answered with a conflict ends the agent, by its own exit code."""
    agent.api.code, agent.api.status = "conflict", 409
    assert await asyncio.wait_for(agent.process.wait(), PATIENCE_S) == EXIT_IN_USE


@pytest.mark.req("F3")
async def test_agent_whose_token_was_revoked_ends_by_itself(agent: RunningAgent) -> None:
    """A refused token, in the file as well, ends the agent by an exit code of its own: nothing goes on in secret."""
    agent.api.code, agent.api.status = "unauthenticated", 401
    assert await asyncio.wait_for(agent.process.wait(), PATIENCE_S) == EXIT_REFUSED


@pytest.mark.req("F3")
async def test_agent_with_a_refused_token_comes_to_work_with_the_next(
    tmp_path: Path, temporal_server: TemporalServer
) -> None:
    """It waits for somebody to bring a good token, and needs no restart for it."""
    home = tmp_path / "home"
    async with running_agent(home, temporal_server) as agent:
        agent.api.code, agent.api.status = "unauthenticated", 401
        await agent.told("/fleet/factories")
        await agent.told("/fleet/factories")
        assert agent.process.returncode is None
        write_token(factory_token_file(home, agent.name), "gff_y")
        agent.api.status = 200
        await agent.told("/heartbeat")


@pytest.mark.req("F3")
@pytest.mark.parametrize(("age_h", "renewed"), [(1, False), (70, True)])
async def test_agent_renews_its_token_in_the_last_third_of_its_life(
    tmp_path: Path, temporal_server: TemporalServer, age_h: int, renewed: bool
) -> None:
    """An agent keeps itself in: the new token is in its file, for its owner alone, and is shown from then on."""
    made = datetime.now(UTC) - timedelta(hours=age_h)
    token = {"created_at": made.isoformat(), "expires_at": (made + timedelta(hours=90)).isoformat()}
    answers = {"/fleet/tokens/self": token, "/fleet/tokens/self/rotate": {"secret": "gff_new"}}
    async with running_agent(tmp_path / "home", temporal_server, answers=answers) as agent:
        await agent.ready()
        await agent.told("/heartbeat")
        file = factory_token_file(agent.home, agent.name)
        if renewed:
            await until(lambda: file.read_text().strip() == "gff_new")
        await agent.told("/heartbeat")
        assert (file.read_text().strip() == "gff_new") == renewed
        assert file.stat().st_mode & 0o777 == 0o600


async def test_agent_declares_what_its_settings_say(tmp_path: Path, temporal_server: TemporalServer) -> None:
    """Declared capabilities are told apart from detected ones."""
    async with running_agent(tmp_path / "home", temporal_server, capabilities="network:lab has:figma") as agent:
        report = await agent.ready()
        assert report["declared"] == ["network:lab", "has:figma"]
        assert not {"network:lab", "has:figma"} & {*report["capabilities"]}


async def test_agent_waits_for_what_is_not_there_yet(tmp_path: Path, temporal_server: TemporalServer) -> None:
    """Neither a missing API nor a missing token ends it; SIGTERM does, at once."""
    async with running_agent(tmp_path / "home", temporal_server) as agent:
        agent.api.status = 503
        await agent.told("/fleet/factories")
        await agent.told("/fleet/factories")
        agent.api.status = 200
        await agent.told("/heartbeat")
        agent.api.status = 503
        agent.process.terminate()
        assert await asyncio.wait_for(agent.process.wait(), PATIENCE_S) == 0


def test_lock_is_exclusive_and_ends_with_its_holder(tmp_path: Path) -> None:
    """The lock of an identity is free again when its file is closed."""
    first = lock_identity(tmp_path)
    assert first is not None
    assert lock_identity(tmp_path) is None
    first.close()
    second = lock_identity(tmp_path)
    assert second is not None
    second.close()


def test_memorable_names_are_stable_and_many() -> None:
    """The same seed gives the same name; a hundred seeds give nearly a hundred names."""
    assert memorable_name("host /home") == memorable_name("host /home")
    assert len({memorable_name(str(number)) for number in range(100)}) > 90


def test_fleet_that_beat_at_one_moment_spreads_over_time() -> None:
    """No pause is longer than the setting, and no two factories keep step: a herd is gone after one round."""
    pauses = sorted(beat_pause_s(15.0) for _ in range(1000))
    assert pauses[0] >= 12.0
    assert pauses[-1] <= 15.0
    fullest = max(sum(start <= pause < start + 0.1 for pause in pauses) for start in pauses[::50])
    assert fullest < 100
