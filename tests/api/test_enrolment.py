"""Machines come and go: enrolment, one living agent for each identity, retirement, attested capabilities."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from core.factory_names import ADJECTIVES, NOUNS
from core.settings import Settings
from core.version import VERSION
from tests.api.conftest import Api, Manifest
from tests.api.test_factories import offer
from tests.waiting import PATIENCE_S

HERE: dict[str, Any] = {"host": "box", "version": VERSION}


async def enrolment(api: Api, **fields: Any) -> str:
    """Return an enrolment token."""
    secret: str = (await api.made(name="enrolment", roles=["enrolment"], **fields))["secret"]
    return secret


async def enrol(api: Api, secret: str, **fields: Any) -> httpx.Response:
    """Let a machine ask to become a factory."""
    return await api.call(secret, "POST", "/fleet/enrol", json=HERE | fields)


async def refused(request: Callable[[], Awaitable[httpx.Response]]) -> None:
    """Repeat a request until its token is refused: the book of tokens may be a quarter of a second old."""
    async with asyncio.timeout(PATIENCE_S):
        while (await request()).status_code != 401:
            await asyncio.sleep(0.02)


# --- enrolment --------------------------------------------------------------------------------------------------------


@pytest.mark.req("F3", "H4", "F10")
async def test_enrolled_machine_gets_a_name_and_a_token_that_acts_for_it(api: Api) -> None:
    """A bare machine registers with what the enrolment gave it, under a memorable name that nobody else has."""
    answer = await enrol(api, await enrolment(api))
    assert answer.status_code == 201, answer.text
    given = answer.json()
    adjective, noun = given["factory"].split("-")
    assert adjective in ADJECTIVES.split()
    assert noun in NOUNS.split()
    assert given["secret"].startswith("gff_")
    assert given["temporal"] == {"address": "", "namespace": "default", "gateway_url": ""}
    taken = await api.call(given["secret"], "POST", "/fleet/factories", json=offer(name=given["factory"]))
    assert taken.status_code == 200, taken.text
    told = [line for line in (await api.user.get("/fleet/audit")).json()["lines"] if line["type"] == "factory.enrolled"]
    assert [(line["actor"], line["subject"], line["data"]["host"]) for line in told] == [
        ("tess", given["factory"], "box")
    ]


@pytest.mark.req("F3")
async def test_enrolment_token_works_once_also_when_two_machines_come_together(api: Api) -> None:
    """Of ten machines that show the same token at once one becomes a factory; the others learn that it was used."""
    secret = await enrolment(api)
    answers = await asyncio.gather(*(enrol(api, secret) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [201, *[401] * 9]
    again = await enrol(api, secret)
    assert again.status_code == 401
    assert "used to enrol" in again.json()["detail"]
    assert len([row for row in await api.ledger.tokens(datetime.now(UTC)) if row.origin == ""]) == 1


@pytest.mark.req("F3")
async def test_expired_or_wrong_enrolment_token_makes_no_factory(api: Api) -> None:
    """Too late, made up, or a token for something else: refused, and nothing is left behind."""
    late = await api.made(name="late", roles=["enrolment"], lifetime_s=1)
    while datetime.now(UTC) <= datetime.fromisoformat(late["token"]["expires_at"]):
        await asyncio.sleep(0.05)
    viewer = (await api.made())["secret"]
    assert (await enrol(api, late["secret"])).status_code == 401
    assert (await enrol(api, f"gfe_{'x' * 43}")).status_code == 401
    assert (await enrol(api, viewer)).status_code == 403
    assert (await api.factory.post("/fleet/enrol", json=HERE)).status_code == 403
    factories = [row.factory for row in await api.ledger.tokens(datetime.now(UTC)) if row.factory]
    assert factories == ["brisk-otter"]  # which is the fixture's own


@pytest.mark.req("F3")
async def test_name_that_is_taken_is_refused_and_the_token_stays_good(api: Api) -> None:
    """A machine may choose its name, but not that of a factory that exists; then it may choose again."""
    secret = await enrolment(api)
    await api.factory.post("/fleet/factories", json=offer())
    taken = await enrol(api, secret, name="brisk-otter")
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    assert (await enrol(api, secret, name="mac-2")).json()["factory"] == "mac-2"
    second = await enrolment(api)
    assert (await enrol(api, second, name="mac-2")).status_code == 409  # enrolled, though it never reported for work


@pytest.mark.req("F3", "F2")
async def test_enrolment_for_one_name_takes_that_factory_over(api: Api) -> None:
    """A new disk in the old machine: the name passes on; the old token and what was attested of the old one do not."""
    await api.factory.post("/fleet/factories", json=offer(capabilities=["credential:anthropic"]))
    vouched = {"capabilities": ["credential:anthropic"]}
    await api.user.post("/fleet/factories/brisk-otter/attestations", json=vouched)
    secret = await enrolment(api, factory="brisk-otter")
    assert (await enrol(api, secret, name="other")).status_code == 409
    given = (await enrol(api, secret)).json()
    assert given["factory"] == "brisk-otter"
    await refused(lambda: api.factory.get("/fleet/factories/brisk-otter"))
    document = (await api.call(given["secret"], "GET", "/fleet/factories/brisk-otter")).json()
    assert (document["attested"], document["unattested"]) == ([], ["credential:anthropic"])


@pytest.mark.req("H4")
async def test_machine_of_another_version_is_refused_unless_a_gateway_stands_between(api: Api) -> None:
    """Who meets Temporal itself must speak as the fleet does; the token is not spent on the refusal."""
    secret = await enrolment(api)
    refused = await enrol(api, secret, version="9.9")
    assert (refused.status_code, refused.json()["version"]) == (409, VERSION)
    object.__setattr__(api.backend, "settings", Settings(home=api.home, enrol_gateway_url="https://gate.example:4440"))
    let_in = await enrol(api, secret, version="9.9")
    assert let_in.status_code == 201
    assert let_in.json()["temporal"]["gateway_url"] == "https://gate.example:4440"


# --- one living agent -------------------------------------------------------------------------------------------------


@pytest.mark.req("F3", "F4")
@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"boot": "b-1", "replaces": "a1"}, 200),
        ({"boot": "b-1", "replaces": ""}, 409),
        ({"boot": "b-1", "replaces": "a0"}, 409),
        ({"boot": "b-2", "replaces": "a1"}, 409),
        ({"boot": "b-1", "replaces": "a1", "host": "clone"}, 409),
        ({"boot": "b-2", "replaces": "a1", "host": "clone"}, 409),
        ({"boot": "b-1", "replaces": "", "pid": 4711}, 409),
    ],
    ids=[
        "the same machine, its predecessor proven dead",
        "the same machine, nothing proven",
        "an older predecessor",
        "a copy of the disk that booted elsewhere under the same name",
        "a copy of the files in another container",
        "a clone",
        "the same pid by chance",
    ],
)
async def test_second_agent_is_let_in_only_as_the_successor_on_the_same_boot(
    api: Api, change: dict[str, Any], status: int
) -> None:
    """While the first agent is heard of, only a restart on its own machine takes its place; a clone is told why not."""
    assert (await api.factory.post("/fleet/factories", json=offer(boot="b-1"))).status_code == 200
    second = offer(instance="a2", pid=99) | change
    answer = await api.factory.post("/fleet/factories", json=second)
    assert answer.status_code == status, answer.text
    beat = await api.factory.post("/fleet/factories/brisk-otter/heartbeat", json={"instance": "a1"})
    assert beat.status_code == (409 if status == 200 else 200)
    if status == 409:
        assert "alive already" in answer.json()["detail"]
        assert "gf enroll" in answer.json()["hint"]


# --- retirement -------------------------------------------------------------------------------------------------------


@pytest.mark.req("F3", "F8", "H4")
async def test_retired_factory_is_gone_and_its_token_with_it(api: Api) -> None:
    """No row, no token, no attestation is left; the name is free again; who did it is on record."""
    await api.factory.post("/fleet/factories", json=offer())
    await api.user.post("/fleet/factories/brisk-otter/attestations", json={"capabilities": ["network:lab"]})
    answer = await api.user.post("/fleet/factories/brisk-otter/retire", json={})
    assert (answer.status_code, answer.json()) == (200, {"name": "brisk-otter", "attempts": 0})
    assert (await api.user.get("/fleet/factories")).json()["factories"] == []
    assert (await api.factory.post("/fleet/factories", json=offer())).status_code == 401  # at once: it must not return
    assert (await api.user.post("/fleet/factories/brisk-otter/retire", json={})).status_code == 404
    lines = (await api.user.get("/fleet/audit")).json()["lines"]
    assert (lines[-1]["type"], lines[-1]["actor"], lines[-1]["subject"]) == ("factory.retired", "tess", "brisk-otter")
    given = (await enrol(api, await enrolment(api), name="brisk-otter")).json()
    await api.call(given["secret"], "POST", "/fleet/factories", json=offer())
    assert (await api.user.get("/fleet/factories/brisk-otter")).json()["attested"] == []


@pytest.mark.req("F3", "F8")
async def test_factory_that_still_works_only_drains(api: Api, manifest: Manifest) -> None:
    """It gets nothing more and keeps what it has; when that has ended it goes."""
    job_id = await api.submit(manifest())
    await api.grant(job_id)
    held = await api.user.post("/fleet/factories/brisk-otter/retire", json={})
    assert held.json() == {"name": "brisk-otter", "attempts": 1}
    assert (await api.ledger.factory("brisk-otter")).state == "draining"
    body = {"result": {"sha": "c" * 40}}
    assert (await api.factory.post(f"/fleet/attempts/{job_id}/1/report", json=body)).status_code == 200
    await api.ledger.mark_lost(job_id, 1, "test", "", datetime.now(UTC))
    assert (await api.ledger.job(job_id)).attempts[0].lease == "accepted"


@pytest.mark.req("F3", "F5")
async def test_forced_retirement_takes_running_attempts_away(api: Api, manifest: Manifest) -> None:
    """The attempt is lost and fenced, its job goes on elsewhere, and the factory is gone."""
    job_id = await api.submit(manifest())
    await api.grant(job_id)
    answer = await api.user.post("/fleet/factories/brisk-otter/retire", json={"force": True})
    assert answer.json() == {"name": "brisk-otter", "attempts": 0}
    job = await api.ledger.job(job_id)
    assert (job.attempts[0].lease, job.attempts[0].outcome) == ("lost", "lease_lost")
    assert (await api.user.get("/fleet/factories")).json()["factories"] == []


async def test_factory_that_was_enrolled_and_never_came_can_be_retired(api: Api) -> None:
    """Its token is revoked; a name that nobody has is 404."""
    given = (await enrol(api, await enrolment(api), name="mac-2")).json()
    answer = await api.user.post("/fleet/factories/mac-2/retire", json={})
    assert (answer.status_code, answer.json()["attempts"]) == (200, 0)
    await refused(lambda: api.call(given["secret"], "GET", "/fleet/tokens/self"))
    assert (await api.user.post("/fleet/factories/never/retire", json={})).status_code == 404


# --- attested capabilities --------------------------------------------------------------------------------------------


@pytest.mark.req("F2", "F1")
async def test_detected_declared_and_attested_are_told_apart(api: Api) -> None:
    """What a machine found, what its settings say, and what an operator vouched for are three lists."""
    body = offer(capabilities=["os:linux", "credential:anthropic"], declared=["network:Lab", "has:figma"])
    await api.factory.post("/fleet/factories", json=body)
    path = "/fleet/factories/brisk-otter"
    document = (await api.user.post(f"{path}/attestations", json={"capabilities": ["Network:LAB"]})).json()
    assert document["capabilities"] == ["os:linux", "credential:anthropic"]
    assert document["declared"] == ["network:Lab", "has:figma"]
    assert document["attested"] == ["network:lab"]
    assert document["unattested"] == ["credential:anthropic"]
    assert (await api.user.get("/fleet/factories")).json()["factories"] == [document]


@pytest.mark.req("F2")
@pytest.mark.parametrize("capability", ["credential:anthropic", "network:lab"])
async def test_sensitive_capability_counts_only_while_it_is_attested(
    api: Api, manifest: Manifest, capability: str
) -> None:
    """Without the attestation the job waits and says how to get it; withdrawn it waits again; with it it is granted."""
    claims = {"capabilities": ["os:linux", "credential:anthropic"], "declared": ["network:lab"]}
    body = offer(host=socket.gethostname(), **claims)
    await api.factory.post("/fleet/factories", json=body)
    job_id = await api.submit(manifest(f"capabilities: ['{capability}']"))
    await api.ledger.dispatch(datetime.now(UTC))
    assert await api.ledger.grant(job_id) is None
    why = (await api.user.get(f"/fleet/jobs/{job_id}/explanation")).json()
    (report,) = why["explanation"]["reports"]
    assert [rejection["code"] for rejection in report["rejections"]] == ["not_attested"]
    assert f"attest {capability} for brisk-otter" in "\n".join(why["lines"])
    path = "/fleet/factories/brisk-otter/attestations"
    await api.user.post(path, json={"capabilities": [capability]})
    await api.user.post(path, json={"capabilities": [capability], "withdraw": True})
    await api.ledger.dispatch(datetime.now(UTC))
    assert await api.ledger.grant(job_id) is None
    await api.user.post(path, json={"capabilities": [capability]})
    await api.ledger.dispatch(datetime.now(UTC))
    assert await api.ledger.grant(job_id) is not None
    told = [line["type"] for line in (await api.user.get("/fleet/audit")).json()["lines"]]
    assert told[-3:] == ["factory.attested", "attestation.withdrawn", "factory.attested"]


@pytest.mark.req("F2", "S2")
async def test_attesting_takes_an_operator_of_the_fleet_and_a_factory_that_is_there(api: Api) -> None:
    """Neither the factory itself nor an operator of one product vouches; an unknown factory is 404."""
    await api.factory.post("/fleet/factories", json=offer())
    path, body = "/fleet/factories/brisk-otter/attestations", {"capabilities": ["network:lab"]}
    product = (await api.made(roles=["operator"], products=["shop"]))["secret"]
    fleet = (await api.made(roles=["operator"]))["secret"]
    assert (await api.factory.post(path, json=body)).status_code == 403
    assert (await api.call(product, "POST", path, json=body)).status_code == 403
    assert (await api.call(fleet, "POST", path, json=body)).status_code == 200
    assert (await api.call(fleet, "POST", path.replace("brisk", "no"), json=body)).status_code == 404
    assert (await api.call(fleet, "POST", path, json={"capabilities": []})).status_code == 422
