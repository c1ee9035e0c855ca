"""Print the lines of code in each room: `make check` shows where the house grows."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = (
    "core",
    "profiles",
    "checkpoints",
    "sampling",
    "scenes",
    "export",
    "runtimes",
    "compiler",
    "pipelines",
    "benchmarks",
    "serving",
    "package",
    "cli",
    "tests",
)


def code_lines(path: Path) -> int:
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in path.read_text().splitlines())


def main() -> None:
    total = 0
    for room in ROOMS:
        files = sorted((ROOT / room).rglob("*.py"))
        lines = sum(map(code_lines, files))
        total += lines if room != "tests" else 0
        print(f"{room:12}{lines:6} lines in {len(files):3} files")
    print(f"{'in all':12}{total:6} lines, tests left out")


if __name__ == "__main__":
    main()
