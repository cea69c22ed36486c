"""Puts every new TCP connection of a machine into the systemd journal, once."""

__version__ = "0.1.0"
