"""One production topology that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Remote, Stack, running_stack

SEATS = 2
FACTORIES = 2
LEASE_S = 60.0
"""Longer than any part needs to come back: no factory dies here, and so no attempt of a job is to be lost."""


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return the processes of docker-compose.yml: two APIs, two control workers, two factories with two seats each."""
    home = tmp_path_factory.mktemp("fleet") / "home"
    with running_stack(
        home, factories=FACTORIES, topology="production", seats_per_factory=SEATS, lease_ttl_s=LEASE_S
    ) as running:
        yield running


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    """Return a bare remote of the test's own."""
    return Remote.create(tmp_path / "remote.git")
