"""Fenced code blocks in Markdown, as far as engines need them (CommonMark §4.5). *Pure.*"""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPENING = re.compile(r"(?P<indent> {0,3})(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)")


@dataclass(frozen=True, slots=True)
class FencedBlock:
    """One fenced block."""

    language: str
    """First word behind the opening fence, in lower case."""
    text: str
    first_line: int
    """Line of the text's first line, counted from 1."""
    closed: bool


def fenced_blocks(markdown: str, language: str) -> list[FencedBlock]:
    """Return the fenced blocks of `language` in the order in which they stand."""
    blocks: list[FencedBlock] = []
    lines = markdown.splitlines()
    number = 0
    while number < len(lines):
        opening = _OPENING.fullmatch(lines[number])
        number += 1
        if not opening:
            continue
        block, number = _read_block(lines, number, opening)
        if block.language == language:
            blocks.append(block)
    return blocks


def _read_block(lines: list[str], start: int, opening: re.Match[str]) -> tuple[FencedBlock, int]:
    fence, indent = opening["fence"], len(opening["indent"])
    closing = re.compile(rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*")
    words = opening["info"].split()
    end = next((at for at in range(start, len(lines)) if closing.fullmatch(lines[at])), len(lines))
    inside = [line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in lines[start:end]]
    text = "".join(f"{line}\n" for line in inside)
    block = FencedBlock(words[0].lower() if words else "", text, start + 1, closed=end < len(lines))
    return block, end + 1
