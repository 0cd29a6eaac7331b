"""Who gets in, and what every request passes first."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from api import app as app_module
from api.auth import PUBLIC_PATHS, permissions_of
from api.guards import ARTIFACT_LIMIT, BODY_LIMIT, SPOOL_LIMIT, SUBMIT_LIMIT, body_limit
from core.roles import ACTION_PERMISSIONS, ROLE_PERMISSIONS, Permission, Role
from tests.api.conftest import Api, Manifest


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


@pytest.fixture
async def secrets(api: Api) -> dict[Role, str]:
    """Return one token of each role."""
    made = {}
    for role in Role:
        factory = "brisk-otter" if role == Role.FACTORY else None
        made[role] = (await api.made(name=f"a {role}", roles=[role], factory=factory))["secret"]
    return made


@pytest.mark.req("S2", "S9")
async def test_every_role_is_let_through_exactly_where_its_permissions_reach(
    api: Api, secrets: dict[Role, str]
) -> None:
    """Every role tries every route: 403 where it lacks the permission, never where it has it, nowhere a 500."""
    wrong = []
    for route in guarded_routes():
        for role, secret in secrets.items():
            answer = await api.call(secret, *operation(route), json={})
            allowed = bool(permissions_of(route) & ROLE_PERMISSIONS[role])
            if (answer.status_code == 403) == allowed or answer.status_code in (401, 500):
                wrong.append((route.path, role, answer.status_code))
    assert wrong == []


@pytest.mark.req("S2")
def test_roles_that_are_not_for_people_open_a_handful_of_routes() -> None:
    """What each narrow role reaches, in full: a new route does not fall to one of them unnoticed."""

    def reached_by(role: Role) -> set[str]:
        routes = [route for route in guarded_routes() if permissions_of(route) & ROLE_PERMISSIONS[role]]
        return {f"{next(iter(route.methods or ()))} {route.path}" for route in routes}

    looks = {"GET /fleet/schema", "GET /fleet/openapi.json", "GET /fleet/tokens/self", "POST /fleet/tokens/self/rotate"}
    assert reached_by(Role.ENROLMENT) == {"POST /fleet/enrol"}
    assert reached_by(Role.FACTORY) == looks | {
        "POST /fleet/factories",
        "GET /fleet/factories/{factory}",
        "POST /fleet/factories/{factory}/heartbeat",
        "POST /fleet/factories/{factory}/drain",
        "POST /fleet/factories/{factory}/leave",
        "POST /fleet/attempts/{job_id}/{epoch}/alive",
        "POST /fleet/attempts/{job_id}/{epoch}/report",
        "POST /fleet/attempts/{job_id}/{epoch}/quarantined",
        "POST /fleet/attempts/{job_id}/{epoch}/artifacts",
        "POST /fleet/attempts/{job_id}/{epoch}/death",
    }
    changing = {path for path in reached_by(Role.TRACKER) | reached_by(Role.VIEWER) if path.startswith("POST")}
    assert changing == {"POST /fleet/jobs", "POST /fleet/explain", "POST /fleet/tokens/self/rotate"}


@pytest.mark.req("S2", "L4")
@pytest.mark.parametrize(
    ("role", "may"),
    [
        (Role.VIEWER, set()),
        (Role.TRACKER, set()),
        (Role.OPERATOR, {"requeue", "cancel", "pause", "resume"}),
        (Role.REVIEWER, {"approve", "ship", "reject"}),
        (Role.ADMIN, set(ACTION_PERMISSIONS)),
    ],
)
async def test_actions_are_apart_by_who_runs_the_fleet_and_who_decides(
    api: Api, manifest: Manifest, role: Role, may: set[str]
) -> None:
    """An operator steers jobs, a reviewer decides at the gates; neither does the other's work by the same path."""
    job_id = await api.submit(manifest())
    secret = (await api.made(roles=[role]))["secret"]
    answers = {
        action: (await api.call(secret, "POST", f"/fleet/jobs/{job_id}/actions", json={"action": action})).status_code
        for action in ACTION_PERMISSIONS
    }
    assert answers == {action: 200 if action in may else 403 for action in ACTION_PERMISSIONS}


def test_route_without_a_permission_keeps_the_application_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten permission is found when the API starts, not by a stranger."""
    careless = APIRouter()

    @careless.get("/fleet/secrets")
    async def give_away() -> None: ...

    monkeypatch.setattr(app_module, "ROUTERS", (*app_module.ROUTERS, careless))
    with pytest.raises(RuntimeError, match="/fleet/secrets"):
        app_module.bare_app()


def guarded_routes() -> list[APIRoute]:
    """Return every route that wants a token."""
    served = app_module.served_routes()
    routes = [route for route in served if isinstance(route, APIRoute)]
    [link] = [route for route in served if isinstance(route, APIWebSocketRoute)]  # tests/api/test_link.py tries it
    assert permissions_of(link) == {Permission.ACT_AS_FACTORY}
    assert len(routes) + 1 == len(served) > 30
    return [route for route in routes if route.path not in PUBLIC_PATHS]


def operation(route: APIRoute) -> tuple[str, str]:
    """Return the method of a route, and its path with names that fit its patterns; nothing is retired by it."""
    names = {"job_id": "j-none", "epoch": "1", "factory": "brisk-otter", "token_id": "t-000000000000", "path": "x"}
    names |= {"factory": "calm-heron"} if route.path.endswith("/retire") else {}
    path = re.sub(r"\{(\w+)(:\w+)?\}", lambda name: names[name[1]], route.path)
    return next(iter(route.methods or ())), path


def test_every_route_shows_in_its_description_that_it_wants_a_token(api: Api) -> None:
    """The description names the bearer token wherever one is wanted."""
    documented = api.app.openapi()["paths"]
    without = [
        (method, path)
        for path, methods in documented.items()
        for method, operation in methods.items()
        if not operation.get("security") and path not in PUBLIC_PATHS
    ]
    assert without == []


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", "Bearer wrong", "Basic Z2Y6Z2Y=", "bearer gf_", "Bearer ü", "Bearer gf_ gf_"),
        *(f"Bearer gfu_{'x' * 43}", f"Bearer gff_{'-' * 43}", f"Bearer gf_{'y' * 43}", f"Bearer gfe_{'0' * 44}"),
    ],
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
    body = b'{"jobs": "' + b"x" * SUBMIT_LIMIT + b'"}'

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
    assert body_limit("/fleet/jobs") == body_limit("/fleet/jobs/j-1/children") == SUBMIT_LIMIT
    assert body_limit("/fleet/jobs/j-1/actions") == BODY_LIMIT
    assert body_limit("/fleet/jobs/report/artifacts") == BODY_LIMIT
