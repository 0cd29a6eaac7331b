"""Roles, permissions, and the reach of a token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.access import Access, problems_of
from core.roles import ACTION_PERMISSIONS, FLEET_WIDE, MACHINE_ROLES, OF_MACHINES, ROLE_PERMISSIONS, Permission, Role
from core.tokens import PREFIXES, digest_of, is_token_shaped, prefix_of

ROLES = st.lists(st.sampled_from(Role), min_size=1, max_size=4, unique=True).map(tuple)
PRODUCTS = st.none() | st.lists(st.sampled_from(("shop", "toys", "news")), min_size=1, unique=True).map(tuple)
ACCESSES = st.builds(Access, roles=ROLES, products=PRODUCTS)


@pytest.mark.req("S2")
def test_every_role_has_permissions_and_every_permission_a_role() -> None:
    """Nothing is denied to everybody by accident, and no role is without use."""
    assert set(ROLE_PERMISSIONS) == set(Role)
    assert all(ROLE_PERMISSIONS.values())
    assert set().union(*ROLE_PERMISSIONS.values()) == set(Permission)


@pytest.mark.req("S2")
def test_admin_has_all_that_people_may_and_nothing_of_machines() -> None:
    """An admin cannot speak for a factory; a factory cannot do what people do."""
    people = [role for role in Role if role not in MACHINE_ROLES]
    assert ROLE_PERMISSIONS[Role.ADMIN] >= set().union(*(ROLE_PERMISSIONS[role] for role in people))
    assert not ROLE_PERMISSIONS[Role.ADMIN] & OF_MACHINES
    manages = {role for role in Role if Permission.MANAGE_TOKENS in ROLE_PERMISSIONS[role]}
    assert manages == {Role.ADMIN}


def test_deciding_and_operating_are_different_permissions() -> None:
    """Who runs a job does not by that ship it."""
    assert ACTION_PERMISSIONS["ship"] not in ROLE_PERMISSIONS[Role.OPERATOR]
    assert ACTION_PERMISSIONS["cancel"] not in ROLE_PERMISSIONS[Role.REVIEWER]


@pytest.mark.req("S2", "S9")
@given(ACCESSES, st.sampled_from(Permission))
def test_limit_to_products_never_adds_and_takes_what_is_the_fleets(access: Access, permission: Permission) -> None:
    """A token allows what one of its roles has; limited to products, nothing that all products share."""
    by_role = any(permission in ROLE_PERMISSIONS[role] for role in access.roles)
    limited = access.products is not None and permission in FLEET_WIDE
    assert access.allows(permission) == (by_role and not limited)


@given(ACCESSES, st.sampled_from(("shop", "toys", "other")))
def test_reach_is_the_list_of_products_or_everything(access: Access, product: str) -> None:
    """Without a list every product is within reach."""
    assert access.reaches(product) == (access.products is None or product in access.products)


@pytest.mark.req("S2")
@given(ACCESSES, ACCESSES)
def test_covered_token_can_do_nothing_that_its_maker_cannot(maker: Access, token: Access) -> None:
    """Making a token never adds rights; machines' own are handed out by an admin of the whole fleet alone."""
    if not maker.covers(token):
        return
    whole_admin = maker.products is None and Role.ADMIN in maker.roles
    for permission in Permission:
        if token.allows(permission) and not maker.allows(permission):
            assert permission in OF_MACHINES
            assert whole_admin
    for product in ("shop", "toys", "news", "other"):
        assert maker.reaches(product) or not token.reaches(product)


@given(ACCESSES)
def test_token_covers_itself_unless_limited_products_took_it_all(access: Access) -> None:
    """What has a right may end a token with the same right."""
    assert access.covers(access)


@pytest.mark.parametrize(
    ("access", "fields"),
    [
        (Access(roles=()), ["roles"]),
        (Access(roles=(Role.VIEWER, Role.VIEWER)), ["roles"]),
        (Access(roles=(Role.FACTORY,)), ["factory"]),
        (Access(roles=(Role.FACTORY, Role.ADMIN), factory="f"), ["roles"]),
        (Access(roles=(Role.ENROLMENT,), products=("shop",)), ["products"]),
        (Access(roles=(Role.VIEWER,), products=()), ["products"]),
        (Access(roles=(Role.VIEWER,), factory="f"), ["factory"]),
        (Access(roles=(Role.FACTORY,), factory="f"), []),
        (Access(roles=(Role.ENROLMENT,), factory="f"), []),
        (Access(roles=(Role.ENROLMENT,)), []),
        (Access(roles=(Role.OPERATOR, Role.REVIEWER), products=("shop",)), []),
    ],
    ids=str,
)
def test_combinations_that_make_no_sense_are_named(access: Access, fields: list[str]) -> None:
    """Each mistake is told by its field."""
    assert [problem.path for problem in problems_of(access)] == fields


@pytest.mark.req("S1", "S2")
def test_prefix_shape_and_digest_of_a_token() -> None:
    """A token is a prefix and 43 characters; what is kept of it is its SHA-256."""
    assert {prefix_of((role,)) for role in Role} == {*PREFIXES.values(), "gfu_"}
    assert prefix_of((Role.OPERATOR, Role.REVIEWER)) == "gfu_"
    for prefix in ("gf_", "gfu_", "gff_", "gfe_", "gft_"):
        assert is_token_shaped(prefix + "aZ0-_" * 8 + "abc")
    for wrong in ("", "gfu_", "gfu_" + "a" * 42, "gfu_" + "a" * 44, "gfz_" + "a" * 43, " gfu_" + "a" * 43):
        assert not is_token_shaped(wrong)
    assert digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
