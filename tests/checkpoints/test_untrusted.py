"""Configs of other types, absurd counts, and tokenizers that would never end: refused before anything is built."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.families import FAMILIES
from latentc.checkpoints.stored import read_header
from latentc.checkpoints.tokenizer import FILES
from latentc.core.errors import CheckpointError
from tests.checkpoints.conftest import UNET

pytestmark = pytest.mark.usefixtures("no_hang")

ABSURD = (10**9, 10**30, -1, 0, 1.5, "many", True, None, {}, [], [10**9], ["x"], [[10**9]] * 4, [1] * 100_000)


def edit(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "component"), [("sd1", "unet"), ("sd1", "vae"), ("sdxl", "text_encoder_2")])
def test_no_value_of_a_config_takes_minutes_or_a_trace(component, family, own):
    """Keys and absurd values, drawn by chance: a sentence, or a checkpoint whose module is built in no time."""
    folder = own(family)
    path = folder / component / "config.json"
    config = json.loads(path.read_text())
    rng, said, opened = np.random.default_rng(0), [], 0
    pairs = [(key, value) for key in config for value in ABSURD]
    for chosen in rng.choice(len(pairs), 60, replace=False):
        key, value = pairs[chosen]
        path.write_text(json.dumps(config | {key: value}))
        try:
            found = open_checkpoint(str(folder))
            opened += 1
            if opened % 5 == 0:
                found.module(component)
        except CheckpointError as exc:
            said.append(str(exc))
    assert opened
    assert said
    assert all(len(text) < 1500 and "\n" not in text for text in said)


@pytest.mark.parametrize(
    ("file", "key", "value", "match"),
    [
        ("unet/config.json", "layers_per_block", 10**9, "layers_per_block = 1000000000, but an integer from 0 to"),
        (
            "unet/config.json",
            "layers_per_block",
            100,
            "100 layers at each of 2 levels, 1 transformers deep, but .* stored",
        ),
        ("unet/config.json", "transformer_layers_per_block", [[10**9]], "transformer_layers_per_block = "),
        ("unet/config.json", "block_out_channels", [32] * 10**5, "block_out_channels = .*a list of 1 to 8 levels"),
        ("unet/config.json", "block_out_channels", [32.0, 64], "block_out_channels = .*an integer from 1"),
        ("unet/config.json", "in_channels", "4", "its UNet has '4' input channels"),
        ("unet/config.json", "sample_size", 10**9, "sample_size = 1000000000, but an integer from 1 to 8,192"),
        ("unet/config.json", "sample_size", 8000, "sample_size = 8000, but 8 to 8192 pixels"),
        ("vae/config.json", "latent_channels", -4, "latent_channels = -4, but an integer from 1 to 1,024"),
        ("vae/config.json", "scaling_factor", "0.18", "scaling_factor = '0.18', but a positive number"),
        ("vae/config.json", "scaling_factor", 0, "scaling_factor = 0, but a positive number"),
        ("text_encoder/config.json", "num_hidden_layers", 10**9, "num_hidden_layers = 1000000000"),
        ("text_encoder/config.json", "hidden_size", 10**9, "hidden_size = 1000000000"),
        ("text_encoder/config.json", "max_position_embeddings", 10**9, "max_position_embeddings = 1000000000"),
        ("text_encoder/config.json", "num_labels", 10**9, "num_labels = 1000000000"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9, "num_train_timesteps = 1000000000"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", "1000", "num_train_timesteps = '1000'"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1] * 200_000, "trained_betas = .*at most 100,000"),
        ("scheduler/scheduler_config.json", "beta_start", "0.1", "beta_start = '0.1'"),
        (
            "scheduler/scheduler_config.json",
            "beta_schedule",
            ["linear"],
            "beta_schedule = .*one of linear, scaled_linear",
        ),
        ("scheduler/scheduler_config.json", "prediction_type", 5, "prediction_type = 5, but one of epsilon,"),
    ],
)
def test_values_that_no_model_has(file, key, value, match, own):
    folder = own()
    edit(folder, file, **{key: value})
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(str(folder))
    assert len(str(caught.value)) < 1000
    assert "config.json" in str(caught.value) or key == "in_channels"


def test_infinity_is_what_diffusers_writes(own):
    folder = own()
    edit(folder, "scheduler/scheduler_config.json", lambda_min_clipped=float("-inf"))
    assert open_checkpoint(str(folder)).scheduler["lambda_min_clipped"] == float("-inf")


@pytest.mark.parametrize(
    ("family", "component"),
    [(one.name, name) for one in FAMILIES for name in (*(part.name for part in one.components), "scheduler")],
)
def test_published_configs_are_within_bounds(family, component):
    from latentc.checkpoints.bounds import check_config, check_scheduler

    config = next(one for one in FAMILIES if one.name == family).config(component)
    if component == "scheduler":
        check_scheduler("here", config)
    else:
        check_config("here", config, {"vae": 248, "text_encoder": 196}.get(component, 686))


def named(*names, shape=(2, 2)):
    return {name: np.ones(shape, np.float32) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([f"model.diffusion_model.input_blocks.{n}.0.in_layers.2.weight" for n in range(2000)], "2,000 blocks"),
        (["x" * 600], "has a name of 600 characters"),
        ([f"t{n}" for n in range(60_000)], "60,005 tensors, but the limit is 50,000"),
    ],
    ids=["blocks", "name", "tensors"],
)
def test_absurd_single_files(names, match, tmp_path):
    text = "cond_stage_model.transformer.text_model."
    layers = (
        f"{text}embeddings.token_embedding.weight",
        f"{text}embeddings.position_embedding.weight",
        f"{text}encoder.layers.0.mlp.fc1.weight",
        "first_stage_model.decoder.conv_in.weight",
        "model.diffusion_model.x",
    )
    save_file(named(*names, *layers), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(tmp_path / "model.safetensors"))


def test_layers_with_absurd_numbers(single_file, tmp_path):
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save

    for number in ("999999999", "9" * 400):
        tensors = load_file(single_file("sd2"))
        prefix = "cond_stage_model.model.transformer.resblocks."
        tensors[f"{prefix}{number}.x"] = next(iter(tensors.values())).clone()
        save(tensors, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="num_hidden_layers = "):
            open_checkpoint(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "kind",
    [
        "fifo",
        "device",
        "folder",
        "loop",
        "sparse",
        "deep list",
        "deep object",
        "a list",
        "twice",
        "surrogate",
        "no UTF-8",
    ],
)
@pytest.mark.parametrize("file", [*FILES, "added_tokens.json"])
def test_files_of_a_tokenizer(file, kind, own, place):
    folder = own()
    place(folder / "tokenizer" / file, kind)
    with pytest.raises(CheckpointError, match="cannot be read|are not a CLIP tokenizer"):
        open_checkpoint(str(folder)).tokenizer_files("tokenizer")


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("vocab.json", '{"a": -1}', "an id from 0"),
        ("vocab.json", '{"a": 10000000000}', "an id from 0"),
        ("vocab.json", '{"a": "b"}', "an id from 0"),
        ("vocab.json", '{"a": 1, "b": 1}', "two tokens the same id"),
        ("vocab.json", '{"' + "a" * 5000 + '": 1}', "a token of 1 to"),
        ("merges.txt", "a b c\n", "expected two tokens"),
        ("merges.txt", "a " + "b" * 5000 + "\n", "a token of 1 to"),
        ("added_tokens.json", '{"a": 1.5}', "an id from 0"),
        ("tokenizer_config.json", json.dumps({"extra": {str(n): {} for n in range(30_000)}}), "more than 20,000"),
    ],
)
def test_absurd_vocabularies(file, content, match, own):
    folder = own()
    (folder / "tokenizer" / file).write_text(content)
    with pytest.raises(CheckpointError, match=f"are not a CLIP tokenizer.*{match}"):
        open_checkpoint(str(folder)).tokenizer_files("tokenizer")


@pytest.mark.slow
def test_a_tokenizer_leads_to_no_other_file(own, tmp_path):
    folder = own()
    edit(folder, "tokenizer/tokenizer_config.json", special_tokens_map_file="/dev/zero", auto_map={"x": "y"})
    made = open_checkpoint(str(folder)).tokenizer_files("tokenizer")
    assert json.loads(made["tokenizer_config.json"])["special_tokens_map_file"] == "/dev/zero"


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}, [], [["a", "b"]], "text", 7, {"a": 1}, {"a": None}])
def test_metadata_is_read_as_safetensors_reads_it(metadata, tmp_path):
    path = tmp_path / "model.safetensors"
    header = {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    try:
        with safetensors.safe_open(path, "np") as file:
            theirs = file.metadata() or {}
    except safetensors.SafetensorError:
        with pytest.raises(CheckpointError, match="its __metadata__ is .*an object of strings was expected"):
            read_header(path)
    else:
        assert read_header(path)[1] == theirs


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (0,), (1, 1, 0)])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_no_shape_of_a_single_files_tensor_leaves_a_trace(family, shape, single_file, monkeypatch):
    """Each tensor in turn with a shape that it can't have: a sentence, or a checkpoint."""
    path = single_file(family)
    tensors, metadata = read_header(path)
    refused = 0
    for name in {re.sub(r"\d+", "0", name): name for name in tensors}.values():
        held = tensors | {name: replace(tensors[name], shape=shape)}
        monkeypatch.setattr("latentc.checkpoints.original.read_header", lambda _, held=held: (dict(held), metadata))
        try:
            open_checkpoint(str(path))
        except CheckpointError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("shape", [(), (0,), (1, 1, 0), (8, 8, 3)])
def test_no_shape_of_an_old_attention_leaves_a_trace(shape, checkpoint):
    """Of a folder's VAE under its names of 2022, which are read as they are converted."""
    opened = open_checkpoint(str(checkpoint("sd1")))
    held = dict(opened.weights["vae"])
    name = next(name for name in held if name.endswith("attentions.0.to_q.weight"))
    held[name.replace("to_q", "query")] = replace(held.pop(name), shape=shape)
    with pytest.raises(CheckpointError, match=r"of vae has shape"):
        replace(opened, weights={**opened.weights, "vae": held}).module("vae")


def test_a_unet_without_blocks_is_refused(single_file, monkeypatch):
    path = single_file("sd1")
    tensors, metadata = read_header(path)
    held = {name: one for name, one in tensors.items() if not re.search(r"in_layers\.2\.weight$", name)}
    held |= {f"{UNET}output_blocks.0.0.in_layers.2.weight": tensors[f"{UNET}output_blocks.0.0.in_layers.2.weight"]}
    held = {name: one for name, one in held.items() if not re.search(r"\.(op|conv)\.weight$", name)}
    monkeypatch.setattr("latentc.checkpoints.original.read_header", lambda _: (held, metadata))
    with pytest.raises(CheckpointError, match="levels have"):
        open_checkpoint(str(path))
