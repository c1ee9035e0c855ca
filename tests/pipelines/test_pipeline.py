from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from latentc.core.errors import CancelledError, NotFiniteError, RequestError, ShapeError
from latentc.core.manifest import TensorInfo
from latentc.core.request import Request
from latentc.core.wires import Wire
from latentc.pipelines.complete import own_scheduler
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.guidance import guidance_embedding
from latentc.sampling.noise import initial_noise
from latentc.sampling.pixels import preview, quantized
from latentc.sampling.schedulers import SCHEDULERS, schedule

REQUEST = Request(prompt="a lighthouse", negative_prompt="blurry", steps=4, seed=1)
CONFIG = "scheduler/scheduler_config.json"
STOCHASTIC = REQUEST.model_copy(update={"scheduler": "euler-ancestral"})


def _with(bundle, **changes):
    model = bundle.manifest.model.model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"model": model}))


def test_a_picture_is_drawn(pipeline, engines):
    result = pipeline(REQUEST)
    assert result.images.shape == (1, 64, 64, 3)
    assert result.images.dtype == np.uint8
    assert result.latents.shape == (1, 4, 8, 8)
    assert result.latents.dtype == np.float32
    assert result.request == REQUEST.model_copy(update={"width": 64, "height": 64, "scheduler": "euler"})
    assert result.engines == {part: engines.describe()[part] for part in ("text_encoder", "unet", "vae_decoder")}
    assert result.notices == ()
    assert set(result.seconds) == {"text_encoder", "denoiser", "vae_decoder", "host", "total"}
    stages = [seconds for stage, seconds in result.seconds.items() if stage != "total"]
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(result.seconds["total"])
    assert sum(result.step_seconds) == pytest.approx(result.seconds["denoiser"])
    assert len(result.step_seconds) == 4


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_the_loop_is_that_of_diffusers(pipeline, engines):
    """The loop of StableDiffusionPipeline with its own scheduler, around the same denoiser."""
    import torch
    from diffusers import EulerDiscreteScheduler

    request = REQUEST.model_copy(update={"guidance": 7.5, "guidance_rescale": 0.6, "steps": 10})
    result = pipeline(request)
    condition = engines.feeds["unet"][0]["encoder_hidden_states"]
    scheduler = EulerDiscreteScheduler.from_config(pipeline.bundle.json(CONFIG))
    scheduler.set_timesteps(10)
    latents = torch.from_numpy(initial_noise(1, (1, 4, 8, 8))) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        feeds = {"sample": sample.numpy(), "timestep": np.array([timestep], np.float32)}
        output = torch.from_numpy(engines.functions["unet"](feeds | {"encoder_hidden_states": condition})["out_sample"])
        negative, positive = output.chunk(2)
        guided = negative + 7.5 * (positive - negative)
        axes = [1, 2, 3]
        scaled = guided * (positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        latents = scheduler.step(0.6 * scaled + 0.4 * guided, timestep, latents).prev_sample
    assert np.allclose(result.latents * 0.18215, latents.numpy(), rtol=1e-4, atol=1e-4)
    pixels = engines.functions["vae_decoder"]({"latent_sample": latents.numpy() / 0.18215})["sample"]
    expected = ((pixels * 0.5 + 0.5).clip(0, 1) * 255).round().astype("uint8").transpose(0, 2, 3, 1)
    assert np.abs(result.images.astype(int) - expected).max() <= 1


def test_the_denoiser_sees_negative_rows_first_in_one_batch(pipeline, engines):
    pipeline(REQUEST.model_copy(update={"count": 3}))
    assert len(engines.feeds["unet"]) == 4
    feeds = engines.feeds["unet"][0]
    assert feeds["sample"].shape == (6, 4, 8, 8)
    assert (feeds["sample"][:3] == feeds["sample"][3:]).all()
    assert feeds["timestep"].shape == (1,)
    assert feeds["timestep"].dtype == np.float32
    condition = feeds["encoder_hidden_states"]
    assert (condition[:3] == condition[0]).all()
    assert (condition[3:] == condition[3]).all()
    (ids,) = [feeds["input_ids"] for feeds in engines.feeds["text_encoder"]]
    assert len(ids) == 2
    negative, positive = engines.functions["text_encoder"]({"input_ids": ids})["last_hidden_state"]
    assert (condition[0] == negative).all()
    assert (condition[3] == positive).all()


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_the_denoiser_sees_the_prompt_alone(pipeline, engines, guidance):
    result = pipeline(REQUEST.model_copy(update={"guidance": guidance, "guidance_rescale": 0.5}))
    assert [len(feeds["sample"]) for feeds in engines.feeds["unet"]] == [1] * 4
    assert [len(feeds["input_ids"]) for feeds in engines.feeds["text_encoder"]] == [1]
    assert any("negative prompt was not used" in notice for notice in result.notices)


def test_what_stays_the_same_is_bound_once(xl_pipeline, engines):
    xl_pipeline(REQUEST)
    assert engines.bound["unet"] == [("encoder_hidden_states", "text_embeds", "time_ids")]
    assert engines.bound["text_encoder"] == []


def test_xl_takes_pooled_embeddings_and_size(xl_pipeline, engines):
    xl_pipeline(REQUEST.model_copy(update={"width": 128, "height": 64, "count": 2}))
    feeds = engines.feeds["unet"][0]
    assert feeds["encoder_hidden_states"].shape == (4, 77, 20)
    assert feeds["text_embeds"].shape == (4, 12)
    assert feeds["time_ids"].dtype == np.float32
    assert feeds["time_ids"].tolist() == [[64, 128, 0, 0, 64, 128]] * 4


@pytest.mark.parametrize(("negative", "zeros"), [("", True), (" ", False), ("blurry", False)])
def test_xl_takes_zeros_for_an_empty_negative_prompt(xl_pipeline, engines, negative, zeros):
    xl_pipeline(REQUEST.model_copy(update={"negative_prompt": negative}))
    feeds = engines.feeds["unet"][0]
    assert (feeds["encoder_hidden_states"][0] == 0).all() == zeros
    assert (feeds["text_embeds"][0] == 0).all() == zeros
    assert feeds["encoder_hidden_states"][1].any()
    assert len(engines.feeds["text_encoder_2"][0]["input_ids"]) == (1 if zeros else 2)


def test_sd_takes_the_embedding_of_nothing_for_an_empty_negative_prompt(pipeline, engines):
    pipeline(REQUEST.model_copy(update={"negative_prompt": ""}))
    assert engines.feeds["unet"][0]["encoder_hidden_states"][0].any()


def test_a_model_distilled_with_guidance_takes_it_as_an_input(sd_bundle, engines):
    parts, wires = sd_bundle.manifest.parts, sd_bundle.manifest.model.wires
    taken = TensorInfo(name="timestep_cond", dtype="float32", shape=("batch", 256))
    unet = parts["unet"].model_copy(update={"inputs": (*parts["unet"].inputs, taken)})
    distilled = _with(sd_bundle, wires=(*wires, Wire(input=taken.name, source="request.guidance")))
    manifest = distilled.manifest.model_copy(update={"parts": {**parts, "unet": unet}})
    pipeline = Pipeline(replace(distilled, manifest=manifest), engines, load_profile("null"))
    result = pipeline(REQUEST.model_copy(update={"guidance": 8.0, "scheduler": "lcm", "count": 2}))
    feeds = engines.feeds["unet"][0]
    assert feeds["sample"].shape == (2, 4, 8, 8)
    assert (feeds["timestep_cond"] == guidance_embedding(8.0, 256, 2)).all()
    assert engines.bound["unet"] == [("encoder_hidden_states", "timestep_cond")]
    assert any("takes guidance as an input" in notice for notice in result.notices)


def test_a_long_prompt_is_told_and_drawn(pipeline, engines):
    result = pipeline(REQUEST.model_copy(update={"prompt": "word " * 200}))
    assert engines.feeds["unet"][0]["encoder_hidden_states"].shape == (2, 3 * 77, 8)
    assert any(
        "(1 and 200 tokens; nothing was truncated; the shorter prompt has empty" in notice for notice in result.notices
    )


@pytest.mark.parametrize("request_", [REQUEST, STOCHASTIC], ids=["ode", "stochastic"])
def test_image_k_is_image_0_of_the_seed_k_later(pipeline, request_):
    together = pipeline(request_.model_copy(update={"count": 3}))
    for image in range(3):
        alone = pipeline(request_.model_copy(update={"seed": 1 + image}))
        assert (alone.latents[0] == together.latents[image]).all()
        assert (alone.images[0] == together.images[image]).all()


@pytest.mark.parametrize("request_", [REQUEST, STOCHASTIC], ids=["ode", "stochastic"])
def test_eight_threads_draw_what_one_draws(pipeline, request_):
    requests = [request_.model_copy(update={"seed": seed % 4, "prompt": f"{seed % 3} cats"}) for seed in range(48)]
    expected = [pipeline(request).images.tobytes() for request in requests]
    assert len(set(expected)) == 12
    with ThreadPoolExecutor(8) as pool:
        assert [result.images.tobytes() for result in pool.map(pipeline, requests)] == expected


def test_latents_passed_in_start_the_walk(pipeline):
    latents = initial_noise(1, (1, 4, 8, 8))
    before = latents.copy()
    for request in (REQUEST, STOCHASTIC):
        given = pipeline(request, latents=latents)
        assert (given.latents == pipeline(request).latents).all()
        assert any("latents were passed in" in notice for notice in given.notices)
    assert (latents == before).all()
    assert (pipeline(REQUEST, latents=latents * 0.5).latents != given.latents).any()
    with pytest.raises(RequestError, match="this request needs float32"):
        pipeline(REQUEST, latents=np.zeros((1, 4, 16, 16), np.float32))


def test_noise_passed_in_is_what_a_stochastic_scheduler_adds(pipeline):
    drawn = []

    def noise():
        drawn.append(1)
        return np.zeros((1, 4, 8, 8), np.float32)

    assert (pipeline(STOCHASTIC, noise=noise).latents != pipeline(STOCHASTIC).latents).any()
    assert 1 <= len(drawn) <= 4


def test_a_request_without_seed_says_which_was_drawn(pipeline):
    request = REQUEST.model_copy(update={"seed": None})
    seeds = Counter(pipeline(request).request.seed for _ in range(4))
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
    result = pipeline(request)
    assert (pipeline(result.request).images == result.images).all()


def test_seeds_end(pipeline):
    with pytest.raises(RequestError, match="is too large for 2 images"):
        pipeline(REQUEST.model_copy(update={"seed": 2**63 - 1, "count": 2}))


def test_steps_are_told_and_can_cancel(pipeline, engines):
    told = []
    pipeline(REQUEST, on_step=told.append)
    assert [(step.index, step.total) for step in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(step.latents.shape == (1, 4, 8, 8) and not step.latents.flags.writeable for step in told)
    assert len({step.latents.tobytes() for step in told}) == 4

    for part in engines.feeds.values():
        part.clear()
    with pytest.raises(CancelledError, match="after denoiser call 2 of 4"):
        pipeline(REQUEST, on_step=lambda step: step.index < 2)
    assert len(engines.feeds["unet"]) == 2
    assert engines.feeds["vae_decoder"] == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_denoiser_that_overflows_is_an_error_naming_the_call(pipeline, engines, value):
    calls = []

    def overflowing(feeds):
        calls.append(1)
        out = np.zeros_like(feeds["sample"])
        if len(calls) == 3:
            out[:1, 0, 0, 0], out[1:, 0, 0, 0] = -value, value
        return {"out_sample": out}

    engines.functions["unet"] = overflowing
    what = (
        "latents after denoiser call 3 of 4: 1 of 256" if value == 3e38 else "output of denoiser call 3 of 4: 2 of 512"
    )
    with pytest.raises(NotFiniteError, match=rf'The {what} values.*unet = "f32"'):
        pipeline(REQUEST)
    assert len(calls) == 3


def test_a_decoder_that_overflows_is_an_error_naming_the_image(pipeline, engines):
    engines.functions["vae_decoder"] = lambda feeds: {
        "sample": np.full((1, 3, 64, 64), np.nan if feeds["latent_sample"][0, 0, 0, 0] < 0 else 0.1, np.float32)
    }
    with pytest.raises(NotFiniteError, match=r'Image \d of 8, as decoded.*vae_decoder = "f32"'):
        pipeline(REQUEST.model_copy(update={"count": 8}))


def test_a_flat_picture_is_told(pipeline, engines):
    engines.functions["vae_decoder"] = lambda feeds: {"sample": np.zeros((1, 3, 64, 64), np.float32)}
    assert pipeline(REQUEST).notices == ("Image 0 has a single flat colour.",)


def test_a_size_that_the_decoder_is_not_built_for_is_told_before_the_walk(pipeline, engines):
    engines.only = (8, 8)
    pipeline(REQUEST)
    steps = len(engines.feeds["unet"])
    with pytest.raises(ShapeError):
        pipeline(REQUEST.model_copy(update={"width": 128}))
    assert len(engines.feeds["unet"]) == steps


def test_an_odd_size_is_told(pipeline):
    assert pipeline(REQUEST.model_copy(update={"width": 128})).notices == ()
    (notice,) = pipeline(REQUEST.model_copy(update={"width": 128, "height": 128})).notices
    assert "128x128 is far from the model's native size, 64x64" in notice


def test_sides_are_whole_latents(sd_bundle, engines):
    pipeline = Pipeline(_with(sd_bundle, downscale=16), engines, load_profile("null"))
    with pytest.raises(RequestError, match="multiples of 16"):
        pipeline(REQUEST.model_copy(update={"width": 72}))


def test_random_weights_are_told(sd_bundle, engines):
    source = sd_bundle.manifest.source.model_copy(update={"random": True})
    bundle = replace(sd_bundle, manifest=sd_bundle.manifest.model_copy(update={"source": source}))
    (notice,) = Pipeline(bundle, engines, load_profile("null"))(REQUEST).notices
    assert "random" in notice


def test_an_unknown_scheduler_is_refused_before_any_work(pipeline, engines):
    with pytest.raises(RequestError, match="'eular' is not a known scheduler"):
        pipeline(REQUEST.model_copy(update={"scheduler": "eular"}))
    assert engines.feeds == {}


def test_it_closes_its_engines(sd_bundle, engines):
    with Pipeline(sd_bundle, engines, load_profile("null")):
        assert not engines.closed
    assert engines.closed


OWN = [short for short, sampler in SCHEDULERS.items() if sampler.in_diffusers]
RAMPED = [f"{short}-karras" for short in OWN if "use_karras_sigmas" in SCHEDULERS[short].keys]


@pytest.mark.parametrize("name", [*OWN, *RAMPED])
def test_the_name_of_the_checkpoints_own_scheduler_means_the_same(name):
    sampler = SCHEDULERS[name.removesuffix("-karras")]
    config = {"_class_name": sampler.class_name, "beta_start": 0.00085, "beta_end": 0.012, **sampler.asks}
    config |= {"use_karras_sigmas": True} if name in RAMPED else {}
    assert own_scheduler(config) == name
    ours, named = schedule(config, 5), schedule(config, 5, name)
    values = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8), dtype=np.float32)
    walks = []
    for walk in (ours, named):
        sample = values[0] * walk.init_noise_sigma
        for index in range(len(walk.timesteps)):
            sample = walk.step(0.3 * walk.scale(sample, index), index, sample, lambda: values[1])
        walks.append(sample)
    assert (walks[0] == walks[1]).all()
    assert (ours.timesteps == named.timesteps).all()


def test_a_config_that_no_name_means_has_none():
    config = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}
    assert own_scheduler(config) is None


def test_a_config_that_no_name_means_is_still_drawn(sd_bundle, engines, tmp_path):
    shutil.copytree(sd_bundle.folder, tmp_path / "copy")
    config = sd_bundle.json(CONFIG) | {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}
    (tmp_path / "copy" / CONFIG).write_text(json.dumps(config))
    pipeline = Pipeline(replace(sd_bundle, folder=tmp_path / "copy"), engines, load_profile("null"))
    assert pipeline(REQUEST).request.scheduler is None


def test_pixels_are_rounded_as_diffusers_rounds_them():
    import torch
    from diffusers.image_processor import VaeImageProcessor

    values = np.concatenate([np.linspace(-1.2, 1.2, 4096), (np.arange(512) / 255) - 1]).astype(np.float32)
    image = np.tile(values.reshape(1, 48, 96), (3, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (expected,) = VaeImageProcessor().postprocess(torch.from_numpy(image[None]), output_type="pil")
    assert (quantized(image) == np.asarray(expected)).all()


@pytest.mark.filterwarnings("error")
def test_a_preview_of_infinite_latents_does_not_overflow():
    latents = np.array([np.inf, np.nan, 1.0, 0.0], np.float32).reshape(1, 4, 1, 1)
    assert preview([[40.0, 40.0, 40.0, 40.0, 0.0]] * 3, latents).tolist() == [[[[255] * 3]]]
