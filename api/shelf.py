"""The profiles that jobs may name, read anew when their files change. *Does I/O: files.*"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.profile import Profile
from store.profile_files import BUILT_IN, load_profiles

Signature = tuple[tuple[str, int, int], ...]


class ProfileShelf:
    """Built-in profiles and those of `<home>/profiles`, which take the place of built-in ones of the same name."""

    def __init__(self, home: Path) -> None:
        self._directories = (BUILT_IN, home / "profiles")
        self._signature: Signature | None = None
        self._profiles: Mapping[str, Profile] = {}

    def profiles(self) -> Mapping[str, Profile]:
        """Return all profiles by name.

        Raises:
            InvalidInput: every mistake of every profile file.

        """
        signature = self._look()
        if signature != self._signature:
            self._profiles = load_profiles(*self._directories)
            self._signature = signature
        return self._profiles

    def _look(self) -> Signature:
        files = [
            path for directory in self._directories if directory.is_dir() for path in sorted(directory.glob("*.md"))
        ]
        stats = [(path, path.stat()) for path in files]
        return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats)
