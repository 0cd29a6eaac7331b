"""Which factories can take a job, and why the others cannot. *Pure.*

There is one list of reasons (`judge`): a place is open when the list is empty, and the explanation prints the same
list. It is worked out once for each kind of job on each kind of factory, and kept by content.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import NamedTuple

from core.capability import Unmet, read_requirement, unmet
from core.router_classes import Needs
from core.router_explain import PERMANENT, Rejection, RejectionCode
from core.router_fleet import Closed, Kind, Standing, Station
from core.router_snapshot import FactoryView

_STATE_REASONS = {
    "offline": (RejectionCode.OFFLINE, "start its agent, or wait until it is back"),
    "draining": (RejectionCode.DRAINING, "until it starts anew, or `gf undrain`"),
    "quarantined": (RejectionCode.QUARANTINED, "an operator can release it: `gf release`"),
    "halted": (RejectionCode.HALTED, "`gf halts` says who did it and why; `gf unhalt` ends it"),
}
_SEATS = (RejectionCode.FACTORY_FULL, RejectionCode.STATION_FULL)
_RAISE_SEATS = "give it seats in the settings"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a kind of factory says to a kind of job; `Answers` has one object for each content."""

    engines: tuple[str, ...]
    """Engines of the factory that may do the job, in the job's order of preference."""
    rejections: tuple[Rejection, ...]
    """All reasons; those with an engine only exclude that station."""
    open_engines: tuple[str, ...]
    """Engines that could start the job now, locks apart."""
    able: bool
    """It could start the job now if a seat were free."""
    possible: bool
    """It could run the job if everything were online, repaired and idle."""


class Answers:
    """The answers of all kinds of factories to one kind of job, while the same engines are closed."""

    def __init__(self, needs: Needs, closed: tuple[Closed, ...]) -> None:
        self._needs = needs
        self._closed = closed
        self._personal = needs.host is not None or bool(needs.own_requirements)
        """The answer also depends on which factory it is."""
        self._known: dict[object, Answer] = {}
        self._by_content: dict[Answer, Answer] = {}

    def of(self, standing: Standing) -> Answer:
        """Return the answer of one factory."""
        if not self._personal:
            return self._known.get(standing.kind) or self._judge(standing.kind, standing.kind, _NO_TIE)
        tie = _tie(self._needs, standing.view)
        return self._known.get((standing.kind, tie)) or self._judge((standing.kind, tie), standing.kind, tie)

    def _judge(self, key: object, kind: Kind, tie: _Tie) -> Answer:
        """Work out an answer, and keep it; kinds that differ in what does not matter here share one object."""
        content = judge(self._needs, kind, tie, self._closed)
        answer = self._known[key] = self._by_content.setdefault(content, content)
        return answer


class _Tie(NamedTuple):
    """What binds a job to one factory, compared with another one."""

    at_home: bool
    unmet: tuple[Unmet, ...]


_NO_TIE = _Tie(at_home=True, unmet=())


def _tie(needs: Needs, factory: FactoryView) -> _Tie:
    missing = tuple(
        Unmet(need.text, f"another {need.name}")
        for need in needs.own_requirements
        if unmet(need, factory.identity) is not None
    )
    return _Tie(needs.host is None or needs.host == factory.host, missing)


def unmet_needs(needs: Needs, factory: FactoryView) -> tuple[Unmet, ...]:
    """Return the requirements that the factory does not satisfy."""
    offers = factory.offers
    return (*(found for need in needs.requirements if (found := unmet(need, offers))), *_tie(needs, factory).unmet)


def judge(needs: Needs, kind: Kind, tie: _Tie, closed: tuple[Closed, ...]) -> Answer:
    """Work out what that kind of factory says to that kind of job."""
    by_engine = {station.engine: station for station in kind.stations}
    engines = tuple([engine for engine in needs.engines if engine in by_engine])
    against = tuple(_factory_reasons(needs, kind, tie))
    stations = {engine: tuple(_station_reasons(by_engine[engine], closed)) for engine in engines}
    lasting = any(reason.code in PERMANENT for reason in against)
    barred = any(reason.code not in _SEATS for reason in against)
    return Answer(
        engines=engines,
        rejections=(*against, *chain.from_iterable(stations.values())),
        open_engines=() if against else tuple([engine for engine in engines if not stations[engine]]),
        able=not barred and any(all(reason.code in _SEATS for reason in reasons) for reasons in stations.values()),
        possible=not lasting and any(all(not r.permanent for r in reasons) for reasons in stations.values()),
    )


def _factory_reasons(needs: Needs, kind: Kind, tie: _Tie) -> Iterator[Rejection]:
    """Yield every reason against the factory as a whole."""
    if kind.state != "online":
        code, repair = _STATE_REASONS[kind.state]
        yield Rejection(code=code, observed=kind.state, required="an online factory", repair=repair)
    if not tie.at_home:
        needed = f"host {needs.host}, where the repository is"
        yield Rejection(code=RejectionCode.PINNED, observed="another host", required=needed)
    if kind.seats <= 0:
        yield Rejection(code=RejectionCode.NO_SEATS, observed="0 seats", required="a seat", repair=_RAISE_SEATS)
    elif kind.full:
        busy = f"{kind.seats} of {kind.seats} seats taken"
        yield Rejection(code=RejectionCode.FACTORY_FULL, observed=busy, required="a free seat")
    for shortage in kind.low:
        yield Rejection(code=shortage.code, observed=shortage.observed, required=shortage.required)
    if not any(station.engine in needs.engines for station in kind.stations):
        yield _no_engine(needs, kind)
    missing = *(found for need in needs.requirements if (found := unmet(need, kind.offers))), *tie.unmet
    claims = _most_useful_first(kind.unattested, missing) if missing else []
    for requirement in missing:
        yield _capability_reason(requirement, claims)


def _station_reasons(station: Station, closed: tuple[Closed, ...]) -> Iterator[Rejection]:
    """Yield every reason against that station."""
    engine = station.engine
    if station.seats <= 0:
        yield Rejection(
            code=RejectionCode.NO_SEATS, engine=engine, observed="0 seats", required="a seat", repair=_RAISE_SEATS
        )
    elif station.short:
        yield Rejection(
            code=RejectionCode.STATION_FULL,
            engine=engine,
            observed=f"{station.seats} of {station.seats} seats taken",
            required="a free seat",
            excess=station.short - 1,
        )
    if not station.usable:
        yield Rejection(
            code=RejectionCode.ENGINE_UNUSABLE,
            engine=engine,
            observed=f"{engine} does not work",
            required=f"a working {engine}",
            repair=station.repair,
        )
    if station.cooldown is not None:
        until = station.cooldown.until
        yield Rejection(
            code=RejectionCode.COOLDOWN,
            engine=engine,
            observed=station.cooldown.reason,
            required=f"a time after {as_clock(until)}",
            until=until,
        )
    yield from (reason for reason in limit_reasons(closed) if reason.engine == engine)


def limit_reasons(closed: tuple[Closed, ...]) -> tuple[Rejection, ...]:
    """Return the reason against each engine that has as many jobs as it may have."""
    return tuple(
        Rejection(
            code=RejectionCode.ENGINE_LIMIT,
            engine=reached.engine,
            observed=f"{reached.running} jobs in the fleet",
            required=f"fewer than {reached.limit}",
            excess=reached.running - reached.limit,
        )
        for reached in closed
    )


def as_clock(moment: datetime) -> str:
    """Return a moment as people read it; day and second count, for limits last from seconds to weeks."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _capability_reason(missing: Unmet, claims: list[str]) -> Rejection:
    """Return the reason for an unmet requirement; one that a sensitive claim would meet only wants an attestation."""
    claim = next((claim for claim in claims if _would_meet(claim, missing)), None)
    if claim is None:
        return Rejection(code=RejectionCode.CAPABILITY, observed=missing.observed, required=missing.required)
    return Rejection(
        code=RejectionCode.NOT_ATTESTED,
        observed=claim,
        required=missing.required,
        repair=f"an operator can vouch for it: gf attest FACTORY {claim}",
    )


def _most_useful_first(claims: tuple[str, ...], missing: tuple[Unmet, ...]) -> list[str]:
    """Return the claims that would meet most of what is missing first, so that the fewest have to be attested."""
    return sorted(claims, key=lambda claim: (-sum(_would_meet(claim, item) for item in missing), claim))


def _would_meet(claim: str, missing: Unmet) -> bool:
    return unmet(read_requirement(missing.required), (claim,)) is None


def _no_engine(needs: Needs, kind: Kind) -> Rejection:
    offered = f"offers {', '.join(station.engine for station in kind.stations) or 'no engine'}"
    wanted = " or ".join(needs.engines) or f"an engine to be named by the job, which has {needs.engine_label}"
    return Rejection(code=RejectionCode.ENGINE, observed=offered, required=wanted)
