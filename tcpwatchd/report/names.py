"""Names that others chose, as text that can be shown."""

from __future__ import annotations

INVISIBLE = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0x180B, 0x1810)))
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
"""Fillers, joiners and selectors: Python takes them for printable, and nothing is seen of them."""


def show(name: bytes) -> str:
    r"""What cannot be seen becomes \xNN or the like, marks that turn the direction of writing too."""
    text = name.decode("utf-8", "backslashreplace")
    return text if is_visible(text) else "".join(map(escape, text))


def is_visible(text: str) -> bool:
    return text.isprintable() and INVISIBLE.isdisjoint(text)


def escape(character: str) -> str:
    return character if is_visible(character) else character.encode("unicode_escape").decode()


def shorten(text: str, most: int, mark: str = "…") -> str:
    """To so many characters: long names often differ at their ends, so the middle is left out."""
    if len(text) <= most:
        return text
    kept = most - len(mark)
    return f"{text[: kept - kept // 2]}{mark}{text[-(kept // 2) :]}"
