"""What a job requires of a factory and what a factory offers, and the comparison of the two. *Pure.*

Requirements (written by people, in manifests and profiles):

    os:linux  arch:arm64  has:docker  factory:mac-2     a tag; `os:any` asks for nothing
    gpu                                                 offered in whatever form
    node>=20  node>=20,<23  python~=3.11  java==17.*    a version range, as PEP 440 defines it
    mem-gb>=16  cores>=8                                a quantity, compared as a decimal number

Offers (facts that a factory detected or was given): `os:linux`, `has:docker`, `gpu`, `node=20.11.0`, `mem_gb=24`.
Names ignore case, and `-` equals `_`. An offer that makes no sense is worth nothing; it is never an error, because one
odd machine must not stop the planning for all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from operator import eq, ge, gt, le, lt, ne
from types import MappingProxyType
from typing import Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

EXPECTED = "expected a tag (os:linux, has:docker), a name (gpu) or a range (node>=20, node>=20,<23, mem-gb>=16)"

_NAME = r"[A-Za-z][A-Za-z0-9_.+-]*"
_TAG = re.compile(rf"({_NAME}):([A-Za-z0-9][A-Za-z0-9_.+@/-]*)")
_BARE = re.compile(_NAME)
_RANGE = re.compile(rf"({_NAME})([<>=!~].*)")
_CLAUSE = re.compile(r"(>=|<=|==|!=|~=|>|<)([A-Za-z0-9*][A-Za-z0-9.*+!_-]*)")
_FACT = re.compile(rf"({_NAME})=(.+)")
_LEADING_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)")

_COMPARE: Mapping[str, Callable[[Decimal, Decimal], bool]] = MappingProxyType(
    {">=": ge, "<=": le, "==": eq, "!=": ne, ">": gt, "<": lt}
)
_QUANTITIES = ("cores", "cpus", "gpus", "seats")
_UNITS = ("_gb", "_mb", "_tb", "_ghz", "_mhz", "_mbps", "_count")
_ABSENT = ("0", "no", "none", "false")
_ALIASES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("os", "darwin"): "macos",
        ("os", "mac"): "macos",
        ("os", "osx"): "macos",
        ("os", "win"): "windows",
        ("os", "win32"): "windows",
        ("arch", "amd64"): "x86_64",
        ("arch", "x64"): "x86_64",
        ("arch", "arm64"): "aarch64",
    }
)

Kind = Literal["any", "tag", "presence", "version", "quantity", "unreadable"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a job needs; equal requirements are equal values."""

    text: str
    """As people write it, without blanks: `node>=20,<23`."""
    kind: Kind
    name: str
    """Normalised name or tag key: `mem_gb`, `os`."""
    value: str = ""
    """Tag value, or the clauses of a range."""


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement that an offer does not satisfy, and what is there instead."""

    required: str
    observed: str


@dataclass(frozen=True, slots=True)
class _Offers:
    """A factory's offers by name: values of tags, values of facts, bare names."""

    tags: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, tuple[str, ...]]
    bare: frozenset[str]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _tag_value(key: str, value: str) -> str:
    lowered = _plain(value) if key == "has" else value.lower()
    return _ALIASES.get((key, lowered), lowered)


def _is_quantity(name: str) -> bool:
    return name in _QUANTITIES or name.endswith(_UNITS)


@lru_cache(maxsize=16_384)
def parse_requirement(text: str) -> Requirement:
    """Read one requirement.

    Raises:
        ValueError: the text is no requirement; the message says what was expected.

    """
    compact = re.sub(r"\s*([<>=!~,:]+)\s*", r"\1", text.strip())
    if match := _TAG.fullmatch(compact):
        key = _plain(match[1])
        value = _tag_value(key, match[2])
        return Requirement(f"{key}:{value}", "any" if value == "any" else "tag", key, value)
    if _BARE.fullmatch(compact):
        return Requirement(compact.lower(), "presence", _plain(compact))
    if match := _RANGE.fullmatch(compact):
        return _parse_range(text, match[1], match[2])
    raise ValueError(f"{text!r} is no capability requirement: {EXPECTED}")


def _parse_range(text: str, name: str, clauses: str) -> Requirement:
    plain = _plain(name)
    for clause in clauses.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise ValueError(f"{text!r}: cannot read {clause!r}; {_range_hint(name, clause)}")
        _check_bound(text, plain, match[1], match[2])
    kind: Kind = "quantity" if _is_quantity(plain) else "version"
    ordered = ",".join(sorted(set(clauses.split(","))))
    return Requirement(f"{name.lower()}{clauses}", kind, plain, ordered)


def _range_hint(name: str, clause: str) -> str:
    bound = clause.lstrip("<>=!~^") or "20"
    if clause.startswith(("=>", "=<")):
        return f"write {name}{clause[1]}={bound}"
    if clause.startswith("=") and not clause.startswith("=="):
        return f"write {name}>={bound} for a minimum or {name}=={bound}.* for a release line"
    return f"expected comparisons such as {name}>={bound} or {name}>=20,<23 (>=, <=, >, <, ==, !=, ~=)"


def _check_bound(text: str, name: str, operator: str, bound: str) -> None:
    """Raise ValueError unless `bound` can be compared by `operator` for that kind of name."""
    if _is_quantity(name):
        if operator not in _COMPARE or _decimal(bound) is None:
            raise ValueError(
                f"{text!r}: {name} is a quantity; expected a number after >=, <=, >, <, == or !=, such as {name}>=16"
            )
        return
    try:
        SpecifierSet(f"{operator}{bound}")
    except InvalidSpecifier:
        raise ValueError(
            f"{text!r}: {operator}{bound} is no version comparison; expected one like >=20, <23, ==3.12.* or ~=3.11"
        ) from None


@lru_cache(maxsize=16_384)
def read_requirement(text: str) -> Requirement:
    """Read one requirement of an accepted job; one that is not understood is kept as a need that nothing meets.

    A job accepted by a newer version may hold such a text. It waits with that as its reason, and stops no other job.
    """
    try:
        return parse_requirement(text)
    except ValueError:
        return Requirement(text, "unreadable", "")


@lru_cache(maxsize=65_536)
def unmet(requirement: Requirement, offers: tuple[str, ...]) -> Unmet | None:
    """Return why `offers` do not satisfy `requirement`, or None when they do."""
    index = _index(offers)
    if requirement.kind == "any":
        return None
    if requirement.kind == "unreadable":
        return Unmet(requirement.text, "a requirement that this version cannot read")
    if requirement.kind == "tag" and requirement.name != "has":
        return _unmet_tag(requirement, index)
    if requirement.kind in ("tag", "presence"):
        name = requirement.value if requirement.kind == "tag" else requirement.name
        return None if _is_present(name, index) else Unmet(requirement.text, f"no {name}")
    return _unmet_range(requirement, index)


def _unmet_tag(requirement: Requirement, index: _Offers) -> Unmet | None:
    values = index.tags.get(requirement.name, ())
    if requirement.value in values:
        return None
    observed = ", ".join(f"{requirement.name}:{value}" for value in values) or f"no {requirement.name}"
    return Unmet(requirement.text, observed)


def _is_present(name: str, index: _Offers) -> bool:
    if name in index.bare or name in index.tags or name in index.tags.get("has", ()):
        return True
    return any(value.lower() not in _ABSENT for value in index.facts.get(name, ()))


def _unmet_range(requirement: Requirement, index: _Offers) -> Unmet | None:
    values = index.facts.get(requirement.name, ())
    satisfied = _quantity_within if requirement.kind == "quantity" else _version_within
    if any(satisfied(requirement.value, value) for value in values):
        return None
    if values:
        return Unmet(requirement.text, ", ".join(f"{requirement.name}={value}" for value in values))
    known = _is_present(requirement.name, index)
    return Unmet(requirement.text, f"{requirement.name} of unknown version" if known else f"no {requirement.name}")


def name_and_value(offer: str) -> tuple[str, str]:
    """Return what an offer is about, normalised, and its value; that of a bare name or a `has:` tag is empty."""
    text = offer.strip()
    if match := _TAG.fullmatch(text):
        key = _plain(match[1])
        value = _tag_value(key, match[2])
        return (value, "") if key == "has" else (key, value)
    if match := _FACT.fullmatch(text):
        return _plain(match[1]), match[2].strip()
    return _plain(text), ""


def plain_offer(offer: str) -> str:
    """Return an offer in one spelling: two offers that say the same have the same."""
    text = offer.strip()
    name, value = name_and_value(text)
    if match := _TAG.fullmatch(text):
        return f"has:{name}" if _plain(match[1]) == "has" else f"{name}:{value}"
    return f"{name}={value}" if _FACT.fullmatch(text) else name


def _quantity_within(clauses: str, offered: str) -> bool:
    amount = _decimal(offered)
    if amount is None:
        return False
    for clause in clauses.split(","):
        operator, bound = (clause[:2], clause[2:]) if clause[1] == "=" else (clause[:1], clause[1:])
        if not _COMPARE[operator](amount, Decimal(bound)):
            return False
    return True


def _version_within(clauses: str, offered: str) -> bool:
    version = parse_version(offered)
    return version is not None and _specifiers(clauses).contains(version, prereleases=True)


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


@lru_cache(maxsize=4096)
def _specifiers(clauses: str) -> SpecifierSet:
    return SpecifierSet(clauses)


@lru_cache(maxsize=16_384)
def parse_version(text: str) -> Version | None:
    """Return the version that `text` names or begins with (`v20.11.0`, `2.39.5.windows.1`), or None."""
    try:
        return Version(text.strip())
    except InvalidVersion:
        match = _LEADING_VERSION.match(text.strip())
        return Version(match[1]) if match else None


@lru_cache(maxsize=4096)
def _index(offers: tuple[str, ...]) -> _Offers:
    tags: dict[str, list[str]] = {}
    facts: dict[str, list[str]] = {}
    bare: list[str] = []
    for offer in offers:
        text = offer.strip()
        if match := _TAG.fullmatch(text):
            key = _plain(match[1])
            tags.setdefault(key, []).append(_tag_value(key, match[2]))
        elif match := _FACT.fullmatch(text):
            facts.setdefault(_plain(match[1]), []).append(match[2].strip())
        elif _BARE.fullmatch(text):
            bare.append(_plain(text))
    return _Offers(
        tags={key: tuple(sorted(set(values))) for key, values in tags.items()},
        facts={name: tuple(sorted(set(values))) for name, values in facts.items()},
        bare=frozenset(bare),
    )
