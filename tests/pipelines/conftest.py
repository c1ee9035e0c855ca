"""A small world to draw in: bundles with real tokenizers, and engines made of a few lines of numpy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest

from latentc.checkpoints.families import TokenizerFacts, find_family
from latentc.checkpoints.tokenizer import complete, shipped_files
from latentc.core.bundle import Bundle
from latentc.core.errors import ShapeError
from latentc.core.manifest import Manifest, Part, Source, TensorInfo
from latentc.core.model import Model, TextEncoder
from latentc.core.request import Request
from latentc.core.wires import Wire
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}

Feeds = Mapping[str, Any]
Function = Callable[[Feeds], dict[str, Any]]


def text_encoder(width: int, pooled: bool) -> Function:
    """Embeds each id apart, [rows, 77, width], and pools the row."""

    def run(feeds: Feeds) -> dict[str, Any]:
        ids = feeds["input_ids"]
        assert ids.dtype == np.int64
        assert ids.shape[1] == 77
        embedding = np.sin(ids[:, :, None] * (np.arange(width) + 1.0) / 7).astype(np.float32)
        return {"last_hidden_state": embedding} | ({"text_embeds": embedding.mean(1)} if pooled else {})

    return run


def unet(feeds: Feeds) -> dict[str, Any]:
    """A contraction that each row's condition shifts."""
    shift = sum(
        np.asarray(array, np.float32).reshape(len(array), -1).mean(1)
        for name, array in feeds.items()
        if name not in ("sample", "timestep")
    )
    out = 0.3 * feeds["sample"] + np.reshape(shift, (-1, 1, 1, 1)) + feeds["timestep"] / 5000
    return {"out_sample": out.astype(np.float32)}


def vae_decoder(feeds: Feeds) -> dict[str, Any]:
    """Each latent becomes eight by eight pixels of one colour."""
    latents = feeds["latent_sample"]
    assert len(latents) == 1
    return {"sample": np.tanh(latents[:, :3] / 20).repeat(8, 2).repeat(8, 3)}


@dataclass
class NumpyEngine:
    function: Function
    feeds: list[dict[str, Any]]
    bound: list[tuple[str, ...]]
    lock: Lock = field(default_factory=Lock)

    def run(self, feeds: Feeds) -> dict[str, Any]:
        with self.lock:
            self.feeds.append({name: np.array(array) for name, array in feeds.items()})
        return self.function(feeds)

    def bind(self, feeds: Feeds) -> Callable[[Feeds], dict[str, Any]]:
        self.bound.append(tuple(sorted(feeds)))
        return lambda others: self.run({**feeds, **others})

    def close(self) -> None:
        pass


@dataclass
class NumpyEngines:
    """Engines of every shape, or of `only` these latent sizes, that remember what they were fed."""

    functions: dict[str, Function]
    only: tuple[int, int] | None = None
    feeds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    bound: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    closed: bool = False
    notices: tuple[str, ...] = ()

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> NumpyEngine:
        for shape in shapes.values():
            if self.only and len(shape) == 4 and shape[2:] != self.only:
                raise ShapeError(f"{part} isn't built for {shape}; built: {self.only}. Build for it.")
        return NumpyEngine(self.functions[part], self.feeds.setdefault(part, []), self.bound.setdefault(part, []))

    def fit(self, passes):
        return None

    def check_room(self, request: Request) -> None:
        pass

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(self.functions, "numpy CPU f32")

    def close(self) -> None:
        self.closed = True


def _part(name: str, inputs: dict[str, tuple[int | str, ...]]) -> Part:
    return Part(
        path=f"{name}/model.onnx",
        role={"unet": "denoiser", "vae_decoder": "decoder"}.get(name, "text_encoder"),
        opset=23,
        weights="f32",
        parameters=1,
        inputs=tuple(TensorInfo(name=key, dtype="float32", shape=shape) for key, shape in inputs.items()),
        outputs=(),
        digest=f"digest of {name}",
        psnr_db=100.0,
        proved="",
        bf16_db=50.0,
    )


@cache
def _tokenizer(facts: TokenizerFacts) -> dict[str, bytes]:
    return complete(shipped_files(facts), facts, 77)


def _bundle(folder: Path, family: str, model: Model) -> Bundle:
    for facts in find_family(family).tokenizers:
        place = folder / facts.name
        place.mkdir(parents=True)
        for name, content in _tokenizer(facts).items():
            (place / name).write_bytes(content)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(EULER))
    parts = {encoder.part: _part(encoder.part, {"input_ids": ("rows", 77)}) for encoder in model.text_encoders}
    parts["unet"] = _part("unet", {"timestep": (1,), **{wire.input: ("batch", 1) for wire in model.wires}})
    parts["vae_decoder"] = _part("vae_decoder", {"latent_sample": (1,)})
    manifest = Manifest(
        latentc="0.1.0",
        family=family,
        source=Source(kind="file", location="/models/tiny, v1: final.safetensors"),
        model=model,
        parts=parts,
        files={},
        versions={"torch": "2.13.0"},
    )
    return Bundle(folder, manifest)


@pytest.fixture(scope="session")
def sd_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As SD1: one text encoder, padded with the end token."""
    encoder = TextEncoder(part="text_encoder", tokenizer="tokenizer")
    model = Model(
        text_encoders=(encoder,),
        latent_channels=4,
        downscale=8,
        scaling_factor=0.18215,
        default_size=64,
        wires=(
            Wire(input="sample", source="step.latents"),
            Wire(input="encoder_hidden_states", source="text_encoder.last_hidden_state"),
        ),
    )
    return _bundle(tmp_path_factory.mktemp("sd"), "sd1", model)


@pytest.fixture(scope="session")
def xl_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As SDXL: two text encoders, pooled embedding, time ids, zeros for an empty negative prompt."""
    first = TextEncoder(part="text_encoder", tokenizer="tokenizer")
    second = TextEncoder(part="text_encoder_2", tokenizer="tokenizer_2")
    states = "encoder_hidden_states"
    model = Model(
        text_encoders=(first, second),
        latent_channels=4,
        downscale=8,
        scaling_factor=0.13025,
        default_size=64,
        wires=(
            Wire(input="sample", source="step.latents"),
            Wire(input="time_ids", source="request.size"),
            Wire(input=states, source="text_encoder.last_hidden_state", empty="zeros"),
            Wire(input=states, source="text_encoder_2.last_hidden_state", axis="width", empty="zeros"),
            Wire(input="text_embeds", source="text_encoder_2.text_embeds", empty="zeros"),
        ),
    )
    return _bundle(tmp_path_factory.mktemp("xl"), "sdxl", model)


@pytest.fixture(scope="session")
def shared_engines() -> NumpyEngines:
    return NumpyEngines({})


@pytest.fixture
def engines(shared_engines: NumpyEngines) -> NumpyEngines:
    """Fresh engines, under pipelines that read their tokenizers once for all tests."""
    shared_engines.__init__(
        {
            "text_encoder": text_encoder(8, pooled=False),
            "text_encoder_2": text_encoder(12, pooled=True),
            "unet": unet,
            "vae_decoder": vae_decoder,
        }
    )
    return shared_engines


@pytest.fixture(scope="session")
def _pipelines(sd_bundle: Bundle, xl_bundle: Bundle, shared_engines: NumpyEngines) -> tuple[Pipeline, Pipeline]:
    profile = load_profile("null")
    return Pipeline(sd_bundle, shared_engines, profile), Pipeline(xl_bundle, shared_engines, profile)


@pytest.fixture
def pipeline(_pipelines: tuple[Pipeline, Pipeline], engines: NumpyEngines) -> Pipeline:
    return _pipelines[0]


@pytest.fixture
def xl_pipeline(_pipelines: tuple[Pipeline, Pipeline], engines: NumpyEngines) -> Pipeline:
    return _pipelines[1]
