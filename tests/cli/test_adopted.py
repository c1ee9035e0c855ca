"""Every command calls an adopted bundle self-consistent, and none says that it was proved."""

import json
import shutil

import pytest

from latentc.core.bundle import open_bundle
from latentc.core.standing import SELF_CONSISTENT

SAYS = "no PyTorch reference stands behind"


@pytest.fixture
def own(adopted, tmp_path, monkeypatch):
    """An adopted bundle on a machine that compared nothing yet."""
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return open_bundle(shutil.copytree(adopted("sd1").folder, tmp_path / "own.bundle"))


def outputs(command, folder):
    """What each command prints about the bundle, in the order in which its user calls them."""
    profile = ("-p", "cpu-onnxruntime")
    calls = {
        "inspect": ("inspect", folder),
        "inspect json": ("inspect", folder, "--json"),
        "plan": ("plan", folder, *profile),
        "plan json": ("plan", folder, *profile, "--json"),
        "why before": ("why", folder, *profile),
        "verify before": ("verify", folder),
        "build": ("build", folder, *profile, "--quiet"),
        "build json": ("build", folder, *profile, "--json"),
        "why": ("why", folder, *profile),
        "why json": ("why", folder, *profile, "--json"),
        "verify": ("verify", folder),
        "verify json": ("verify", folder, "--json"),
        "run": ("run", folder, "a cat", *profile, "--steps", "2", "--seed", "1", "-o", "one.png", "--quiet"),
        "run json": ("run", folder, "a cat", *profile, "--steps", "2", "--seed", "1", "-o", "two.png", "--json"),
        "show": ("show", "one.png"),
        "show json": ("show", "one.png", "--json"),
        "prune": ("prune", folder),
        "bench": ("bench", folder, *profile, "--steps", "2", "--repeat", "2", "-o", "rows.jsonl", "--quiet"),
        "report": ("report", "rows.jsonl", "-o", "page"),
        "compare": ("compare", "rows.jsonl", "rows.jsonl"),
    }
    printed = {}
    for name, call in calls.items():
        code, out, err = command(*call)
        assert code == 0, (name, err)
        printed[name] = out + err
    return printed


def test_no_command_calls_it_proved(own, command, tmp_path):
    printed = outputs(command, own.folder)
    written = [*tmp_path.glob("*.*"), *(tmp_path / "page").iterdir(), *own.folder.glob("*.json")]
    files = {path.name: path.read_text(errors="replace") for path in written if path.is_file()}
    for name, text in {**printed, **files}.items():
        assert "proved" not in text.lower(), name
        assert "against PyTorch" not in text, name
    for name in ("inspect", "plan", "build", "why", "verify", "verify before", "run", "show"):
        assert SAYS in printed[name], name
    for name in ("inspect json", "build json", "why json", "verify json", "show json"):
        assert '"standing": "self-consistent"' in printed[name], name
    for name in ("plan json", "run json", "show json"):
        assert SAYS in printed[name], name
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert row["model"]["standing"] == "self-consistent"
    assert SELF_CONSISTENT.statement in row["leaves_out"]
    assert "the adopted graph" in row["parity"]["reference"]
    pages = [text for name, text in files.items() if name.endswith((".html", ".md"))]
    assert len(pages) >= 2
    assert all("(self-consistent)" in text for text in pages)
    assert "against the bundle's own graph" in printed["bench"]


REFUSED = {
    "the torch runtime": (("build", "-p", "torch-f32"), "runs the modules of a checkpoint"),
    "the suite": (("bench", "-p", "cpu-onnxruntime", "--suite", "-o", "rows.jsonl"), "no PyTorch reference"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_checkpoint_is_refused(own, refused, name):
    (first, *rest), message = REFUSED[name]
    assert message in refused(first, str(own.folder), *rest)
    assert not [*own.engines.glob("*-*")]


def test_an_exported_bundle_is_called_proved(exported, command):
    """The same outputs, of a bundle that PyTorch's reference stands behind."""
    folder = exported("sd1").folder

    def out(*words):
        return command(words[0], folder, *words[1:])[1]

    assert json.loads(out("inspect", "--json"))["standing"] == "proved"
    assert "against PyTorch" in out("inspect")
    assert SAYS not in out("inspect") + out("verify") + out("plan", "-p", "null")
    assert "standing" not in json.loads(out("verify", "--json"))
