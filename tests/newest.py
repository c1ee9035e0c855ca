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


def behind(pins: dict[str, str], newest: dict[str, str]) -> list[str]:
    """A line for each pin that differs from the newest version that fits with the others."""
    return [
        f"{name}: {pins[name]} in constraints.txt, {version} is the newest that fits"
        for name, version in sorted(newest.items())
        if name in pins and pins[name] != version
    ]


def main() -> int:
    """List, then install and test; returns pytest's exit code."""
    venv.create(NEWEST, with_pip=True)
    python = NEWEST / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f"{ROOT}[dev]"]
    asked = [*install, "--dry-run", "--ignore-installed", "--report", "-"]
    report = json.loads(subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout)
    found = (one["metadata"] for one in report["install"])
    lines = behind(pinned(), {plain(one["name"]): one["version"] for one in found})
    print("\n".join(lines) or "Nothing is behind in constraints.txt.", flush=True)
    if "--list" in sys.argv:
        return 0
    subprocess.run([*install, "--upgrade", "--upgrade-strategy", "eager"], check=True)
    return subprocess.run([python, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
