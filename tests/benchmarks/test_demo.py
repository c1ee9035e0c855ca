"""The demo's bundle, kept as long as the weights are the same."""

import json
from pathlib import Path

import pytest

from latentc.benchmarks import demo
from latentc.cli.bench import show_demo
from latentc.core.errors import RuntimeMissing
from latentc.core.progress import quiet
from latentc.core.standing import PROVED, SHIPPED_GRAPHS
from latentc.export import check


def test_a_bundle_of_older_weights_is_made_anew(tmp_path, monkeypatch):
    made = []

    def export(checkpoint, folder, on_progress):
        folder.mkdir()
        made.append(folder)
        return "exported"

    monkeypatch.setattr(demo, "export", export)
    monkeypatch.setattr(demo, "open_bundle", lambda folder: "opened")
    assert [demo._bundle(tmp_path, quiet) for _ in range(2)] == ["exported", "opened"]
    (made[0] / "old").touch()
    (tmp_path / "scenes.sha256").write_text("of an older version")
    assert demo._bundle(tmp_path, quiet) == "exported"
    assert not (made[0] / "old").exists()


def test_without_pytorch_it_uses_the_graphs_that_ship(tmp_path, monkeypatch):
    made = []

    def make(folder, on_progress):
        folder.mkdir()
        made.append("shipped")

    def export(checkpoint, folder, on_progress):
        folder.mkdir()
        made.append(checkpoint)

    monkeypatch.setattr(demo, "export_shipped", make)
    monkeypatch.setattr(demo, "export", export)
    monkeypatch.setattr(demo, "open_bundle", lambda folder: made.append("opened"))
    for found in (None, None, "torch", "torch"):
        monkeypatch.setattr(demo, "find_spec", lambda name, found=found: found)
        demo._bundle(tmp_path, quiet)
    assert made == ["shipped", "opened", "scenes", "opened"]


def test_with_pytorch_but_without_another_library_it_says_so(tmp_path, monkeypatch):
    """No bundle that is only self-consistent is made where a proved one was to be expected."""
    monkeypatch.setattr(check, "absent", lambda: "diffusers")
    with pytest.raises(RuntimeMissing, match="An export needs .* but diffusers cannot be imported"):
        demo._bundle(tmp_path, quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("standing", [PROVED, SHIPPED_GRAPHS])
def test_its_output_has_the_standing_of_the_bundle(standing, capsys):
    show_demo(demo.Demo(Path("b"), Path("s"), Path("r"), (), {}, standing), as_json=True)
    assert json.loads(capsys.readouterr().out)["standing"] == standing.word
