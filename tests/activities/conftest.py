"""The fixtures of `tests.repositories`, and a factory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.activities.factory_bench import Bench
from tests.repositories import Checkout, checkout, own_git_configuration, remote

__all__ = ["bench", "checkout", "own_git_configuration", "remote"]


@pytest.fixture
def bench(tmp_path: Path, remote: Checkout) -> Iterator[Bench]:
    """A factory whose jobs work on `remote`."""
    made = Bench(tmp_path / "home", remote)
    yield made
    made.supervisors.close()
