"""What a baseline opens: the checkpoint's folder, where it draws as the bundle does."""

import json

import pytest

from latentc.benchmarks.baselines import find_baseline
from latentc.benchmarks.contender import UNBOUND, _checkpoint_folder, contenders_of
from latentc.benchmarks.plan import Plan
from latentc.benchmarks.row import row_of
from latentc.core.bundle import Bundle
from latentc.core.errors import CheckpointError
from latentc.core.manifest import FileInfo
from latentc.core.request import Request
from latentc.profiles import load_profile
from latentc.runtimes.machine import machine
from latentc.sampling.host import SCHEDULER

REQUEST = Request(prompt="a", width=64, height=64, steps=2, seed=7)


@pytest.fixture
def of_folder(checkpoint, sd_manifest, tmp_path):
    """`of_folder(**changes)`: a bundle of a checkpoint's folder, whose scheduler config differs by these."""

    def make(**changes):
        folder = checkpoint("sd1")
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | changes))
        source = sd_manifest.source.model_copy(update={"location": str(folder)})
        return Bundle(tmp_path, sd_manifest.model_copy(update={"source": source}))

    return make


@pytest.fixture
def sd_manifest():
    from latentc.core.manifest import Manifest, Source
    from latentc.core.model import Model, TextEncoder

    encoder = TextEncoder(part="text_encoder", tokenizer="tokenizer")
    model = Model(
        text_encoders=(encoder,), latent_channels=4, downscale=8, scaling_factor=0.18215, default_size=128, wires=()
    )
    source = Source(kind="folder", location="")
    return Manifest(latentc="0", family="sd1", source=source, model=model, parts={}, files={}, versions={})


def test_it_opens_the_folder(of_folder, checkpoint):
    assert _checkpoint_folder(of_folder()) == str(checkpoint("sd1"))


@pytest.mark.parametrize("changes", [{"timestep_spacing": "trailing"}, {"_class_name": "EulerDiscreteScheduler"}])
def test_another_scheduler_is_no_comparison(changes, of_folder):
    with pytest.raises(CheckpointError, match="scheduler config differs from that of"):
        _checkpoint_folder(of_folder(**changes))


def test_bundles_of_one_checkpoint_share_neither_pictures_nor_models(sd_manifest, tmp_path):
    baseline, names, models = find_baseline("torch-eager"), set(), set()
    for folder, digest in (("a.bundle", "0"), ("b.bundle", "0"), ("b.bundle", "1")):
        files = {SCHEDULER: FileInfo(bytes=2, sha256=digest * 64)}
        bundle = Bundle(tmp_path / folder, sd_manifest.model_copy(update={"files": files}))
        plan = Plan((), keep=tmp_path / "kept", peers=tmp_path / "peers")
        found = contenders_of(bundle, plan, REQUEST, [load_profile("null")], [baseline], tmp_path, "0123456789")
        names |= {one.wish.keep for one in found}
        models |= {one.brief.models for one in found}
    assert len(names) == 3 * 2
    assert len(models) == 2 * 2, "another scheduler is another model, another folder is not"


@pytest.mark.parametrize("here", [None, "4"])
def test_threads_that_are_asked_for_bind_every_process(sd_manifest, tmp_path, monkeypatch, here):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if here:
        monkeypatch.setenv("OMP_NUM_THREADS", here)
    bundle = Bundle(tmp_path / "a.bundle", sd_manifest)
    baselines = [find_baseline(name) for name in ("torch-eager", "optimum-onnxruntime")]
    plan, null = Plan((), threads=1, peers=tmp_path), [load_profile("null")]
    found = contenders_of(bundle, plan, REQUEST, null, baselines, tmp_path, "run")
    assert [one.environment["OMP_NUM_THREADS"] for one in found] == ["1"] * 3
    assert [UNBOUND in one.leaves_out for one in found] == [False, False, True]
    common = {"run": "r", "time": "t", "latentc": "1", "machine": machine(), "environment": {"OMP_NUM_THREADS": "4"}}
    for one in found:
        row = row_of(one, REQUEST, None, (), common, tmp_path)
        assert row.environment == {"OMP_NUM_THREADS": "1"}
    free = contenders_of(bundle, Plan((), peers=tmp_path), REQUEST, null, baselines, tmp_path, "run")
    assert not any(UNBOUND in one.leaves_out for one in free)
