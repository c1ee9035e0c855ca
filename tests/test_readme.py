"""The tables of README.md and docs/ are what the code makes of the result files that they name."""

from pathlib import Path
from runpy import run_path

import pytest

README = run_path(str(Path(__file__).with_name("readme.py")))


@pytest.mark.parametrize("page", README["files"](), ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert README["written"](text) == text, "run: make readme"


def test_the_front_page_is_short_and_has_its_tables():
    text = (README["ROOT"] / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 150
    assert [found[2].split()[0] for found in README["BLOCK"].finditer(text)] == ["targets", "Demo"]
