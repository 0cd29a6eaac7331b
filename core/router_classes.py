"""Jobs that want the same are one class: what is worked out for one holds for all. *Pure.*

`Needs` decide where a job *can* run, `JobClass` also where it *should*. A fleet's jobs come from a few profiles and
repositories, so there are few of both, however many jobs wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from core.capability import Requirement, read_requirement
from core.engine_classes import ENGINE_CLASSES

OWN = ("factory", "host")
"""What requirements about one factory name; nothing but its identity meets them."""


@dataclass(frozen=True, slots=True)
class Needs:
    """All that decides where a job can run; the router asks for it often, so its hash is computed once."""

    requirements: tuple[Requirement, ...]
    """Requirements that equal factories satisfy equally."""
    own_requirements: tuple[Requirement, ...]
    """Requirements about one factory: `factory:mac-2`, `host:…`."""
    engines: tuple[str, ...]
    """Engines that may do it, in order of preference: the fallback chain."""
    engine_label: str
    """How the job asked for them: `engine codex`, `engine-class agentic-coder`."""
    host: str | None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = self.requirements, self.own_requirements, self.engines, self.engine_label, self.host
        object.__setattr__(self, "_hash", hash(members))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class JobClass:
    """All that decides where a job can and should run; jobs of equal class are interchangeable, locks apart."""

    needs: Needs
    prefers: tuple[Requirement, ...]
    excluded: tuple[str, ...]
    repository_url: str
    last_factory: str | None
    weights: tuple[tuple[str, int], ...]
    """Parts of a score that the job weighs for itself, by name."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = self.needs, self.prefers, self.excluded, self.repository_url, self.last_factory, self.weights
        object.__setattr__(self, "_hash", hash(members))

    def __hash__(self) -> int:
        return self._hash


@lru_cache(maxsize=16_384)
def job_class(
    capabilities: tuple[str, ...],
    prefers: tuple[str, ...],
    engine_request: tuple[str | None, str | None, tuple[str, ...]],
    places: tuple[str | None, str | None, tuple[str, ...], str],
    weights: tuple[tuple[str, int], ...],
) -> JobClass:
    """Return the class of a job; `engine_request` is engine, engine-class and preference, `places` host, last and
    excluded factories, and repository.
    """
    host, last_factory, excluded, repository_url = places
    return JobClass(
        needs=_needs(capabilities, engine_request, host),
        prefers=_both(prefers),
        excluded=tuple(sorted(set(excluded))),
        repository_url=repository_url,
        last_factory=last_factory,
        weights=weights,
    )


@lru_cache(maxsize=4096)
def _needs(
    capabilities: tuple[str, ...], engine_request: tuple[str | None, str | None, tuple[str, ...]], host: str | None
) -> Needs:
    shared, own = _requirements(capabilities)
    engine, engine_class, _ = engine_request
    return Needs(shared, own, engine_chain(*engine_request), _engine_label(engine, engine_class), host)


@lru_cache(maxsize=4096)
def _requirements(texts: tuple[str, ...]) -> tuple[tuple[Requirement, ...], tuple[Requirement, ...]]:
    """Return the distinct requirements, apart by whether they are about one factory."""
    distinct = sorted({read_requirement(text) for text in texts}, key=lambda requirement: requirement.text)
    own = tuple(requirement for requirement in distinct if requirement.name in OWN)
    return tuple(requirement for requirement in distinct if requirement not in own), own


def _both(texts: tuple[str, ...]) -> tuple[Requirement, ...]:
    shared, own = _requirements(texts)
    return shared + own


@lru_cache(maxsize=4096)
def engine_chain(
    engine: str | None, engine_class: str | None, engine_preference: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the engines that may do a job, best first: the explicit one, else preference, else class order.

    A job that names neither gets none: guessing could hand a prompt to a shell.
    """
    if engine:
        return (engine,)
    return tuple(dict.fromkeys((*engine_preference, *ENGINE_CLASSES.get(engine_class or "", ()))))


def _engine_label(engine: str | None, engine_class: str | None) -> str:
    if engine:
        return f"engine {engine}"
    return f"engine-class {engine_class}" if engine_class else "no engine and no engine-class"


@lru_cache(maxsize=16_384)
def offers_of(capabilities: tuple[str, ...], versions: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Return all that a factory and its equals offer, engines with their versions included, in one order.

    Its own name is left out, which every agent tells with its capabilities: no factory would have an equal.
    """
    shared = (offer for offer in capabilities if offer.partition(":")[0] not in OWN)
    return tuple(sorted({*shared, *(f"{engine}={version}" for engine, version in versions)}))
