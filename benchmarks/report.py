"""Write files of results as an HTML page (`index.html`) and as Markdown for a README (`report.md`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import LatentcError
from ..core.files import unwritable, write_text
from .markdown import markdown
from .page import page
from .reading import gather, sections


@dataclass(frozen=True)
class Report:
    """The files of a report, and how many rows and sections they have."""

    page: Path
    markdown: Path
    rows: int
    sections: int


def report(results: Sequence[Path], folder: Path) -> Report:
    """Write `index.html` and `report.md` into `folder`, replacing those of an earlier report.

    Raises `LatentcError` for results that are damaged or empty, and if the folder can't be written.
    """
    rows = gather(results)
    found = sections(rows)
    made = Report(folder / "index.html", folder / "report.md", len(rows), len(found))
    texts = {made.page: page(found), made.markdown: markdown(found)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_text(path, text)
    except OSError as exc:
        raise LatentcError(unwritable(folder, exc)) from exc
    return made
