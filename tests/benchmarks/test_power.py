"""The page of planted faults: nothing is planted here."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentc.benchmarks import power
from latentc.benchmarks.planted import FAULTS

ROOT = Path(power.__file__).parent.parent
PAGE = ROOT / "docs" / "power.md"


def test_the_page_is_what_the_generator_writes_of_its_figures(monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    words = {name: error for error, name in power.GATES} | {power.NOT_DRAWN: power.NOT_DRAWN}
    cpu, cores = re.search(r", on (.*), (\d+) cores\.", text).groups()
    sound = dict(re.findall(r"(\w+) ([\d.]+) dB", re.search(r"An image without faults reaches (.*)", text)[1]))
    _, *lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = []
    for fault, line in zip(FAULTS, lines, strict=True):
        _, _, effect, *gates = [cell.strip() for cell in line.strip("|").split("|")]
        figure = float("nan") if effect == "error" else float(effect)
        errors = [words.get(gate, "refused") for gate in gates]
        rows.append(power.Row(fault, figure, dict(zip(sound, errors, strict=True))))
    monkeypatch.setattr(power, "machine", lambda: SimpleNamespace(cpu=cpu, cores=int(cores)))
    assert power.page(rows, {name: float(figure) for name, figure in sound.items()}) == text


@pytest.mark.parametrize("words", [words for words, _ in power.GATES])
def test_a_gate_is_known_by_words_of_an_error(words):
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "compiler").glob("*.py")]
    assert any(words in re.sub(r'"\s*f?"', "", text) for text in sources), "no error of the compiler says so any more"
