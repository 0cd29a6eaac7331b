"""The fixtures of `tests.repositories` for every test here."""

from tests.repositories import checkout, own_git_configuration, remote

__all__ = ["checkout", "own_git_configuration", "remote"]
