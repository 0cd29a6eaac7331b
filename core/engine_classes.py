"""Which engines are known by name, which class each belongs to, and which hints it can honour. *Pure* data.

A job that names a class instead of an engine is open to every engine of that class. An engine described by a YAML file
or a plugin is known once a factory offers it; the caller passes such names in (`core.resolution.Policy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

AGENTIC_CODER = "agentic-coder"
SCRIPT = "script"
DEMO = "demo"

CLASS_SUMMARIES = {
    AGENTIC_CODER: "a coding agent that reads the prompt and edits the repository by itself",
    SCRIPT: "runs the job's body as a script; no model is asked",
    DEMO: "plays recorded steps; no model is asked",
}
"""Every engine class, with one sentence for people."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the control plane knows of an engine before any factory offers it."""

    name: str
    title: str
    engine_class: str
    adapter: bool
    """Whether an adapter for it comes with Gigafactory."""
    honours: tuple[str, ...] = ()
    """The manifest's hints that it obeys: `model`, `allowed-tools`. What is missing is warned about."""
    reads_persona: bool = True
    """Whether it reads prose: the profile's persona is put before the prompt only then."""


ENGINES: tuple[EngineInfo, ...] = (
    EngineInfo("claude", "Claude Code", AGENTIC_CODER, adapter=True, honours=("model", "allowed-tools")),
    EngineInfo("codex", "Codex CLI", AGENTIC_CODER, adapter=True, honours=("model",)),
    EngineInfo("copilot", "GitHub Copilot CLI", AGENTIC_CODER, adapter=False),
    EngineInfo("devin", "Devin", AGENTIC_CODER, adapter=False),
    EngineInfo("gemini", "Gemini CLI", AGENTIC_CODER, adapter=False),
    EngineInfo("opencode", "OpenCode", AGENTIC_CODER, adapter=False),
    EngineInfo("shell", "Shell script", SCRIPT, adapter=True, reads_persona=False),
    EngineInfo("replay", "Replay of recorded steps", DEMO, adapter=True, reads_persona=False),
)
"""Every engine that is known by name, in the order in which equals are preferred."""

_BY_NAME: Mapping[str, EngineInfo] = MappingProxyType({engine.name: engine for engine in ENGINES})

ENGINE_CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: tuple(e.name for e in ENGINES if e.engine_class == name) for name in CLASS_SUMMARIES}
)
"""The engines of each class, in their default order of preference."""


def known_engines() -> tuple[str, ...]:
    """Return the names of all engines that are known without asking any factory."""
    return tuple(_BY_NAME)


def engine_info(name: str) -> EngineInfo | None:
    """Return what is known of engine `name`; None for one that only a factory can describe."""
    return _BY_NAME.get(name)
