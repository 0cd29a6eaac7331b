"""Several API processes over one ledger: what one of them changes about tokens holds at all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from cli.client import Client, ConnectionLost
from cli.home import Endpoint
from store.token_book import MAX_AGE_S
from tests.api_process import NOWHERE, ApiProcess, running_api
from tests.waiting import PATIENCE_S
from workers.temporal_server import free_port

JOB = "---\nengine: shell\nrepo: scratch:demo\n---\n# Say hi\n\necho hi > hi.txt\n"


@contextmanager
def second_process(first: ApiProcess) -> Iterator[ApiProcess]:
    """Run another API process over the same home."""
    other = ApiProcess(first.home, free_port(), NOWHERE)
    other.start()
    try:
        yield other
    finally:
        assert other.process is not None
        other.process.kill()
        other.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiProcess, ApiProcess]]:
    """Return two API processes over one ledger."""
    with running_api(tmp_path_factory.mktemp("two") / "home") as first, second_process(first) as second:
        yield first, second


def made(api: ApiProcess, **fields: Any) -> dict[str, Any]:
    """Return a new token with its secret."""
    answer = api.call("POST", "/fleet/tokens", json={"name": "x", "roles": ["viewer"]} | fields)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def status_at(api: ApiProcess, secret: str, path: str = "/fleet/jobs") -> int:
    """Return what a token gets at one process."""
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.get(api.url + path, headers=headers, timeout=PATIENCE_S).status_code


@pytest.mark.req("F3", "S2")
def test_token_revoked_at_one_process_is_refused_at_another(two: tuple[ApiProcess, ApiProcess]) -> None:
    """Both know it, one is told; the other refuses from the first look on that is younger than the revocation.

    No look is older than `MAX_AGE_S`, a quarter of the promised second. So that a busy machine fails nothing, the
    test counts what was asked after that age: none of it may be let in.
    """
    assert MAX_AGE_S <= 0.5
    first, second = two
    token = made(first)
    assert [status_at(api, token["secret"]) for api in two] == [200, 200]
    revoked = first.call("POST", f"/fleet/tokens/{token['token']['id']}/revoke", json={})
    assert revoked.status_code == 200
    time.sleep(MAX_AGE_S)  # the only thing that is promised: from here on it is refused
    assert {status_at(api, token["secret"]) for api in (second, first) for _ in range(5)} == {401}


@pytest.mark.req("F3")
def test_token_made_at_one_process_opens_another_at_once(two: tuple[ApiProcess, ApiProcess]) -> None:
    """A hundred new tokens, each shown to the other process as its first act."""
    first, second = two
    assert {status_at(second, made(first)["secret"]) for _ in range(30)} == {200}


@pytest.mark.req("F3", "C2")
def test_open_stream_of_a_revoked_token_is_closed(two: tuple[ApiProcess, ApiProcess]) -> None:
    """A follower that was let in before does not go on reading, at whichever process it reads."""
    first, second = two
    job_id = first.submit(JOB)
    token = made(first)
    reader = Client(Endpoint(second.url, token["secret"]))
    begun, ended = threading.Event(), threading.Event()

    def follow() -> None:
        try:
            for _ in reader.stream(f"/fleet/jobs/{job_id}/stream"):
                begun.set()
        except ConnectionLost:
            pass
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert begun.wait(PATIENCE_S)
    assert not ended.wait(2 * MAX_AGE_S)
    first.call("POST", f"/fleet/tokens/{token['token']['id']}/revoke", json={})
    assert ended.wait(PATIENCE_S)
    thread.join()
    assert first.get(f"/fleet/jobs/{job_id}")["stage"] == "queued"


@pytest.mark.req("F3")
def test_reports_go_on_through_a_rotation(two: tuple[ApiProcess, ApiProcess]) -> None:
    """While a factory's token is replaced no call of its agent is refused: the old one is good beside the new one."""
    first, second = two
    old = made(first, roles=["factory"], factory="mac-1")
    refused: list[int] = []
    shown = [old["secret"]]
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            refused.extend(api.port for api in two if status_at(api, shown[-1], "/fleet/schema") != 200)

    agent = threading.Thread(target=beat)
    agent.start()
    for _ in range(5):
        headers = {"Authorization": f"Bearer {shown[-1]}"}
        answer = httpx.post(f"{second.url}/fleet/tokens/self/rotate", headers=headers, json={}, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        shown.append(answer.json()["secret"])
    stop.set()
    agent.join()
    assert refused == []
    assert [status_at(first, secret, "/fleet/schema") for secret in shown] == [200] * len(shown)
