"""Tokens over the API: made, listed, rotated, revoked; and how far a token reaches."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.tokens import ENROLMENT_LIFETIME, LIFETIME
from tests.api.conftest import Api, Manifest, some_factory
from tests.api.test_factories import offer
from tests.waiting import PATIENCE_S


def moment(text: str) -> datetime:
    """Return a time of a document."""
    return datetime.fromisoformat(text)


# --- life of a token --------------------------------------------------------------------------------------------------


@pytest.mark.req("S2")
async def test_secret_is_in_the_answer_that_makes_it_and_nowhere_else(api: Api) -> None:
    """A token opens the API under its name; neither the list, the audit log nor the ledger's file has the secret."""
    made = await api.made(name="ada", roles=["operator"])
    own = (await api.call(made["secret"], "GET", "/fleet/tokens/self")).json()
    assert (own["name"], own["roles"], own["state"], own["created_by"]) == ("ada", ["operator"], "good", "tess")
    listed = (await api.user.get("/fleet/tokens")).text
    audit = (await api.user.get("/fleet/audit")).text
    assert made["token"]["id"] in listed
    assert made["token"]["id"] in audit
    stored = b"".join(file.read_bytes() for file in api.home.glob("ledger.db*"))
    for seen in (listed.encode(), audit.encode(), stored):
        assert made["secret"].encode() not in seen


@pytest.mark.req("S2")
@pytest.mark.parametrize(
    ("roles", "prefix"),
    [
        (["viewer"], "gfu_"),
        (["operator", "reviewer"], "gfu_"),
        (["admin"], "gfu_"),
        (["tracker"], "gft_"),
        (["enrolment"], "gfe_"),
    ],
)
async def test_prefix_tells_what_a_token_is_for(api: Api, roles: list[str], prefix: str) -> None:
    """256 random bits behind a prefix that people and scanners know."""
    secret = (await api.made(roles=roles))["secret"]
    assert secret.startswith(prefix)
    assert len(secret) == len(prefix) + 43


async def test_lifetimes_have_defaults_and_can_be_chosen(api: Api) -> None:
    """90 days, 15 minutes for an enrolment, what was asked for, or no end."""

    async def lifetime(**fields: Any) -> timedelta | None:
        token = (await api.made(**fields))["token"]
        return None if token["expires_at"] is None else moment(token["expires_at"]) - moment(token["created_at"])

    assert await lifetime() == LIFETIME
    assert await lifetime(roles=["enrolment"]) == ENROLMENT_LIFETIME
    assert await lifetime(lifetime_s=60) == timedelta(seconds=60)
    assert await lifetime(expires=False) is None


@pytest.mark.req("S2")
async def test_expired_token_is_refused_and_told_so(api: Api) -> None:
    """A token ends at its time; who shows it learns why."""
    made = await api.made(lifetime_s=3)
    assert (await api.call(made["secret"], "GET", "/fleet/jobs")).status_code == 200
    while datetime.now(UTC) <= moment(made["token"]["expires_at"]):
        await asyncio.sleep(0.05)
    answer = await api.call(made["secret"], "GET", "/fleet/jobs")
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]
    states = {row["id"]: row["state"] for row in (await api.user.get("/fleet/tokens?ended=true")).json()["tokens"]}
    assert states[made["token"]["id"]] == "expired"
    assert made["token"]["id"] not in (await api.user.get("/fleet/tokens")).text


@pytest.mark.req("S2", "F3")
async def test_revoked_token_is_refused_at_once_in_the_same_process(api: Api) -> None:
    """The reason reaches whoever shows it; ending it a second time changes nothing."""
    made = await api.made()
    assert (await api.call(made["secret"], "GET", "/fleet/jobs")).status_code == 200
    path = f"/fleet/tokens/{made['token']['id']}/revoke"
    ended = await api.user.post(path, json={"reason": "the laptop was lost"})
    assert (ended.status_code, ended.json()["state"]) == (200, "revoked")
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await api.call(made["secret"], "GET", "/fleet/jobs")).status_code == 200:
            await asyncio.sleep(0.02)
    assert answer.status_code == 401
    assert "the laptop was lost" in answer.json()["detail"]
    assert (await api.user.post(path, json={"reason": "again"})).json() == ended.json()


@pytest.mark.req("S2", "F3")
async def test_rotated_token_and_its_successor_are_both_good_for_the_grace(api: Api) -> None:
    """The old one ends with the grace, not before; the new one has the same rights and a lifetime of its own."""
    old = await api.made(roles=["operator"], products=["shop"])
    path = f"/fleet/tokens/{old['token']['id']}/rotate"
    new = (await api.user.post(path, json={"grace_s": 4})).json()
    assert new["secret"] != old["secret"]
    assert {key: new["token"][key] for key in ("name", "roles", "products")} == {
        key: old["token"][key] for key in ("name", "roles", "products")
    }
    for made in (old, new):
        assert (await api.call(made["secret"], "GET", "/fleet/jobs")).status_code == 200
    listed = {row["id"]: row for row in (await api.user.get("/fleet/tokens")).json()["tokens"]}
    assert (listed[old["token"]["id"]]["state"], listed[old["token"]["id"]]["successor"]) == (
        "replaced",
        new["token"]["id"],
    )
    assert (await api.user.post(path, json={})).status_code == 409
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await api.call(old["secret"], "GET", "/fleet/jobs")).status_code == 200:
            await asyncio.sleep(0.05)
    assert new["token"]["id"] in answer.json()["detail"]
    assert (await api.call(new["secret"], "GET", "/fleet/jobs")).status_code == 200


@pytest.mark.req("S2", "F3")
async def test_own_rotation_renews_a_factorys_token_but_not_a_persons(api: Api) -> None:
    """An agent keeps itself in; a person's token ends when its admin said that it would."""
    person = await api.made(roles=["viewer"], lifetime_s=3600)
    machine = await api.made(roles=["factory"], factory="brisk-otter", lifetime_s=3600)
    renewed = {}
    for name, made in (("person", person), ("machine", machine)):
        answer = await api.call(made["secret"], "POST", "/fleet/tokens/self/rotate", json={})
        assert answer.status_code == 200, answer.text
        renewed[name] = moment(answer.json()["token"]["expires_at"]) - moment(made["token"]["expires_at"])
    assert renewed["person"] == timedelta(0)
    assert renewed["machine"] > timedelta(0)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"roles": []}, "body.roles"),
        ({"roles": ["king"]}, "body.roles.0"),
        ({"roles": ["viewer", "viewer"]}, "body.roles"),
        ({"roles": ["factory"]}, "body.factory"),
        ({"roles": ["factory", "viewer"], "factory": "f"}, "body.roles"),
        ({"roles": ["factory"], "factory": "f", "products": ["shop"]}, "body.products"),
        ({"roles": ["viewer"], "factory": "f"}, "body.factory"),
        ({"roles": ["viewer"], "products": []}, "body.products"),
        ({"roles": ["enrolment"], "expires": False}, "body.expires"),
        ({"roles": ["enrolment"], "lifetime_s": 90_000}, "body.lifetime_s"),
        ({"lifetime_s": 0}, "body.lifetime_s"),
        ({"name": ""}, "body.name"),
        ({"secret": "gfu_mine"}, "body.secret"),
    ],
    ids=str,
)
async def test_token_that_makes_no_sense_is_refused_by_field(api: Api, fields: dict[str, Any], path: str) -> None:
    """Combinations of roles, products, factory and lifetime that nobody can mean."""
    answer = await api.user.post("/fleet/tokens", json={"name": "x", "roles": ["viewer"]} | fields)
    assert answer.status_code == 422, answer.text
    assert path in [problem["path"] for problem in answer.json()["errors"]]


@pytest.mark.req("S2")
async def test_admin_of_a_product_makes_and_ends_only_what_is_within_it(api: Api) -> None:
    """Nobody gets more by making a token: not another product, not the fleet, not a factory."""
    shop = (await api.made(roles=["admin"], products=["shop"]))["secret"]
    toys = await api.made(roles=["viewer"], products=["toys"])

    async def make(**fields: Any) -> int:
        return (await api.call(shop, "POST", "/fleet/tokens", json={"name": "x"} | fields)).status_code

    assert await make(roles=["operator", "reviewer"], products=["shop"]) == 201
    assert await make(roles=["admin"], products=["shop"]) == 201
    assert await make(roles=["viewer"]) == 403
    assert await make(roles=["viewer"], products=["shop", "toys"]) == 403
    assert await make(roles=["factory"], factory="brisk-otter") == 403
    assert await make(roles=["enrolment"]) == 403
    for act in ("revoke", "rotate"):
        answer = await api.call(shop, "POST", f"/fleet/tokens/{toys['token']['id']}/{act}", json={})
        assert answer.status_code == 403
    listed = (await api.call(shop, "GET", "/fleet/tokens")).json()["tokens"]
    assert {product for row in listed for product in row["products"]} == {"shop"}
    assert (await api.call(shop, "GET", "/fleet/audit")).status_code == 403
    assert (await api.call(shop, "POST", "/fleet/factories/brisk-otter/drain", json={})).status_code == 403


@pytest.mark.req("S3")
async def test_audit_log_tells_who_did_what_and_proves_itself(api: Api) -> None:
    """Making, rotating and revoking leave a line each, with who and what; the chain holds."""
    made = await api.made(name="ada")
    token_id = made["token"]["id"]
    new = (await api.user.post(f"/fleet/tokens/{token_id}/rotate", json={})).json()["token"]["id"]
    await api.user.post(f"/fleet/tokens/{new}/revoke", json={"reason": "gone"})
    lines = (await api.user.get("/fleet/audit")).json()["lines"]
    told = [(line["type"], line["actor"], line["subject"]) for line in lines if line["type"] != "token.adopted"]
    assert told == [
        ("token.created", "tess", token_id),
        ("token.rotated", "tess", token_id),
        ("token.revoked", "tess", new),
    ]
    assert (await api.user.get("/fleet/audit/check")).json() == {"ok": True, "lines": len(lines), "broken_at": None}
    assert (await api.user.get(f"/fleet/audit?after={lines[-2]['seq']}")).json()["lines"] == [lines[-1]]


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("S2", "S9")
async def test_token_of_a_product_reaches_its_jobs_and_no_others(api: Api, manifest: Manifest) -> None:
    """Another product's job looks like one that does not exist, on every path; lists leave it out."""
    mine = await api.submit(manifest("product: shop"))
    other = await api.submit(manifest("product: toys"))
    secret = (await api.made(roles=["admin"], products=["shop"]))["secret"]
    listed = (await api.call(secret, "GET", "/fleet/jobs")).json()["jobs"]
    assert [job["id"] for job in listed] == [mine]
    assert (await api.call(secret, "GET", "/fleet/jobs?product=toys")).status_code == 403
    assert len((await api.call(secret, "GET", "/fleet/jobs?product=shop")).json()["jobs"]) == 1
    everything = (await api.user.get("/fleet/jobs")).json()["jobs"]
    assert len(everything) == 2
    paths = [path for path in api.app.openapi()["paths"] if path.startswith("/fleet/jobs/{job_id}")]
    assert len(paths) >= 10
    for path in paths:
        for method in api.app.openapi()["paths"][path]:
            target = path.replace("{job_id}", other).replace("{epoch}", "1").replace("{path}", "x")
            body = {"action": "cancel"} if method == "post" else None
            answer = await api.call(secret, method.upper(), target, json=body)
            none = await api.call(secret, method.upper(), target.replace(other, "j-none"), json=body)
            assert (answer.status_code, none.status_code) == (404, 404), (method, path)
            assert answer.json()["detail"] == none.json()["detail"].replace("j-none", other)
    assert (await api.call(secret, "GET", f"/fleet/jobs/{mine}")).status_code == 200
    assert api.temporal.taken == []


@pytest.mark.req("S2", "S9")
async def test_token_of_a_product_submits_for_it_alone(api: Api, manifest: Manifest) -> None:
    """A job of another product, or of none named, is refused before anything is looked up; nothing starts."""
    secret = (await api.made(roles=["operator"], products=["shop"]))["secret"]
    good = {"manifest": manifest("product: shop")}
    for path in ("/fleet/jobs", "/fleet/explain"):
        assert (await api.call(secret, "POST", path, json=good)).status_code in (200, 201)
        for lines in (("product: toys",), ()):
            answer = await api.call(secret, "POST", path, json={"manifest": manifest(*lines)})
            assert answer.status_code == 403, answer.text
            assert answer.json()["hint"].startswith("it is for: shop")
    batch = {"jobs": [good, {"manifest": manifest("product: toys")}]}
    assert (await api.call(secret, "POST", "/fleet/jobs", json=batch)).status_code == 403
    assert len((await api.user.get("/fleet/jobs")).json()["jobs"]) == 1


# --- a factory's identity ---------------------------------------------------------------------------------------------


@pytest.mark.req("F3", "S2")
async def test_factory_token_acts_for_its_own_factory_alone(api: Api) -> None:
    """Registering, beating, draining or leaving as another one is 403, whether that one exists or not."""
    await api.ledger.register_factory(some_factory("calm-heron"), datetime.now(UTC))
    assert (await api.factory.post("/fleet/factories", json=offer())).status_code == 200
    assert (await api.factory.post("/fleet/factories", json=offer(name="calm-heron"))).status_code == 403
    for name in ("calm-heron", "no-such"):
        for rest in ("/heartbeat", "/drain", "/leave"):
            answer = await api.factory.post(f"/fleet/factories/{name}{rest}", json={"instance": "a1"})
            assert answer.status_code == 403, (name, rest)
        assert (await api.factory.get(f"/fleet/factories/{name}")).status_code == 403
    assert (await api.factory.get("/fleet/factories/brisk-otter")).status_code == 200
    assert (await api.ledger.factory("calm-heron")).state == "online"


@pytest.mark.req("F3", "F5")
@pytest.mark.parametrize("kind", ["report", "artifacts", "death"])
async def test_attempt_of_another_factory_is_out_of_reach(api: Api, manifest: Manifest, kind: str) -> None:
    """A factory cannot report, file or certify for an attempt that was granted elsewhere; the attempt is untouched."""
    job_id = await api.submit(manifest())
    await api.grant(job_id)
    thief = (await api.made(roles=["factory"], factory="calm-heron"))["secret"]
    certificate = {"job_id": job_id, "epoch": 1, "group_dead": True, "issued_at": "2026-01-01T00:00:00Z"}
    options: dict[str, dict[str, Any]] = {
        "report": {"json": {"result": {"sha": "c" * 40}}},
        "artifacts": {"params": {"path": "x", "sha256": "0" * 64}, "content": b"x"},
        "death": {"json": certificate},
    }
    path = f"/fleet/attempts/{job_id}/1/{kind}"
    answer = await api.call(thief, "POST", path, **options[kind])
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text
    job = await api.ledger.job(job_id)
    assert (job.attempts[0].lease, job.refused_writes, job.attempts[0].refused_writes) == ("living", 0, 0)
    assert (await api.factory.post(path, **options["report" if kind == "artifacts" else kind])).status_code != 403


async def test_epoch_that_was_never_granted_is_stale_and_not_forbidden(api: Api, manifest: Manifest) -> None:
    """A guess at the next epoch is refused by the ledger's fence, as before, and is granted to whom it is granted."""
    job_id = await api.submit(manifest())
    path = f"/fleet/attempts/{job_id}/1/report"
    early = await api.factory.post(path, json={"result": {"sha": "c" * 40}})
    assert (early.status_code, early.json()["code"]) == (409, "stale_epoch")
    await api.ledger.register_factory(some_factory("calm-heron"), datetime.now(UTC))
    await api.ledger.dispatch(datetime.now(UTC))
    late = await api.factory.post(path, json={"result": {"sha": "c" * 40}})
    assert late.status_code == 403
