"""Flaky factories: judged when an attempt was spoilt, set aside with the evidence, released by an operator.

Does I/O: SQL. The rule is `core.flakiness`; here lies what it is fed with.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, distinct, exists, func, select, update

from core.errors import Conflict
from core.flakiness import SPOILT, SUCCEEDED, Ending, FlakyEvidence, FlakyPolicy, Tally, judge_factory
from store import audit, cooldowns
from store.database import AnyRow, serialise
from store.factories import no_such_factory, standing_state
from store.tables import factories, runs
from store.views import Quarantine

_ENDING = (
    runs.c.job_id,
    runs.c.epoch,
    runs.c.factory,
    runs.c.engine,
    runs.c.outcome,
    runs.c.message,
    runs.c.ended_at,
)


def judge_after(connection: Connection, job_id: str, epoch: int, policy: FlakyPolicy, now: datetime) -> tuple[str, ...]:
    """Judge the factory that spoilt an attempt, or those that spoilt a job which got through now."""
    ended = connection.execute(
        select(runs.c.factory, runs.c.outcome).where(runs.c.job_id == job_id, runs.c.epoch == epoch)
    ).one_or_none()
    if ended is None or ended.outcome is None:
        return ()
    if ended.outcome in SPOILT:
        return judge(connection, [ended.factory], policy, now)
    before = select(runs.c.factory).where(
        runs.c.job_id == job_id, runs.c.epoch < epoch, runs.c.outcome.in_(sorted(SPOILT))
    )
    return judge(connection, connection.execute(before).scalars(), policy, now)


def judge(connection: Connection, suspects: Iterable[str], policy: FlakyPolicy, now: datetime) -> tuple[str, ...]:
    """Quarantine those of `suspects` that the evidence speaks against; return their names.

    A factory is never set aside when no other one that is online and in good standing is left.
    """
    found: list[str] = []
    for name in sorted(set(suspects)):
        evidence = _evidence(connection, name, policy, now)
        if evidence is not None and _quarantine(connection, name, evidence, now):
            found.append(name)
    return tuple(found)


def _evidence(connection: Connection, name: str, policy: FlakyPolicy, now: datetime) -> FlakyEvidence | None:
    """Return the evidence against a factory that is not set aside already."""
    row = connection.execute(select(factories).where(factories.c.name == name)).one_or_none()
    if row is None or row.quarantine is not None:
        return None
    since = now - timedelta(seconds=policy.window_s)
    if row.released_at is not None:
        since = max(since, row.released_at)
    here = connection.execute(select(*_ENDING).where(runs.c.factory == name, runs.c.ended_at > since)).all()
    if sum(row.outcome in SPOILT for row in here) < policy.failures:
        return None
    jobs = {row.job_id for row in here}
    others = connection.execute(
        select(*_ENDING).where(runs.c.factory != name, runs.c.ended_at > since, runs.c.job_id.in_(jobs))
    )
    endings = [Ending.model_validate(row._asdict()) for row in (*here, *others)]
    return judge_factory(name, endings, _elsewhere(connection, name, since), policy)


def _elsewhere(connection: Connection, name: str, since: datetime) -> Tally:
    """Return how many jobs the other factories brought through and spoilt."""

    def jobs(*outcomes: str) -> int:
        which = runs.c.factory != name, runs.c.ended_at > since, runs.c.outcome.in_(outcomes)
        return int(connection.execute(select(func.count(distinct(runs.c.job_id))).where(*which)).scalar_one())

    return Tally(succeeded=jobs(SUCCEEDED), spoilt=jobs(*sorted(SPOILT)))


def _quarantine(connection: Connection, name: str, evidence: FlakyEvidence, now: datetime) -> bool:
    serialise(connection, "quarantine")  # so that two factories are never set aside for each other's sake
    others = exists().where(factories.c.name != name, factories.c.state == "online", factories.c.quarantine.is_(None))
    done = connection.execute(
        update(factories)
        .where(factories.c.name == name, factories.c.quarantine.is_(None), others)
        .values(state="quarantined", quarantine=Quarantine(at=now, evidence=evidence).model_dump(mode="json"))
    )
    if done.rowcount != 1:
        return False
    audit.note(
        connection,
        "factory.quarantined",
        str(evidence),
        actor="",
        subject=name,
        now=now,
        data=evidence.model_dump(mode="json"),
    )
    return True


def release(connection: Connection, name: str, actor: str, now: datetime) -> None:
    """Let a quarantined factory take jobs again, and engines that rest there; what was before counts no more.

    Then dispatch.

    Raises:
        NotFound: there is no such factory.
        Conflict: it is not quarantined, and no engine rests there.

    """
    row = connection.execute(select(factories).where(factories.c.name == name).with_for_update()).one_or_none()
    if row is None:
        raise no_such_factory(name)
    rested = cooldowns.end_at(connection, name, now)
    if row.quarantine is not None:
        connection.execute(
            update(factories)
            .where(factories.c.name == name)
            .values(quarantine=None, released_at=now, state=_released_state(row))
        )
    elif not rested:
        raise Conflict(
            f"factory {name} is not quarantined, and no engine rests there; it is {row.state}",
            name=name,
            state=row.state,
        )
    audit.note(connection, "factory.released", f"factory {name}", actor=actor, subject=name, now=now)


def _released_state(row: AnyRow) -> str:
    return row.state if row.state == "offline" else standing_state(row.drain, None, row.status)
