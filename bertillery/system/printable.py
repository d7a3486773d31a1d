"""Foreign text on one line: without control characters and changes of direction, and the first line of an error."""

from __future__ import annotations

import unicodedata

_UNSAFE = {"Cc", "Zl", "Zp", "Cs"}
"""Categories: control characters, line and paragraph separators, halves of surrogate pairs, which no file can hold."""
_DIRECTIONS = {*map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))}
"""Characters that change the direction of the text after them."""


def printable(text: str) -> str:
    """The text with unsafe characters made visible: ``␊`` for a new line, ``␛`` for escape, ``�`` for others without a
    symbol."""
    return text if text.isprintable() else "".join(map(_visible, text))


def first_line(error: BaseException) -> str:
    """What an error says, on one line; with its class where it says little without."""
    lines = str(error).strip().splitlines()
    named = isinstance(error, OSError | ValueError) and lines
    return lines[0] if named else f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE and character not in _DIRECTIONS:
        return character
    return chr(0x2400 + ord(character)) if character < " " else "␡" if character == "\x7f" else "�"
