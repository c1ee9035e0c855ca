"""The folder for OpenVINO GenAI: GenAI opens it, and generates the images of latentc from the same noise."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
from tokenizers import Tokenizer

from latentc.checkpoints import families
from latentc.core.errors import BundleError
from latentc.core.files import sha256
from latentc.core.manifest import FileInfo
from latentc.core.request import Request
from latentc.export.genai import SCHEDULER, STATED, convert, genai_scheduler
from latentc.package.web import web_page

genai = pytest.importorskip("openvino_genai", reason='needs `pip install -c constraints.txt ".[genai]"`')
import openvino as ov  # noqa: E402  after it is known that GenAI is there

OWN = json.loads((Path(families.__file__).parent / "configs" / "sd1" / "scheduler.json").read_text())
SIDE, STEPS = 64, 6
LEAST_DB = 55.0
"""Cutting half a level off, or bf16, leave at most 51 dB."""


class Given(genai.Generator):
    """The noise of a request."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def next(self):
        raise AssertionError

    def randn_tensor(self, shape):
        assert list(shape) == list(self.values.shape)
        return ov.Tensor(self.values)


@pytest.fixture(scope="module")
def converted(exported, tmp_path_factory):
    return convert(exported("sd1"), tmp_path_factory.mktemp("genai") / "folder")


def test_the_folder_has_graphs_and_no_onnx(converted):
    assert {path.parent.name for path in converted.folder.glob("*/openvino_model.xml")} == {*converted.parts}
    assert len(converted.parts) == 3
    assert not [*converted.folder.rglob("*.onnx*"), *converted.folder.rglob("*.npz")]


@pytest.mark.parametrize(
    ("family", "name", "config"),
    [
        ("sd1", "pndm", {}),
        ("sd1", "ddim", {"_class_name": "DDIMScheduler"}),
        ("sd1", "euler", {"_class_name": "EulerDiscreteScheduler", "set_alpha_to_one": None, "skip_prk_steps": None}),
        pytest.param("sd2", "ddim", {}, marks=pytest.mark.slow),
    ],
)
def test_its_images_are_those_of_latentc(opened, own_bundle, tmp_path, family, name, config):
    folder = convert(_rescheduled(own_bundle(family), config), tmp_path / "folder").folder
    noise = np.random.default_rng(1).standard_normal((1, 4, SIDE // 8, SIDE // 8)).astype(np.float32)
    request = Request(prompt="a hut, (red) roof", steps=STEPS, guidance=4, scheduler=name, width=SIDE, height=SIDE)
    expected = opened(family)(request, latents=noise).images.astype(float)
    other = genai.Text2ImagePipeline(str(folder), "CPU", INFERENCE_PRECISION_HINT="f32")
    about = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "height": SIDE, "width": SIDE}
    found = np.array(other.generate(request.prompt, generator=Given(noise), **about).data).astype(float)
    assert 10 * np.log10(255**2 / np.mean((found - expected) ** 2)) > LEAST_DB


def _rescheduled(bundle, config):
    """The bundle with other fields in its scheduler's config; None removes one."""
    path = bundle.folder / SCHEDULER
    path.write_text(json.dumps(_fields(json.loads(path.read_text()), config)))
    info = FileInfo(sha256=sha256(path), bytes=path.stat().st_size)
    files = {**bundle.manifest.files, SCHEDULER: info}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))


def _fields(config, changes):
    return {name: value for name, value in (config | changes).items() if value is not None}


def test_a_scheduler_that_genai_lacks_is_replaced(own_bundle, tmp_path):
    made = convert(_rescheduled(own_bundle(), {"_class_name": "DPMSolverMultistepScheduler"}), tmp_path / "folder")
    assert json.loads((made.folder / SCHEDULER).read_text())["_class_name"] == made.scheduler == "DDIMScheduler"
    assert len(made.notices) == 1


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler"}, "cannot run DPMSolverMultistepScheduler; "),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "with use_karras_sigmas = True; "),
        (
            {"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"},
            "final_sigmas_type = 'sigma_min'",
        ),
        ({"prediction_type": "v_prediction"}, "cannot run PNDMScheduler with prediction_type = 'v_prediction'; "),
        ({"skip_prk_steps": None}, "skip_prk_steps = False"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing = 'linspace'"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "with clip_sample = True; the folder has DDIMSch"),
        ({"_class_name": "DDIMScheduler", "clip_sample": None}, "with clip_sample = True; the folder has DDIMSch"),
    ],
)
def test_what_genai_does_not_do_is_replaced_with_a_notice(config, named):
    written, (notice,) = genai_scheduler(_fields(OWN, config), "it")
    assert named in notice
    assert written["_class_name"] == "DDIMScheduler"
    assert (written["beta_end"], written["clip_sample"]) == (0.012, False)
    assert written["prediction_type"] == config.get("prediction_type", "epsilon")


SAVED = {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "clip_sample_range": 1.0, "thresholding": False}
"""What diffusers writes of a DDIM scheduler besides."""


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler", **SAVED},
        {"_class_name": "DDIMScheduler", "beta_schedule": None, "beta_start": None, "set_alpha_to_one": None},
        {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {
            "_class_name": "EulerDiscreteScheduler",
            "beta_schedule": None,
            "final_sigmas_type": "zero",
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "sigma_min": None,
        },
        {"beta_schedule": None, "set_alpha_to_one": None, "steps_offset": None},
    ],
)
def test_a_kept_config_states_what_diffusers_would_use(config):
    own = _fields(OWN, config)
    written, notices = genai_scheduler(own, "it")
    assert notices == ()
    cls = getattr(diffusers, written["_class_name"])
    read = [name for name in STATED if name in inspect.signature(cls).parameters]
    assert len(read) > 7
    assert {name: written[name] for name in read} == {name: cls.from_config(own).config[name] for name in read}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2, which OpenVINO GenAI lacks"),
    ],
)
def test_a_training_schedule_that_genai_lacks_is_refused(config, message):
    with pytest.raises(BundleError, match=message):
        genai_scheduler(_fields(OWN, config), "it")


def test_prompts_of_another_length_than_genais_are_refused(own_bundle, tmp_path):
    bundle = own_bundle()
    path = bundle.folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 40}))
    with pytest.raises(BundleError, match=r"prompts have 77 tokens, and GenAI passes 40"):
        convert(bundle, tmp_path / "folder")


@pytest.mark.parametrize(("target", "write"), [("OpenVINO GenAI", convert), ("browsers", web_page)])
def test_textual_inversions_of_several_vectors_are_refused(own_bundle, tmp_path, target, write):
    """Only latentc reads `<toy>` as `<toy> <toy>_1`."""
    bundle = own_bundle()
    path = bundle.folder / "tokenizer" / "tokenizer.json"
    read = Tokenizer.from_str(path.read_text())
    read.add_tokens(["<toy>", "<toy>_1"])
    read.save(str(path))
    with pytest.raises(BundleError, match=rf"packaged for {target}: it has textual inversions of several vectors"):
        write(bundle, tmp_path / "folder")


def test_a_profile_is_refused(exported, refused, tmp_path):
    words = (
        "package",
        exported("sd1").folder,
        "--for",
        "openvino",
        "-p",
        "cpu-onnxruntime",
        "-o",
        tmp_path / "made",
        "-q",
    )
    assert "Leave --profile out" in refused(*words)
