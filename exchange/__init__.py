"""Brier: an exchange for event contracts."""

__version__ = "0.1.0"
