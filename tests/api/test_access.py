"""Who gets in, and what every request passes first."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.auth import PUBLIC_PATHS
from api.guards import ARTIFACT_LIMIT, BODY_LIMIT, SPOOL_LIMIT, body_limit
from api.tokens import ensure_tokens, factory_token_file, user_token_file
from core.errors import Unavailable
from tests.api.conftest import Api

FOR_FACTORIES = ("/fleet/attempts/", "/fleet/factories")


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Yield (method, path with made-up values) of everything that the API serves."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), re.sub(r"\{epoch\}", "1", re.sub(r"\{(?!epoch)[^}]*\}", "x", path))
    yield "GET", "/fleet/openapi.json"


async def test_every_path_but_health_and_version_wants_a_token(api: Api) -> None:
    """No route is open by accident: without a token each answers 401 with a problem and the way to identify."""
    seen = list(operations(api.app))
    assert len(seen) > 20
    for method, path in seen:
        answer = await api.stranger.request(method, path)
        if path in PUBLIC_PATHS:
            assert answer.status_code == 200, path
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.json()["code"] == "unauthenticated"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"


async def test_every_route_names_the_roles_that_may_use_it(api: Api) -> None:
    """A token of the wrong kind is turned away with 403 wherever the role matters, and nowhere gets a 500."""
    for method, path in operations(api.app):
        if path in PUBLIC_PATHS:
            continue
        answers = {
            name: (await client.request(method, path, json={})).status_code
            for name, client in (("user", api.user), ("factory", api.factory))
        }
        assert 401 not in answers.values(), (method, path)
        assert 500 not in answers.values(), (method, path)
        if path.startswith("/fleet/attempts/"):
            assert answers["user"] == 403, (method, path)
        if path.startswith(("/fleet/jobs", "/fleet/explain")):
            assert answers["factory"] == 403, (method, path)


def test_every_route_depends_on_a_role(api: Api) -> None:
    """The role check is a dependency of each route, seen in the routes themselves and not only in answers."""
    documented = api.app.openapi()["paths"]
    without = [
        (method, path)
        for path, methods in documented.items()
        for method, operation in methods.items()
        if not operation.get("security") and path not in PUBLIC_PATHS
    ]
    assert without == []
    assert [route for route in api.app.routes if isinstance(route, APIRoute) and route.path not in documented] == [
        route for route in api.app.routes if getattr(route, "path", "") == "/fleet/openapi.json"
    ]


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic Z2Y6Z2Y=", "bearer gf_", "Bearer ü", "Bearer gf_ gf_"],
)
async def test_wrong_token_is_refused(api: Api, header: str) -> None:
    """Whatever is no token of ours is 401, and never an error of the server."""
    answer = await api.stranger.get("/fleet/jobs", headers={b"Authorization": header.encode()})
    assert answer.status_code == 401


async def test_unknown_path_needs_a_token_before_it_says_that_it_is_unknown(api: Api) -> None:
    """A stranger does not learn which paths exist."""
    assert (await api.stranger.get("/fleet/nothing")).status_code == 401
    assert (await api.user.get("/fleet/nothing")).status_code == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:4410", "localhost:1", "[::1]:4410", "LOCALHOST"])
async def test_loopback_names_are_served(api: Api, host: str) -> None:
    """The names of this machine's loopback work with any port."""
    assert (await api.stranger.get("/fleet/health", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4410", "127.0.0.1.evil.example", "", "127.0.0.1:x"])
async def test_other_names_are_refused_against_dns_rebinding(api: Api, host: str) -> None:
    """A name that DNS points here is refused, even with the right token."""
    answer = await api.user.get("/fleet/jobs", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.json()["code"] == "wrong_host"


async def test_request_id_is_given_back_or_made(api: Api) -> None:
    """A caller's id comes back when it is a plain word; otherwise a new one is made."""
    given = await api.stranger.get("/fleet/health", headers={"X-Request-Id": "abc-1"})
    made = await api.stranger.get("/fleet/health", headers={"X-Request-Id": "a b\tc"})
    assert given.headers["x-request-id"] == "abc-1"
    assert re.fullmatch(r"[0-9a-f]{16}", made.headers["x-request-id"])


async def test_body_beyond_the_limit_is_refused(api: Api) -> None:
    """Both an announced and an unannounced body end in 413, with a problem document."""
    body = b'{"jobs": "' + b"x" * (BODY_LIMIT * 5) + b'"}'

    async def chunks() -> object:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    headers = {"Content-Type": "application/json"}
    announced = await api.user.post("/fleet/jobs", content=body, headers=headers)
    chunked = await api.user.post("/fleet/jobs", content=chunks(), headers=headers)  # type: ignore[arg-type]
    for answer in (announced, chunked):
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"
        assert answer.headers["content-type"] == "application/problem+json"


def test_limits_follow_what_a_path_carries() -> None:
    """Reports and files of attempts may be larger than other bodies."""
    assert body_limit("/fleet/attempts/j-1/2/report") == SPOOL_LIMIT
    assert body_limit("/fleet/attempts/j-1/2/artifacts") == ARTIFACT_LIMIT
    assert body_limit("/fleet/jobs") == SPOOL_LIMIT
    assert body_limit("/fleet/jobs/j-1/actions") == BODY_LIMIT
    assert body_limit("/fleet/jobs/report/artifacts") == BODY_LIMIT


def test_tokens_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    """Two tokens of 256 bits with telling prefixes, in files of mode 0600, the same at the next start."""
    home = tmp_path / "deep" / "home"
    tokens = ensure_tokens(home)
    assert tokens.user.startswith("gf_")
    assert tokens.factory.startswith("gff_")
    assert len(tokens.user) == len("gf_") + 43
    assert tokens.user[3:] != tokens.factory[4:]
    for file in (user_token_file(home), factory_token_file(home)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ensure_tokens(home) == tokens
    assert sorted(path.name for path in home.iterdir()) == ["factory-token", "token"]


def test_empty_token_file_opens_nothing(tmp_path: Path) -> None:
    """A token file that was emptied is an error at the start, not a door without a lock."""
    ensure_tokens(tmp_path)
    user_token_file(tmp_path).write_text("\n")
    with pytest.raises(Unavailable, match="usable token"):
        ensure_tokens(tmp_path)
