"""Recovery over the API: page by page, by who runs the fleet, and with a new generation for a restored ledger."""

from __future__ import annotations

from tests.api.conftest import Api


async def test_pages_go_on_where_the_last_one_ended(api: Api) -> None:
    """`next` is what the next call names as `after`; it is null when there is no further page."""
    api.temporal.lost = ("j-1", "j-2", "j-3")
    first = (await api.user.post("/fleet/recover", json={"limit": 2})).json()
    assert [job["id"] for job in first["jobs"]] == ["j-1", "j-2"]
    assert (first["next"], first["generation"], first["ended_workflows"]) == ("j-2", None, [])
    second = (await api.user.post("/fleet/recover", json={"limit": 2, "after": first["next"]})).json()
    assert ([job["id"] for job in second["jobs"]], second["next"]) == (["j-3"], None)
    assert api.dispatcher.wakes == 2
    assert [call["replace"] for call in api.temporal.taken] == [False, False]


async def test_restored_ledger_begins_a_generation_once(api: Api) -> None:
    """With the first page; what runs without a job is ended with the last one. The audit log has it, with the name."""
    api.temporal.lost = ("j-1", "j-2", "j-3")
    body = {"ledger_restored": True, "limit": 2}
    first = (await api.user.post("/fleet/recover", json=body)).json()
    second = (await api.user.post("/fleet/recover", json=body | {"after": first["next"]})).json()
    assert [page["generation"] for page in (first, second)] == [1, None]
    assert [page["ended_workflows"] for page in (first, second)] == [[], ["gf-job-default-j-0"]]
    assert [call["replace"] for call in api.temporal.taken] == [True, True]
    (line,) = [line for line in await api.ledger.audit() if line.type == "ledger.restored"]
    assert line.actor == "tess"


async def test_only_who_runs_the_fleet_may_recover(api: Api) -> None:
    """Not a viewer, not a factory, and not an operator of one product alone."""
    viewer = (await api.made(roles=["viewer"]))["secret"]
    limited = (await api.made(roles=["operator"], products=["shop"]))["secret"]
    operator = (await api.made(roles=["operator"]))["secret"]
    codes = [(await api.call(token, "POST", "/fleet/recover", json={})).status_code for token in (viewer, limited)]
    assert codes == [403, 403]
    assert (await api.factory.post("/fleet/recover", json={})).status_code == 403
    assert (await api.call(operator, "POST", "/fleet/recover", json={})).status_code == 200


async def test_nothing_begins_while_temporal_is_away(api: Api) -> None:
    """No generation either: a call that failed has done nothing."""
    api.temporal.away = True
    answer = await api.user.post("/fleet/recover", json={"ledger_restored": True})
    assert answer.status_code == 503
    assert await api.ledger.raise_generation("tess", (await api.ledger.audit())[0].at) == 1
