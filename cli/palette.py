"""Which words get which colour; without colour every word still says the same. *Pure.*"""

from __future__ import annotations

STYLES = {
    "queued": "cyan",
    "assigned": "cyan",
    "building": "blue",
    "review": "yellow",
    "testing": "yellow",
    "shipped": "green",
    "failed": "red",
    "dead_letter": "red",
    "cancelled": "dim",
    "online": "green",
    "offline": "red",
    "idle": "green",
    "working": "cyan",
    "blocked": "yellow",
    "draining": "yellow",
    "quarantined": "red",
}


def style_of(word: str) -> str:
    """Return the Rich style of a word, empty for plain."""
    return STYLES.get(word.partition(" ")[0], "")


def diff_style_of(line: str) -> str:
    """Return the Rich style of a line of a unified diff; colours that can be read on dark and on light."""
    if line.startswith(
        ("diff --git ", "index ", "--- ", "+++ ", "new file ", "deleted file ", "rename ", "similarity ")
    ):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
