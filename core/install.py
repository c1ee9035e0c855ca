"""Install instructions for error messages: of the distribution, or of a checkout in the tested versions."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
"""The source folder, where this is a checkout; else the installed package."""
CONSTRAINTS = "constraints.txt"


def is_checkout(folder: Path = CHECKOUT) -> bool:
    """Whether latentc runs from its source folder, which has `constraints.txt`; a wheel doesn't."""
    return all((folder / name).is_file() for name in (CONSTRAINTS, "pyproject.toml"))


def pip(*extras: str, folder: Path = CHECKOUT) -> str:
    """The pip command that installs extras: in a checkout from it, in the tested versions."""
    names = ",".join(extras)
    if not is_checkout(folder):
        return f'pip install "latentc[{names}]"'
    if _is_current(folder):
        return f'pip install -c {CONSTRAINTS} ".[{names}]"'
    return f'pip install -c "{folder / CONSTRAINTS}" "{folder}[{names}]"'


def need(library: str) -> tuple[str, ...]:
    """The extra of that name, unless the library is here: another flavour of ONNX Runtime would be overwritten."""
    return () if find_spec(library) else (library,)


def install(*extras: str) -> str:
    """A sentence with that command."""
    return f"Install it with: {pip(*extras)}."


def make(target: str, folder: Path = CHECKOUT) -> str:
    """The command that makes a target of the checkout's Makefile."""
    if not is_checkout(folder):
        return f"make {target}, in a checkout of latentc"
    return f"make {target}" if _is_current(folder) else f'make -C "{folder}" {target}'


def in_tested_versions(*libraries: str, folder: Path = CHECKOUT) -> str:
    """A sentence that asks for the tested versions of these libraries."""
    first, last = ", ".join(libraries[:-1]), libraries[-1]
    where = CONSTRAINTS if is_checkout(folder) else f"{CONSTRAINTS} of latentc's sources"
    which = f"versions of {first} and {last}" if first else f"version of {last}"
    return f"Install the {which} that {where} names."


def _is_current(folder: Path) -> bool:
    """Whether a command in the current folder finds the checkout's files."""
    try:
        return Path.cwd().samefile(folder)
    except OSError:  # removed, or not readable
        return False
