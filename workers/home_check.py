"""What `gf doctor` says about what people write for a stack: profiles, a payload codec. Does I/O: reads, runs codecs.

Apart from the engines, which have a module of their own (`workers.engine_check`).
"""

from __future__ import annotations

from pathlib import Path

from core.errors import FieldProblem, InvalidInput
from core.settings import Settings
from store.profile_files import BUILT_IN, load_profiles


def check_profiles(home: Path) -> tuple[int, tuple[FieldProblem, ...]]:
    """Return how many profiles jobs may name, and every mistake; one mistake keeps all of them from being used."""
    try:
        return len(load_profiles(BUILT_IN, home / "profiles")), ()
    except InvalidInput as error:
        return 0, tuple(error.problems)


def codec_problem(settings: Settings) -> str:
    """Return why the payload codec cannot be loaded; empty when it can, or when none is set."""
    from workflows.connection import data_converter  # noqa: PLC0415 - the Temporal SDK: 0.3 s

    try:
        data_converter(settings.payload_codec)
    except InvalidInput as error:
        return error.message
    return ""
