"""The reach of one token: its permissions, its products, the factory that it speaks for. *Pure.*

A token has one or more roles. It may be limited to products; it then has no permission that is about the whole fleet.
The token of a factory is bound to that one factory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from core.errors import FieldProblem
from core.job import Message
from core.roles import FLEET_WIDE, MACHINE_ROLES, OF_MACHINES, ROLE_PERMISSIONS, Permission, Role


class Access(Message):
    """What one token may do."""

    roles: tuple[Role, ...]
    products: tuple[str, ...] | None = None
    """Products that it is limited to; None: all."""
    factory: str | None = None
    """The factory that it speaks for, or (enrolment) the only one that it may become."""

    def allows(self, permission: Permission) -> bool:
        """Return whether the token has the permission, for those products that it reaches."""
        return permission in _permissions(self.roles, self.products is not None)

    def reaches(self, product_id: str) -> bool:
        """Return whether records of that product are within the token's limits."""
        return self.products is None or product_id in self.products

    def covers(self, other: Access) -> bool:
        """Return whether `other` has nothing that this token lacks, so that this one may make or end it.

        An admin of the whole fleet also covers the roles of machines, which no person has.
        """
        if self.products is not None and (other.products is None or not set(other.products) <= set(self.products)):
            return False
        own = _permissions(self.roles, self.products is not None)
        if Permission.MANAGE_TOKENS in own and self.products is None:
            own |= OF_MACHINES
        return _permissions(other.roles, other.products is not None) <= own


@lru_cache(maxsize=1024)
def _permissions(roles: tuple[Role, ...], limited: bool) -> frozenset[Permission]:
    granted = frozenset[Permission]().union(*(ROLE_PERMISSIONS[role] for role in roles))
    return granted - FLEET_WIDE if limited else granted


def problems_of(access: Access) -> tuple[FieldProblem, ...]:
    """Return what is wrong with the combination of roles, products and factory; empty when it can be granted."""
    return tuple(_problems(access))


def _problems(access: Access) -> Iterator[FieldProblem]:
    alone = [role for role in access.roles if role in MACHINE_ROLES]
    if not access.roles:
        yield FieldProblem("roles", "is empty", expected="at least one role")
    if len(set(access.roles)) != len(access.roles):
        yield FieldProblem("roles", "names a role twice", list(access.roles))
    if alone and len(access.roles) > 1:
        yield FieldProblem("roles", f"{alone[0]} stands alone in a token", list(access.roles))
    if alone and access.products is not None:
        yield FieldProblem("products", f"a token of the role {alone[0]} cannot be limited to products")
    if access.products is not None and not access.products:
        yield FieldProblem("products", "is empty", expected="at least one product, or nothing for all")
    if Role.FACTORY in access.roles and not access.factory:
        yield FieldProblem("factory", "is missing", expected="the name of the factory that the token is for")
    if access.factory and not alone:
        yield FieldProblem("factory", "is only for tokens of factories", access.factory)
