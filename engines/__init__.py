"""Engines: one file per agent CLI and the YAML-described one; builds commands, parses streams.

*Pure*, but for `registry` (reads descriptions and plugins) and `codex_session` (reads Codex's own record).
`replay_player` is a program of its own that the replay engine starts.
"""

from engines.base import (
    Abilities,
    BaseEngine,
    Command,
    CommandFile,
    Engine,
    EngineOutcome,
    EngineProbe,
    EngineRun,
    StreamEvent,
    StreamParser,
    body_problems,
    read_probe,
)
from engines.environment import engine_environment
from engines.registry import Catalogue, catalogue, load, read_catalogue

__all__ = [
    "Abilities",
    "BaseEngine",
    "Catalogue",
    "Command",
    "CommandFile",
    "Engine",
    "EngineOutcome",
    "EngineProbe",
    "EngineRun",
    "StreamEvent",
    "StreamParser",
    "body_problems",
    "catalogue",
    "engine_environment",
    "load",
    "read_catalogue",
    "read_probe",
]
