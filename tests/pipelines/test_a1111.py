"""Texts of other tools: each line is of a form that the tool named beside it writes."""

import pytest

from latentc.core.request import Request
from latentc.pipelines.a1111 import OTHER, parse, write
from latentc.sampling.schedulers import NAMES, understood
from latentc.sampling.schedulers.names import elsewhere

REST = "CFG scale: 7, Seed: 1, Size: 512x512"


def read(pairs):
    return parse(f"cat\nSteps: 20, {pairs}, {REST}")


# What `Automatic` means by sampler: the `scheduler` option of samplers_k_diffusion in the web UI's
# modules/sd_samplers_kdiffusion.py (1.9 and later); none is `get_sigmas`, evenly spaced timesteps.
AUTOMATIC = {
    "DPM++ 2M": "dpm++2m-karras",
    "DPM++ SDE": "dpm++sde-karras",
    "DPM++ 2M SDE": "dpm++2m-sde-exponential",
    "Euler a": "euler-ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DDIM": "ddim",
    "PLMS": "pndm",
    "UniPC": "unipc",
    "LCM": "lcm",
    "DPM2": "dpm2-karras",
    "DPM2 a": "dpm2-ancestral-karras",
    "DPM++ 2S a": "dpm++2s-ancestral-karras",
    "DPM++ 3M SDE": "dpm++3m-sde-exponential",
}


@pytest.mark.parametrize(("sampler", "ours"), AUTOMATIC.items())
def test_automatic_is_what_the_web_ui_means(sampler, ours):
    found = read(f"Sampler: {sampler}, Schedule type: Automatic, Version: v1.10.1")
    assert (found.request.scheduler, found.rest) == (ours, {"Version": "v1.10.1"})


@pytest.mark.parametrize(
    ("pairs", "ours"),
    [
        ("Sampler: DPM++ 2M, Version: v1.9.4", "dpm++2m-karras"),  # its API leaves the schedule out
        ("Sampler: DPM++ 2M, Version: f2.0.1v1.10.1-previous-665-gae278f79", "dpm++2m-karras"),  # Forge
        ("Sampler: DPM++ 2M, Version: v1.6.0", "dpm++2m"),  # Karras was in the sampler's name
        ("Sampler: DPM++ 2M Karras, Version: v1.6.0", "dpm++2m-karras"),
        ("Sampler: DPM++ 2M, Version: latentc 0.1.0", "dpm++2m"),
        ("Sampler: DPM++ 2M, Version: ComfyUI", "dpm++2m"),
        ("Sampler: Euler a, Schedule type: normal", "euler-ancestral-normal"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler-sgm-uniform"),
        ("Sampler: dpmpp_2m_sgm_uniform", "dpm++2m-sgm-uniform"),
        ("Sampler: DPM++ 2M, Schedule type: Align Your Steps, Version: v1.10.1", "dpm++2m-ays"),
        ("Sampler: euler, Scheduler: simple", "euler-simple"),
        ("Sampler: PLMS, Schedule type: Normal", "pndm"),
        ("Sampler: DPM2 a Karras", "dpm2-ancestral-karras"),
        ("Sampler: DPM++ 2S a Karras, Version: v1.6.0", "dpm++2s-ancestral-karras"),
        ("Sampler: DPM++ 2S a, Version: v1.9.0", "dpm++2s-ancestral-karras"),
        ("Sampler: DPM++ 3M SDE Exponential", "dpm++3m-sde-exponential"),
        ("Sampler: dpmpp_3m_sde_gpu, Scheduler: karras", "dpm++3m-sde-karras"),
        ("Sampler: ipndm, Scheduler: normal", "ipndm-normal"),  # ComfyUI
        ("Sampler: SA Solver, App: SD.Next", "sa-solver"),
        ("Sampler: DEISMultistepScheduler", "deis"),
        ("Sampler: kdpm_2_k", "dpm2-karras"),  # InvokeAI
        ("Sampler: TCD", "tcd"),
        ("Sampler: DPM++ 2M Karras, Schedule type: Automatic", "dpm++2m-karras"),
        ("Sampler: UniPC, Schedule type: Karras, Version: v1.10.1", "unipc"),  # ignored by samplers of timesteps
        ("Sampler: DDIM, Schedule type: SGM Uniform, Version: v1.10.1", "ddim"),
        ("Sampler: UniPC, Schedule type: Karras, Version: latentc 0.1.0", "unipc-karras"),
        ("Sampler: dpmpp_2m, Scheduler: karras", "dpm++2m-karras"),  # nodes for ComfyUI
        ("Sampler: dpmpp_2m_sde_gpu_exponential", "dpm++2m-sde-exponential"),
        ("Sampler: uni_pc_bh2", "unipc"),
        ("Sampler: DPM++ 2M, Sampler sigma: karras, App: SD.Next", "dpm++2m-karras"),
        ("Sampler: dpmpp_2m_k", "dpm++2m-karras"),  # InvokeAI
        ("Sampler: euler_a", "euler-ancestral"),
        ("Sampler: Euler Ancestral, Seed Mode: Scale Alike", "euler-ancestral"),  # Draw Things
        ("Sampler: k_euler_ancestral, Scheduler: native", "euler-ancestral"),  # NovelAI
        ("Sampler: k_dpmpp_2m, Scheduler: exponential", "dpm++2m-exponential"),
        ("Sampler: DPMSolverMultistepScheduler", "dpm++2m"),  # diffusers
    ],
)
def test_samplers_and_schedules_as_tools_spell_them(pairs, ours):
    found = read(pairs)
    assert found.request.scheduler == ours
    assert not {"Sampler", "Schedule type", "Scheduler", "Sampler sigma"} & found.rest.keys()


@pytest.mark.parametrize(
    "pairs",
    [
        "Sampler: Euler, Schedule type: KL Optimal",
        "Sampler: dpmpp_2m_ddim_uniform",
        "Sampler: TCD, Schedule type: Simple",
        "Sampler: DPM++ 2M Karras, Schedule type: Exponential",
        "Sampler: DPM++ 2M, Schedule type: Karras, Scheduler: exponential",
        "Sampler: DPM++ 2M SDE Heun, Schedule type: Automatic",
        "Sampler: DPM fast Karras",
        "Sampler: UniPC Trailing",
        "Sampler: Euler a, Schedule type: Karras",
        "Sampler: Restart",
        "Schedule type: Karras",
    ],
)
def test_what_isnt_understood_stays_visible_and_is_never_half_applied(pairs):
    found = read(pairs)
    assert found.request == Request(prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512)
    assert ", ".join(f"{key}: {value}" for key, value in found.rest.items()) == pairs


def test_what_is_assumed_is_said():
    (notice,) = read("Sampler: DPM++ 2M").notices
    assert "names neither a schedule for DPM++ 2M" in notice
    assert "since version 1.9, it means dpm++2m-karras" in notice
    assert read("Sampler: DPM++ 2M, Version: v1.6.0").notices == read("Sampler: Euler").notices == ()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_we_write_means_the_same_to_the_web_ui(name):
    """A plain DPM++ 2M is written as Uniform: without a schedule the web UI would take Karras."""
    request = Request(prompt="cat", width=64, height=64, seed=1, scheduler=name)
    text = write(request, {"Version": "latentc 0.1.0"})
    assert parse(text).request.scheduler == name
    if not name.startswith("unipc-"):
        assert parse(text.replace("latentc 0.1.0", "v1.10.1")).request.scheduler == name
    assert understood(name) == name


def test_lines_behind_the_pairs_spoil_none():
    found = parse(
        f"cat\nNegative prompt: dog\nSteps: 20, {REST}, Version: v1.6\nTime taken: 5 sec., A: 3.1 GB\n\n"
        "some note, text: yes\nSeed: 9, Foo: bar\n"
    )
    assert found.request == Request(
        prompt="cat", negative_prompt="dog", steps=20, guidance=7, seed=1, width=512, height=512, prompt_syntax="a1111"
    )
    assert found.rest["Version"] == "v1.6"
    assert (found.rest["Time taken"], found.rest["A"], found.rest["Foo"]) == ("5 sec.", "3.1 GB", "bar")
    assert found.rest[OTHER] == "some note\nSeed: 9, Foo: bar", "nothing is lost, and the seed is the first"


def test_a_line_of_steps_that_isnt_the_pairs_is_passed_over():
    found = parse(f"Steps: lead up\nSteps: 20, {REST}\nSteps: see above")
    assert (found.request.prompt, found.request.steps) == ("Steps: lead up", 20)


# Civitai's generator writes JSON lists; ADetailer and others Python's dicts.
RESOURCES = '[{"type":"checkpoint","modelVersionId":128713}, {"type":"lora","weight":0.8}]'


def test_json_values_keep_their_commas():
    found = parse(
        f"cat\nSteps: 20, Civitai resources: {RESOURCES}, Civitai metadata: {{}}, Notes: {{'a': 1, 'b': [2, 3]}}, "
        f'Hashes: {{"vae": "1", "model": "2"}}, TI hashes: "a: 1, b: 2", Model: one, two, VAE: x.pt, {REST}'
    )
    assert found.rest == {
        "Civitai resources": RESOURCES, "Civitai metadata": "{}", "Notes": "{'a': 1, 'b': [2, 3]}",
        "Hashes": '{"vae": "1", "model": "2"}', "TI hashes": "a: 1, b: 2", "Model": "one", "VAE": "x.pt", OTHER: "two",
    }  # fmt: skip
    assert (found.request.seed, found.request.guidance) == (1, 7)


def test_line_ends_of_windows():
    text = f"a cat,\nsitting\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, {REST}\nTime taken: 5 sec."
    assert parse(text.replace("\n", "\r\n")) == parse(text)


def test_keys_are_read_in_any_case():
    found = parse("cat\nsteps: 7\nSteps: 20, sampler: x, CFG Scale: 3, seed: 5, Size: 64x64")
    assert (found.request.guidance, found.request.seed, found.rest) == (3, 5, {"sampler": "x"})


def test_two_guidances_that_disagree():
    assert read("Guidance Scale: 7").rest == {}
    assert read("Guidance Scale: 3").rest == {"Guidance Scale": "3"}


def test_draw_things():
    found = parse(
        "a dude\n-and a negative prompt\nSteps: 8, Sampler: UniPC Trailing, Guidance Scale: 1.0, Seed: 3665757974, "
        "Size: 1024x1024, Model: z.ckpt, Strength: 1.0, Seed Mode: Scale Alike, Shift: 3.0"
    )
    assert (found.request.prompt, found.request.negative_prompt) == ("a dude", "and a negative prompt")
    assert found.request.guidance == 1.0
    assert found.rest["Sampler"] == "UniPC Trailing"
    assert parse(f"a dude\n-not negative\nSteps: 8, {REST}").request.negative_prompt == ""


@pytest.mark.parametrize(
    "name",
    [
        "dpm_fast",
        "DPM adaptive Karras",
        "ipndm_v",
        "dpmpp_2m_sde_heun",
        "DPMSolverSinglestepScheduler",
        "res_multistep",
    ],
)
def test_schedulers_that_others_have_mean_none_of_ours(name):
    assert elsewhere(name)
    assert understood(name) is None


@pytest.mark.parametrize(
    ("scheduler", "chosen", "pair"),
    [
        ("ddim", {"eta": 0.5}, "Eta DDIM: 0.5"),
        ("tcd", {"eta": 0.3}, "Eta: 0.3"),
        ("euler", {"timesteps": (999, 500, 20), "steps": 3}, 'Timesteps: "999, 500, 20"'),
        ("euler", {"sigmas": (14.6, 1.25, 0.0), "steps": 2}, 'Sigmas: "14.6, 1.25, 0"'),
    ],
)
def test_what_a_request_chooses_is_written_and_read(scheduler, chosen, pair):
    request = Request(prompt="cat", width=64, height=64, seed=1, scheduler=scheduler, **chosen)
    text = write(request, {})
    assert pair in text
    assert (parse(text).request, parse(text).rest) == (request, {})


def test_the_eta_of_others_is_theirs():
    """Of ancestral samplers it scales the added noise, which latentc doesn't do; of DDIM it was `Eta` before 1.6."""
    found = read("Sampler: Euler a, Eta: 0.5")
    assert (found.request.eta, found.rest) == (None, {"Eta": "0.5"})
    assert read("Sampler: DDIM, Eta: 0.5").request.eta == 0.5
    assert read("Sampler: Restart, Eta DDIM: 0.5").rest["Eta DDIM"] == "0.5"


def test_timesteps_that_contradict_the_steps_stay_visible():
    found = read('Sampler: Euler, Timesteps: "999, 1"')
    assert (found.request.timesteps, found.request.steps, found.rest) == (None, 20, {"Timesteps": "999, 1"})


@pytest.mark.parametrize(
    ("pairs", "syntax", "rest"),
    [
        ("Version: v1.10.1", "a1111", {}),
        ("Version: f2.0.1v1.10.1-previous-665", "a1111", {}),
        ("Emphasis: No norm, Version: v1.10.1", "a1111", {"Emphasis": "No norm"}),
        ("Emphasis: None, Version: v1.10.1", "plain", {"Emphasis": "None"}),
        ("Version: ComfyUI", "plain", {}),
        ("Version: latentc 0.1.0", "plain", {}),
        ("Prompt syntax: a1111, Version: latentc 0.1.0", "a1111", {}),
        ("Prompt syntax: other, Version: latentc 0.1.0", "plain", {"Prompt syntax": "other"}),
        ("App: SD.Next", "plain", {"App": "SD.Next"}),
    ],
)
def test_prompts_are_read_in_the_syntax_of_the_tool_that_wrote_them(pairs, syntax, rest):
    found = read(pairs)
    assert found.request.prompt_syntax == syntax
    assert {key: value for key, value in found.rest.items() if key != "Version"} == rest


def test_presets_are_kept_and_those_of_other_tools_are_not():
    request = Request(prompt="a", preset="fast", seed=1, width=64, height=64)
    text = write(request, {})
    assert "Preset: fast" in text
    assert parse(text).request.preset == "fast"
    assert parse(text.replace("Preset: fast", "Preset: Photoreal")).request.preset is None


def test_the_syntax_is_written():
    request = Request(prompt="(cat:1.2)", width=64, height=64, seed=1, prompt_syntax="a1111")
    text = write(request, {"Version": "latentc 0.1.0"})
    assert "Prompt syntax: a1111" in text
    assert parse(text).request == request
    assert "syntax" not in write(request.model_copy(update={"prompt_syntax": "plain"}), {})
    assert "prompt_syntax" not in Request(prompt="cat").model_dump_json()
    for downweight in ("mask", "remove"):
        compel = request.model_copy(update={"prompt": "a-", "prompt_syntax": "compel", "downweight": downweight})
        assert parse(write(compel, {})).request.downweight == downweight
    earlier = write(compel, {}).replace(", Downweight: remove", "")  # whose words of low weight were left out
    assert parse(earlier).request.downweight == "remove"


@pytest.mark.parametrize(
    ("text", "layers", "rest"),
    [("1", None, {}), ("2", 1, {}), ("12", 11, {}), ("0", None, {"Clip skip": "0"}), ("x", None, {"Clip skip": "x"})],
)
def test_clip_skip_counts_from_the_last_layer(text, layers, rest):
    found = read(f"Clip skip: {text}")
    assert (found.request.clip_skip, found.rest) == (layers, rest)
    if layers:
        again = write(found.request.model_copy(update={"scheduler": "euler"}), {})
        assert f"Clip skip: {text}" in again
        assert parse(again).request.clip_skip == layers
    assert "Clip" not in write(Request(prompt="", width=8 * 8, height=64, seed=1, clip_skip=0), {})


@pytest.mark.parametrize(
    ("prompt", "left", "strengths", "rest"),
    [
        ("a cat <lora:ink:0.8>", "a cat", {"ink": 0.8}, None),
        ("<lora:ink> a cat<LyCO:My fog v2:-1.5>, big", " a cat, big", {"ink": 1, "My fog v2": -1.5}, None),
        ("a <lora:ink:0.5> cat <lora:ink:0.25:0.25>", "a  cat", {"ink": 0.75}, None),
        ("a <lora:ink:te=0.5:unet=0.5>", "a", {"ink": 0.5}, None),
        ("a <lora:ink:0.5:1>", "a", None, "<lora:ink:0.5:1>"),  # another strength of the text encoder
        ("a <lora:ink:unet=0.5> <lora:fog:1:1:8>", "a", None, "<lora:ink:unet=0.5> <lora:fog:1:1:8>"),
        ("a <lora:ink:x> <lora:ink:1e9> <lora:ink:nan>", "a", None, "<lora:ink:x> <lora:ink:1e9> <lora:ink:nan>"),
        ("a <lora:fog:60> <lora:fog:60>", "a", {"fog": 60}, "<lora:fog:60>"),
        ("a <lora:> <lora", "a <lora:> <lora", None, None),
        ("a" + " <lora:x:0>" * 3000, "a", {"x": 0}, None),
        (
            " ".join(f"<lora:{number}:1>" for number in range(65)),
            "",
            {str(number): 1 for number in range(64)},
            "<lora:64:1>",
        ),
    ],
)
def test_tags_of_loras_are_strengths_of_adapters(prompt, left, strengths, rest):
    found = parse(f"{prompt}\nNegative prompt: <lora:b:1>\nSteps: 20, Seed: 1, Size: 64x64, Version: v1.10.1")
    assert (found.request.prompt, found.request.adapters, found.rest.get("Tags")) == (left, strengths, rest)
    assert found.request.negative_prompt == "<lora:b:1>", "which the web UI reads in the prompt alone"


def test_strengths_of_adapters_are_written_as_tags():
    request = Request(prompt="a cat", adapters={"ink": 0.8, "fog:2": -1.0}, width=64, height=64, seed=1)
    assert write(request, {}).startswith("a cat <lora:ink:0.8> <lora:fog2:-1>\n")
    assert parse(write(request, {})).request.adapters == {"ink": 0.8, "fog2": -1}


def test_the_refiner_and_the_guidance_of_an_image_are_read():
    """As the web UI writes them; the name of the refiner is no setting of a request."""
    text = (
        "a cat\nSteps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 1024x1024, "
        "Model: sd_xl_base_1.0, Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.85, "
        "Image CFG scale: 1.8, Version: v1.10.1"
    )
    found = parse(text)
    assert (found.request.refine_from, found.request.image_guidance) == (0.85, 1.8)
    assert found.rest["Refiner"] == "sd_xl_refiner_1.0 [7440042bbd]"
    assert "Refiner switch at" not in found.rest
    scores = {"refine_from": 0.8, "aesthetic_score": 7.0, "negative_aesthetic_score": 2.0}
    request = Request(prompt="x", width=64, height=64, seed=1, **scores)
    assert parse(write(request, {})).request == request
    assert "Refiner" not in write(request.model_copy(update={"refine_from": 1.0}), {})


def test_a_second_pass_of_no_strength_is_left_out():
    text = "cat\nSteps: 9, Seed: 4, Size: 64x64, Denoising strength: {}, Hires upscale: 2, Version: v1.9.4"
    found = parse(text.format(0))
    assert (found.request.hires, found.request.hires_strength, found.request.strength) == (None, None, None)
    assert {"Denoising strength": "0", "Hires upscale": "2"}.items() <= found.rest.items()
    assert parse(text.format(0.4)).request.hires_strength == 0.4
