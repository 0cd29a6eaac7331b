"""Every error is a problem document, whoever found it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Api, Manifest

MEMBERS = {"type", "title", "status", "detail", "code", "fault", "retryable"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/fleet/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("DELETE", "/fleet/jobs", 405, "method_not_allowed"),
        ("PUT", "/fleet/health", 405, "method_not_allowed"),
        ("GET", "/fleet/jobs/j-1", 404, "not_found"),
        ("POST", "/fleet/jobs", 422, "invalid_input"),
        ("GET", "/fleet/jobs/", 404, "not_found"),
    ],
)
async def test_error_of_any_layer_is_a_problem_document(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    """Router, framework and our own code answer errors in one shape and one media type, with the request's id."""
    answer = await api.user.request(method, path)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem.keys() >= MEMBERS
    assert problem["status"] == status
    assert problem["type"] == f"urn:gigafactory:error:{code}"
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    ['{"manifest": ', "[1, 2]", '"x"', "null", '{"jobs": []}', '{"jobs": [{}]}', "\x00", "", '{"manifest": "\\uda28"}'],
)
async def test_body_that_is_no_request_is_422(api: Api, body: str) -> None:
    """No body that a caller can send ends in anything but a problem."""
    answer = await api.user.post("/fleet/jobs", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"].startswith("body")


async def test_body_of_another_kind_is_told(api: Api) -> None:
    """A form or a text instead of JSON is a problem too, not a guess."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await api.user.post("/fleet/jobs", content=b"manifest=x", headers={"Content-Type": kind})
        assert answer.status_code == 422, kind


async def test_long_values_are_not_thrown_back(api: Api) -> None:
    """A value is quoted back only as far as it helps."""
    answer = await api.user.post("/fleet/jobs", json={"manifest": 1, "source": "x" * 5000})
    values = {item["path"]: item.get("value") for item in answer.json()["errors"]}
    assert len(values["body.job.source"]) < 250


async def test_bug_is_a_500_without_its_inside(
    api: Api, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected error tells the caller only where to look; the traceback is in the log, under the request's id."""

    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(api.ledger, "job", broken)
    answer = await api.user.get("/fleet/jobs/j-1", headers={"X-Request-Id": "find-me"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
    assert "find-me" in answer.json()["hint"]
    logged = capsys.readouterr().out
    assert "the secret inside" in logged
    assert "find-me" in logged
