"""Random checkpoints: the same anywhere, labelled, healthy, and whole or not there."""

import json
import logging
import shutil
import warnings

import diffusers
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from latentc.checkpoints import find_family, new_checkpoint, open_checkpoint
from latentc.core.errors import CheckpointError

FAMILIES = ("sd1", "sd2", "sdxl")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def encoder(opened):
    """`embed(text)`: prompt embeddings and what goes with them, as the family's facts say."""
    family = opened.family
    last = any(wire.name == "last_hidden_state" for wire in family.wires)
    parts = []
    for facts in opened.family.tokenizers:
        tokenizer = Tokenizer.from_str(opened.tokenizer_files(facts.name)["tokenizer.json"].decode())
        parts.append((facts.encoder, tokenizer, opened.module(facts.encoder)))

    def embed(text):
        states, added = [], {}
        for name, tokenizer, module in parts:
            output = module(torch.tensor([tokenizer.encode(text).ids]), output_hidden_states=True)
            states.append(output.last_hidden_state if last else output.hidden_states[-2])
            if family.pooled == name:
                added["text_embeds"] = output.text_embeds
        if family.pooled:
            added["time_ids"] = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
        return torch.cat(states, -1), added

    return embed


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_bytes(family, checkpoint, tmp_path):
    again = new_checkpoint(family, "tiny", 1, tmp_path / "again")
    assert files(again) == files(checkpoint(family))
    other = new_checkpoint(family, "tiny", 2, tmp_path / "other")
    same = {name for name, content in files(other).items() if files(again)[name] == content}
    assert not any(name.endswith(".safetensors") for name in same)


def test_the_bytes_are_the_same_on_every_machine(checkpoint):
    """If this changes on purpose, what others computed with an older version can't be compared any more."""
    assert open_checkpoint(str(checkpoint("sd1"))).digest("vae")[:16] == "b8e27b1ee9c9db82"


def test_values_depend_on_the_tensors_name_alone(checkpoint):
    """The VAE is the same in two families, since its tensors are."""
    one, two = (open_checkpoint(str(checkpoint(family))).module("vae") for family in ("sd1", "sdxl"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_small_and_labelled(family, checkpoint):
    folder = checkpoint(family)
    assert sum(map(len, files(folder).values())) < 13e6
    label = json.loads((folder / "model_index.json").read_text())["_latentc_random"]
    assert label == {"family": family, "size": "tiny", "seed": 1}
    assert "random noise" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_signals_neither_vanish_nor_explode_and_inputs_matter(family, checkpoint):
    opened = open_checkpoint(str(checkpoint(family)))
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 16, 16)
    unet, vae, embed = opened.module("unet"), opened.module("vae"), encoder(opened)

    def denoise(text, step):
        states, added = embed(text)
        return unet(latents, step, states, added_cond_kwargs=added).sample

    with torch.inference_mode():
        noise = denoise("a photo of a cat", 500)
        picture = vae.decode(latents / opened.configs["vae"]["scaling_factor"]).sample
        encoded = vae.encode(picture).latent_dist.mean
        states, _ = embed("a photo of a cat")
        for signal in (noise, picture, encoded, states):
            assert torch.isfinite(signal).all()
            assert 0.05 < signal.std() < 20
        assert (denoise("a red castle", 500) - noise).std() > 0.1 * noise.std()
        assert (denoise("a photo of a cat", 100) - noise).std() > 0.05 * noise.std()
    # Colourful blobs: not grey, not saturated, and neighbours are alike.
    assert 0.2 < picture.std() < 0.9
    assert (picture.abs() > 1).float().mean() < 0.25
    assert picture.mean(dim=1, keepdim=True).sub(picture).std() > 0.1
    assert (picture[..., 1:] - picture[..., :-1]).std() < 0.5 * picture.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_own_pipeline_opens_it_and_draws(family, checkpoint, caplog):
    facts = find_family(family)
    for library in ("diffusers", "transformers"):  # they don't hand their records on
        logging.getLogger(library).addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the versions of other libraries
        pipeline = getattr(diffusers, facts.pipeline).from_pretrained(checkpoint(family))
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline("a cat", num_inference_steps=2, generator=torch.manual_seed(0), output_type="np")
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).removeHandler(caplog.handler)
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [message for message in told if "torchvision" not in message]
    assert drawn.images.shape == (1, 128, 128, 3)
    assert np.isfinite(drawn.images).all()


@pytest.mark.slow
def test_half_precision_on_demand(checkpoint, tmp_path):
    half = open_checkpoint(str(new_checkpoint("sd15", "tiny", 1, tmp_path / "half", dtype="f16")))
    plain = open_checkpoint(str(checkpoint("sd1")))
    for component in plain.configs:
        pairs = zip(plain.module(component).parameters(), half.module(component).parameters(), strict=True)
        assert all(torch.equal(a.half().float(), b) for a, b in pairs)


def test_progress_is_told(tmp_path):
    told = []
    new_checkpoint("sd1", "tiny", 0, tmp_path / "new", on_progress=lambda what, share: told.append((what, share)))
    assert list(dict.fromkeys(what for what, _ in told)) == ["text_encoder", "unet", "vae"]
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("sd9", "tiny", 0), "'sd9' is not a known family"),
        (("sd1", "huge", 0), "'huge' is not a valid size"),
        (("sd1", "tiny", -1), "seed -1 is out of range"),
        (("sd1", "tiny", 1 << 63), "out of range"),
    ],
)
def test_unknown_arguments_are_refused(arguments, match, tmp_path):
    with pytest.raises(CheckpointError, match=match):
        new_checkpoint(*arguments, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="'f8' is not a supported dtype"):
        new_checkpoint("sd1", "tiny", 0, tmp_path / "new", dtype="f8")


def test_a_folder_in_use_is_refused_and_an_empty_one_is_taken(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()
    with pytest.raises(CheckpointError, match="is not empty"):
        new_checkpoint("sd1", "tiny", 0, tmp_path / "new")
    (tmp_path / "new" / "mine").unlink()
    new_checkpoint("sd1", "tiny", 0, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not empty"):
        new_checkpoint("sd1", "tiny", 0, tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        new_checkpoint("sd1", "tiny", 0, tmp_path / "file" / "new")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_is_left_of_one_that_fails(error, tmp_path):
    def stop(component, share):
        if component == "unet":
            raise error

    with pytest.raises((KeyboardInterrupt, CheckpointError), match="No space left|"):
        new_checkpoint("sd1", "tiny", 0, tmp_path / "new", on_progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20, "total": 1 << 30}))
    with pytest.raises(CheckpointError, match="are free"):
        new_checkpoint("sd1", "full", 0, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_optional_text_encoder_is_left_out(checkpoint, tmp_path):
    folder = new_checkpoint("sd3", "tiny", 1, tmp_path / "new", without=("text_encoder_3",))
    whole = checkpoint("sd3")
    assert not (folder / "text_encoder_3").exists()
    assert (whole / "text_encoder_3").is_dir()
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert "text_encoder_3" not in open_checkpoint(str(folder)).weights
    with pytest.raises(CheckpointError, match="needs its text_encoder_2: it cannot be left out"):
        new_checkpoint("sd3", "tiny", 1, tmp_path / "other", without=("text_encoder_2",))
