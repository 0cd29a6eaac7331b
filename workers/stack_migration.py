"""Brings the ledger of a home to this version's schema, or says why not. Does I/O: SQL.

The stack runs it once at each start, beside the parts that import meanwhile. Run as
`python -P -m workers.stack_migration`; its last line on stderr tells what went wrong.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Literal

from core.errors import GigafactoryError
from core.settings import Settings
from store.schema import HEAD, MIGRATIONS, migrate, revision
from store.settings_source import read_settings


@dataclass(frozen=True, slots=True)
class LedgerCondition:
    """Whether this version can work with a ledger, what was seen, and what to do about it."""

    verdict: Literal["ok", "warn", "fail"]
    seen: str
    mend: str = ""


async def ledger_condition(settings: Settings) -> LedgerCondition:
    """Look at the ledger without changing it.

    Raises:
        Unavailable: the database does not answer.

    """
    kind = "PostgreSQL" if settings.database_url.startswith("postgresql") else "SQLite"
    present = await revision(settings.ledger_url)
    if present is None:
        return LedgerCondition("ok", f"{kind}, not made yet; `gf up` makes it")
    if present == HEAD:
        return LedgerCondition("ok", f"{kind}, revision {present}")
    if any(MIGRATIONS.glob(f"versions/{present}_*.py")):
        return LedgerCondition("warn", f"{kind}, revision {present}, this version wants {HEAD}", "`gf up` migrates it")
    return LedgerCondition(
        "fail",
        f"{kind}, revision {present}, which this version does not know (it wants {HEAD})",
        "a newer version migrated it: run that one, or restore the backup from before",
    )


def main() -> int:
    """Migrate the ledger that the settings name; return the exit code."""
    try:
        changed = asyncio.run(migrate(read_settings().ledger_url))
    except GigafactoryError as error:
        sys.stderr.write(f"gf: {error.message}{f'; {error.hint}' if error.hint else ''}\n")
        return 1
    sys.stderr.write(f"the ledger {'was brought to' if changed else 'is at'} revision {HEAD}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
