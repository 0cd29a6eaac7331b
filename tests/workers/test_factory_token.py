"""A factory with a home of its own gets the token that the API will know, once."""

from __future__ import annotations

from pathlib import Path

from store.token_files import factory_token_file, local_tokens, write_token
from workers.factory_token import hand_over

NAME = "factory-1"


def test_factory_gets_the_token_that_the_api_knows(tmp_path: Path) -> None:
    """The same token lies in both homes, readable by its owner alone, and no other token goes with it."""
    ours, its = tmp_path / "home", tmp_path / "factory"
    assert hand_over(ours, NAME, its)
    ((known,), (given,)) = list(local_tokens(ours)), list(local_tokens(its))
    assert (known.factory, known.token) == (given.factory, given.token) == (NAME, given.token)
    assert given.path.stat().st_mode & 0o777 == 0o600


def test_token_that_the_factory_renewed_stays(tmp_path: Path) -> None:
    """Every start hands over again; what the factory has by then is the newer one."""
    ours, its = tmp_path / "home", tmp_path / "factory"
    hand_over(ours, NAME, its)
    write_token(factory_token_file(its, NAME), "gff_" + "n" * 43)
    assert not hand_over(ours, NAME, its)
    assert factory_token_file(its, NAME).read_text().strip() == "gff_" + "n" * 43
