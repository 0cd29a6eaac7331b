"""The application: routes, guards and error handlers put together. *Does no I/O itself.*"""

from __future__ import annotations

from typing import Any, Final

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from api import problems
from api.auth import Authentication, open_routes
from api.backend import Backend
from api.documents import Problem
from api.guards import LOOPBACK_NAMES, BodyLimit, HostCheck, RequestScope, whole_characters
from api.routes import actions, attempts, enrolment, factories, jobs, link, recovery, submit, switch, system, tokens
from core.errors import GigafactoryError
from core.version import VERSION

LOOPBACK_ADDRESSES: Final = frozenset({"127.0.0.1", "::1", "localhost"})
ROUTERS: Final = (
    system.public,
    system.router,
    submit.router,
    actions.router,
    jobs.router,
    jobs.waits_router,
    factories.router,
    switch.router,
    attempts.router,
    link.router,
    enrolment.router,
    tokens.router,
    recovery.router,
)
DESCRIPTION: Final = (
    "The control plane of a Gigafactory stack. Every error is a problem document (RFC 9457) with a stable `code`; "
    "see docs/reference/errors.md."
)


def create_app(backend: Backend) -> FastAPI:
    """Return the API over `backend`; the caller starts and stops what the backend holds."""
    app = bare_app()
    app.state.backend = backend
    for guard in reversed(_guards(backend)):
        app.add_middleware(guard.cls, *guard.args, **guard.kwargs)
    return app


def bare_app() -> FastAPI:
    """Return the routes with their error handlers and nothing behind or before them: enough to describe them."""
    app = FastAPI(
        title="Gigafactory",
        version=VERSION,
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(whole_characters)],
        generate_unique_id_function=_operation_id,
        exception_handlers={
            GigafactoryError: problems.on_expected_error,
            RequestValidationError: problems.on_invalid_request,
            HTTPException: problems.on_http_error,
        },
        responses={"default": {"model": Problem, "description": "Any error, as a problem document."}},
    )
    if unguarded := open_routes(served_routes()):
        raise RuntimeError(f"these routes name no permission, so anybody could use them: {', '.join(unguarded)}")
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def served_routes() -> tuple[BaseRoute, ...]:
    """Return every route of the API."""
    return tuple(route for router in ROUTERS for route in router.routes)


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document; made once, then kept."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                content = operation["responses"]["default"]["content"]
                content[problems.MEDIA_TYPE] = next(iter(content.values()))
                for other in set(content) - {problems.MEDIA_TYPE}:
                    del content[other]
        app.openapi_schema = document
    return app.openapi_schema


def _guards(backend: Backend) -> list[Middleware]:
    """Return what each request passes, outermost first."""
    guards = [Middleware(RequestScope)]
    if backend.settings.api_host in LOOPBACK_ADDRESSES:
        guards.append(Middleware(HostCheck, names=LOOPBACK_NAMES))
    guards.append(Middleware(Authentication, book=backend.book))
    guards.append(Middleware(BodyLimit))
    return guards


def _operation_id(route: APIRoute) -> str:
    return route.name
