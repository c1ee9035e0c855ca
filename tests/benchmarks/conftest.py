"""Measurements made by hand: nothing is timed."""

from dataclasses import replace

import pytest

from latentc.benchmarks.records import (
    Draw,
    Likeness,
    MeasuredModel,
    Measurement,
    Memory,
    PartParity,
    Startup,
    Subject,
    Work,
)
from latentc.core.request import Request
from latentc.profiles import Profile
from latentc.runtimes.machine import Machine

MACHINE = Machine(
    system="Linux 6.1.0",
    architecture="x86_64",
    libc="glibc 2.36",
    python="3.11.2",
    cpu="Handmade CPU @ 2.5GHz",
    vendor="GenuineIntel",
    cores=2,
    instructions=("avx2", "amx_bf16"),
    memory_bytes=16_000_000_000,
    available_bytes=9_000_000_000,
    gpus=(),
)
MODEL = MeasuredModel(
    name="sd15.bundle",
    family="sd1",
    random=False,
    parameters={"unet": 859_520_964},
    digests={"unet": "0123456789abcdef" * 4},
    latentc="0.1.0",
)
REQUEST = Request(prompt="a lighthouse", width=512, height=512, steps=2, seed=7)
MB = 1_000_000


def handmade(name, seconds, psnr_db=None, *, runtime="openvino", kind="profile", megabytes=1000, **more):
    """A row whose whole draws took `seconds`: a tenth each for text encoder and host, a fifth to decode."""
    draws = tuple(
        Draw(text_encoder=0.1 * all_, denoiser=(0.3 * all_,) * 2, vae_decoder=0.2 * all_, host=0.1 * all_, total=all_)
        for all_ in seconds
    )
    parity = None
    if psnr_db is not None:
        part = PartParity(psnr_db=psnr_db + 5, cosine=0.9999)
        parity = Likeness(reference="PyTorch, at export", parts={"unet": part}, step_psnr_db=psnr_db)
    values = {
        "run": "run-1",
        "time": "2026-11-22T00:00:00+00:00",
        "latentc": "0.1.0",
        "commit": "c0ffee" * 6,
        "machine": MACHINE,
        "load_average": 0.1,
        "environment": {"OMP_NUM_THREADS": "2"},
        "model": MODEL,
        "subject": Subject(
            kind=kind,
            name=name,
            engines={"unet": f"{runtime} 1.2.3 CPU f32"} if draws else {},
            versions={"python": "3.11.2", runtime: "1.2.3"},
            profile=Profile(name=name, title="by hand", runtime=runtime) if kind == "profile" else None,
        ),
        "request": REQUEST,
        "startup": Startup(build_seconds=12.5, import_seconds=0.4, load_seconds=1.5, engine_bytes=3 * MB),
        "first": draws[0] if draws else None,
        "draws": draws,
        "stable": True if draws else None,
        "stability": f"{len(draws)} draws" if draws else None,
        "memory": Memory(
            before_bytes=200 * MB,
            load_peak_bytes=int(0.95 * megabytes * MB),
            loaded_bytes=int(0.6 * megabytes * MB),
            run_peak_bytes=int(0.9 * megabytes * MB),
            peak_bytes=megabytes * MB,
        ),
        "work": {"denoiser": Work(flops=1e12, ceiling_tflops=4.0)},
        "parity": parity,
        "leaves_out": ("Writing PNG files.",),
    }
    return Measurement(**values | more)


@pytest.fixture
def measured():
    """`measured(name, seconds, psnr_db, ...)`: a row made by hand."""
    return handmade


@pytest.fixture
def trained():
    """`trained(bundle)`: the bundle, as if its weights weren't random."""

    def make(bundle):
        manifest = bundle.manifest
        source = manifest.source.model_copy(update={"random": False})
        return replace(bundle, manifest=manifest.model_copy(update={"source": source}))

    return make


@pytest.fixture(scope="session")
def clip_model(shared, checkpoint):
    """The folder of a small CLIP model of other weights than those that training begins with, and a tokenizer."""
    import shutil

    import torch
    from transformers import CLIPConfig, CLIPModel

    def make(folder):
        torch.manual_seed(0)
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {**size, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
        config = CLIPConfig(
            text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=16
        )
        shutil.copytree(checkpoint("sd1") / "tokenizer", folder)
        model = CLIPModel(config)
        model.logit_scale.data.fill_(4.0)  # as training moves it
        model.save_pretrained(folder)

    return shared("clip", make)
