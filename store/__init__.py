"""The ledger: tables, migrations, admission, outbox, projections, queries. Does I/O: SQL.

`migrate(url)` brings a database to the present schema, `open_ledger(settings)` opens it. Both are loaded when they are
first asked for: a command that needs neither does not pay for SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.ledger import Ledger, open_ledger
    from store.schema import migrate

__all__ = ["Ledger", "migrate", "open_ledger"]

_HOME = {"Ledger": "store.ledger", "open_ledger": "store.ledger", "migrate": "store.schema"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'store' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
