"""The adapters that ship with `scenes`: what each one is for, measured by the judge or by distances."""

from __future__ import annotations

import numpy as np
import pytest

from latentc import Pipeline, Request, build, export, fuse
from latentc.benchmarks import meaning
from latentc.benchmarks.meaning import captions
from latentc.core.bundle import open_bundle
from latentc.pipelines.edges import canny
from latentc.profiles import load_profile
from latentc.scenes.caption import attributes
from latentc.scenes.judge import scene_score
from latentc.scenes.render import render

from .changes import ink_distance

pytestmark = pytest.mark.slow
PROFILE = "cpu-onnxruntime"
COUNT = 32
ASKED = captions(COUNT)


@pytest.fixture(scope="module")
def read():
    """`read(images)`: the attributes that the judge finds in images."""
    with meaning.open_judge() as judge:
        yield lambda images: meaning.read(judge, np.stack(images)).attributes


def drawn(pipeline, asked, **settings):
    base = {"steps": 20, "guidance": 4.0, **settings}
    return [pipeline(Request(prompt=one.text, seed=one.number, **base)).images[0] for one in asked]


@pytest.fixture(scope="module")
def plain(opened):
    return opened("scenes", PROFILE)


@pytest.fixture(scope="module")
def fused(exported, tmp_path_factory):
    """`fused(name)`: a pipeline of `scenes` with one of its LoRAs."""
    made = []

    def make(name):
        folder = tmp_path_factory.mktemp("fused") / "bundle"
        opened = fuse(exported("scenes"), folder, {name: 1.0})
        build(opened, load_profile(PROFILE))
        made.append(Pipeline.open(opened, PROFILE))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


def score(read, images, said=None):
    return scene_score(read(images), said or [caption.said for caption in ASKED])


def test_lcm_draws_better_in_four_steps_than_the_checkpoint(plain, fused, read):
    whole = score(read, drawn(plain, ASKED))
    short = max(score(read, drawn(plain, ASKED, steps=4, guidance=guidance)) for guidance in (1.0, 4.0))
    distilled = score(read, drawn(fused("scenes/lcm"), ASKED, steps=4, guidance=1.0, scheduler="lcm"))
    assert distilled >= 0.85 * whole
    assert distilled > short


def test_ember_prints_in_its_inks_and_keeps_the_content(plain, fused, read):
    before, after = drawn(plain, ASKED[:8]), drawn(fused("scenes/ember"), ASKED[:8])
    assert np.mean([ink_distance(image) for image in after]) < 0.6 * np.mean([ink_distance(image) for image in before])
    places = [{"place": caption.scene.place} for caption in ASKED[:8]]
    assert score(read, after, places) >= 0.5  # of ten places; the judge never saw this style


@pytest.fixture(scope="module")
def equipped(shared, tmp_path_factory):
    """A pipeline of `scenes` with its ControlNet and its tiny decoder."""
    import shutil

    kept = shared(
        "scenes-equipped",
        lambda folder: export("scenes", folder, controlnets=["scenes/edges"], tiny_vae="scenes/tiny"),
    )
    opened = open_bundle(shutil.copytree(kept, tmp_path_factory.mktemp("equipped") / "bundle"))
    build(opened, load_profile(PROFILE))
    with Pipeline.open(opened, PROFILE) as pipeline:
        yield pipeline


def test_edges_keep_the_layout(equipped, read):
    chosen = captions(12, lambda caption: bool(caption.scene.things))
    truth = [
        {key: value for key, value in attributes(caption.scene).items() if key.endswith((".position", ".size"))}
        for caption in chosen
    ]
    edges = [canny(render(caption.scene, 128, caption.number)) for caption in chosen]
    requests = [
        Request(prompt=f"{caption.scene.place}, {caption.scene.sky}, {things(caption.scene)}", guidance=4.0, seed=3)
        for caption in chosen
    ]
    with_edges = [equipped(one, control=seen).images[0] for one, seen in zip(requests, edges, strict=True)]
    without = [equipped(one).images[0] for one in requests]
    kept, chance = scene_score(read(with_edges), truth), scene_score(read(without), truth)
    assert kept > chance + 0.05


def things(scene):
    return ", ".join(f"{thing.colour} {thing.kind}" for thing in scene.things)


def test_the_tiny_decoder_is_close_to_the_vae(equipped):
    assert not any("as its VAE does" in notice for notice in equipped.bundle.manifest.notices)
    whole, tiny = drawn(equipped, ASKED[:4]), drawn(equipped, ASKED[:4], decoder="tiny")
    errors = [np.square(a.astype(float) - b).mean() for a, b in zip(whole, tiny, strict=True)]
    assert 10 * np.log10(255**2 / np.median(errors)) > 24


@pytest.mark.parametrize("name", ["scenes/ember", "scenes/lcm"])
def test_a_file_of_the_same_name_comes_before_an_adapter_that_ships(name, tmp_path, monkeypatch):
    from latentc.checkpoints.source import path_of

    assert path_of(name).is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    (tmp_path / name).write_bytes(b"own")
    assert path_of(name).read_bytes() == b"own"
