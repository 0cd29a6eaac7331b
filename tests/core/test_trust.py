"""Which claims of a factory count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.capability import name_and_value, parse_requirement, plain_offer, unmet
from core.settings import Settings
from core.trust import count_claims, is_sensitive

SENSITIVE: tuple[str, ...] = Settings.model_fields["sensitive_capabilities"].default
OFFERS = (
    *("os:linux", "node=20.1", "has:docker", "gpu", "mem_gb=32", "credential:anthropic", "Credential:Anthropic"),
    *("credential=1", "has:credential", "credential", "network:lab", "NETWORK:Lab", "network_lab", "cred:x"),
    *("factory:f-1", "weird offer !", ""),
)
NEEDS = ("credential:anthropic", "credential", "has:credential", "credential>=0", "network:lab", "network", "cred:x")


@pytest.mark.parametrize(
    ("offer", "sensitive"),
    [
        ("credential:anthropic", True),
        ("CREDENTIAL:Anthropic", True),
        ("credential=1", True),
        ("has:credential", True),
        ("credential", True),
        ("cred:github", True),
        ("network:vpn", True),
        ("os:linux", False),
        ("has:docker", False),
        ("networks:vpn", False),
        ("credentials", False),
        ("nonsense !", False),
    ],
)
def test_default_patterns_cover_credentials_and_networks_in_every_form(offer: str, sensitive: bool) -> None:
    """However a machine spells a claim, it falls under its pattern."""
    assert is_sensitive(offer, SENSITIVE) == sensitive


@pytest.mark.parametrize(
    ("pattern", "offer", "sensitive"),
    [
        ("has:docker", "has:docker", True),
        ("has:docker", "docker=24.1", True),
        ("has:d*", "has:docker", True),
        ("gpu", "gpu", True),
        ("gpu", "gpu=2", True),
        ("network:prod-*", "network:prod-eu", True),
        ("network:prod-*", "network:test", False),
        ("Data-Base:*", "data_base:orders", True),
    ],
)
def test_patterns_name_tags_tools_and_bare_names(pattern: str, offer: str, sensitive: bool) -> None:
    """A pattern is `name:glob`, `has:glob` or a name."""
    assert is_sensitive(offer, (pattern,)) == sensitive


@pytest.mark.req("F2")
@given(
    detected=st.lists(st.sampled_from(OFFERS)).map(tuple),
    declared=st.lists(st.sampled_from(OFFERS)).map(tuple),
    attested=st.lists(st.sampled_from(OFFERS)).map(lambda offers: tuple(map(plain_offer, offers))),
)
def test_sensitive_requirement_is_met_only_by_an_attested_claim(
    detected: tuple[str, ...], declared: tuple[str, ...], attested: tuple[str, ...]
) -> None:
    """Whatever a machine claims: a need for something sensitive is met only by a claim that is made and vouched for."""
    claims = count_claims(detected, declared, attested, SENSITIVE)
    assert {*claims.counted, *claims.unattested} == {*detected, *declared}
    assert not {*claims.counted} & {*claims.unattested}
    for text in NEEDS:
        need = parse_requirement(text)
        if unmet(need, claims.counted) is None:
            vouched = tuple(offer for offer in (*detected, *declared) if plain_offer(offer) in attested)
            assert unmet(need, vouched) is None
    assert {offer for offer in (*detected, *declared) if not is_sensitive(offer, SENSITIVE)} <= {*claims.counted}


def test_attestation_without_a_claim_counts_for_nothing() -> None:
    """A credential that is gone from the machine is gone, whoever vouched for it."""
    assert count_claims(("os:linux",), (), ("credential:anthropic",), SENSITIVE).counted == ("os:linux",)


@pytest.mark.parametrize(
    ("offer", "spelt", "parts"),
    [
        ("Network:Lab", "network:lab", ("network", "lab")),
        ("has:My-Tool", "has:my_tool", ("my_tool", "")),
        ("Mem-GB=32", "mem_gb=32", ("mem_gb", "32")),
        (" GPU ", "gpu", ("gpu", "")),
        ("os:darwin", "os:macos", ("os", "macos")),
    ],
)
def test_offers_that_say_the_same_have_one_spelling(offer: str, spelt: str, parts: tuple[str, str]) -> None:
    """Attestations are compared in it."""
    assert (plain_offer(offer), name_and_value(offer)) == (spelt, parts)
    assert plain_offer(spelt) == spelt
