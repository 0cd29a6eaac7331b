"""The factory's HTTP calls against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.attempt import DeathCertificate
from core.errors import Conflict, Forbidden, InvalidInput, NotFound, StaleEpoch, Unauthenticated, Unavailable
from tests.waiting import PATIENCE_S
from tests.workers.api_stub import ApiStub
from workers import certificate
from workers.api_client import FactoryApi


@pytest.fixture
def stub() -> Iterator[ApiStub]:
    """Run a server that notes what it is sent."""
    with ApiStub() as running:
        yield running


@pytest.fixture
async def api(tmp_path: Path, stub: ApiStub) -> AsyncIterator[FactoryApi]:
    """Return a client with a token."""
    (tmp_path / "token").write_text("gff_one\n")
    client = FactoryApi(stub.url, tmp_path / "token")
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Unauthenticated),
        (403, Forbidden),
        (404, NotFound),
        (422, InvalidInput),
        (429, Unavailable),
        (503, Unavailable),
    ],
)
async def test_answers_become_our_errors(api: FactoryApi, stub: ApiStub, status: int, error: type[Exception]) -> None:
    """The caller sees the same errors that the API raised."""
    stub.status, stub.code = status, ""
    with pytest.raises(error):
        await api.report("j-1", 1, {})


async def test_code_tells_conflicts_apart(api: FactoryApi, stub: ApiStub) -> None:
    """409 is a lost lease or a taken name; the code says which."""
    stub.status, stub.code = 409, "stale_epoch"
    with pytest.raises(StaleEpoch):
        await api.report("j-1", 1, {})
    stub.code = "conflict"
    with pytest.raises(Conflict) as caught:
        await api.register({"name": "x"})
    assert not isinstance(caught.value, StaleEpoch)


async def test_rotated_token_is_read_again(tmp_path: Path, api: FactoryApi, stub: ApiStub) -> None:
    """After a refusal the file is read again, once."""
    await api.report("j-1", 1, {})
    (tmp_path / "token").write_text("gff_two")
    stub.status, stub.code = 401, "unauthenticated"
    with pytest.raises(Unauthenticated):
        await api.report("j-1", 1, {})
    seen = [stub.requests.get()[1] for _ in range(3)]
    assert seen == ["Bearer gff_one", "Bearer gff_one", "Bearer gff_two"]


async def test_missing_token_and_missing_api_are_worth_waiting_for(tmp_path: Path, api: FactoryApi) -> None:
    """Neither is a reason to give up: the stack is just starting."""
    (tmp_path / "token").unlink()
    with pytest.raises(Unavailable, match="no token"):
        await api.report("j-1", 1, {})
    away = FactoryApi("http://127.0.0.1:9", tmp_path / "token")
    (tmp_path / "token").write_text("x")
    with pytest.raises(Unavailable, match="does not answer"):
        await away.report("j-1", 1, {})
    await away.close()


async def test_certificate_of_the_agent_is_that_of_the_supervisor(
    api: FactoryApi, stub: ApiStub, tmp_path: Path
) -> None:
    """Both ways of telling a death are the same call."""
    letter = DeathCertificate(job_id="j-1", epoch=2, group_dead=True, reason="agent_died", issued_at=datetime.now(UTC))
    await api.certify(letter)
    spec = {
        "job_id": "j-1",
        "epoch": 2,
        "run_dir": str(tmp_path),
        "api": {"url": stub.url, "token_file": str(tmp_path / "token")},
    }
    assert certificate.deliver(spec, group_dead=True, checkpoint_sha="", reason="agent_died")
    first, second = stub.requests.get(), stub.requests.get()
    assert first[:2] == second[:2] == ("/fleet/attempts/j-1/2/death", "Bearer gff_one")
    assert first[2].keys() == second[2].keys()


def test_certificate_waits_for_an_api_that_restarts(
    tmp_path: Path, stub: ApiStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5xx and silence are tried again; what could not be said stays in the letter."""
    (tmp_path / "token").write_text("t")
    spec = {
        "job_id": "j-1",
        "epoch": 1,
        "run_dir": str(tmp_path),
        "api": {"url": stub.url, "token_file": str(tmp_path / "token")},
    }
    monkeypatch.setattr(certificate, "DELIVERY_S", 1.0)
    stub.status = 503
    assert not certificate.deliver(spec, group_dead=True, checkpoint_sha="", reason="x")
    assert (tmp_path / "death.json").exists()
    assert all(stub.requests.get(timeout=PATIENCE_S) for _ in range(2)), "it was said again"
    stub.status = 409
    assert certificate.deliver(spec, group_dead=True, checkpoint_sha="", reason="x"), "a refusal is an answer"
    assert (tmp_path / "death.sent.json").exists()
