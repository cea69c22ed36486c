"""Names that others chose, made safe to print."""

from __future__ import annotations

LONGEST = 512
"""Characters of a name: a whole entry must fit into what a pipe takes at once (PIPE_BUF)."""


def make_printable(name: bytes) -> str:
    r"""One line, of characters that can be seen: what is not UTF-8 or not printable becomes \xNN or the like.

    A backslash is doubled, so that each text stands for one name. A very long one is cut.
    """
    text = name.decode("utf-8", "surrogateescape")
    if not text.isprintable() or "\\" in text:
        text = "".join(escape(character) for character in text)
    return text[:LONGEST]


def escape(character: str) -> str:
    if character.isprintable() and character != "\\":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
