"""A bare machine becomes a factory: an enrolment token is spent for that factory's own. *Does I/O: the ledger.*"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Caller, requires
from api.backend import Backend, Parts, utc_now
from api.documents import Document
from core.access import Access
from core.errors import Conflict
from core.factory_names import memorable_name
from core.roles import Permission, Role
from core.tokens import LIFETIME, PREFIXES, digest_of
from core.version import VERSION
from store.messages import NewToken
from store.token_book import new_token_id
from store.token_files import new_token

router = APIRouter(prefix="/fleet", tags=["factories"])

NAMES_TRIED: Final = 50
"""Memorable names among which a free one is looked for; there are thousands."""


class EnrolmentRequest(BaseModel):
    """What a machine says of itself when it asks to become a factory."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    host: str = Field(min_length=1, max_length=255)
    version: str = Field(max_length=100)
    """Of Gigafactory on that machine."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the factory; null: a memorable one that is free."""


class TemporalDirections(Document):
    """How the factory reaches Temporal."""

    address: str
    """host:port; empty: the API was not told, the machine has to be."""
    namespace: str
    gateway_url: str
    """A gateway to use instead, to which the factory shows its token; empty: none."""


class Enrolled(Document):
    """Everything that the new factory needs."""

    factory: str
    secret: str
    """The factory's token, shown this once."""
    token_id: str
    expires_at: datetime | None
    """The agent renews it before that."""
    temporal: TemporalDirections


@router.post("/enrol", status_code=201)
async def enrol(
    parts: Parts, caller: Annotated[Caller, Depends(requires(Permission.ENROL_FACTORY))], request: EnrolmentRequest
) -> Enrolled:
    """Spend an enrolment token: the machine becomes a factory, with a name and a token of its own."""
    _check_version(parts, request.version)
    now = utc_now()
    secret = new_token(PREFIXES[Role.FACTORY])
    new = NewToken(
        id=new_token_id(),
        sha256=digest_of(secret),
        name="",
        access=Access(roles=(Role.FACTORY,)),
        expires_at=now + LIFETIME,
    )
    _check_name(caller, request.name)
    names = [request.name] if request.name else [memorable_name(secrets.token_hex(16)) for _ in range(NAMES_TRIED)]
    told = {"host": request.host, "version": request.version}
    row = await parts.ledger.enrol(caller.token.id, names, new, told, now)
    assert row.factory is not None
    settings = parts.settings
    return Enrolled(
        factory=row.factory,
        secret=secret,
        token_id=row.id,
        expires_at=row.expires_at,
        temporal=TemporalDirections(
            address=settings.enrol_temporal_address or settings.temporal_address,
            namespace=settings.temporal_namespace,
            gateway_url=settings.enrol_gateway_url,
        ),
    )


def _check_version(parts: Backend, version: str) -> None:
    """Refuse a machine of another version where nothing stands between it and Temporal."""
    if version != VERSION and not parts.settings.enrol_gateway_url:
        raise Conflict(
            f"the fleet runs version {VERSION}, this machine {version or 'an unknown one'}",
            hint=f"install version {VERSION} there and enrol again; the enrolment token is still good",
            version=VERSION,
        )


def _check_name(caller: Caller, wanted: str | None) -> None:
    only = caller.access.factory
    if only is not None and wanted not in (None, only):
        raise Conflict(
            f"this enrolment token is for a factory {only}, not {wanted}", hint=f"leave the name out, or say {only}"
        )
