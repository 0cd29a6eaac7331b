"""The home of a machine that becomes a factory of a fleet: whether it may, and what it has to know. Does I/O: files.

    <home>/settings.yaml             where the fleet is, and as which factory this home belongs to it
    <home>/factories/<name>/token    the factory's token

A home is either a stack's or one factory's, never both: a machine that is to be both has two homes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from core.errors import Conflict
from core.settings import Settings
from store.settings_source import FILE_NAME, read_settings
from store.token_files import factory_token_file, write_token
from workers.stack_home import make_directories
from workers.stack_state import read_state, write_atomically


def check_bare(home: Path) -> None:
    """Refuse a home that is taken.

    Raises:
        Conflict: it is a factory of a fleet already, or the home of a stack.

    """
    settings = read_settings(home)
    another = "use another home for it: GIGAFACTORY_HOME=…"
    if settings.enrolled_as:
        raise Conflict(
            f"{home} is factory {settings.enrolled_as} of {settings.api_url} already",
            hint=f"{another}; or `gf retire {settings.enrolled_as}` there, and remove this home",
        )
    state = read_state(home)
    if (home / "ledger.db").exists() or settings.database_url or (state is not None and state.alive):
        raise Conflict(f"{home} is the home of a stack of its own", hint=another)


def settle(home: Path, *, api_url: str, factory: str, secret: str, temporal: Mapping[str, Any]) -> Settings:
    """Write down what the new factory has to know; return the settings of its home.

    `temporal` has `namespace`, and `gateway_url` or `address` (host:port). Settings that are in the file already stay.

    Raises:
        Conflict: `settings.yaml` says something else about one of them.

    """
    make_directories(home)
    write_token(factory_token_file(home, factory), secret)
    way = {"gateway_url": temporal["gateway_url"]} if temporal.get("gateway_url") else {}
    wanted = {"api_url": api_url, "enrolled_as": factory, "temporal_namespace": temporal["namespace"]}
    _add_settings(home / FILE_NAME, wanted | (way or {"temporal_address": temporal["address"]}))
    return read_settings(home)


def _add_settings(path: Path, wanted: Mapping[str, str]) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    there = {str(key).replace("-", "_"): value for key, value in (yaml.safe_load(text) or {}).items()}
    other = sorted(name for name, value in wanted.items() if there.get(name, value) != value)
    if other:
        raise Conflict(
            f"{path} has other values for {', '.join(other)}",
            hint=f"write there: {', '.join(f'{name}: {wanted[name]}' for name in other)}; then `gf up`",
        )
    fresh = {name: value for name, value in wanted.items() if name not in there}
    gap = "" if not text or text.endswith("\n") else "\n"
    head = f"# Written by `gf enroll`: this home is factory {wanted['enrolled_as']} of {wanted['api_url']}\n"
    write_atomically(path, f"{text}{gap}{head}{yaml.safe_dump(fresh, sort_keys=False)}", mode=0o600)
