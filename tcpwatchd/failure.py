"""What went wrong, in one line for people."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818, it says what happened to the user, not to the program
    """What a stage raises on purpose: its text says what went wrong."""


class UsageError(Failure):
    """What was asked for makes no sense, or cannot be had here; the text names the flag or the setting."""


PACKAGES = {
    "systemd": ("python3-systemd", "systemd-python"),
    "sdnotify": ("python3-sdnotify", "sdnotify"),
    "rich": ("python3-rich", "rich"),
    "jinja2": ("python3-jinja2", "Jinja2"),
}
"""What brings a module: the package of Debian and Fedora, and that of PyPI."""


def describe(error: Exception) -> str:
    if isinstance(error, ImportError):
        return describe_import(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, (Failure, ValueError)) else repr(error)


def describe_import(error: ImportError) -> str:
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        return f"the Python module {module} cannot be loaded: {error}"
    text = f"the Python module {module} is missing: install "
    if module not in PACKAGES:
        return f"{text}python3 as a whole (on Debian python3-minimal is not enough)"
    package, on_pypi = PACKAGES[module]
    return f"{text}{package} (Debian, Fedora) or {on_pypi} (PyPI)"
