"""The demo's bundle, kept as long as the weights are the same."""

from latentc.benchmarks import demo
from latentc.core.progress import quiet


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
    for absent in ("torch", "torch", None, None):
        monkeypatch.setattr(demo, "absent", lambda absent=absent: absent)
        demo._bundle(tmp_path, quiet)
    assert made == ["shipped", "opened", "scenes", "opened"]
