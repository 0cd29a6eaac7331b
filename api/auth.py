"""Who may call what: bearer tokens, two roles, deny by default. *Does no I/O.*

The middleware `Authentication` stands before routing, so that a caller without a token learns nothing, not even which
paths exist. Each route then names the roles that may use it with `requires`.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import ProblemResponse, headers_for, problem_of_error
from api.tokens import Tokens
from core.errors import Forbidden, Unauthenticated

PUBLIC_PATHS: Final = frozenset({"/fleet/health", "/fleet/version"})
"""Paths that answer without a token: they say only that something is there."""


class Role(StrEnum):
    """What a token stands for."""

    USER = "user"
    FACTORY = "factory"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request."""

    role: Role
    name: str
    """Written into events as who did it."""


def identify(header: str | None, tokens: Tokens, user_name: str) -> Caller:
    """Return whom an `Authorization` header stands for.

    Raises:
        Unauthenticated: there is no bearer token, or it is not one of ours.

    """
    scheme, _, presented = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise Unauthenticated(
            "no bearer token",
            hint="send `Authorization: Bearer <token>`; the token of this stack is in <home>/token",
        )
    shown = presented.strip().encode()
    is_user = hmac.compare_digest(shown, tokens.user.encode())
    is_factory = hmac.compare_digest(shown, tokens.factory.encode())
    if is_user:
        return Caller(Role.USER, user_name)
    if is_factory:
        return Caller(Role.FACTORY, "factory")
    raise Unauthenticated(
        "unknown token",
        hint="the token of this stack is in <home>/token; is GIGAFACTORY_HOME the home of the stack that runs here?",
    )


class Authentication:
    """ASGI middleware: lets only known callers through, before their body is read."""

    def __init__(self, app: ASGIApp, *, tokens: Tokens, user_name: str) -> None:
        self._app = app
        self._tokens = tokens
        self._user_name = user_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller in `scope["state"]`, or answer 401."""
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            caller = identify(Headers(scope=scope).get("authorization"), self._tokens, self._user_name)
        except Unauthenticated as error:
            await ProblemResponse(problem_of_error(error), headers=headers_for(401))(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


_bearer = HTTPBearer(auto_error=False, description="Token of this stack: `<home>/token`, or `<home>/factory-token`.")


def requires(*roles: Role) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency that lets only callers with one of `roles` use the route, and gives them to it."""

    async def caller_with_role(  # a plain function would be run in a thread, with every request
        request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
    ) -> Caller:
        caller = request.scope["state"]["caller"]
        assert isinstance(caller, Caller)
        if caller.role not in roles:
            raise Forbidden(
                f"a {caller.role} token may not use this path; it is for: {', '.join(roles)}",
                hint="the command line uses <home>/token, factories use <home>/factory-token",
            )
        return caller

    return caller_with_role


UserCaller = Annotated[Caller, Depends(requires(Role.USER))]
"""A person's request."""
FactoryCaller = Annotated[Caller, Depends(requires(Role.FACTORY))]
"""A factory's request."""
AnyCaller = Annotated[Caller, Depends(requires(Role.USER, Role.FACTORY))]
"""Either."""
