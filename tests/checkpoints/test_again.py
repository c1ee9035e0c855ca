"""What is said of a checkpoint that is open already: as if it had been opened with it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import open_checkpoint
from latentc.core.errors import CheckpointError
from latentc.export.scheduler import settle

CHOICES = {"prediction": "v_prediction", "spacing": "trailing", "zero_snr": True, "size": 256}


def same(one, other):
    assert (one.scheduler, one.size, one.trained_for) == (other.scheduler, other.size, other.trained_for)
    assert (one.notices, one.doubts, one.configs) == (other.notices, other.doubts, other.configs)


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("choices", [*({key: value} for key, value in CHOICES.items()), CHOICES])
def test_an_open_one_is_told_as_a_name_is(kind, choices, checkpoint, single_file):
    name = str((checkpoint if kind == "folder" else single_file)("sdxl"))
    opened = open_checkpoint(name)
    again = open_checkpoint(opened, **choices)
    same(again, open_checkpoint(name, **choices))
    assert again != opened


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_was_said_before_stays(kind, checkpoint, single_file):
    name = str((checkpoint if kind == "folder" else single_file)("sd1"))
    components = {"vae": str(checkpoint("sd1"))}
    opened = open_checkpoint(name, prediction="v_prediction", size=128, components=components)
    again = open_checkpoint(opened, spacing="trailing", size=256)
    same(
        again,
        open_checkpoint(name, prediction="v_prediction", spacing="trailing", size=256, components=components),
    )
    assert again.others == opened.others


def test_doubts_are_answered(single_file, tmp_path):
    path = tmp_path / "doubtful.safetensors"
    tensors = load_file(single_file("sdxl")) | {"v_pred": torch.tensor([])}
    save_file(tensors, path, metadata={"modelspec.prediction_type": "epsilon"})
    opened = open_checkpoint(str(path))
    assert opened.doubts
    answered = settle(open_checkpoint(opened, prediction="v_prediction"), None)
    assert answered.scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"variant": "fp16"}, "variant would"),
        ({"revision": "main"}, "revision would"),
        ({"components": {"vae": "scenes"}, "variant": "fp16"}, "variant and components would"),
    ],
)
def test_other_files_are_refused(more, named, checkpoint):
    opened = open_checkpoint(str(checkpoint("sd1")))
    with pytest.raises(CheckpointError, match=f"is already open, and {named} change which files are read"):
        open_checkpoint(opened, **more)
