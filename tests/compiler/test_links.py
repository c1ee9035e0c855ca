"""Bundles of links: as the hub's cache keeps them, and as backups leave them."""

import os
import shutil
from pathlib import Path

import pytest

from latentc.compiler.build import build
from latentc.compiler.lower import lowered, weights_of
from latentc.compiler.make import make
from latentc.compiler.parity import check_graphs
from latentc.compiler.targets import floor_db, wanted
from latentc.core.bundle import checked_graph, open_bundle
from latentc.core.errors import BundleError
from latentc.core.progress import quiet
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes

OPENVINO = load_profile("cpu-openvino-f32")
ONNXRUNTIME = load_profile("cpu-onnxruntime")
IREE = load_profile("cpu-iree").model_copy(update={"shapes": Shapes(sizes=("64x64",))})
STATIC = ONNXRUNTIME.model_copy(update={"shapes": Shapes(sizes=("64x64",))})


@pytest.mark.slow
@pytest.mark.parametrize("profile", [ONNXRUNTIME, OPENVINO], ids=lambda profile: profile.runtime)
def test_a_bundle_in_the_hubs_cache_is_built_and_drawn_as_any(own_bundle, in_the_hubs_cache, tmp_path, profile):
    """And so is one whose engines came with it."""
    opened = own_bundle()
    plain = shutil.copytree(opened.folder, tmp_path / "plain")
    build(open_bundle(plain), profile)
    for source, how in ((opened.folder, "compiled"), (plain, "there")):
        cache = tmp_path / f"models--me--{how}"
        snapshot = in_the_hubs_cache(source, cache)
        linked = open_bundle(snapshot)
        assert {one.how for one in build(linked, profile).engines} == {how}
        with Pipeline.open(linked, profile) as pipeline:
            assert pipeline(Request(prompt="x", steps=1, seed=1)).images.any()
        assert {path.stat().st_nlink for path in (snapshot / "engines").glob(".plain-unet*/*")} == {2}, "no copies"


@pytest.mark.parametrize("how", ["written", "copied"])
def test_what_stands_in_for_a_link_is_that_file(own_bundle, in_the_hubs_cache, tmp_path, monkeypatch, how):
    """A bundle's own folder of plain files is made by whoever made the bundle: its size and time say nothing."""
    linked = open_bundle(in_the_hubs_cache(own_bundle().folder, tmp_path / "models--me--linked"))
    if how == "copied":
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(1, "no hard links")))
    graph = checked_graph(linked, "unet")
    assert graph.parent.name.startswith(".plain-")
    weights = graph.with_name("model.onnx_data")
    sound, seen = weights.read_bytes(), weights.stat()
    weights.unlink()
    weights.write_bytes(bytes(len(sound)))
    os.utime(weights, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert checked_graph(linked, "unet") == graph
    assert weights.read_bytes() == sound


@pytest.mark.parametrize("drives", [1, 2])
def test_a_graph_is_lowered_where_symbolic_links_take_a_privilege(own_bundle, tmp_path, monkeypatch, drives):
    """As on Windows, and as there, hard links don't lead to another drive."""

    def refused(*_, **__):
        raise OSError(1314, "A required privilege is not held by the client")

    plain = os.link

    def within(source, target):
        if drives == 2 and Path(source).name == "model.onnx_data":
            raise OSError(17, "The system cannot move the file to a different disk drive")
        plain(source, target)

    monkeypatch.setattr(Path, "symlink_to", refused)
    monkeypatch.setattr("os.link", within)
    graph = own_bundle().graph("unet")
    with lowered(graph, "key", 18, None, scratch=tmp_path) as path:
        assert path.parent.parent == tmp_path
        assert weights_of(path) == graph.parent
        (weights,) = (one for one in path.parent.iterdir() if one.name == "model.onnx_data")
        assert weights.samefile(graph.with_name("model.onnx_data")) is (drives == 1)
        assert weights.read_bytes() == graph.with_name("model.onnx_data").read_bytes()


def test_a_file_that_is_called_weights_is_no_path(tmp_path):
    """As the external data of a graph that others exported may be."""
    (tmp_path / "weights").write_bytes(bytes(8))
    assert weights_of(tmp_path / "model.onnx") == tmp_path


@pytest.mark.slow
def test_a_bundle_with_a_backup_of_hard_links_is_built(own_bundle, tmp_path):
    """IREE reads the weights of every part in the same way, so one is enough: all of them take half a minute."""
    opened = own_bundle()
    shutil.copytree(opened.folder, tmp_path / "backup", copy_function=os.link)
    for profile in (STATIC, OPENVINO):
        assert {one.how for one in build(open_bundle(opened.folder), profile).engines} == {"compiled"}
    adapter, engines = wanted(opened, IREE, to_run=True)
    want = next(one for one in engines if one.part == "text_encoder")
    (tmp_path / "engine").mkdir()
    made = make(opened, IREE, adapter, want, tmp_path / "engine", quiet, here=True)
    assert made.parity.psnr_db >= floor_db(opened, IREE, want)


@pytest.mark.slow
def test_a_bundle_of_hard_links_is_proved_on_another_machine(own_bundle, tmp_path, monkeypatch):
    """Where no graph was proved yet, its weights are read by more libraries."""
    opened = own_bundle()
    shutil.copytree(opened.folder, tmp_path / "backup", copy_function=os.link)
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "elsewhere"))
    assert min(check_graphs(opened, opened.manifest.parts).values()) > 100
    graph = checked_graph(opened, "text_encoder")
    with lowered(graph, "half", 18, None, ("half",), scratch=tmp_path) as path:
        assert path.stat().st_size > 0


def test_nothing_is_written_where_a_bundles_links_lead(own_bundle, in_the_hubs_cache, tmp_path):
    linked = open_bundle(in_the_hubs_cache(own_bundle().folder, tmp_path / "models--me--linked"))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "model.onnx").write_text("mine")
    linked.engines.mkdir(exist_ok=True)
    (linked.engines / ".plain-unet").symlink_to(precious, target_is_directory=True)
    with pytest.raises(BundleError, match="is a link, so files would be written to its target"):
        checked_graph(linked, "unet")
    assert (precious / "model.onnx").read_text() == "mine"
