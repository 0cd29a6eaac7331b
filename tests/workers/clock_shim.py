"""A machine that is suspended, or whose time of day is set, as seen by processes that are started with this."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from workers.process_table import LINUX

on_linux = pytest.mark.skipif(not LINUX, reason="looks into /proc, and shifts the clocks of Linux")
SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class ShiftedClocks:
    """Clocks of some processes; `env` goes into their environment."""

    library: Path
    file: Path

    @property
    def env(self) -> dict[str, str]:
        """Return what makes a process see these clocks."""
        return {"LD_PRELOAD": str(self.library), "CLOCK_SHIM": str(self.file)}

    def shift(self, *, boot_s: int = 0, wall_s: int = 0) -> None:
        """Put the clocks that many seconds ahead of the real ones, at once."""
        draft = self.file.with_suffix(".tmp")
        draft.write_text(f"{boot_s} {wall_s}")
        draft.replace(self.file)


@pytest.fixture(scope="session")
def shim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled shim."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is here to build the clock shim with")
    library = tmp_path_factory.mktemp("clock-shim") / "clock_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@pytest.fixture
def clocks(shim_library: Path, tmp_path: Path) -> ShiftedClocks:
    """Return clocks that are right, for now."""
    return ShiftedClocks(shim_library, tmp_path / "clocks")
