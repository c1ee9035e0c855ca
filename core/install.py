"""What to say where a library isn't installed."""

from __future__ import annotations


def pip(*extras: str) -> str:
    """The command that installs extras from latentc's folder, in the versions that it is tested with."""
    return f'pip install -c constraints.txt ".[{",".join(extras)}]"'


def install(*extras: str) -> str:
    """A sentence with that command."""
    return f"Install it with: {pip(*extras)}."
