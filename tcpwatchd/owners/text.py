"""Names that others chose, made safe to print."""

from __future__ import annotations

LONGEST = 512
"""Characters of what is printed, at most: of what is not ASCII JSON makes up to twelve each."""
WIDTHS = ((0x7F, 1), (0xFFFF, 6))
WIDEST = 12


def make_printable(name: bytes) -> str:
    r"""One line, of characters that can be seen: what is not UTF-8 or not printable becomes \xNN or the like.

    A backslash is doubled, so that each text stands for one name. A very long one is cut.
    """
    text = name.decode("utf-8", "surrogateescape")
    if not text.isprintable() or "\\" in text:
        text = "".join(escape(character) for character in text)
    return text if WIDEST * len(text) <= LONGEST else cut(text)


def cut(text: str) -> str:
    width, end = 0, 0
    for end, character in enumerate(text):
        width += next((width for last, width in WIDTHS if ord(character) <= last), WIDEST)
        width += character in '\\"'
        if width > LONGEST:
            return text[:end]
    return text


def escape(character: str) -> str:
    if character.isprintable() and character != "\\":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode() if code < 0x80 or code > 0xFF else f"\\u{code:04x}"
