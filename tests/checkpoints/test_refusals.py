"""What isn't opened: damaged, disguised, pickled and unsupported checkpoints, each by a clear sentence."""

import json
import pickle
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import open_checkpoint
from latentc.core.errors import CheckpointError


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was opened')",))


def refused(name, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(str(name))
    assert str(name) in str(caught.value)
    assert len(str(caught.value).split(". ")) > 1, "the message says what to do next"


def with_header(path, header, data=b"", length=None):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head + data)
    return path


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused_by_name(ending, tmp_path):
    path = tmp_path / f"model{ending}"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "is a pickle .*convert it")


def test_renamed_pickles_are_refused_unopened(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb(), protocol=2) + b" " * 64)
    refused(path, "is a pickle")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    refused(path, "is a zip of pickled tensors")
    torch.save({"a": torch.ones(3)}, path)
    refused(path, "is a zip of pickled tensors")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it has only 0 bytes"),
        (b"12345678", "it has only 8 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"GGUF" + b"\0" * 64, "a GGUF file"),
        (b"\x00" * 64, "not valid JSON"),
        (b"\xff" * 64, "header claims"),
    ],
)
def test_other_files_are_told(content, match, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path, match)


@pytest.mark.parametrize(
    ("header", "data", "match"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "tensor 'b' overlaps 'a'"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "tensor 'b' overlaps 'a'"),
        ({"a": entry(0, 400)}, 8, "tensor 'a' ends at byte"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "a gap before tensor 'b'"),
        ({"a": entry(0, 8)}, 20, "12 bytes follow"),
        ({"a": entry(0, 8, shape=[3])}, 8, "tensor 'a' of F32 .* does not have 8 bytes"),
        ({"a": entry(0, 8, shape=[-2])}, 8, "tensor 'a' has an impossible shape"),
        ({"a": entry(0, 8, shape=[True, 2])}, 8, "tensor 'a' has an impossible shape"),
        ({"a": entry(0, 8, shape=[2**70])}, 8, "does not have 8 bytes"),
        ({"a": entry(8, 0, shape=[2])}, 8, "impossible shape or offset"),
        ({"a": entry(0, 8, dtype="Q4")}, 8, "tensor 'a' of dtype 'Q4'"),
        ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, 8, "tensor 'a' of dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "tensor 'a' has no dtype, shape and data_offsets"),
        ({"a": 5}, 8, "tensor 'a' has no dtype, shape and data_offsets"),
        ([1, 2], 8, "not a JSON object"),
        (b'{"a": 1, "a": 2}', 8, "duplicate name"),
        (b"{" * 100_000, 8, "not valid JSON"),
        (b'{"\xff": 1}', 8, "not valid JSON"),
    ],
)
def test_damaged_headers_are_refused_with_the_tensors_name(header, data, match, tmp_path):
    refused(with_header(tmp_path / "model.safetensors", header, b"\0" * data), match)


def test_huge_headers_are_refused_unread(tmp_path):
    path = with_header(tmp_path / "model.safetensors", b"{}", length=2**40)
    refused(path, "claims 1099511627776 bytes, but the limit is 100000000")


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_truncated_files_are_refused(part, single_file, tmp_path):
    content = single_file("sd1").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(part * len(content))])
    refused(path, "it is truncated")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight", "lora_unet_down_blocks_0.lora_down.weight"], "is a LoRA"),
        (["unet.down_blocks.0.attn.to_q.lora_A.weight"], "is a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["joint_blocks.0.context_block.adaLN_modulation.1.bias"], "a transformer of Stable Diffusion 3"),
        (["model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias"], "but no VAE"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        (["conditioner.embedders.0.model.ln_final.weight"], "Stable Diffusion XL Refiner but no UNet"),
        (["edm_mean", "conditioner.embedders.1.model.ln_final.weight"], "Playground"),
        (["emb_params"], "textual inversion"),
        (["first_stage_model.decoder.conv_in.weight"], "is a VAE alone"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "is a VAE alone"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a UNet alone .with diffusers' names., not a whole checkpoint"),
        (["text_model.final_layer_norm.weight"], "text encoder"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "holds no text encoder"),
        (["cond_stage_model.transformer.x", "first_stage_model.decoder.conv_in.weight"], "no UNet|VAE alone"),
        (["cond_stage_model.transformer.x", "model.diffusion_model.out.0.weight"], "no VAE"),
        (["something.else"], "holds no text encoder .*'something.else'"),
    ],
)
def test_other_kinds_of_files_are_told(names, match, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: torch.ones(2) for name in names}, path)
    refused(path, match)


def test_an_empty_file_of_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "contains no tensors")


@pytest.mark.parametrize(("channels", "match"), [(5, "depth-to-image"), (6, "unknown")])
def test_other_unets_are_told_in_a_file(channels, match, single_file, tmp_path):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors = load_file(single_file("sd1"))
    tensors[name] = torch.ones(32, channels, 3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", match)


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("unet/config.json", {"class_embed_type": "projection"}, "unknown kind .*class_embed_type"),
        ("unet/config.json", {"addition_embed_type": "image"}, "matches no known family"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "holds the class UNet3DConditionModel"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "holds the class AutoencoderTiny"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "holds the class T5EncoderModel"),
        ("text_encoder/config.json", {"architectures": 5}, "holds the class 5"),
        (
            "unet/config.json",
            {"cross_attention_dim": [32, 32]},
            "cross_attention_dim = .*; an integer was expected",
        ),
        ("vae/config.json", {"block_out_channels": 3}, "block_out_channels = 3; a list was expected"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "models have a transformer"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "a Flux checkpoint"),
        ("model_index.json", {"_class_name": "SomethingPipeline"}, "is a SomethingPipeline"),
        ("model_index.json", {"text_encoder": [None, None]}, "has no text_encoder"),
    ],
)
def test_other_kinds_of_folders_are_told(file, changes, match, own):
    folder = own()
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(folder, match)


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_folders_that_lack_a_file_are_refused(file, own):
    folder = own()
    (folder / file).unlink()
    refused(folder, "missing|has no weights")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "{" * 100_000, "\udcff"])
def test_configs_that_are_no_json_are_refused(content, own):
    folder = own()
    (folder / "vae" / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(folder, "not valid JSON|expected a JSON object")


def test_a_folder_of_pickles_is_refused_by_name(own):
    folder = own()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, r"only a pickle, diffusion_pytorch_model\.bin.*Convert it")


def test_a_folder_without_an_index_is_told(tmp_path):
    refused(tmp_path, "has no model_index.json")
    (tmp_path / "model.ckpt").touch()
    refused(tmp_path, "only pickles")
    (tmp_path / "one.safetensors").touch()
    refused(tmp_path, r"pass .*one\.safetensors")


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "model.bin", "..\\x.safetensors", 5])
def test_shards_elsewhere_are_refused(shard, own):
    folder = own()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
    with pytest.raises(CheckpointError, match="not a .safetensors file in the same folder"):
        open_checkpoint(str(folder))


def test_shards_that_lack_a_tensor_are_refused(own):
    folder = own()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file = file.rename(file.with_name("part.safetensors"))
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for weights, match in (
        ({"nothing.weight": "part.safetensors"}, "'nothing.weight' in part.safetensors, which does not hold it"),
        ({}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weights}))
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(str(folder))


def change(folder, component, edit):
    path = next((folder / component).glob("*.safetensors"))
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})
    return open_checkpoint(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("component", "name"), [("unet", "conv_in.weight"), ("vae", "decoder.conv_out.bias")])
def test_weights_that_are_not_finite_are_named(component, name, value, own):
    def spoil(tensors):
        tensors[name].view(-1)[1] = value

    opened = change(own(), component, spoil)
    with pytest.raises(CheckpointError, match=f"'{name}' .*NaN or Inf"):
        opened.module(component)


def test_large_but_finite_weights_pass(own):
    opened = change(own(), "unet", lambda tensors: tensors["conv_in.weight"].fill_(3e38))
    opened.module("unet")
    with pytest.raises(CheckpointError, match=r"NaN or Inf \(as torch.float16\)"):
        opened.module("unet", dtype=torch.float16)


def test_tensors_that_dont_fit_the_config_are_named(own):
    folder = own()
    with pytest.raises(CheckpointError, match=r"has no tensor 'conv_in.bias' \(1 missing"):
        change(folder, "unet", lambda tensors: tensors.pop("conv_in.bias")).module("unet")
    with pytest.raises(CheckpointError, match=r"shape \[7\], but its config requires \[32\]"):
        change(folder, "unet", lambda tensors: tensors.update({"conv_in.bias": torch.ones(7)})).module("unet")
    whole = torch.ones(32, dtype=torch.int8)
    with pytest.raises(CheckpointError, match="is I8: quantized"):
        change(folder, "unet", lambda tensors: tensors.update({"conv_in.bias": whole})).module("unet")
    with pytest.raises(CheckpointError, match=r"holds tensor 'extra'.*UNet2DConditionModel"):
        change(
            folder, "unet", lambda tensors: tensors.update({"conv_in.bias": torch.ones(32), "extra": torch.ones(1)})
        ).module("unet")


def test_a_config_that_its_library_refuses_is_told(own):
    folder = own()
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"down_block_types": ["NoBlock"]}))
    with pytest.raises(CheckpointError, match="does not accept the config of unet"):
        open_checkpoint(str(folder)).module("unet")


def test_a_file_that_changes_after_opening_is_told(own):
    folder = own()
    opened = open_checkpoint(str(folder))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"gone")
    with pytest.raises(CheckpointError, match="cannot be read|not a valid"):
        opened.module("vae")
    with pytest.raises(CheckpointError, match="ended inside tensor"):
        opened.digest("vae")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        opened.module("vae")
    with pytest.raises(CheckpointError, match="cannot be read"):
        opened.digest("vae")


@pytest.mark.parametrize(
    "name", ["nothing-here", "./no/such", "/no/such/folder", "no/such.safetensors", "x/y.ckpt", ""]
)
def test_names_of_nothing_are_refused(name):
    with pytest.raises(CheckpointError, match="was not found|no model_index.json"):
        open_checkpoint(name)


def test_git_lfs_pointers_are_named_wherever_they_stand(checkpoint, tmp_path):
    """Every file that is read of a folder: configs, weights and tokenizers."""
    folder = tmp_path / "cloned"
    shutil.copytree(checkpoint("sd1"), folder)
    read = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    read += ["tokenizer/tokenizer_config.json"]
    for part in ("unet", "vae", "text_encoder"):
        read += [f"{part}/config.json", next((folder / part).glob("*.safetensors")).relative_to(folder).as_posix()]
    for name in read:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n")
        with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer.*Run `git lfs pull`"):
            open_checkpoint(str(folder)).tokenizer_files("tokenizer")
        (folder / name).write_bytes(kept)
