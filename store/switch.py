"""The kill switch in the ledger: pulled, released, asked for by every admission. Does I/O: SQL.

A pull waits for the admission that is under way and is seen by every one after it: once the call has answered, nothing
that is halted is given a seat, whoever plans it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, true, update

from core.errors import NotFound
from core.switch import Halt, HaltOrigin, HaltScope, SwitchState, covering
from store import audit
from store.database import AnyRow, serialise
from store.outbox import enqueue_signal
from store.tables import halts, leases
from store.views import HaltRow, Pulled, StoppedAttempt

HISTORY: Final = 100
"""Released halts that are shown at the most."""
_IN_FORCE = halts.c.released_epoch.is_(None)


def pull(connection: Connection, halt: Halt, now: datetime) -> Pulled:
    """Halt what `halt` covers, in the place of what was halted there by the same origin before.

    With `stop_running` the workflow of every attempt that it covers is told to stop it. A halt that stops what runs
    stays one when it is pulled again without that wish.
    """
    serialise(connection, "admission")
    before = _in_force(connection, halt.scope, halt.name, halt.origin)
    stop_running = halt.stop_running or bool(before is not None and before.stop_running)
    epoch = kill_epoch(connection) + 1
    if before is not None:
        _end(connection, before.epoch, epoch, halt.actor, now)
    pulled = halt.model_copy(update={"epoch": epoch, "stop_running": stop_running, "at": now})
    row = pulled.model_dump(exclude={"at"}) | {"at": now}
    connection.execute(insert(halts), row | {"product_id": _product_of(halt.scope, halt.name)})
    stopped = _stop(connection, pulled, now) if stop_running else ()
    data = {"epoch": epoch, "stop_running": stop_running, "origin": halt.origin, "stopped": len(stopped)}
    audit.note(
        connection,
        "switch.pulled",
        str(pulled),
        actor=halt.actor,
        subject=pulled.subject,
        now=now,
        data=data,
        product_id=_product_of(halt.scope, halt.name),
    )
    return Pulled(halt=pulled, stopped=stopped)


def _stop(connection: Connection, halt: Halt, now: datetime) -> tuple[StoppedAttempt, ...]:
    """Tell the workflows of all attempts that the halt covers to stop them; their jobs are queued again."""
    held = connection.execute(
        select(leases.c.job_id, leases.c.epoch, leases.c.product_id, leases.c.factory, leases.c.engine)
        .where(leases.c.holds_seat, _covered(halt))
        .order_by(leases.c.job_id)
    ).all()
    for lease in held:
        payload = {"epoch": lease.epoch, "reason": str(halt)}
        enqueue_signal(
            connection, "interrupt", job_id=lease.job_id, product_id=lease.product_id, payload=payload, now=now
        )
    return tuple(StoppedAttempt.model_validate(lease._asdict()) for lease in held)


def _covered(halt: Halt) -> ColumnElement[bool]:
    columns = {"product": leases.c.product_id, "factory": leases.c.factory, "engine": leases.c.engine}
    return columns[halt.scope] == halt.name if halt.scope in columns else true()


def release(connection: Connection, scope: HaltScope, name: str, actor: str, now: datetime) -> SwitchState:
    """Let go what an operator halted; dispatch afterwards.

    Raises:
        NotFound: nothing is halted there; or a sentinel file does it, which is removed on its machine.

    """
    serialise(connection, "admission")
    row = _in_force(connection, scope, name, "operator")
    if row is None:
        raise _nothing_there(connection, scope, name)
    _release(connection, row, actor, now)
    return state(connection)


def _release(connection: Connection, row: AnyRow, actor: str, now: datetime) -> None:
    halt = _halt(row)
    epoch = kill_epoch(connection) + 1
    _end(connection, row.epoch, epoch, actor, now)
    audit.note(
        connection,
        "switch.released",
        f"{halt.subject}, halted since kill epoch {row.epoch}",
        actor=actor,
        subject=halt.subject,
        now=now,
        data={"epoch": epoch, "origin": row.origin},
        product_id=row.product_id,
    )


def _end(connection: Connection, halt_epoch: int, epoch: int, actor: str, now: datetime) -> None:
    connection.execute(
        update(halts)
        .where(halts.c.epoch == halt_epoch)
        .values(released_epoch=epoch, released_at=now, released_by=actor)
    )


def _nothing_there(connection: Connection, scope: HaltScope, name: str) -> NotFound:
    subject = Halt(scope=scope, name=name).subject
    found = in_force(connection)
    sentinel = next((halt for halt in found if (halt.scope, halt.name) == (scope, name)), None)
    if sentinel is not None:
        return NotFound(
            f"{subject} is halted by a file on its machine, not by an operator: {sentinel.reason}",
            hint="remove that file there, or run `gf unhalt --local` there",
        )
    there = ", ".join(halt.subject for halt in found)
    return NotFound(f"{subject} is not halted", hint=f"halted now: {there or 'nothing'}")


def follow_sentinel(connection: Connection, factory: str, path: str | None, now: datetime) -> SwitchState:
    """Halt or release a factory as the sentinel file on its machine says; return how the switch stands then.

    `path` is the file that is there, empty for none; None: nobody looked. To be called before anything else of the
    transaction is locked.
    """
    present = state(connection)
    reason = f"the file {path} is there" if path else ""
    if path is None or reason == _told_by_sentinel(present, factory):
        return present
    serialise(connection, "admission")
    if reason:
        pull(connection, Halt(scope="factory", name=factory, stop_running=True, origin="sentinel", reason=reason), now)
    elif (row := _in_force(connection, "factory", factory, "sentinel")) is not None:
        _release(connection, row, f"factory {factory}", now)
    return state(connection)


def _told_by_sentinel(present: SwitchState, factory: str) -> str:
    """Return why a sentinel file halts the factory; empty when none does."""
    own = ("factory", factory, "sentinel")
    return next((halt.reason for halt in present.halts if (halt.scope, halt.name, halt.origin) == own), "")


def forget_factory(connection: Connection, factory: str, actor: str, now: datetime) -> None:
    """Release every halt of a factory that is taken away."""
    for row in connection.execute(select(halts).where(_IN_FORCE, halts.c.scope == "factory", halts.c.name == factory)):
        _release(connection, row, actor, now)


# --- asked --------------------------------------------------------------------------------------------------------


def in_force(connection: Connection) -> tuple[Halt, ...]:
    """Return the halts in force, oldest first."""
    return tuple(_halt(row) for row in connection.execute(select(halts).where(_IN_FORCE).order_by(halts.c.epoch)))


def over_job(connection: Connection, product_id: str) -> Halt | None:
    """Return the halt that keeps every job of a product from having a seat; None when there is none."""
    wide = (halt for halt in in_force(connection) if halt.scope in ("fleet", "product"))
    return covering(wide, product_id=product_id, factory="", engine="")


def state(connection: Connection) -> SwitchState:
    """Return how the switch stands."""
    return SwitchState(epoch=kill_epoch(connection), halts=in_force(connection))


def history(connection: Connection) -> tuple[HaltRow, ...]:
    """Return released halts, the latest first."""
    rows = connection.execute(select(halts).where(~_IN_FORCE).order_by(halts.c.epoch.desc()).limit(HISTORY))
    return tuple(HaltRow.model_validate(row._asdict()) for row in rows)


def kill_epoch(connection: Connection) -> int:
    """Return the kill epoch: the newest pull or release."""
    pulled, released = connection.execute(select(func.max(halts.c.epoch), func.max(halts.c.released_epoch))).one()
    return max(pulled or 0, released or 0)


def _in_force(connection: Connection, scope: HaltScope, name: str, origin: HaltOrigin) -> AnyRow | None:
    this = and_(_IN_FORCE, halts.c.scope == scope, halts.c.name == name, halts.c.origin == origin)
    return connection.execute(select(halts).where(this)).one_or_none()


def _halt(row: AnyRow) -> Halt:
    return Halt.model_validate(row._asdict())


def _product_of(scope: HaltScope, name: str) -> str:
    return name if scope == "product" else audit.WHOLE_FLEET
