"""Stable Diffusion 3's single files open as the folder that they were made from, wherever their text encoders are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.original_mmdit import in_folder
from latentc.checkpoints.stored import kept_as
from latentc.core.errors import CheckpointError

FAMILIES = ("sd3", "sd35m", "sd35l")
UNTOLD = {"sample_size", "torch_dtype"}
UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.fixture
def single(mmdit_file, tmp_path):
    """`single(family)`: a whole file, and a folder with one file for all but the text encoders and their own files."""

    def make(family):
        plain, texts = mmdit_file(family)
        inside = {
            f"text_encoders.{stem}.transformer.{name}": t for stem, one in texts.items() for name, t in one.items()
        }
        save_file(plain | inside, tmp_path / "whole.safetensors")
        (tmp_path / "apart" / "text_encoders").mkdir(parents=True)
        save_file(plain, tmp_path / "apart" / "model.safetensors")
        for stem, one in texts.items():
            name = "t5xxl_fp16" if stem == "t5xxl" else stem
            save_file(one, tmp_path / "apart" / "text_encoders" / f"{name}.safetensors")
        return tmp_path

    return make


def equal(folder, file):
    for component in folder.configs:
        theirs, ours = folder.module(component).state_dict(), file.module(component).state_dict()
        assert list(theirs) == list(ours)
        for name, tensor in theirs.items():
            assert torch.equal(tensor, ours[name]), name
        wanted, found = folder.configs[component], file.configs[component]
        assert {key for key in wanted | found if wanted.get(key) != found.get(key)} <= UNTOLD
    assert file.scheduler == folder.scheduler
    assert file.family == folder.family


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_file_and_separate_encoders_are_the_folder(family, checkpoint, single):
    place, folder = single(family), open_checkpoint(str(checkpoint(family)))
    equal(folder, open_checkpoint(str(place / "whole.safetensors")))
    apart = open_checkpoint(str(place / "apart" / "model.safetensors"))
    equal(folder, apart)
    assert "text_encoder_3 is read from t5xxl_fp16.safetensors." in apart.notices
    assert apart.others.keys() == {"text_encoder", "text_encoder_2", "text_encoder_3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_transformer_is_what_diffusers_converts(family, checkpoint, mmdit_file):
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as convert

    stored = {name: t for name, t in mmdit_file(family)[0].items() if name.startswith(UNET)}
    theirs = convert({name: tensor.clone() for name, tensor in stored.items()})
    ours = open_checkpoint(str(checkpoint(family))).module("transformer").state_dict()
    theirs = {name: tensor for name, tensor in theirs.items() if tensor is not None}
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), name


def test_full_sizes_are_recognized(named_mmdit, tmp_path):
    """By the shapes of a transformer's tensors alone."""
    from latentc.checkpoints import find_family
    from latentc.checkpoints.modules import build
    from latentc.checkpoints.original_mmdit import mmdit_family

    for name in FAMILIES:
        facts = find_family(name)
        config = facts.config("transformer")
        named = named_mmdit(build(facts.component("transformer"), config).state_dict())
        family, found = mmdit_family(tmp_path, {key: tuple(tensor.shape) for key, tensor in named.items()})
        assert family.name == name
        assert {key for key in config | found if config.get(key) != found.get(key)} <= {
            "qk_norm",
            "dual_attention_layers",
        }
        assert found.get("qk_norm") == config.get("qk_norm")
        assert found.get("dual_attention_layers", []) == config.get("dual_attention_layers", [])


def test_t5_may_be_left_out_and_is_said(checkpoint, single):
    place = single("sd3")
    (place / "apart" / "text_encoders" / "t5xxl_fp16.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no text_encoder_3, and .*t5xxl_fp16.safetensors.*--without-t5"):
        open_checkpoint(str(place / "apart" / "model.safetensors"))
    for name in ("apart/model.safetensors", "whole.safetensors"):
        opened = open_checkpoint(str(place / name), without=["text_encoder_3"])
        assert "text_encoder_3" not in opened.configs
        assert "zeros replace its embeddings" in opened.notices[0]
        assert opened.left_out == ("text_encoder_3",)
    folder = open_checkpoint(str(checkpoint("sd3")), without=["text_encoder_3"])
    assert folder.family == opened.family
    assert [one for one in folder.notices if "text_encoder_3" in one or "tokenizer_3" in one] == [opened.notices[0]]
    with pytest.raises(CheckpointError, match="needs its text_encoder_2: it cannot be left out"):
        open_checkpoint(str(checkpoint("sd3")), without=["text_encoder_2"])


def test_a_folder_without_t5_is_opened_as_diffusers_does(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("sd35m"), tmp_path / "own")
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]})
    )
    opened = open_checkpoint(str(folder))
    assert opened.family.encoders == ("text_encoder", "text_encoder_2")
    assert any("zeros replace" in one for one in opened.notices)
    assert opened.left_out == ()


def test_a_folder_of_text_encoders_is_read_or_refused(single, tmp_path):
    place = single("sd3") / "apart"
    found = in_folder(place / "text_encoders")
    assert {name: Path(file).name for name, file in found.items()} == {
        "text_encoder": "clip_l.safetensors",
        "text_encoder_2": "clip_g.safetensors",
        "text_encoder_3": "t5xxl_fp16.safetensors",
    }
    moved = shutil.move(place / "text_encoders", tmp_path / "elsewhere")
    opened = open_checkpoint(str(place / "model.safetensors"), components=in_folder(Path(moved)))
    assert opened.others.keys() == found.keys()
    with pytest.raises(CheckpointError, match="was not found, or is not a folder. Check the path of --text-encoders"):
        in_folder(place / "text_encoders")
    with pytest.raises(CheckpointError, match="has no text encoders of Stable Diffusion 3. Files such as clip_l"):
        in_folder(place)


@pytest.mark.parametrize("stem", ["clip_l", "clip_g"])
def test_clip_is_needed(stem, single):
    place = single("sd3")
    (place / "apart" / "text_encoders" / f"{stem}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"has no {stem}.safetensors. Download it there, or pass the folder"):
        open_checkpoint(str(place / "apart" / "model.safetensors"))


def test_swapped_files_of_clip_are_refused(single):
    """Together they are as wide as in the right order."""
    texts = single("sd3") / "apart" / "text_encoders"
    (texts / "clip_l.safetensors").rename(texts / "other")
    (texts / "clip_g.safetensors").rename(texts / "clip_l.safetensors")
    (texts / "other").rename(texts / "clip_g.safetensors")
    with pytest.raises(CheckpointError, match="are swapped: text_encoder is 16 wide and text_encoder_2 is 8 wide"):
        open_checkpoint(str(texts.parent / "model.safetensors"))


def test_swapped_folders_of_clip_are_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("sd3"), tmp_path / "own")
    (folder / "text_encoder").rename(folder / "other")
    (folder / "text_encoder_2").rename(folder / "text_encoder")
    (folder / "other").rename(folder / "text_encoder_2")
    with pytest.raises(CheckpointError, match="are swapped: text_encoder is 16 wide and text_encoder_2 is 8 wide"):
        open_checkpoint(str(folder))


def test_a_projection_that_is_missing_is_the_identity(single):
    place = single("sd3")
    file = place / "apart" / "text_encoders" / "clip_l.safetensors"
    tensors = load_file(file)
    tensors.pop("text_projection.weight")
    save_file(tensors, file)
    module = open_checkpoint(str(place / "apart" / "model.safetensors")).module("text_encoder")
    assert torch.equal(module.state_dict()["text_projection.weight"], torch.eye(8))


def test_t5_may_hold_its_table_twice_or_under_the_other_name(single):
    place = single("sd3")
    file = place / "apart" / "text_encoders" / "t5xxl_fp16.safetensors"
    plain = load_file(file)
    wanted = open_checkpoint(str(place / "apart" / "model.safetensors")).module("text_encoder_3").state_dict()
    other = {name: t for name, t in plain.items() if name != "shared.weight"}
    other["encoder.embed_tokens.weight"] = plain["shared.weight"]
    for tensors in (other, other | {"shared.weight": plain["shared.weight"].clone()}):
        save_file(tensors, file)
        found = open_checkpoint(str(place / "apart" / "model.safetensors")).module("text_encoder_3").state_dict()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_fp8_is_kept_as_f16_which_holds_it(single):
    place = single("sd3")
    file = place / "apart" / "text_encoders" / "t5xxl_fp16.safetensors"
    narrow = {name: t.to(torch.float8_e4m3fn) for name, t in load_file(file).items()}
    file.unlink()
    save_file(narrow, file.with_name("t5xxl_fp8_e4m3fn.safetensors"))
    opened = open_checkpoint(str(place / "apart" / "model.safetensors"))
    assert kept_as(opened.weights["text_encoder_3"].values()) == "f16"
    assert kept_as(opened.weights["text_encoder"].values()) == "f32"
    half = opened.module("text_encoder_3", dtype=torch.float16).state_dict()
    for name, tensor in narrow.items():
        assert torch.equal(half[name].float(), tensor.float())


def test_what_does_not_belong_is_refused(checkpoint, single, mmdit_file):
    place = single("sd3")
    plain, _ = mmdit_file("sd3")
    apart = place / "apart" / "model.safetensors"

    def refused(tensors, match, **given):
        save_file(tensors, apart)
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(str(apart), **given).check_modules()

    refused({name: t for name, t in plain.items() if not name.startswith(VAE)}, "has a transformer but no VAE")
    refused(plain | {UNET + "joint_blocks.0.x_block.lora": torch.ones(2)}, "joint_blocks.0.x_block.lora")
    refused(plain | {UNET + "input_blocks.0.0.weight": torch.ones(2)}, "both a transformer and a UNet")
    gone = {name: t for name, t in plain.items() if "joint_blocks.1.x_block.attn.qkv.weight" not in name}
    refused(gone, "has no tensor 'transformer_blocks.1.attn.to_k.weight'")
    refused(plain, "has no prediction_type", prediction="epsilon")
    refused(plain, "Leave out --unet", components={"unet": str(checkpoint("sd1") / "unet")})
    refused(plain, "is a transformer of Stable Diffusion 3", components={"unet": str(apart)})
    refused(plain, "'nowhere' is not a file", components={"text_encoder_3": "nowhere"})
    given = str(place / "apart" / "text_encoders" / "t5xxl_fp16.safetensors")
    with pytest.raises(CheckpointError, match="has its own text encoders, so text_encoder_3 cannot be read"):
        open_checkpoint(str(checkpoint("sd3")), components={"text_encoder_3": given})
