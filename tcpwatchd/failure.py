"""What went wrong, in one line for people."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818, it says what happened to the user, not to the program
    """What a stage raises on purpose: its text says what went wrong."""


def describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, (Failure, ValueError)) else repr(error)
