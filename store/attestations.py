"""Attested capabilities: what operators vouch for, factory by factory. Does I/O: SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, select

from core.capability import plain_offer
from store import audit
from store.database import insert_new
from store.tables import attestations


def attest(connection: Connection, factory: str, capabilities: Sequence[str], actor: str, now: datetime) -> None:
    """Vouch for capabilities of a factory; what was attested already stays as it is."""
    fresh = [
        capability
        for capability in dict.fromkeys(map(plain_offer, capabilities))
        if insert_new(
            connection,
            attestations,
            factory=factory,
            capability=capability,
            product_id=audit.WHOLE_FLEET,
            attested_by=actor,
            attested_at=now,
        )
    ]
    if fresh:
        told = f"{', '.join(fresh)} of {factory}"
        data = {"capabilities": fresh}
        audit.note(connection, "factory.attested", told, actor=actor, subject=factory, now=now, data=data)


def withdraw(connection: Connection, factory: str, capabilities: Sequence[str], actor: str, now: datetime) -> None:
    """Vouch for capabilities of a factory no more; jobs that run there go on."""
    wanted = list(dict.fromkeys(map(plain_offer, capabilities)))
    gone = connection.execute(
        delete(attestations)
        .where(attestations.c.factory == factory, attestations.c.capability.in_(wanted))
        .returning(attestations.c.capability)
    )
    withdrawn = sorted(gone.scalars())
    if withdrawn:
        told = f"{', '.join(withdrawn)} of {factory}"
        data = {"capabilities": withdrawn}
        audit.note(connection, "attestation.withdrawn", told, actor=actor, subject=factory, now=now, data=data)


def forget(connection: Connection, factory: str) -> None:
    """Drop every attestation of a factory: another machine has its name now, or it is gone."""
    connection.execute(delete(attestations).where(attestations.c.factory == factory))


def of_factory(connection: Connection, factory: str) -> tuple[str, ...]:
    """Return what is attested for one factory, in one order."""
    found = select(attestations.c.capability).where(attestations.c.factory == factory)
    return tuple(connection.execute(found.order_by(attestations.c.capability)).scalars())


def attested_by_factory(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Return what is attested, by factory, each in one order."""
    found: dict[str, list[str]] = {}
    rows = connection.execute(
        select(attestations.c.factory, attestations.c.capability).order_by(
            attestations.c.factory, attestations.c.capability
        )
    )
    for row in rows:
        found.setdefault(row.factory, []).append(row.capability)
    return {factory: tuple(capabilities) for factory, capabilities in found.items()}
