"""Measure what the extras install, for the table of docs/installing.md: `make sizes`.

A wheel of this checkout is installed into new environments, in the versions of constraints.txt.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "install-sizes.json"
SETS = (("onnxruntime", "build,onnxruntime"), ("openvino", "build,openvino"))
"""Extras that are installed one after another into one environment."""
LARGEST = 6
LEFT_OUT = (".venv", ".git", "*.bundle", "*.egg-info", "build", "demo", "__pycache__")


def environment(folder: Path) -> tuple[Path, Path]:
    """Python of a new environment, and its folder of packages, which has only pip."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    return python, Path(asked.stdout.strip())


def bytes_of(path: Path) -> int:
    return sum(one.lstat().st_size for one in (path.rglob("*") if path.is_dir() else (path,)) if one.is_file())


def measured(wheel: Path, sets: Sequence[str], folder: Path) -> list[dict[str, object]]:
    """Bytes of everything that extras install, and of the largest packages; pip itself isn't counted."""
    python, packages = environment(folder)
    before = {path.name for path in packages.iterdir()}
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    rows: list[dict[str, object]] = []
    for extras in sets:
        subprocess.run([*pip, f"{wheel}[{extras}]"], check=True)
        found = {path.name: bytes_of(path) for path in packages.iterdir() if path.name not in before}
        largest = {name: found[name] for name in sorted(found, key=lambda name: -found[name])[:LARGEST]}
        rows.append({"extras": extras, "bytes": sum(found.values()), "largest": largest})
    return rows


def source(folder: Path) -> Path:
    """A copy of the checkout, so that what an earlier build left doesn't get into a wheel."""
    return Path(shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*LEFT_OUT)))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
        subprocess.run([*build, source(Path(folder))], check=True)
        (wheel,) = Path(folder).glob("latentc-*.whl")
        rows = [row for sets in SETS for row in measured(wheel, sets, Path(folder) / sets[0])]
        facts = {"python": sys.version.partition(" ")[0], "platform": sys.platform, "wheel_bytes": wheel.stat().st_size}
    RESULT.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
