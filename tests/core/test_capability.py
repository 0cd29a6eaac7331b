"""Requirements and offers: what parses, what satisfies what, and what is said when it does not."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from core.capability import Unmet, parse_requirement, parse_version, read_requirement, unmet

LINUX = (
    "os:linux",
    "arch:x86_64",
    "node=20.11.0",
    "python=3.11.7",
    "python=3.12.1",
    "git=2.39.5.windows.1",
    "has:docker",
    "docker-compose=2.24.1",
    "gpu=0",
    "mem_gb=15.10",
    "cores=8",
    "figma",
    "swift=nonsense",
)

SATISFIED = (
    "os:any",
    "factory:any",
    "os:linux",
    "OS:Linux",
    "arch:amd64",
    "arch:x64",
    "node>=20",
    "node >= 20, < 23",
    "node>=20,<23",
    "node==20.*",
    "node~=20.11",
    "node!=20.12.0",
    "python==3.11.*",
    "python==3.12.*",
    "git>=2.39",
    "has:docker",
    "has:node",
    "has:docker-compose",
    "has:docker_compose",
    "docker",
    "node",
    "figma",
    "has:figma",
    "os",
    "mem-gb>=15",
    "mem_gb>=15.1",
    "mem-gb>15,<16",
    "mem-gb==15.1",
    "mem-gb!=16",
    "mem-gb<=15.1",
    "cores>=8",
)

UNSATISFIED = (
    ("os:macos", "os:linux"),
    ("arch:arm64", "arch:x86_64"),
    ("factory:mac-2", "no factory"),
    ("node>=21", "node=20.11.0"),
    ("node>=18,<20", "node=20.11.0"),
    ("python<3.11", "python=3.11.7, python=3.12.1"),
    ("ruby>=3", "no ruby"),
    ("docker>=24", "docker of unknown version"),
    ("has:xcode", "no xcode"),
    ("xcode", "no xcode"),
    ("gpu", "no gpu"),
    ("has:gpu", "no gpu"),
    ("swift>=5", "swift=nonsense"),
    ("mem-gb>=15.6", "mem_gb=15.10"),
    ("disk-gb>=10", "no disk_gb"),
)

MALFORMED = (
    ("", "is no capability requirement: expected a tag"),
    ("   ", "is no capability requirement: expected a tag"),
    ("has docker", "is no capability requirement"),
    ("has:", "is no capability requirement"),
    ("20>=node", "is no capability requirement"),
    ("node=20", "write node>=20 for a minimum or node==20.* for a release line"),
    ("node=>20", "write node>=20"),
    ("node=<20", "write node<=20"),
    ("node>=", "expected comparisons such as node>=20"),
    ("node>=20,", "expected comparisons such as node>=20"),
    ("node>=20 || <18", "expected comparisons such as node>=20"),
    ("node>=latest", ">=latest is no version comparison"),
    ("node>=20.*", ">=20.* is no version comparison"),
    ("node~=20", "~=20 is no version comparison"),
    ("mem-gb>=16gb", "mem_gb is a quantity; expected a number"),
    ("mem-gb~=16", "mem_gb is a quantity; expected a number"),
    ("cores>=nan", "cores is a quantity; expected a number"),
)


@pytest.mark.req("R2")
@pytest.mark.parametrize("text", SATISFIED)
def test_unmet_offered_requirement_is_none(text: str) -> None:
    """A factory that offers what is required is not rejected, however the requirement is spelt."""
    assert unmet(parse_requirement(text), LINUX) is None


@pytest.mark.req("R2", "R5")
@pytest.mark.parametrize(("text", "observed"), UNSATISFIED)
def test_unmet_missing_requirement_names_required_and_observed(text: str, observed: str) -> None:
    """A rejection says what was required and what is there instead."""
    requirement = parse_requirement(text)

    assert unmet(requirement, LINUX) == Unmet(required=requirement.text, observed=observed)


@pytest.mark.req("M5")
@pytest.mark.parametrize(("text", "expected"), MALFORMED)
def test_parse_requirement_malformed_text_says_what_was_expected(text: str, expected: str) -> None:
    """Whoever writes a requirement wrongly reads the offending text and how to write it."""
    with pytest.raises(ValueError, match=r"expected|write") as error:
        parse_requirement(text)

    assert repr(text) in str(error.value)
    assert expected in str(error.value)


def test_parse_requirement_blanks_and_case_make_no_difference() -> None:
    """Spellings that mean the same are one value, so that their jobs share a class."""
    assert parse_requirement(" Node >= 20 , < 23 ") == parse_requirement("node>=20,<23")
    assert parse_requirement("has: Docker-Compose") == parse_requirement("has:docker_compose")
    assert parse_requirement("os:darwin") == parse_requirement("os:macos")
    assert parse_requirement("os:win32").text == "os:windows"


def test_read_requirement_unknown_grammar_is_met_by_nothing() -> None:
    """A job accepted by a newer version waits with a reason; the planning of all others goes on."""
    requirement = read_requirement("node ^20")

    assert requirement.kind == "unreadable"
    assert unmet(requirement, LINUX) == Unmet("node ^20", "a requirement that this version cannot read")
    assert read_requirement("node>=20") == parse_requirement("node>=20")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v20.11.0", "20.11.0"),
        ("23.0.0-nightly", "23.0.0"),
        ("1.0.33 (Claude Code)", "1.0.33"),
        ("3.12.0rc1", "3.12.0rc1"),
    ],
)
def test_parse_version_tool_output_is_read_leniently(text: str, version: str) -> None:
    """Tools print versions in many ways; the leading number counts."""
    assert parse_version(text) == Version(version)


def test_parse_version_without_number_is_none() -> None:
    """A version that cannot be read satisfies no range."""
    assert parse_version("unknown") is None


@pytest.mark.parametrize(
    "offer", ["", "=", "node=", ":", "has:", "node = ", "mem_gb=NaN", "mem_gb=lots", "a b c", "\0"]
)
def test_unmet_odd_offers_are_worth_nothing_and_no_error(offer: str) -> None:
    """One machine with odd facts stops nothing and satisfies nothing."""
    assert unmet(parse_requirement("node>=1"), (offer,)) is not None
    assert unmet(parse_requirement("mem-gb>=0"), (offer,)) is not None
    assert unmet(parse_requirement("os:any"), (offer,)) is None


@given(st.text(max_size=30))
def test_parse_requirement_any_text_parses_or_raises_value_error(text: str) -> None:
    """No text brings the parser down; what parses keeps its meaning when it is written out and read again."""
    try:
        requirement = parse_requirement(text)
    except ValueError:
        return
    assert parse_requirement(requirement.text) == requirement


@given(
    major=st.integers(0, 30),
    minor=st.integers(0, 30),
    low=st.integers(0, 30),
    high=st.integers(0, 31),
)
def test_unmet_version_range_agrees_with_plain_comparison(major: int, minor: int, low: int, high: int) -> None:
    """`>=low,<high` means exactly that."""
    found = unmet(parse_requirement(f"node>={low},<{high}"), (f"node={major}.{minor}",))

    assert (found is None) == (low <= major < high)


@given(amount=st.decimals(0, 100, places=2), bound=st.decimals(0, 100, places=1))
def test_unmet_quantity_is_compared_as_a_number(amount: Decimal, bound: Decimal) -> None:
    """15.10 is less than 15.6, although version 15.10 is later than 15.6."""
    found = unmet(parse_requirement(f"mem-gb>={bound}"), (f"mem_gb={amount}",))

    assert (found is None) == (amount >= bound)


@given(st.lists(st.sampled_from(LINUX), unique=True), st.sampled_from(SATISFIED))
def test_unmet_more_offers_never_hurt(offers: list[str], text: str) -> None:
    """What some offers satisfy, those and others satisfy as well."""
    requirement = parse_requirement(text)

    if unmet(requirement, tuple(offers)) is None:
        assert unmet(requirement, LINUX) is None
