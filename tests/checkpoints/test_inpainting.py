"""Checkpoints for inpainting, whose UNets have nine input channels."""

import pytest

from latentc.checkpoints import find_family, open_checkpoint
from latentc.core.errors import CheckpointError


@pytest.mark.parametrize("family", ["sd1_inpainting", "sdxl_inpainting"])
def test_a_single_file_is_recognized_by_its_first_convolution(checkpoint, single_file, family):
    read, folder = open_checkpoint(str(single_file(family))), open_checkpoint(str(checkpoint(family)))
    assert read.family == folder.family == find_family(family)
    assert read.configs["unet"]["in_channels"] == 9
    assert read.model_index["_class_name"] == folder.family.pipeline
    ours, theirs = read.module("unet").state_dict(), folder.module("unet").state_dict()
    assert ours["conv_in.weight"].shape == (32, 9, 3, 3)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_unet_for_inpainting_does_not_replace_another(checkpoint):
    with pytest.raises(CheckpointError, match="is a UNet of Stable Diffusion 1 Inpainting, but the checkpoint is"):
        open_checkpoint(str(checkpoint("sd1")), components={"unet": str(checkpoint("sd1_inpainting"))})


def test_the_rows_of_families():
    for alias, name, pixels in (
        ("sd15-inpainting", "sd1_inpainting", 512),
        ("sd2-inpainting", "sd2_inpainting", 512),
        ("sdxl-inpainting", "sdxl_inpainting", 1024),
    ):
        family = find_family(alias)
        assert (family.name, family.pixels, family.tasks) == (name, pixels, ("inpaint",))
        assert family.config("unet")["in_channels"] == 9
        plain = find_family(name.removesuffix("_inpainting"))
        assert family.config("vae") == plain.config("vae")
        assert family.pipeline == plain.pipeline.replace("Pipeline", "InpaintPipeline")
        assert not family.flow_matching
    assert find_family("sd2-inpainting").config("scheduler")["prediction_type"] == "epsilon"
