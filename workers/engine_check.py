"""What `gf doctor` says about engines and tools: found, working, logged in. Does I/O: asks programs for versions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import FieldProblem
from core.redactor import secret_values
from core.settings import Settings
from engines.base import Engine, EngineProbe
from engines.registry import read_catalogue
from workers.probes import Prober, ToolState

AGENTS: Final = "agentic-coder"
LIKE_A_SECRET: Final = "x" * 64


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine on this machine; `missing` are the variables of which one would log it in, none if one is set.

    An engine has a HOME of its own, so only variables count, not the login of the user's own sessions.
    """

    name: str
    version: str
    problem: str
    agent: bool
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineReport:
    """All engines, the mistakes in descriptions of others, and tools that are there but do not work."""

    engines: tuple[EngineState, ...]
    mistakes: tuple[FieldProblem, ...]
    broken_tools: tuple[ToolState, ...]


async def check_engines(settings: Settings, environ: Mapping[str, str], disk: Path) -> EngineReport:
    """Ask every engine and tool anew; `disk` is any existing path."""
    catalogue = read_catalogue(settings.engines_dir or settings.home / "engines")
    with tempfile.TemporaryDirectory() as folder:
        report = await Prober(environ, Path(folder, "answers.json")).report(list(catalogue.engines.values()), disk)
    states = (_state(catalogue.engines[probe.engine], probe, environ) for probe in report.engines)
    return EngineReport(tuple(states), catalogue.problems, tuple(tool for tool in report.tools if not tool.usable))


def _state(engine: Engine, probe: EngineProbe, environ: Mapping[str, str]) -> EngineState:
    logins = tuple(name for name in engine.env_allow if secret_values({name: LIKE_A_SECRET}))
    missing = () if any(environ.get(name) for name in logins) else logins
    return EngineState(probe.engine, probe.version, probe.problem, engine.engine_class == AGENTS, missing)
