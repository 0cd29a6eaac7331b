"""Roles and permissions: who may do what, as one table. *Pure* data; standard library only.

Each path of the API names the permission that it needs, each role is a set of permissions, and what no role grants is
denied. `docs/reference/tokens.md` shows the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Role(StrEnum):
    """What a token stands for."""

    VIEWER = "viewer"
    """Looks at jobs and factories."""
    OPERATOR = "operator"
    """Submits jobs, steers them, and runs the fleet."""
    REVIEWER = "reviewer"
    """Decides at the gates: approve, ship, reject."""
    ADMIN = "admin"
    """Everything that people may do, tokens included."""
    FACTORY = "factory"
    """One factory's agent."""
    TRACKER = "tracker"
    """A tracker's adapter: submits jobs and follows them."""
    ENROLMENT = "enrolment"
    """A machine that becomes a factory: opens one path, once."""


class Permission(StrEnum):
    """One kind of act."""

    READ_SCHEMA = "schema.read"
    USE_OWN_TOKEN = "token.own"  # noqa: S105 - names an act
    READ_JOBS = "jobs.read"
    SUBMIT_JOBS = "jobs.submit"
    OPERATE_JOBS = "jobs.operate"
    DECIDE_JOBS = "jobs.decide"
    READ_FACTORIES = "factories.read"
    OPERATE_FACTORIES = "factories.operate"
    ATTEST_CAPABILITIES = "capabilities.attest"
    MANAGE_TOKENS = "tokens.manage"
    READ_AUDIT = "audit.read"
    ACT_AS_FACTORY = "factory.act"
    ENROL_FACTORY = "factory.enrol"


_LOOK: Final = frozenset(
    {Permission.READ_SCHEMA, Permission.USE_OWN_TOKEN, Permission.READ_JOBS, Permission.READ_FACTORIES}
)
OF_MACHINES: Final = frozenset({Permission.ACT_AS_FACTORY, Permission.ENROL_FACTORY})

ROLE_PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = MappingProxyType(
    {
        Role.VIEWER: _LOOK,
        Role.OPERATOR: _LOOK
        | {
            Permission.SUBMIT_JOBS,
            Permission.OPERATE_JOBS,
            Permission.OPERATE_FACTORIES,
            Permission.ATTEST_CAPABILITIES,
        },
        Role.REVIEWER: _LOOK | {Permission.DECIDE_JOBS},
        Role.ADMIN: frozenset(Permission) - OF_MACHINES,
        Role.FACTORY: frozenset({Permission.READ_SCHEMA, Permission.USE_OWN_TOKEN, Permission.ACT_AS_FACTORY}),
        Role.TRACKER: frozenset(
            {Permission.READ_SCHEMA, Permission.USE_OWN_TOKEN, Permission.READ_JOBS, Permission.SUBMIT_JOBS}
        ),
        Role.ENROLMENT: frozenset({Permission.ENROL_FACTORY}),
    }
)

FLEET_WIDE: Final = OF_MACHINES | {
    Permission.OPERATE_FACTORIES,
    Permission.ATTEST_CAPABILITIES,
    Permission.READ_AUDIT,
}
"""Permissions about what all products share: a token that is limited to products does not have them."""

ACTION_PERMISSIONS: Final[Mapping[str, Permission]] = MappingProxyType(
    {
        "approve": Permission.DECIDE_JOBS,
        "ship": Permission.DECIDE_JOBS,
        "reject": Permission.DECIDE_JOBS,
        "requeue": Permission.OPERATE_JOBS,
        "cancel": Permission.OPERATE_JOBS,
        "pause": Permission.OPERATE_JOBS,
        "resume": Permission.OPERATE_JOBS,
    }
)
"""What each action on a job needs."""

MACHINE_ROLES: Final = (Role.FACTORY, Role.ENROLMENT)
"""Roles that stand alone in a token, and that know no products: a factory works for all of them."""
