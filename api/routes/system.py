"""Health, version and schemas. *Does I/O: asks the ledger and Temporal how they are.*"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response

from api.auth import requires
from api.backend import Parts
from api.documents import Document
from core.errors import Unavailable
from core.manifest import manifest_schema
from core.roles import Permission
from core.version import VERSION

public = APIRouter(tags=["system"])
"""Paths that need no token."""
router = APIRouter(tags=["system"], dependencies=[Depends(requires(Permission.READ_SCHEMA))])


class Health(Document):
    """How the API and what it stands on are."""

    status: Literal["ok", "degraded", "down"]
    """`degraded`: reads and submits work, jobs move on when Temporal is back. `down`: the ledger is away."""
    version: str
    instance_id: str
    """New for each API process."""
    parts: dict[str, str]
    """`ledger` and `temporal`: `ok`, or what is wrong."""


class Version(Document):
    """Which version answers."""

    version: str
    api: int = 1
    """Raised when a client of the older number would not work any more."""


@public.get("/fleet/health", responses={503: {"model": Health, "description": "The ledger is away."}})
async def health(parts: Parts, response: Response) -> Health:
    """Say how the API, the ledger and Temporal are. Needs no token."""
    ledger = await _ledger_health(parts)
    temporal = await parts.temporal.health()
    if ledger != "ok":
        response.status_code = 503
        status: Literal["ok", "degraded", "down"] = "down"
    else:
        status = "ok" if temporal == "ok" else "degraded"
    return Health(
        status=status,
        version=VERSION,
        instance_id=parts.instance_id,
        parts={"ledger": ledger, "temporal": temporal},
    )


@public.get("/fleet/version")
async def version() -> Version:
    """Say which version this is. Needs no token."""
    return Version(version=VERSION)


@router.get("/fleet/schema")
async def schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file's front matter."""
    return manifest_schema()


@router.get("/fleet/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """Return the OpenAPI document of this API."""
    document: dict[str, Any] = request.app.openapi()
    return document


async def _ledger_health(parts: Parts) -> str:
    try:
        await parts.ledger.jobs(limit=1)
    except Unavailable as error:
        return error.message
    return "ok"
