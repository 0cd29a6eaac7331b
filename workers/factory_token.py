"""Gives a factory of this installation that has a home of its own its token. *Does I/O: files.*

    python -P -m workers.factory_token NAME HOME

The token is made in our home, where the API knows it as one of its own, and copied to HOME, unless the factory has one
there: it may have been renewed since. For containers, whose homes are volumes; other machines enrol (`gf enroll`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.errors import GigafactoryError
from store.settings_source import read_settings
from store.token_files import ensure_factory_token, factory_token_file, write_token


def hand_over(home: Path, name: str, factory_home: Path) -> bool:
    """Copy the token of the factory `name` from our home to its own; return False when it has one there.

    Raises:
        Unavailable: the file in our home holds something else.

    """
    token = ensure_factory_token(home, name)
    target = factory_token_file(factory_home, name)
    if target.exists():
        return False
    write_token(target, token)
    return True


def main() -> int:
    """Hand over the token that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="workers.factory_token")
    parser.add_argument("name")
    parser.add_argument("home", type=Path)
    given = parser.parse_args()
    try:
        made = hand_over(read_settings().home, given.name, given.home)
    except GigafactoryError as error:
        sys.stderr.write(f"gf: {error.message}{f'; {error.hint}' if error.hint else ''}\n")
        return 1
    sys.stderr.write(f"{given.name} {'was given its token' if made else 'has a token'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
