"""Tiny decoders (taesd): layouts, what fits a checkpoint, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.parts import as_part, part_spec, part_specs
from latentc.core.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    """The folder of a small AutoencoderTiny with random weights. Don't change it."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(3)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    model = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1, 2, 1), num_decoder_blocks=(2, 1, 3, 1))
    folder = tmp_path_factory.mktemp("tiny") / "taesd"
    model.save_pretrained(folder)
    return folder


def original(folder, half):
    """The tensors of one half as taesd's own code names them: diffusers' conversion backwards."""
    found = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        owner, _, place, rest = name.split(".", 3)
        if owner == half:
            found[f"{int(place) + (half == 'decoder')}.{rest}"] = tensor
    return found


def as_given(folder, layout, place):
    """The same model as a folder, or as a file of that layout."""
    if layout == "folder":
        return folder
    tensors = load_file(folder / WEIGHTS)
    if layout == "decoder alone":
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}
    path = place / "tiny.safetensors"
    save_file(original(folder, "decoder") if layout == "original" else tensors, path)
    return path


@pytest.mark.parametrize("layout", ["folder", "file", "decoder alone", "original"])
def test_every_layout_decodes_as_diffusers_does(checkpoint, taesd, tmp_path, layout):
    from diffusers import AutoencoderTiny

    given = as_given(taesd, layout, tmp_path)
    opened = open_checkpoint(str(checkpoint("sd1")), components={"tiny_vae": str(given)})
    assert [spec.name for spec in part_specs(opened) if spec.component == "tiny_vae"] == ["tiny_vae_decoder"]
    part = as_part(opened, part_spec(opened, "tiny_vae_decoder"))
    assert not hasattr(part.model, "encoder")
    latents = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1)) * 2
    with torch.no_grad():
        wanted = AutoencoderTiny.from_pretrained(taesd, local_files_only=True).decode(latents).sample
        (found,) = part(latents)
    torch.testing.assert_close(found, wanted)
    fields = ("num_decoder_blocks", "decoder_block_out_channels", "latent_channels", "out_channels", "latent_magnitude")
    stored = json.loads((taesd / "config.json").read_text())
    assert {name: list_of(opened.configs["tiny_vae"][name]) for name in fields} == {
        name: list_of(stored[name]) for name in fields
    }


def list_of(value):
    return list(value) if isinstance(value, list | tuple) else value


def changed_config(folder, place, **changes):
    """A copy of a model's folder with other fields in its config."""
    place.mkdir()
    (place / WEIGHTS).symlink_to(folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling_factor": 0.18215}, "scaling_factor = 0.18215, but 1 was expected"),
        ({"shift_factor": 0.0609}, "shift_factor = 0.0609, but 0 was expected"),
        (
            {"upsampling_scaling_factor": 1},
            "makes 1 pixels of a latent along each side, but the checkpoint's VAE",
        ),
        (
            {"_class_name": "AutoencoderKL"},
            "holds the class AutoencoderKL, which is not supported here; AutoencoderTiny was",
        ),
        ({"decoder_block_out_channels": 8}, "decoder_block_out_channels = 8, but a list"),
        ({"use_midblock_gn": True}, "a field 'use_midblock_gn' = True, which AutoencoderTiny does not know"),
        ({"num_decoder_blocks": [1, 1, 1, 1]}, "which AutoencoderTiny with this config does not have|has no tensor"),
    ],
)
def test_other_configs_are_refused(checkpoint, taesd, tmp_path, changes, words):
    folder = changed_config(taesd, tmp_path / "changed", **changes)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(str(checkpoint("sd1")), components={"tiny_vae": str(folder)}).check_modules()


def test_other_files_are_refused(checkpoint, taesd, tmp_path):
    path = tmp_path / "given.safetensors"
    vae = load_file(checkpoint("sd1") / "vae" / WEIGHTS)
    for tensors, words in (
        (original(taesd, "encoder"), "is the encoder of a tiny autoencoder. Pass its decoder"),
        (vae, "holds no tiny decoder. To use its VAE instead of the checkpoint's own, pass it with --vae"),
        ({"weight": torch.zeros(2)}, "holds no tiny decoder that latentc recognizes .its first tensor is 'weight'"),
        ({"1.weight": torch.zeros(2, 4, 3, 3)}, "holds no tiny decoder that latentc recognizes"),
        (original(taesd, "decoder") | {"norm.weight": torch.zeros(2)}, "holds tensor 'norm.weight'|has no tensor"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(str(checkpoint("sd1")), components={"tiny_vae": str(path)}).check_modules()


def test_other_latents_are_refused(checkpoint, tmp_path):
    from diffusers import AutoencoderTiny

    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "latent_channels": 16}
    AutoencoderTiny(**widths).save_pretrained(tmp_path / "taesd3")
    with pytest.raises(CheckpointError, match="latents of 16 channels, but the checkpoint's have 4. Pass the tiny"):
        open_checkpoint(str(checkpoint("sd1")), components={"tiny_vae": str(tmp_path / "taesd3")})


def test_video_models_take_none(checkpoint, taesd):
    with pytest.raises(CheckpointError, match="whose components cannot be replaced. Leave out --tiny-vae"):
        open_checkpoint(str(checkpoint("svd")), components={"tiny_vae": str(taesd)})


def test_models_for_inpainting_take_none(checkpoint, taesd):
    with pytest.raises(CheckpointError, match="Tiny decoders of models that need an image are not supported yet"):
        open_checkpoint(str(checkpoint("sd1_inpainting")), components={"tiny_vae": str(taesd)})
