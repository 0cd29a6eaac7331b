"""The fixtures of `tests.repositories` for every test here, and clocks that can be shifted."""

from tests.repositories import checkout, own_git_configuration, remote
from tests.workers.clock_shim import clocks, shim_library

__all__ = ["checkout", "clocks", "own_git_configuration", "remote", "shim_library"]
