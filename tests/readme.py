"""Write the tables of README.md and docs/ from result files and profiles: `make readme`.

A table stands between `<!-- table: WHAT FILE -->` and `<!-- end -->`. WHAT is the name of a table of
`benchmarks/columns.py` and FILE a file of `benchmarks/results`; or WHAT is `memory` and FILE is made by
`tests/memory.py`; or it is `emulated` and FILE is made by `tests/arm.py`; or it is `install` and FILE is made by
`tests/sizes.py`; or it is `targets` or `profiles`.
"""

import gzip
import json
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentc.benchmarks.columns import table
from latentc.benchmarks.markdown import markdown_table
from latentc.benchmarks.reading import Section, machine_title, sections, setting_title
from latentc.benchmarks.records import read_records
from latentc.core.units import sized
from latentc.profiles import Profile, load_profile, profile_names

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def files() -> list[Path]:
    """The pages that contain such tables."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in pages if BLOCK.search(page.read_text(encoding="utf-8"))]


def written(text: str) -> str:
    """The text of a page with its tables regenerated."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(*found[2].split())}\n{found[4]}", text)


def block(what: str, file: str = "") -> str:
    if what == "memory":
        return memory(file)
    if what == "emulated":
        return emulated(file)
    if what == "install":
        return installs(file)
    if what in PROFILES:
        return PROFILES[what]()
    rows = read_records(RESULTS / file)
    (section,) = sections(rows)
    found = table(what, section, rows if what == "Demo" else None)
    assert found is not None
    legend = textwrap.fill(f"{where(section)} {found.note}", 120, break_on_hyphens=False, break_long_words=False)
    return f"{markdown_table(found)}\n\n{legend}"


def memory(file: str) -> str:
    """A table of what `plan --memory` answers by profile, size and budget, from the rows of `tests/memory.py`."""
    rows: list[dict[str, Any]] = json.loads(gzip.decompress((RESULTS / file).read_bytes()))
    budgets = list(dict.fromkeys(row["budget_gb"] for row in rows))
    lines = [
        f"| family, profile, size | {' | '.join(f'{one:g} GB' for one in budgets)} |",
        "|---|" + "---|" * len(budgets),
    ]
    cells: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['family']}, `{row['profile']}`, {row['side']}x{row['side']}"
        cells.setdefault(name, []).append(way(row.get("fitted")))
    return "\n".join([*lines, *(f"| {name} | {' | '.join(each)} |" for name, each in cells.items())])


def way(fitted: dict[str, Any] | None) -> str:
    """What is done to fit, in a word or two, and the memory that is planned."""
    if fitted is None:
        return "no"
    tile = fitted["vae_tile"]
    done = [
        *(["in turn"] if fitted["sequential"] else []),
        *(["by row"] if fitted["row_by_row"] else []),
        *([f"tiles {tile}"] if tile else []),
        *(["tiny"] if fitted["decoder"] else []),
    ]
    return f"{' + '.join(done) or 'whole'}, {sized(fitted['planned_bytes'])}"


def emulated(file: str) -> str:
    """A table of the figures of profiles on an emulated CPU, from the record of `tests/arm.py`."""
    record: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    against = "latents, image against x86", "image against PyTorch"
    lines = [f"| profile | emulated CPU | date, versions | worst part | whole step | {' | '.join(against)} |"]
    lines.append("|---|---|---|--:|--:|--:|--:|")
    for name, row in record.items():
        worst = min(one["psnr_db"] for one in row["engines"].values())
        figures = [f"{db:.1f} dB" for db in (worst, row["step_db"])]
        figures += [f"{row['latents_db']:.1f}, {row['image_db']:.1f} dB", f"{row['torch_image_db']:.1f} dB"]
        versions = (f"{library} {version}" for library, version in row["versions"].items())
        cells = (f"`{name}`", row["cpu"], ", ".join((row["date"], *versions)), *figures)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def installs(file: str) -> str:
    """A table of what extras install, from what `tests/sizes.py` measured."""
    measured = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    lines = ["| extras | size | largest packages |", "|---|--:|---|"]
    for row in measured["rows"]:
        largest = ", ".join(f"{name} {sized(size)}" for name, size in row["largest"].items())
        lines.append(f"| `[{row['extras']}]` | {sized(row['bytes'])} | {largest} |")
    return "\n".join([*lines, "", f"Python {measured['python']} on {measured['platform']}."])


def where(section: Section) -> str:
    first = section.first
    memory = ", one process at a time" if first.apart else ""
    return f"{machine_title(first.machine)}; {setting_title(first)}, guidance {first.request.guidance:g}{memory}."


def targets() -> str:
    """A table of the profiles by how they were tested."""
    found: dict[str, list[str]] = {}
    for name in profile_names():
        found.setdefault(load_profile(name).proof, []).append(name)
    lines = ["| proof | profiles |", "|---|---|"]
    return "\n".join([*lines, *(f"| {proof} | {ticked(found[proof])} |" for proof in ORDER)])


ORDER = ("run", "emulated", "software", "built", "written")


def profiles() -> str:
    """A table of all profiles, ordered by how they were tested."""
    every = sorted(map(load_profile, profile_names()), key=lambda one: (ORDER.index(one.proof), one.name))
    lines = ["| profile | what for | computes in | proof | options checked with |", "|---|---|---|---|---|"]
    rows = ((f"`{one.name}`", one.title, precisions(one), one.proof, checked(one)) for one in every)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def checked(profile: Profile) -> str:
    """The libraries with which its options were checked, for example `onnxruntime 1.31.1`."""
    return ", ".join(profile.checked).replace("==", " ")


def precisions(profile: Profile) -> str:
    """The precisions of a profile, for example `f16; text_encoder, decoder in f32`."""
    by_type: dict[str, list[str]] = {}
    for name, wishes in profile.precision.items():
        by_type.setdefault(" or ".join(wishes), []).append(name)
    usual = " or ".join(profile.wishes("", ""))
    others = [f"{', '.join(names)} in {type_}" for type_, names in by_type.items() if type_ != usual]
    return "; ".join([usual, *others])


PROFILES = {"targets": targets, "profiles": profiles}


def ticked(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    for page in files():
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
