"""Tokens: who has which, making, rotating and revoking them; and the audit log. *Does I/O: the ledger.*

A secret is in the answer that makes it and nowhere else. Nobody can make or end a token that may do more than their
own.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Caller, ManagingCaller, OwningCaller, requires
from api.backend import Backend, Parts, utc_now
from api.documents import Document
from core.access import Access, problems_of
from core.errors import FieldProblem, Forbidden, InvalidInput
from core.roles import Permission, Role
from core.tokens import ENROLMENT_LIFETIME, LIFETIME, LONGEST_ENROLMENT, digest_of, prefix_of
from store.messages import NewToken
from store.token_book import new_token_id
from store.token_files import new_token
from store.views import AuditLine, AuditReport, TokenRow

router = APIRouter(prefix="/fleet", tags=["tokens"])

TokenId = Annotated[str, Path(pattern=r"^t-[0-9a-f]{12}$", description="Id of the token, as the list shows it.")]
ProductName = Annotated[str, Field(min_length=1, max_length=200)]
FactoryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
YEAR_S = 366 * 24 * 3600
DEFAULT_GRACE_S = 3600
LONGEST_GRACE_S = 30 * 24 * 3600


class TokenDocument(Document):
    """A token without its secret."""

    id: str
    name: str
    roles: tuple[Role, ...]
    products: tuple[str, ...] | None
    """Products that it is limited to; null: all."""
    factory: str | None
    """The factory that it speaks for."""
    state: str
    """`good`, `replaced` (good until it expires; `successor` took its place), `expired` or `revoked`."""
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    reason: str
    successor: str | None


class TokenList(Document):
    """Tokens, oldest first."""

    tokens: tuple[TokenDocument, ...]


class TokenMade(Document):
    """A new token."""

    token: TokenDocument
    secret: str
    """Shown this once; the ledger has only its digest."""


class TokenRequest(BaseModel):
    """What a token shall be."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=100)
    """Whom or what it is for; written into events as who did it."""
    roles: tuple[Role, ...] = Field(min_length=1, max_length=6)
    products: tuple[ProductName, ...] | None = Field(default=None, max_length=100)
    """Products that it is limited to; null: all."""
    factory: FactoryName | None = None
    """For the role factory: which one. For enrolment: the only one that it may become."""
    lifetime_s: int | None = Field(default=None, ge=1, le=10 * YEAR_S)
    """Seconds until it expires; null: 90 days, for an enrolment 15 minutes."""
    expires: bool = True
    """False: it opens until it is revoked."""


class RotationRequest(BaseModel):
    """How a token is replaced."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    grace_s: int = Field(default=DEFAULT_GRACE_S, ge=0, le=LONGEST_GRACE_S)
    """Seconds for which the old one stays good beside the new one."""


class RevocationRequest(BaseModel):
    """Why a token ends."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=1000, description="Told to whoever shows the token after that.")


class AuditLog(Document):
    """Lines of the fleet's audit log, oldest first."""

    lines: tuple[AuditLine, ...]
    next_after: int
    """Pass it as `after` to go on."""


@router.get("/tokens")
async def list_tokens(
    parts: Parts,
    caller: ManagingCaller,
    ended: Annotated[bool, Query(description="Also those that open nothing any more.")] = False,
) -> TokenList:
    """List tokens, as far as the caller could make and end them."""
    now = utc_now()
    found = await parts.ledger.tokens(now, ended=ended)
    return TokenList(tokens=tuple(token_document(row, now) for row in found if caller.access.covers(row.access)))


@router.post("/tokens", status_code=201)
async def create_token(parts: Parts, caller: ManagingCaller, request: TokenRequest) -> TokenMade:
    """Make a token; its secret is in the answer and nowhere else."""
    access = Access(roles=request.roles, products=request.products, factory=request.factory)
    problems = [*problems_of(access), *_lifetime_problems(request)]
    if problems:
        body = tuple(FieldProblem(f"body.{p.path}", p.message, p.value, p.expected) for p in problems)
        raise InvalidInput(f"{len(body)} problem(s) in the request", body)
    _check_covers(caller, access)
    now = utc_now()
    secret = new_token(prefix_of(access.roles))
    default = ENROLMENT_LIFETIME if Role.ENROLMENT in access.roles else LIFETIME
    lifetime = default if request.lifetime_s is None else timedelta(seconds=request.lifetime_s)
    new = NewToken(
        id=new_token_id(),
        sha256=digest_of(secret),
        name=request.name,
        access=access,
        expires_at=now + lifetime if request.expires else None,
    )
    row = await parts.ledger.create_token(new, caller.name, now)
    return TokenMade(token=token_document(row, now), secret=secret)


@router.get("/tokens/self")
async def own_token(caller: OwningCaller) -> TokenDocument:
    """Return the caller's own token."""
    return token_document(caller.token, utc_now())


@router.post("/tokens/self/rotate")
async def rotate_own_token(parts: Parts, caller: OwningCaller, request: RotationRequest) -> TokenMade:
    """Replace the caller's own token. That of a factory begins a new lifetime, a person's keeps its end."""
    return await _rotate(parts, caller, caller.token, request, renew=Role.FACTORY in caller.access.roles)


@router.post("/tokens/{token_id}/rotate")
async def rotate_token(parts: Parts, caller: ManagingCaller, token_id: TokenId, request: RotationRequest) -> TokenMade:
    """Replace a token by one with the same rights and a new lifetime; the old one stays good for a while."""
    row = await parts.ledger.token(token_id)
    _check_covers(caller, row.access)
    return await _rotate(parts, caller, row, request, renew=True)


@router.post("/tokens/{token_id}/revoke")
async def revoke_token(
    parts: Parts, caller: ManagingCaller, token_id: TokenId, request: RevocationRequest
) -> TokenDocument:
    """End a token now, for good, at every API process within a second."""
    row = await parts.ledger.token(token_id)
    _check_covers(caller, row.access)
    now = utc_now()
    return token_document(await parts.ledger.revoke_token(token_id, request.reason, caller.name, now), now)


@router.get("/audit", dependencies=[Depends(requires(Permission.READ_AUDIT))])
async def list_audit(
    parts: Parts,
    after: Annotated[int, Query(ge=0, le=2**53, description="Give what follows this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> AuditLog:
    """Return who did what about tokens, factories and trust; what happened to jobs is in their own events."""
    lines = await parts.ledger.audit(after, limit)
    return AuditLog(lines=lines, next_after=lines[-1].seq if lines else after)


@router.get("/audit/check", dependencies=[Depends(requires(Permission.READ_AUDIT))])
async def check_audit(parts: Parts) -> AuditReport:
    """Check the hash chain of the audit log."""
    return await parts.ledger.check_audit()


def token_document(row: TokenRow, now: datetime) -> TokenDocument:
    """Return a token as the API shows it."""
    return TokenDocument.model_validate(row.model_dump() | {"state": _state(row, now)})


def _state(row: TokenRow, now: datetime) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if not row.opens(now):
        return "expired"
    return "good" if row.successor is None else "replaced"


async def _rotate(parts: Backend, caller: Caller, row: TokenRow, request: RotationRequest, *, renew: bool) -> TokenMade:
    now = utc_now()
    secret = new_token(prefix_of(row.roles))
    lifetime = None if row.expires_at is None else row.expires_at - row.created_at
    made = await parts.ledger.rotate_token(
        row.id,
        new_id=new_token_id(),
        sha256=digest_of(secret),
        grace=timedelta(seconds=request.grace_s),
        expires_at=now + lifetime if renew and lifetime is not None else row.expires_at,
        actor=caller.name,
        now=now,
    )
    return TokenMade(token=token_document(made, now), secret=secret)


def _check_covers(caller: Caller, access: Access) -> None:
    """Refuse to make or end what has more than the caller's own token."""
    if not caller.access.covers(access):
        raise Forbidden(
            f"a token that may do more than your own is not yours to make or end ({caller.token.id})",
            hint="ask an admin of the whole fleet",
        )


def _lifetime_problems(request: TokenRequest) -> list[FieldProblem]:
    if Role.ENROLMENT not in request.roles:
        return []
    longest = int(LONGEST_ENROLMENT.total_seconds())
    if not request.expires:
        return [FieldProblem("expires", "an enrolment token always expires", request.expires)]
    if request.lifetime_s is not None and request.lifetime_s > longest:
        return [FieldProblem("lifetime_s", "is too long for an enrolment", request.lifetime_s, f"at most {longest}")]
    return []
