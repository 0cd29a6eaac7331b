"""Writes of attempts that are over, in bulk: by request, over the link, to Temporal, at the git remote itself.

For each job, epoch 1 is begun, its agent is killed, and epoch 2 takes over. What the first one could still say, it
says then, thousands of times. Two judges: every answer has to be a refusal, and what product and remote hold
afterwards has to be what they held before. Does I/O: HTTP, WebSocket, gRPC, git.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import AsyncActivityHandle, Client, WorkflowExecutionStatus
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError, RPCStatusCode
from websockets.asyncio.client import ClientConnection, connect

from activities import git
from activities.fence import branch_ref, job_ref, opened, shipped, shipped_ref, wip_ref
from activities.workspace import store
from core.attempt import BuildResult, workflow_id
from core.link import Answer, Call, Hello
from tests.bench.field import make_remote
from tests.bench.measuring import tell
from tests.chaos.campaign import Campaign
from tests.chaos.referee import refs
from workers.process_table import is_alive
from workers.stack_state import read_state

JOBS = 3
"""Of these, all but the first stay at their gate; the first has shipped by the time its zombie writes."""
AT_ONCE = 6
WAIT_S = 240.0
REST_S = 5.0
"""What has not changed for so long has come to rest."""
STALE = 1
"""The epoch that is over."""
SCRIPT = "set -e\necho 1 > first\n[ $GIGAFACTORY_ATTEMPT = ${GIGAFACTORY_ATTEMPT%.1} ] || sleep 600\necho 2 > second\n"
"""The first attempt never ends by itself, all further ones do at once."""
Write = Callable[[], Awaitable[str]]
"""Makes one stale write; returns what was answered instead of the refusal that was due, "" for that refusal."""


@dataclass(frozen=True)
class Zombie:
    """One job whose first epoch is over, and what that epoch knew."""

    job_id: str
    remote: Path
    factory: str
    token: str
    base: str
    candidate: str
    activity_id: str
    activity: AsyncActivityHandle


@dataclass(frozen=True)
class Outcome:
    """What came of all writes."""

    written: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """What is different now: `job: what`."""

    @property
    def taken(self) -> int:
        """Return how many writes were not refused, and things changed."""
        return sum(self.written.values()) - sum(self.refused.values()) + len(self.changed)


async def attack(campaign: Campaign, writes: int) -> Outcome:
    """Make about `writes` stale writes, as many of each kind; the stack must be whole."""
    state = read_state(campaign.ground.home)
    assert state is not None
    client = await Client.connect(state.urls["temporal"], data_converter=pydantic_data_converter)
    remote = make_remote(campaign.referee.ledger.parent / "remote-of-zombies")[0]
    zombies = [await _raise(campaign, client, remote, number) for number in range(JOBS)]
    await _ship(campaign, zombies[0].job_id)
    mirror = campaign.referee.ledger.parent / "mirror-of-zombies"
    await git.init_mirror(mirror)
    await git.fetch(mirror, str(remote), *sorted(refs(remote, "refs/")))
    before, *_ = await asyncio.gather(_at_rest(campaign, zombies), *(_given_up(client, zombie) for zombie in zombies))
    written: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    kinds: dict[str, list[Write]] = {}
    person = {"Authorization": f"Bearer {campaign.ground.token}"}
    async with httpx.AsyncClient(base_url=state.urls["api"], headers=person, timeout=60) as http:
        links = {zombie.factory: await _link(campaign, state.urls["api"], zombie) for zombie in zombies}
        for zombie in zombies:
            for kind, write in _writes(zombie, http, links[zombie.factory], mirror).items():
                kinds.setdefault(kind, []).append(write)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(kind: str, write: Write) -> None:
            async with gate:
                written[kind] += 1
                answer = await write()
                refused[kind] += not answer
                if answer and refused[kind] == written[kind] - 1:
                    tell(f"zombies: {kind} was not refused: {answer}")

        each = writes // len(kinds) + 1
        for kind, of_kind in kinds.items():
            await asyncio.gather(*(one(kind, of_kind[number % len(of_kind)]) for number in range(each)))
            tell(f"zombies: {kind}: {refused[kind]} of {written[kind]} refused")
        for link in links.values():
            await link.close()
    changed = []
    after = await _at_rest(campaign, zombies)
    for zombie in zombies:
        then, now = before[zombie.job_id], after[zombie.job_id]
        changed += [
            f"{zombie.job_id}: {name} was {then[name]}, is {now[name]}" for name in now if now[name] != then[name]
        ]
    return Outcome(dict(written), dict(refused), tuple(changed))


# --- how a zombie is made ---------------------------------------------------------------------------------------------


async def _raise(campaign: Campaign, client: Client, remote: Path, number: int) -> Zombie:
    """Begin a job, kill its agent in mid-build, wait until the next epoch is at its gate."""
    await _whole(campaign)
    text = f"---\nengine: shell\nrepo: {remote}\nbase: main\nprofile: solo\nship: branch\nverify: 'true'\n---\n"
    answer = await campaign.ask(
        "POST", "/fleet/jobs", json={"manifest": f"{text}# Zombie {number}\n\n```sh\n{SCRIPT}```\n"}
    )
    job_id = str(answer.json()["jobs"][0]["id"])
    document = await _until(
        campaign, job_id, lambda job: job["stage"] == "building" and job["attempts"][-1]["started_at"]
    )
    factory = str(document["attempts"][-1]["factory"])
    folder = campaign.ground.home / "factories" / factory
    async with asyncio.timeout(WAIT_S):
        while not (saved := refs(remote, wip_ref(job_id, STALE))):
            await asyncio.sleep(0.1)
    state = read_state(campaign.ground.home)
    assert state is not None
    next(part for part in state.parts if part.name == factory).process.signal(signal.SIGKILL)
    await _until(campaign, job_id, lambda job: (job["waiting"] or {}).get("kind") == "human")
    activity_id, activity = await _activity(client, job_id)
    return Zombie(
        job_id=job_id,
        remote=remote,
        factory=factory,
        token=(folder / "token").read_text().strip(),
        base=refs(remote, "refs/heads/main")["refs/heads/main"],
        candidate=saved[wip_ref(job_id, STALE)],
        activity_id=activity_id,
        activity=activity,
    )


async def _whole(campaign: Campaign) -> None:
    """Wait until the fleet knows every factory by an agent that lives."""
    async with asyncio.timeout(WAIT_S):
        for name in campaign.ground.factories:
            while (agent := _agent(campaign, name))["registered"] != agent["instance"] or not is_alive(
                agent["pid"], agent["birth"]
            ):
                await asyncio.sleep(0.1)


def _agent(campaign: Campaign, factory: str) -> dict[str, Any]:
    """Return what the agent of a factory wrote down about itself."""
    record: dict[str, Any] = json.loads((campaign.ground.home / "factories" / factory / "state.json").read_text())
    return record


async def _activity(client: Client, job_id: str) -> tuple[str, AsyncActivityHandle]:
    """Return the engine activity of the first epoch: its id, and a handle on it."""
    workflow = client.get_workflow_handle(workflow_id("default", job_id))
    history = await workflow.fetch_history()
    scheduled = (event.activity_task_scheduled_event_attributes for event in history.events)
    first = next(one.activity_id for one in scheduled if one.activity_type.name == "run_engine")
    run_id = (await workflow.describe()).run_id
    return first, client.get_async_activity_handle(workflow_id=workflow.id, run_id=run_id, activity_id=first)


async def _given_up(client: Client, zombie: Zombie) -> None:
    """Wait until Temporal has given up the activity of the first epoch too.

    Until its heartbeat is overdue Temporal takes its result, which the workflow does not look at any more. For a
    workflow that has ended it takes nothing, and lists the activity for ever.
    """
    workflow = client.get_workflow_handle(workflow_id("default", zombie.job_id))
    limit = time.monotonic() + WAIT_S
    while True:
        described = await workflow.describe()
        pending = described.raw_description.pending_activities
        left = [one for one in pending if one.activity_id == zombie.activity_id]
        if not left or described.status != WorkflowExecutionStatus.RUNNING:
            return
        assert time.monotonic() < limit, f"{datetime.now(UTC)}: {zombie.job_id} on {zombie.factory} still has {left}"
        await asyncio.sleep(0.1)


async def _until(campaign: Campaign, job_id: str, there: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        while True:
            document: dict[str, Any] = (await campaign.ask("GET", f"/fleet/jobs/{job_id}")).json()
            if there(document):
                return document
            await asyncio.sleep(0.1)


async def _ship(campaign: Campaign, job_id: str) -> None:
    document = await _until(campaign, job_id, lambda job: job["candidate_sha"])
    body = {"action": "ship", "sha": document["candidate_sha"]}
    await campaign.ask("POST", f"/fleet/jobs/{job_id}/actions", json=body)
    await _until(campaign, job_id, lambda job: job["stage"] == "shipped")


async def _at_rest(campaign: Campaign, zombies: Sequence[Zombie]) -> dict[str, dict[str, Any]]:
    """Return job → snapshot once nothing changes any more.

    A job is at its gate before all of its living epoch is told: on a busy machine the last lines of its verification
    come later than their factory waits for (`LAST_WORDS_S`), and they are no write of a zombie.
    """
    seen: dict[str, dict[str, Any]] = {}
    async with asyncio.timeout(WAIT_S):
        while True:
            now = {zombie.job_id: await _snapshot(campaign, zombie) for zombie in zombies}
            if now == seen:
                return now
            seen = now
            await asyncio.sleep(REST_S)


async def _snapshot(campaign: Campaign, zombie: Zombie) -> dict[str, Any]:
    """Return everything that a stale write could have changed; that it was refused is noted, and left out here."""
    found: dict[str, Any] = (await campaign.ask("GET", f"/fleet/jobs/{zombie.job_id}")).json()
    for noted in (found, *found["attempts"]):
        noted.pop("refused_writes")
    found.pop("updated_at")
    found.pop("event_seq")
    found["refs"] = refs(zombie.remote, "refs/")
    for name in ("logs", "artifacts"):
        found[name] = (await campaign.ask("GET", f"/fleet/jobs/{zombie.job_id}/{name}")).json()
    events = await campaign.events(zombie.job_id)
    found["events"] = [event["message"] for event in events if event["type"] != "write.refused"]
    artifacts = campaign.ground.home / "artifacts" / zombie.job_id
    found["files"] = sorted(str(path) for path in artifacts.rglob("*") if path.is_file())
    return found


# --- what a zombie writes ---------------------------------------------------------------------------------------------


def _writes(zombie: Zombie, http: httpx.AsyncClient, link: ClientConnection, mirror: Path) -> dict[str, Write]:
    """Return kind → a stale write of that kind."""
    kinds = {f"api {name}": _by_request(http, zombie, body) for name, body in _reports(zombie).items()}
    kinds |= {f"link {name}": _by_link(link, zombie, body) for name, body in _reports(zombie).items()}
    kinds |= {
        "api artifact": _artifact(http, zombie),
        "api death": _death(http, zombie),
        "ship": _approval(http, zombie),
    }
    kinds |= {f"git {name}": _by_git(mirror, zombie, *pushed) for name, pushed in _pushes(zombie, mirror).items()}
    kinds |= {
        "temporal result": _by_temporal(lambda: zombie.activity.complete(None)),
        "temporal beat": _by_temporal(zombie.activity.heartbeat),
    }
    return kinds


def _reports(zombie: Zombie) -> dict[str, dict[str, Any]]:
    now, body = datetime.now(UTC).isoformat(), b"of a zombie"
    answer = BuildResult(
        job_id=zombie.job_id, epoch=STALE, outcome="succeeded", candidate_sha=zombie.candidate, changed=True
    )
    file = {"path": "late.txt", "sha256": hashlib.sha256(body).hexdigest(), "body": base64.b64encode(body).decode()}
    return {
        "log": {"logs": [{"stream": "stdout", "first_seq": 1, "lines": [{"at": now, "text": "late"}]}]},
        "event": {"events": {"first_seq": 1, "events": [{"at": now, "type": "engine", "message": "late"}]}},
        "file": {"files": [file]},
        "started": {"started": {"at": now, "pid": 1}},
        "checkpoint": {"checkpoint": {"sha": zombie.candidate}},
        "result": {"result": {"sha": zombie.candidate, "answer": answer.model_dump(mode="json")}},
    }


def _as_factory(zombie: Zombie) -> dict[str, str]:
    return {"Authorization": f"Bearer {zombie.token}"}


def _by_request(http: httpx.AsyncClient, zombie: Zombie, body: dict[str, Any]) -> Write:
    async def write() -> str:
        path = f"/fleet/attempts/{zombie.job_id}/{STALE}/report"
        answer = await http.post(path, json=body, headers=_as_factory(zombie))
        return "" if answer.status_code == 409 and answer.json()["code"] == "stale_epoch" else answer.text

    return write


def _artifact(http: httpx.AsyncClient, zombie: Zombie) -> Write:
    body = b"of a zombie"

    async def write() -> str:
        path = f"/fleet/attempts/{zombie.job_id}/{STALE}/artifacts"
        query = {"path": "late.bin", "sha256": hashlib.sha256(body).hexdigest()}
        answer = await http.post(path, content=body, params=query, headers=_as_factory(zombie))
        return "" if answer.status_code == 409 and answer.json()["code"] == "stale_epoch" else answer.text

    return write


def _death(http: httpx.AsyncClient, zombie: Zombie) -> Write:
    """Certify the death of an attempt whose end is known: taken note of, and nothing is lost because of it."""
    when = datetime.now(UTC).isoformat()
    body = {"job_id": zombie.job_id, "epoch": STALE, "group_dead": True, "reason": "late", "issued_at": when}

    async def write() -> str:
        path = f"/fleet/attempts/{zombie.job_id}/{STALE}/death"
        answer = await http.post(path, json=body, headers=_as_factory(zombie))
        return "" if answer.json().get("accepted") is False else answer.text

    return write


def _approval(http: httpx.AsyncClient, zombie: Zombie) -> Write:
    """Ask for the old epoch's commit to be shipped, as somebody would who looks at an old page."""
    body = {"action": "ship", "sha": zombie.candidate}

    async def write() -> str:
        answer = await http.post(f"/fleet/jobs/{zombie.job_id}/actions", json=body)
        return "" if answer.status_code == 409 else answer.text

    return write


async def _link(campaign: Campaign, api: str, zombie: Zombie) -> ClientConnection:
    """Open a link in the name of the agent that has the factory now, as a zombie that was only frozen would have it."""
    await _whole(campaign)
    url = f"{api.replace('http', 'ws', 1)}/fleet/factories/{zombie.factory}/link"
    link = await connect(url, additional_headers=_as_factory(zombie), proxy=None)
    await link.send(Hello(instance=_agent(campaign, zombie.factory)["instance"]).model_dump_json())
    return link


def _by_link(link: ClientConnection, zombie: Zombie, body: dict[str, Any]) -> Write:
    async def write() -> str:
        call = Call(id=next(_CALLS), name="report", job_id=zombie.job_id, epoch=STALE, body=body)
        async with _LINK_LOCK:
            await link.send(call.model_dump_json())
            while True:
                said = json.loads(await link.recv())
                if said["kind"] == "answer" and said["id"] == call.id:
                    answer = Answer.model_validate(said)
                    return "" if answer.status == 409 and answer.body["code"] == "stale_epoch" else str(said)

    return write


_CALLS = itertools.count()
_LINK_LOCK = asyncio.Lock()


def _pushes(zombie: Zombie, mirror: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return what an attempt and its ship push, in the words of `activities.engine_run` and `activities.ship`."""
    job_id, landing = zombie.job_id, zombie.candidate
    fence = f"{store(mirror, opened(job_id, STALE))}:{job_ref(job_id)}"
    mark = f"{store(mirror, shipped(job_id, STALE))}:{job_ref(job_id)}"
    done = f"{landing}:{shipped_ref(job_id)}"
    base, branch = "refs/heads/main", branch_ref(job_id)
    return {
        "fence": ([fence], {}),
        "checkpoint": ([fence, f"+{landing}:{wip_ref(job_id, STALE)}"], {}),
        "ship to the base": ([f"{landing}:{base}", mark, done], {base: zombie.base, shipped_ref(job_id): ""}),
        "ship to a branch": ([f"{landing}:{branch}", mark, done], {branch: "", shipped_ref(job_id): ""}),
    }


def _by_git(mirror: Path, zombie: Zombie, refspecs: list[str], leases: dict[str, str]) -> Write:
    async def write() -> str:
        pushed = await git.push(mirror, str(zombie.remote), refspecs, leases=leases)
        return f"the remote took {refspecs}" if pushed.ok else ""

    return write


def _by_temporal(call: Callable[[], Awaitable[None]]) -> Write:
    async def write() -> str:
        try:
            await call()
        except RPCError as error:
            return "" if error.status == RPCStatusCode.NOT_FOUND else str(error)
        return "Temporal took it"

    return write
