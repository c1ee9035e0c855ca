"""List what is behind in constraints.txt, and run the tests with the newest versions: `make newest`.

The environment of its own is `.venv/newest`; arguments are passed on to pytest. `--list` runs no test.
"""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEWEST = ROOT / ".venv" / "newest"


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """The versions of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {plain(name): version for name, _, version in (line.partition("==") for line in lines)}


def behind(pins: dict[str, str]) -> list[str]:
    """A line for each pin that isn't the newest version in the registry, of what is installed here."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "list", "--outdated", "--format=json"]
    listed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    newest = {plain(one["name"]): one["latest_version"] for one in listed}
    found = sorted(name for name in newest if name in pins and pins[name] != newest[name])
    return [f"{name}: {pins[name]} in constraints.txt, {newest[name]} in the registry" for name in found]


def main() -> int:
    """List, then install and test; returns pytest's exit code."""
    print("\n".join(behind(pinned())) or "Nothing is behind in constraints.txt.", flush=True)
    if "--list" in sys.argv:
        return 0
    venv.create(NEWEST, with_pip=True)
    python = NEWEST / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*install, "--upgrade-strategy", "eager", "-e", f"{ROOT}[dev]"], check=True)
    return subprocess.run([python, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
