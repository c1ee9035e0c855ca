"""The page's tokenizer, noise, schedulers and sampling, run by Node.js, against Python's."""

import json
import random
import shutil
import subprocess
import unicodedata
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest

from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError
from latentc.core.files import read_sealed, write_sealed
from latentc.core.request import Request
from latentc.package.web import PAGE
from latentc.package.web_parts import KINDS, scheduler_data, tokenizer_data
from latentc.sampling.draw import draw
from latentc.sampling.host import latent_shape, load_host
from latentc.sampling.noise import added_noise, initial_noise
from latentc.sampling.prompt import tokenize

from ..sampling.walks import LCM, SD15, SD21

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")

PROMPTS = (
    "",
    " ",
    "a photo of a cat",
    "Two SMALL Houses, it's 3 o'clock! WE'LL see, I'd say",
    "  spaces\tand\nlines \xa0\u2003x ",
    "caf\xe9 cafe\u0301 na\xefve \u212bngstr\xf6m \ufb01ne \u01c4",
    "\u039f\u0394\u039f\u03a3 \u03a3 \u0130stanbul STRASSE stra\xdfe",
    "\u732b\u306e\u5199\u771f \uace0\uc591\uc774 \u1100\u1161\u11a8",
    "\u0627\u0644\u0642\u0637\u0629 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd \U0001f1e9\U0001f1ea 1\ufe0f\u20e3",
    "a\x85b\ufeffc\u200bd\xade\u180ef\x00g\x1fh",
    "12345 \u0663\u06f4 \u2460 \xbd \u2167 x\xb2",
    "<|startoftext|>a<|endoftext|>",
    "<|STARTOFTEXT|> <|EndOfText|>b",
    "<|endoftext|><|endoftext|>!",
    "BadFog",
    "BADFOG a badfog, xBadFogx <Cafe\u0301\tNoir> <CAF\xc9 noir>",
    "!!'s?'ll...'T'Re don\u2019t",
    "_under_score__ a-b/c\\d {x} [y] (z:1.2) <lora:a:1>",
    "word " * 74,
    "word " * 75,
    "word, " * 76,
    "x" * 400,
)

DPM = {**SD15, "_class_name": "DPMSolverMultistepScheduler"}
CONFIGS = {
    "epsilon": SD15,
    "velocity": SD21,
    "scenes": {
        "_class_name": "DPMSolverMultistepScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.02,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "steps_offset": 1,
    },
    "zero-snr": {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
    "lcm": LCM,
    "noise": {**DPM, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    "third": {**DPM, "solver_order": 3, "solver_type": "heun", "use_lu_lambdas": True},
    "runge-kutta": {**SD15, "skip_prk_steps": False},
    "linear": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
    },
}
SEEDS = (0, 1, 7, 2**32 - 1, 2**32 + 5, 2**63 - 1)
COUNTS = (1, 2, 30_001)


def random_prompts():
    """Texts of any characters that Unicode assigns, mixed with words."""
    dice = random.Random(5)
    given = [chr(code) for code in range(0x20, 0x1FB00) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    for _ in range(400):
        signs = [dice.choice(given) for _ in range(dice.randrange(1, 9))]
        words = [
            dice.choice(("a", "Red", "house's", "<|endoftext|>", " ", "!?", "7")) for _ in range(dice.randrange(5))
        ]
        yield "".join(dice.sample(signs + words, len(signs) + len(words)))


class Parts:
    """What `run` of modules.js computes, in numpy: cheap functions with the inputs of a model's parts."""

    def __init__(self, part):
        self.part = part

    def run(self, feeds):
        if "input_ids" in feeds:
            return {"last_hidden_state": (feeds["input_ids"] / 50000).astype(np.float32)[..., None]}
        if "latent_sample" in feeds:
            return {"sample": feeds["latent_sample"][:, :3] / np.float32(8)}
        sample = feeds["sample"]
        flat = sample.reshape(len(sample), -1)
        time = feeds["timestep"] * np.float32(1e-4)
        found = np.float32(0.3) * flat + np.float32(0.1) * np.roll(flat, -1, axis=1) + time
        return {"out_sample": (found + feeds["encoder_hidden_states"][:, 1]).reshape(sample.shape)}

    def bind(self, fixed):
        return lambda given: self.run({**fixed, **given})

    def close(self):
        pass


def plan(data, name, steps, guidance, number):
    """A request in Python, and as it is in modules.js."""
    size = {"width": 64, "height": 80}
    prompt = {"prompt": "a red cube " * (1 + 30 * (number % 2)), "negative_prompt": "fog"}
    request = Request(**size, **prompt, steps=steps, guidance=guidance, seed=number, scheduler=name)
    asked = {**size, **prompt, "steps": steps, "guidance": guidance, "seed": str(number)}
    return request, {**asked, "scheduler": name or data["scheduler"]}


def added_tokens(read, more):
    """A `tokenizer.json` with more added tokens, as an embedding's are."""
    first = max(read["model"]["vocab"].values()) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    added = [{"id": first + place, "content": content, **flags} for place, content in enumerate(more)]
    return {**read, "added_tokens": read["added_tokens"] + added}


@pytest.fixture(scope="module")
def source(bundle, tmp_path_factory):
    """`source(*tokens)`: a bundle whose tokenizer has these added tokens."""

    def make(*tokens):
        folder = shutil.copytree(bundle("sd1").folder, tmp_path_factory.mktemp("added") / "sd1.bundle")
        path, manifest = folder / "tokenizer" / "tokenizer.json", folder / "latentc.json"
        path.write_text(json.dumps(added_tokens(json.loads(path.read_text()), tokens)))
        facts = read_sealed(manifest)
        facts["model"]["text_encoders"][0]["vocabulary"] += len(tokens)
        write_sealed(manifest, facts)
        return open_bundle(folder)

    return make


@pytest.fixture(scope="module")
def added(source):
    return source("BadFog", "<Cafe\u0301\tNoir>", "<|ENDOFTEXT|>")


@pytest.fixture(scope="module")
def host(added):
    return load_host(added)


@pytest.fixture(scope="module")
def models(host):
    """The models of modules.js, one for each config."""
    same = {
        "latent_channels": 4, "downscale": 8, "multiple": 8, "scaling_factor": host.model.scaling_factor,
        "shift_factor": 0, "inputs": {"latents": "sample", "prompt": "encoder_hidden_states"},
    }  # fmt: skip
    return {key: {**scheduler_data(config), **same} for key, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def plans(models):
    """Config, request, and the request in modules.js."""
    found = []
    for key, data in models.items():
        for name in (None, *(one for one in data["schedulers"] if one != data["scheduler"])):
            guidance = 1.0 if len(found) % 5 == 0 else 4.5
            found.append((key, *plan(data, name, (8, 21)[len(found) % 2], guidance, len(found))))
    return found


def run(folder, name, given=None):
    """What a script beside this file writes, run in a copy of the page."""
    shutil.copytree(PAGE, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copyfile(__file__.replace("test_web_modules.py", name), folder / name)
    done = subprocess.run(
        [NODE, folder / name], input=json.dumps(given), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers(added, models, plans, tmp_path_factory):
    """What the modules computed: one process for all tests."""
    data = tokenizer_data(added)
    jobs = {
        "tokenizer": {**data, "length": 77},
        "prompts": [[one] for one in (*PROMPTS, *random_prompts())] + [["", "word " * 100]],
        "noise": [{"seed": str(seed), "stream": stream, "counts": COUNTS} for seed in SEEDS for stream in (0, 1)],
        "models": models,
        "draw": [{"model": key, "request": asked} for key, _, asked in plans],
    }
    return run(tmp_path_factory.mktemp("modules") / "page", "modules.js", jobs)


def floats(text):
    return np.frombuffer(b64decode(text), np.float32)


def test_ids_are_those_of_the_tokenizers_library(answers, host):
    prompts = [(one,) for one in (*PROMPTS, *random_prompts())] + [("", "word " * 100)]
    for texts, found in zip(prompts, answers["ids"], strict=True):
        expected = tokenize(host.vocabularies, texts)
        assert found == {"ids": expected.rows[0].ravel().tolist(), "chunks": expected.chunks}, texts


def test_added_tokens_that_differ_by_case_only_are_refused(source):
    with pytest.raises(BundleError, match="added tokens that differ by case only"):
        tokenizer_data(source("BadFog", "badfog"))


def test_noise_is_numpys(answers):
    expected = []
    for seed in SEEDS:
        initial = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0,))))
        np.testing.assert_array_equal(initial_noise(seed, (1, 3)), initial.standard_normal((1, 3), np.float32))
        for stream in (0, 1):
            own = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))
            expected.append([own.standard_normal(count, np.float32) for count in COUNTS])
    found = [[floats(one) for one in each] for each in answers["noise"]]
    alike, every = 0, 0
    for one, other in zip(found, expected, strict=True):
        for values, wanted in zip(one, other, strict=True):
            np.testing.assert_allclose(values, wanted, rtol=3e-7)
            alike, every = alike + (values == wanted).sum(), every + len(wanted)
    assert alike > 0.9999 * every


def test_every_algorithm_is_compared(models):
    each = (
        one.get("kind") or data["common"]["kind"] for data in models.values() for one in data["schedulers"].values()
    )
    assert {*each} == {*KINDS.values()}


def test_latents_and_pixels_are_pythons(answers, plans, host):
    for (key, request, asked), found in zip(plans, answers["drawn"], strict=True):
        shape, estimates = latent_shape(host.model, request), []
        drawn = draw(
            replace(host, scheduler=CONFIGS[key]), request, lambda part, _: Parts(part),
            start=initial_noise(request.seed, shape), noise=added_noise(request.seed, shape),
            on_step=lambda step, kept=estimates: kept.append(step.estimate.copy()),
        )  # fmt: skip
        about = f"{key}: {asked}"
        scale = max(1.0, np.abs(drawn.latents).max())
        assert np.abs(floats(found["latents"]) - drawn.latents.ravel()).max() < 1e-4 * scale, about
        assert len(found["steps"]) == len(estimates), about
        for one, estimate in zip(found["steps"], estimates, strict=True):
            assert np.abs(floats(one) - estimate.ravel()).max() < 1e-4 * max(1.0, np.abs(estimate).max()), about
        pixels = np.frombuffer(b64decode(found["pixels"]), np.uint8).reshape(10, 8, 4)
        assert (pixels[..., 3] == 255).all()
        assert np.abs(pixels[..., :3].astype(int) - drawn.images[0]).max() <= 1, about


def test_pieces_are_kept_by_their_digests_also_over_an_update(tmp_path):
    found = run(tmp_path / "page", "stores.js")
    assert found["first"] == ["same", "old", "same"]
    assert "data/graph is damaged" in found["damaged"]
    assert found["changed"] == found["again"] == "new"
    assert found["fetched"][:2] == ["data/same", "data/graph"]
    assert found["fetched"].count("data/same") == 2, "once, and once without room for it"
    assert (found["crowded"], found["kept"]) == ("same", [True, False])
    assert found["stores"] == ["http://localhost/a/ pieces", "crowded", "http://localhost/a/ @name@"]
    assert found["pieces"] == ["data/same", "data/graph"]


def test_a_scheduler_that_the_page_lacks_is_refused():
    with pytest.raises(BundleError, match=r"does not have the checkpoint's scheduler, UniPCMultistepScheduler"):
        scheduler_data({**SD15, "_class_name": "UniPCMultistepScheduler"})
