"""Install instructions for error messages."""

from __future__ import annotations


def pip(*extras: str) -> str:
    """The pip command that installs extras from latentc's source folder, in the tested versions."""
    return f'pip install -c constraints.txt ".[{",".join(extras)}]"'


def install(*extras: str) -> str:
    """A sentence with that command."""
    return f"Install it with: {pip(*extras)}."
