"""Names that others chose, as text that can be shown."""

from __future__ import annotations


def show(name: bytes) -> str:
    r"""What cannot be seen becomes \xNN or the like, marks that turn the direction of writing too."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(map(escape, text))


def escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def shorten(text: str, most: int, mark: str = "…") -> str:
    """To so many characters: long names often differ at their ends, so the middle is left out."""
    if len(text) <= most:
        return text
    kept = most - len(mark)
    return f"{text[: kept - kept // 2]}{mark}{text[-(kept // 2) :]}"
