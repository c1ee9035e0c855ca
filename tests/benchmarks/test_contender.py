"""What a baseline opens: the checkpoint's folder, where it draws as the bundle does."""

import json

import pytest

from latentc.benchmarks.contender import _checkpoint_folder
from latentc.core.bundle import Bundle
from latentc.core.errors import CheckpointError


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
    from latentc.core.bundle import Manifest, Model, Source, TextEncoder

    encoder = TextEncoder(part="text_encoder", tokenizer="tokenizer", embedding="last_hidden_state")
    model = Model(text_encoders=(encoder,), latent_channels=4, downscale=8, scaling_factor=0.18215, default_size=128)
    source = Source(kind="folder", location="")
    return Manifest(latentc="0", family="sd1", source=source, model=model, parts={}, files={}, versions={})


def test_it_opens_the_folder(of_folder, checkpoint):
    assert _checkpoint_folder(of_folder()) == str(checkpoint("sd1"))


@pytest.mark.parametrize("changes", [{"timestep_spacing": "trailing"}, {"_class_name": "EulerDiscreteScheduler"}])
def test_another_scheduler_is_no_comparison(changes, of_folder):
    with pytest.raises(CheckpointError, match="another scheduler config than"):
        _checkpoint_folder(of_folder(**changes))
