"""Tokens: made, adopted, rotated, revoked, spent for an enrolment; and what changed about them. Does I/O: SQL.

Every change raises `revision` and writes a line of the audit log, in one transaction; changes are serialised, so that
whoever has seen a revision has seen all before it (`store.token_book` lives by that). Rows are never deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, update

from core.errors import Conflict, NotFound, Unauthenticated
from core.roles import Role
from store import attestations, audit
from store.database import serialise
from store.messages import NewToken
from store.tables import factories, tokens
from store.views import TokenChanges, TokenRow


def create(connection: Connection, new: NewToken, actor: str, now: datetime) -> TokenRow:
    """Take in a token that `actor` made."""
    serialise(connection, "tokens")
    row = _insert(connection, new, actor, now)
    audit.note(
        connection,
        "token.created",
        f"token {row.name} for {', '.join(row.roles)}",
        actor=actor,
        subject=row.id,
        now=now,
        data=_told(row),
        product_id=row.product_id,
    )
    return row


def adopt(connection: Connection, new: NewToken, now: datetime) -> TokenRow:
    """Take in a token that was made as a file of this home; known already, return it as it is.

    One file holds one token: what the same file held before is revoked.

    Raises:
        Unauthenticated: it is for a factory whose name belongs to another machine.

    """
    serialise(connection, "tokens")
    known = find(connection, new.sha256)
    if known is not None:
        return known
    factory = new.access.factory
    if factory and any(row.origin != new.origin for row in _speakers(connection, factory, now)):
        raise Unauthenticated(
            f"the name {factory} belongs to a factory on another machine",
            hint=f"give this one another name; its token is {new.origin}",
        )
    for row in _rows(connection, and_(tokens.c.origin == new.origin, _opening(now))):
        _end(connection, row, "its file holds another token now", "", now)
    row = _insert(connection, new, "", now)
    audit.note(
        connection,
        "token.adopted",
        f"token {row.name} of the file {row.origin}",
        actor="",
        subject=row.id,
        now=now,
        data=_told(row),
        product_id=row.product_id,
    )
    return row


def rotate(
    connection: Connection,
    token_id: str,
    *,
    new_id: str,
    sha256: str,
    grace: timedelta,
    expires_at: datetime | None,
    actor: str,
    now: datetime,
) -> TokenRow:
    """Put a new token in the place of one that opens; the old one stays good for `grace`. Return the new one.

    Raises:
        NotFound: there is no such token.
        Conflict: it opens nothing any more, has a successor already, or can be used only once anyway.

    """
    serialise(connection, "tokens")
    old = get(connection, token_id)
    if not old.opens(now) or old.successor is not None or Role.ENROLMENT in old.roles:
        raise Conflict(f"token {token_id} cannot be rotated: {_why_not(old, now)}", hint="`gf token create` makes one")
    new = NewToken(id=new_id, sha256=sha256, name=old.name, access=old.access, expires_at=expires_at, origin=old.origin)
    row = _insert(connection, new, actor, now)
    until = now + grace if old.expires_at is None else min(now + grace, old.expires_at)
    _change(connection, old, expires_at=until, successor=new_id)
    audit.note(
        connection,
        "token.rotated",
        f"token {old.name} was replaced; the old one is good until {until.isoformat(timespec='seconds')}",
        actor=actor,
        subject=token_id,
        now=now,
        data={"successor": new_id, "until": until.isoformat()},
        product_id=old.product_id,
    )
    return row


def _why_not(row: TokenRow, now: datetime) -> str:
    if row.revoked_at is not None:
        return "it was revoked"
    if not row.opens(now):
        return "it has expired"
    if row.successor is not None:
        return f"{row.successor} took its place already"
    return "an enrolment token is used once"


def revoke(connection: Connection, token_id: str, reason: str, actor: str, now: datetime) -> TokenRow:
    """End a token now and for good; one that was revoked already stays as it is.

    Raises:
        NotFound: there is no such token.

    """
    serialise(connection, "tokens")
    row = get(connection, token_id)
    if row.revoked_at is not None:
        return row
    _end(connection, row, reason, actor, now)
    return get(connection, token_id)


def revoke_of_factory(connection: Connection, factory: str, reason: str, actor: str, now: datetime) -> int:
    """Revoke every token that speaks for a factory or may become it; return how many there were."""
    serialise(connection, "tokens")
    rows = _rows(connection, and_(tokens.c.factory == factory, tokens.c.revoked_at.is_(None)))
    for row in rows:
        _end(connection, row, reason, actor, now)
    return len(rows)


def enrol(
    connection: Connection,
    enrolment_id: str,
    names: Sequence[str],
    new: NewToken,
    *,
    told: dict[str, Any],
    now: datetime,
) -> TokenRow:
    """Spend an enrolment token for the token of a factory; return that one.

    The factory's name is the first of `names` that is free. An enrolment token that is for one name takes that name
    over: tokens and attestations of the machine that had it before are gone. `told` is what the machine says of itself.

    Raises:
        Unauthenticated: the enrolment token was used, revoked or has expired meanwhile.
        Conflict: none of the names is free.

    """
    serialise(connection, "tokens")
    enrolment = get(connection, enrolment_id)
    if not enrolment.opens(now):
        raise Unauthenticated(refusal_of(enrolment, now), hint="`gf enroll-token` makes another one")
    name = _name_for(connection, enrolment, names, now)
    access = new.access.model_copy(update={"factory": name})
    row = _insert(connection, new.model_copy(update={"name": name, "access": access}), enrolment.created_by, now)
    _change(connection, enrolment, revoked_at=now, reason=f"it was used to enrol {name}")
    audit.note(
        connection,
        "factory.enrolled",
        f"factory {name}",
        actor=enrolment.created_by,
        subject=name,
        now=now,
        data=told | {"token": row.id, "enrolment": enrolment_id},
    )
    return row


def _name_for(connection: Connection, enrolment: TokenRow, names: Sequence[str], now: datetime) -> str:
    if enrolment.factory is not None:
        for row in _speakers(connection, enrolment.factory, now):
            if row.id != enrolment.id:
                _end(connection, row, "its factory was enrolled anew", enrolment.created_by, now)
        attestations.forget(connection, enrolment.factory)
        return enrolment.factory
    free = next((name for name in names if not _is_taken(connection, name, now)), None)
    if free is None:
        raise Conflict(
            f"a factory {names[0]} exists already",
            hint="choose another name, or have an enrolment token made for this one: `gf enroll-token --name`",
            name=names[0],
        )
    return free


def _is_taken(connection: Connection, factory: str, now: datetime) -> bool:
    known = connection.execute(select(factories.c.name).where(factories.c.name == factory)).one_or_none()
    return known is not None or bool(_speakers(connection, factory, now))


def _speakers(connection: Connection, factory: str, now: datetime) -> tuple[TokenRow, ...]:
    """Return the tokens that speak for a factory, or that a machine may become it with."""
    return _rows(connection, and_(tokens.c.factory == factory, _opening(now)))


# --- reads ------------------------------------------------------------------------------------------------------------


def get(connection: Connection, token_id: str) -> TokenRow:
    """Return one token.

    Raises:
        NotFound: there is no such token.

    """
    rows = _rows(connection, tokens.c.id == token_id)
    if not rows:
        raise NotFound(f"there is no token {token_id}", hint="`gf token list` lists them", token_id=token_id)
    return rows[0]


def check_opens(connection: Connection, token_id: str, now: datetime) -> None:
    """Refuse what a token is shown for that was ended meanwhile; it cannot be ended before the transaction is over.

    Raises:
        Unauthenticated: the token opens nothing any more.

    """
    serialise(connection, "tokens")
    row = get(connection, token_id)
    if not row.opens(now):
        raise Unauthenticated(refusal_of(row, now))


def find(connection: Connection, sha256: str) -> TokenRow | None:
    """Return the token with that digest."""
    rows = _rows(connection, tokens.c.sha256 == sha256)
    return rows[0] if rows else None


def listed(connection: Connection, now: datetime, *, ended: bool) -> tuple[TokenRow, ...]:
    """Return the tokens that open, oldest first; with `ended` those that do so no more too."""
    return _rows(connection, None if ended else _opening(now))


def changes(connection: Connection, after: int, now: datetime, sha256: str | None = None) -> TokenChanges:
    """Return what changed after a revision (0: every token that opens), and the token with a digest if asked for."""
    newest: int = connection.execute(select(func.max(tokens.c.revision))).scalar_one() or 0
    changed: tuple[TokenRow, ...] = ()
    if newest > after:
        later = tokens.c.revision > after
        changed = _rows(connection, and_(later, _opening(now)) if after == 0 else later)
    return TokenChanges(revision=newest, changed=changed, found=find(connection, sha256) if sha256 else None)


def refusal_of(row: TokenRow, now: datetime) -> str:
    """Return why a token that is known opens nothing."""
    if row.revoked_at is not None:
        return f"token {row.id} ({row.name}) was revoked: {row.reason or 'no reason was given'}"
    assert row.expires_at is not None
    assert row.expires_at <= now
    replaced = f"; {row.successor} took its place" if row.successor else ""
    return f"token {row.id} ({row.name}) expired at {row.expires_at.isoformat(timespec='seconds')}{replaced}"


# --- rows -------------------------------------------------------------------------------------------------------------


def _opening(now: datetime) -> ColumnElement[bool]:
    return and_(tokens.c.revoked_at.is_(None), or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now))


def _rows(connection: Connection, which: ColumnElement[bool] | None) -> tuple[TokenRow, ...]:
    query = select(tokens) if which is None else select(tokens).where(which)
    rows = connection.execute(query.order_by(tokens.c.created_at, tokens.c.id))
    return tuple(TokenRow.model_validate(row._asdict()) for row in rows)


def _next_revision(connection: Connection) -> int:
    newest: int | None = connection.execute(select(func.max(tokens.c.revision))).scalar_one()
    return (newest or 0) + 1


def _insert(connection: Connection, new: NewToken, actor: str, now: datetime) -> TokenRow:
    products = new.access.products
    connection.execute(
        insert(tokens),
        {
            "id": new.id,
            "product_id": products[0] if products and len(products) == 1 else audit.WHOLE_FLEET,
            "sha256": new.sha256,
            "name": new.name,
            "roles": [str(role) for role in new.access.roles],
            "products": None if products is None else list(products),
            "factory": new.access.factory,
            "origin": new.origin,
            "created_at": now,
            "created_by": actor,
            "expires_at": new.expires_at,
            "revision": _next_revision(connection),
        },
    )
    return get(connection, new.id)


def _change(connection: Connection, row: TokenRow, **values: object) -> None:
    revision = _next_revision(connection)
    connection.execute(update(tokens).where(tokens.c.id == row.id).values(revision=revision, **values))


def _end(connection: Connection, row: TokenRow, reason: str, actor: str, now: datetime) -> None:
    _change(connection, row, revoked_at=now, reason=reason)
    audit.note(
        connection,
        "token.revoked",
        f"token {row.name}: {reason or 'no reason was given'}",
        actor=actor,
        subject=row.id,
        now=now,
        data={"reason": reason},
        product_id=row.product_id,
    )


def _told(row: TokenRow) -> dict[str, Any]:
    """Return what the audit log says of a new token."""
    expires_at = row.expires_at.isoformat() if row.expires_at else None
    return {"roles": row.roles, "products": row.products, "factory": row.factory, "expires_at": expires_at}
