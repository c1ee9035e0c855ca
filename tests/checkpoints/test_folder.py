"""Folders in diffusers' layout: plain, of half precision, sharded, of old names."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.hub import is_hub_id, wanted
from latentc.core.errors import CheckpointError

FAMILIES = ("sd1", "sd2", "sdxl")
UNET = "unet/diffusion_pytorch_model"


def inputs(component, config):
    torch.manual_seed(0)
    if component == "unet":
        feeds = {
            "sample": torch.randn(1, 4, 8, 8),
            "timestep": torch.tensor(500),
            "encoder_hidden_states": torch.randn(1, 77, config["cross_attention_dim"]),
        }
        if config.get("addition_embed_type"):
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            added = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])}
            feeds["added_cond_kwargs"] = added
        return feeds
    if component == "vae":
        return {"sample": torch.randn(1, 3, 32, 32)}
    return {"input_ids": torch.tensor([[49406, 320, 2368, *[49407] * 74]]), "output_hidden_states": True}


def outputs(module, component, config):
    with torch.inference_mode():
        found = module(**inputs(component, config), return_dict=False)
    flat = []
    for value in found:
        flat += value if isinstance(value, tuple) else [value]
    return flat


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_give_what_their_libraries_own_give(family, checkpoint):
    opened = open_checkpoint(str(checkpoint(family)))
    assert opened.family.name == family
    assert opened.source.random
    assert opened.pixels == 128
    for facts in opened.family.components:
        ours = opened.module(facts.name)
        cls = getattr(import_module(facts.library), facts.cls)
        theirs = cls.from_pretrained(checkpoint(family) / facts.name).eval()
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())
        config = opened.configs[facts.name]
        for a, b in zip(outputs(ours, facts.name, config), outputs(theirs, facts.name, config), strict=True):
            assert torch.equal(a, b)


def test_weights_come_in_the_type_asked_for(checkpoint):
    opened = open_checkpoint(str(checkpoint("sd1")))
    assert {p.dtype for p in opened.module("vae").parameters()} == {torch.float32}
    assert {p.dtype for p in opened.module("vae", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_half_precision_files_are_taken_when_there_are_no_plain_ones(own, checkpoint):
    folder = own()
    for path in list(folder.glob("*/*.safetensors")):
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"), {"format": "pt"})
        path.unlink()
    plain, half = open_checkpoint(str(checkpoint("sd1"))), open_checkpoint(str(folder))
    for component in plain.configs:
        pairs = zip(plain.module(component).parameters(), half.module(component).parameters(), strict=True)
        assert all(torch.equal(a.half().float(), b) for a, b in pairs)
        assert plain.digest(component) != half.digest(component)


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        ),
    ],
)
def test_shards_are_read_together(index, shard, own, checkpoint):
    folder = own()
    tensors = load_file(folder / f"{UNET}.safetensors")
    names = sorted(tensors)
    halves = {shard.format(1): names[::2], shard.format(2): names[1::2]}
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder / "unet" / file, {"format": "pt"})
    places = {name: file for file, held in halves.items() for name in held}
    (folder / "unet" / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / f"{UNET}.safetensors").unlink()
    ours, theirs = open_checkpoint(str(folder)), open_checkpoint(str(checkpoint("sd1")))
    pairs = zip(ours.module("unet").parameters(), theirs.module("unet").parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert ours.digest("unet") == theirs.digest("unet")


def test_names_of_old_exports_are_understood(own, checkpoint):
    """Stable Diffusion 1.5 as published: a VAE with query, key, value, a text encoder with position ids."""
    folder = own()
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    renames = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    old = {}
    for name, tensor in load_file(path).items():
        for new, before in renames.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{before}")
        old[name] = tensor[:, :, None, None] if name.endswith("query.weight") else tensor
    save_file(old, path)
    path = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    ours, theirs = open_checkpoint(str(folder)), open_checkpoint(str(checkpoint("sd1")))
    for component in ("vae", "text_encoder"):
        pairs = zip(ours.module(component).parameters(), theirs.module(component).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_who_wrote_a_config_is_not_in_the_digest(own, checkpoint):
    folder = own()
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_diffusers_version": "0.6.0", "_name_or_path": "/tmp"}))
    original = open_checkpoint(str(checkpoint("sd1"))).digest("unet")
    assert open_checkpoint(str(folder)).digest("unet") == original
    path.write_text(json.dumps(config | {"norm_eps": 1e-6}))
    assert open_checkpoint(str(folder)).digest("unet") != original


def test_prediction_is_overridden(checkpoint):
    assert open_checkpoint(str(checkpoint("sd2"))).scheduler["prediction_type"] == "v_prediction"
    opened = open_checkpoint(str(checkpoint("sd2")), prediction="epsilon")
    assert opened.scheduler["prediction_type"] == "epsilon"
    with pytest.raises(CheckpointError, match="'x' is not a valid prediction"):
        open_checkpoint(str(checkpoint("sd2")), prediction="x")


def test_unknown_components_and_families_are_named(checkpoint):
    opened = open_checkpoint(str(checkpoint("sd1")))
    with pytest.raises(CheckpointError, match=r"no component 'text_encoder_2'.* text_encoder, unet, vae"):
        opened.module("text_encoder_2")
    with pytest.raises(CheckpointError, match=r"no tokenizer 'tokenizer_2'"):
        opened.tokenizer_files("tokenizer_2")
    with pytest.raises(CheckpointError, match=r"'sd9' is not a known family.*sd21"):
        open_checkpoint(str(checkpoint("sd1")), family="sd9")


WITHOUT = """
import sys
for name in ("torch", "diffusers", "transformers", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
from latentc.checkpoints import open_checkpoint
from latentc.core.errors import RuntimeMissing
for name in sys.argv[1:]:
    opened = open_checkpoint(name)
    print(opened.family.name, len(opened.digest("vae")))
    for call in (lambda: opened.module("vae"), lambda: opened.tokenizer_files("tokenizer")):
        try:
            call()
        except RuntimeMissing as error:
            assert ".[export]" in str(error)
        else:
            raise AssertionError
"""


def test_opening_needs_no_torch(checkpoint, single_file):
    names = [str(checkpoint("sdxl")), str(single_file("sd2"))]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *names], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["sdxl", "64", "sd2", "64"], done.stderr


def test_the_hub_is_asked_for_one_precision_and_no_pickles():
    parts = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    plain = [f"{part}.safetensors" for part in parts]
    half = [f"{part}.fp16.safetensors" for part in parts]
    small = ["model_index.json", "unet/config.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"]
    small += ["README.md", "LICENSE.md", "tokenizer/added_tokens.json"]
    others = ["unet/README.md", "licenses.safetensors"]
    others += ["v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "safety_checker/model.safetensors"]
    others += [f"{part}.bin" for part in parts] + ["unet/diffusion_pytorch_model.non_ema.safetensors"]
    others += ["unet/model.onnx", "vae/flax_model.msgpack"]
    assert sorted(wanted([*small, *plain, *half, *others])) == sorted([*small, *plain])
    assert sorted(wanted([*small, *half, *others])) == sorted([*small, *half])
    shards = ["unet/diffusion_pytorch_model-00001-of-00002.safetensors"]
    shards += ["unet/diffusion_pytorch_model.safetensors.index.json"]
    assert sorted(wanted(shards)) == sorted(shards)


def test_what_reads_like_a_hub_id():
    assert is_hub_id("stabilityai/stable-diffusion-xl-base-1.0")
    assert not any(map(is_hub_id, ("scenes", "./a/b", "/a/b", "../b", "a/b/c", "a b/c")))


HUB = """
import sys
from latentc.checkpoints import open_checkpoint
from latentc.core.errors import CheckpointError
for name in sys.argv[1:]:
    try:
        source = open_checkpoint(name).source
        print(source.kind, source.location, source.revision)
    except CheckpointError as error:
        print(error)
"""


def test_without_a_network_the_cache_is_used(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    held = tmp_path / "models--someone--tiny"
    (held / "snapshots").mkdir(parents=True)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text(commit)
    (held / "snapshots" / commit).symlink_to(checkpoint("sd1"))
    names = ["someone/tiny", f"someone/tiny@{commit}", "someone/other@v1"]
    done = subprocess.run([sys.executable, "-c", HUB, *names], capture_output=True, text=True, check=True)
    first, second, failed = done.stdout.splitlines()
    assert first == second == f"hub someone/tiny {commit}"
    assert failed.startswith("someone/other@v1 could not be downloaded")
    assert "local folder" in failed
