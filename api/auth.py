"""Who may call what: bearer tokens, permissions, deny by default. *Does I/O: the token book, the ledger.*

The middleware `Authentication` stands before routing, so that a caller without a token learns nothing, not even which
paths exist. Each route then names the permission that it needs with `requires`, which also keeps the caller within its
reach by the names in the path: `{job_id}` must be a job of the token's products, `{factory}` and `{epoch}` must belong
to the factory that the token speaks for. An application with a route that names no permission does not start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final

from fastapi import Depends, Security, WebSocket, WebSocketException
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from api.backend import Backend, utc_now
from api.link import POLICY_VIOLATION
from api.problems import ProblemResponse, headers_for, problem_of_error
from core.access import Access
from core.errors import Forbidden, GigafactoryError, Unauthenticated
from core.roles import Permission, Role
from store.open_job import no_such_job
from store.token_book import TokenBook
from store.views import TokenRow

PUBLIC_PATHS: Final = frozenset({"/fleet/health", "/fleet/version"})
"""Paths that answer without a token: they say only that something is there."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request."""

    token: TokenRow
    access: Access

    @property
    def name(self) -> str:
        """Return what is written into events as who did it."""
        return self.token.name

    def check_product(self, product_id: str) -> None:
        """Refuse what is beyond the token's products.

        Raises:
            Forbidden: it is.

        """
        if not self.access.reaches(product_id):
            raise Forbidden(
                f"token {self.token.id} ({self.name}) is not for product {product_id}",
                hint=f"it is for: {', '.join(self.access.products or ())}",
            )


async def identify(header: str | None, book: TokenBook) -> Caller:
    """Return whom an `Authorization` header stands for.

    Raises:
        Unauthenticated: there is no bearer token, or it does not open anything.
        Unavailable: the ledger is away.

    """
    scheme, _, presented = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise Unauthenticated(
            "no bearer token",
            hint="send `Authorization: Bearer <token>`; the token of this stack is in <home>/token",
        )
    token = await book.identify(presented.strip(), utc_now())
    return Caller(token, token.access)


class Authentication:
    """ASGI middleware: lets only known callers through, before their body is read."""

    def __init__(self, app: ASGIApp, *, book: TokenBook) -> None:
        self._app = app
        self._book = book

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller in `scope["state"]`, or answer why not."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            caller = await identify(Headers(scope=scope).get("authorization"), self._book)
        except GigafactoryError as error:
            await _refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


async def _refuse(error: GigafactoryError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.message[:100]})
        return
    status = type(error).status
    await ProblemResponse(problem_of_error(error), headers=headers_for(status))(scope, receive, send)


# --- what a route needs -----------------------------------------------------------------------------------------------

_bearer = HTTPBearer(auto_error=False, description="A token: `gf token create` makes one, `<home>/token` has yours.")


class Requirement:
    """What a caller must be permitted to use a route: at least one of `permissions`."""

    def __init__(self, *permissions: Permission) -> None:
        self.permissions = permissions

    async def __call__(
        self, request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
    ) -> Caller:
        """Let the caller of `request` through, and give it to the route."""
        return await self.admit(request)

    async def admit(self, connection: HTTPConnection) -> Caller:
        """Return the caller of a request or WebSocket.

        Raises:
            Forbidden: its token lacks the permission, or is for another factory.
            NotFound: the job of the path is of a product that the token does not reach.

        """
        caller = connection.scope["state"]["caller"]
        assert isinstance(caller, Caller)
        if not any(caller.access.allows(permission) for permission in self.permissions):
            raise Forbidden(
                f"{caller.name} ({_roles(caller.access)}) lacks the permission {' or '.join(self.permissions)}",
                hint="docs/reference/tokens.md says which roles have it; `gf token create` makes tokens",
            )
        await _check_reach(connection, caller)
        return caller


def _roles(access: Access) -> str:
    limit = "" if access.products is None else f" of {', '.join(access.products)}"
    return f"{', '.join(access.roles)}{limit}"


async def _check_reach(connection: HTTPConnection, caller: Caller) -> None:
    """Refuse what the names in the path put beyond the caller's token."""
    names = connection.path_params
    backend: Backend = connection.app.state.backend
    if caller.access.products is not None and "job_id" in names:
        product_id = await backend.owners.product_of(names["job_id"])
        if not caller.access.reaches(product_id):
            raise no_such_job(names["job_id"])  # as if there were none: whose ids exist is nobody else's business
    if Role.FACTORY in caller.access.roles:
        await _check_factory(names, caller, backend)


async def _check_factory(names: dict[str, str], caller: Caller, backend: Backend) -> None:
    own = caller.access.factory
    if names.get("factory", own) != own:
        raise Forbidden(f"this token is for factory {own} and no other")
    if "job_id" in names and names.get("epoch", "").isdecimal():
        await check_attempt(backend, caller, names["job_id"], int(names["epoch"]))


async def check_attempt(backend: Backend, caller: Caller, job_id: str, epoch: int) -> None:
    """Refuse a factory an attempt that is not its own; whoever is none may write for any.

    Raises:
        Forbidden: the epoch was granted to another factory.

    """
    own = caller.access.factory
    if Role.FACTORY not in caller.access.roles:
        return
    holder = await backend.owners.factory_of(job_id, epoch)
    if holder not in (None, own):  # an epoch that nobody was granted is stale, which the ledger says
        raise Forbidden(f"epoch {epoch} of job {job_id} was granted to another factory than {own}")


class SocketRequirement(Requirement):
    """The same for a WebSocket, which is closed before it opens when its caller may not use it."""

    async def __call__(self, socket: WebSocket) -> Caller:  # type: ignore[override]
        """Let the caller of `socket` through, and give it to the route."""
        try:
            return await self.admit(socket)
        except GigafactoryError as error:
            raise WebSocketException(POLICY_VIOLATION, error.message[:100]) from error


def requires_of_socket(*permissions: Permission) -> SocketRequirement:
    """Return what `requires` does, for a WebSocket."""
    return SocketRequirement(*permissions)


@lru_cache(maxsize=64)
def requires(*permissions: Permission) -> Requirement:
    """Return a dependency that lets only callers with one of `permissions` use the route, and gives them to it."""
    return Requirement(*permissions)


SubmittingCaller = Annotated[Caller, Depends(requires(Permission.SUBMIT_JOBS))]
ReadingCaller = Annotated[Caller, Depends(requires(Permission.READ_JOBS))]
OperatingCaller = Annotated[Caller, Depends(requires(Permission.OPERATE_JOBS))]
ManagingCaller = Annotated[Caller, Depends(requires(Permission.MANAGE_TOKENS))]
OwningCaller = Annotated[Caller, Depends(requires(Permission.USE_OWN_TOKEN))]
FleetCaller = Annotated[Caller, Depends(requires(Permission.OPERATE_FACTORIES))]
FactoryCaller = Annotated[Caller, Depends(requires(Permission.ACT_AS_FACTORY))]


# --- every route needs something --------------------------------------------------------------------------------------


def permissions_of(route: BaseRoute) -> frozenset[Permission]:
    """Return the permissions that a route names; of those that it names together each alone is enough."""
    if not isinstance(route, APIRoute | APIWebSocketRoute):
        return frozenset()
    return frozenset(
        permission
        for call in _calls(route.dependant)
        if isinstance(call, Requirement)
        for permission in call.permissions
    )


def open_routes(routes: Iterable[BaseRoute]) -> tuple[str, ...]:
    """Return the paths of routes that name no permission and are not public: there must be none."""
    return tuple(
        str(getattr(route, "path", route))
        for route in routes
        if not permissions_of(route) and getattr(route, "path", "") not in PUBLIC_PATHS
    )


def _calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for child in dependant.dependencies:
        yield from _calls(child)
