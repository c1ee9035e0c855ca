"""The trained parts as one checkpoint in diffusers' layout, f16, and the judge as ONNX."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import lzma
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ..judge import JUDGE
from . import judge, unet, vae
from .words import END, LENGTH, START, Words

CHECKPOINT = Path(__file__).parent.parent / "checkpoint"
SCHEDULER_CLASS = "DPMSolverMultistepScheduler"
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", SCHEDULER_CLASS],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def save_all(state: Path) -> None:
    """Write the checkpoint, and the judge if it was trained, where they ship."""
    save(state, CHECKPOINT)
    if (state / "judge").exists():
        save_judge(state, JUDGE)


def save(state: Path, folder: Path) -> None:
    """Write the checkpoint as trained so far; its model card is left unchanged."""
    decoder = vae.load(state)
    stated_vae = {key: decoder.config[key] for key in vae.CONFIG}
    words = Words(state / "tokenizer")
    denoiser = unet.load(state, words)
    scale = unet.latents_of(state)[1]
    encoder = denoiser.encoder
    tensors = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    tensors = {f"text_model.{key}": value for key, value in tensors.items() if not key.endswith("position_ids")}
    stated = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "torch_dtype": "float16"}
    kept = encoder.config.to_diff_dict()
    named = {key: kept[key] for key in sorted(kept) if key not in ("transformers_version", "dtype", *stated)}
    _write(folder / "text_encoder", "model", {**stated, **named}, tensors)
    _write_module(folder / "unet", "UNet2DConditionModel", denoiser.unet, unet.CONFIG)
    _write_module(folder / "vae", "AutoencoderKL", decoder, {**stated_vae, "scaling_factor": round(scale, 5)})
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": SCHEDULER_CLASS, **unet.SCHEDULER})
    _write_json(folder / "model_index.json", INDEX)
    write_tokenizer(folder / "tokenizer", state / "tokenizer")


def save_judge(state: Path, path: Path) -> None:
    """Write the judge as ONNX: convolutions with int8 weights and a scale for each channel, other matrices in f16."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = judge.load(state)
    names = [*judge.WHOLE, *judge.EACH, "features"]

    class Told(nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = model(image)
            return tuple(outputs[name] for name in names)

    batch = torch.export.Dim("batch", min=1, max=1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about its own internals
        program: Any = torch.onnx.export(
            Told().eval(), (torch.rand(2, 3, judge.SIDE, judge.SIDE),), input_names=["image"], output_names=names,
            dynamo=True, dynamic_shapes={"image": {0: batch}}, opset_version=18, optimize=True, verbose=False,
        )  # fmt: skip
    proto = program.model_proto  # rebuilt on each access
    graph = proto.graph
    for tensor in list(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and tensor.dims and len(tensor.dims) > 1:
            weight = numpy_helper.to_array(tensor)
            if weight.ndim == 4:
                scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)) / 127, np.finfo(np.float32).tiny)
                rounded = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
                stored = {f"{tensor.name}.i8": rounded, f"{tensor.name}.scale": scale}
                node = helper.make_node("DequantizeLinear", [*stored], [tensor.name], axis=0)
            else:
                stored = {f"{tensor.name}.f16": weight.astype(np.float16)}
                node = helper.make_node("Cast", [*stored], [tensor.name], to=TensorProto.FLOAT)
            graph.node.insert(0, node)
            graph.initializer.remove(tensor)
            graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    if path.suffix == ".xz":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
        content = lzma.compress(content, filters=filters)
    path.write_bytes(content)


def _write_module(folder: Path, name: str, module: Any, config: dict[str, Any]) -> None:
    _write(folder, "diffusion_pytorch_model", {"_class_name": name, **config}, module.state_dict())


def _write(folder: Path, stem: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    _write_json(folder / "config.json", config)
    narrow = {key: value.detach().to(torch.float16).contiguous() for key, value in sorted(tensors.items())}
    save_file(narrow, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def write_tokenizer(folder: Path, trained: Path) -> None:
    """Write the tokenizer's files in the form that transformers reads."""
    config = {
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(
        folder / "special_tokens_map.json", {key: config[key] for key in sorted(config) if key.endswith("_token")}
    )
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((trained / name).read_bytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
