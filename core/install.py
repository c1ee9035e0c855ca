"""Install instructions for error messages: of the distribution, or of a checkout in the tested versions."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "latentc"
CHECKOUT = Path(__file__).resolve().parents[1]
"""The source folder, where this is a checkout; else the installed package."""
CONSTRAINTS = "constraints.txt"


def is_checkout(folder: Path = CHECKOUT) -> bool:
    """Whether latentc runs from its source folder, which has `constraints.txt`; a wheel doesn't."""
    return all((folder / name).is_file() for name in (CONSTRAINTS, "pyproject.toml"))


def pip(*extras: str, folder: Path = CHECKOUT) -> str:
    """The command that installs extras: in a checkout from it, in the tested versions, and else from where latentc was
    installed from. It is pip's, or that of the tool that made this environment.
    """
    names, prefix, command = ",".join(extras), Path(sys.prefix), _tool("install")
    if is_checkout(folder):
        if _is_current(folder):
            return f'{command} -c {CONSTRAINTS} ".[{names}]"'
        return f'{command} -c "{folder / CONSTRAINTS}" "{folder}[{names}]"'
    if _is_pipx():
        command = f"pipx inject {prefix.name}"
    elif command.startswith("uv") and (prefix.parent.parent / "CACHEDIR.TAG").is_file():  # of `uv tool run`
        return f'uv tool run --from "{_requirement(names)}" {NAME}'
    return f'{command} "{_requirement(names)}"'


def uninstall(*names: str) -> str:
    """The command that uninstalls distributions."""
    tool = f"pipx runpip {Path(sys.prefix).name} uninstall" if _is_pipx() else _tool("uninstall")
    return " ".join((tool, *([] if tool.startswith("uv") else ["-y"]), *names))


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


def _requirement(names: str) -> str:
    """The requirement with extras: of the wheel, folder or repository that was installed (PEP 610), if it was one."""
    found: dict[str, Any] = {}
    with suppress(metadata.PackageNotFoundError, ValueError):
        found = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
    url, vcs = str(found.get("url", "")), found.get("vcs_info", {})
    kind, revision = vcs.get("vcs"), vcs.get("requested_revision") or vcs.get("commit_id")
    if url.startswith("file:") and not kind:
        return f"{url2pathname(urlsplit(url).path)}[{names}]"
    if not url:
        return f"{NAME}[{names}]"
    inside = f"#subdirectory={found['subdirectory']}" if "subdirectory" in found else ""
    return f"{NAME}[{names}] @ {f'{kind}+' if kind else ''}{url}{f'@{revision}' if revision else ''}{inside}"


def _is_pipx() -> bool:
    """Whether this environment is one that `pipx install` made; that of `pipx run` has no name."""
    prefix = Path(sys.prefix)
    return (prefix / "pipx_metadata.json").is_file() and prefix.parent.name == "venvs"


def _tool(verb: str) -> str:
    """A command of pip, or of uv where that made this environment, without pip."""
    with suppress(OSError):
        made = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
        if "uv =" in made and find_spec("pip") is None:
            return f'uv pip {verb} --python "{sys.prefix}"'
    return f"pip {verb}"


def _is_current(folder: Path) -> bool:
    """Whether a command in the current folder finds the checkout's files."""
    try:
        return Path.cwd().samefile(folder)
    except OSError:  # removed, or not readable
        return False
