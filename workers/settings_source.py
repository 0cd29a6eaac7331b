"""The settings of a process, for everything in this room; see `store.settings_source`. Does I/O: reads files."""

from __future__ import annotations

from store.settings_source import FILE_NAME, ROOT, default_home, read_settings

__all__ = ["FILE_NAME", "ROOT", "default_home", "read_settings"]
