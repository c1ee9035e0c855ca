"""The folder for OpenVINO GenAI: GenAI opens it, and generates the images of latentc from the same noise."""

import json
from dataclasses import replace

import numpy as np
import pytest

from latentc.compiler.build import build
from latentc.core.errors import BundleError
from latentc.core.files import sha256
from latentc.core.manifest import FileInfo
from latentc.core.request import Request
from latentc.export.genai import SCHEDULER, convert
from latentc.pipelines.pipeline import Pipeline

genai = pytest.importorskip("openvino_genai", reason='needs `pip install -c constraints.txt ".[genai]"`')
import openvino as ov  # noqa: E402  after it is known that GenAI is there

PROFILE, SIDE, STEPS = "cpu-onnxruntime", 64, 6
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


@pytest.fixture(scope="module")
def pipeline(bundle):
    build(bundle("sd1"), PROFILE)
    with Pipeline.open(bundle("sd1"), PROFILE) as one:
        yield one


def test_the_folder_has_graphs_and_no_onnx(converted):
    assert {path.parent.name for path in converted.folder.glob("*/openvino_model.xml")} == {*converted.parts}
    assert len(converted.parts) == 3
    assert not [*converted.folder.rglob("*.onnx*"), *converted.folder.rglob("*.npz")]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("pndm", {}),
        ("ddim", {"_class_name": "DDIMScheduler"}),
        ("euler", {"_class_name": "EulerDiscreteScheduler", "set_alpha_to_one": None, "skip_prk_steps": None}),
    ],
)
def test_its_images_are_those_of_latentc(pipeline, own_bundle, tmp_path, name, config):
    folder = convert(_rescheduled(own_bundle(), config), tmp_path / "folder").folder
    noise = np.random.default_rng(1).standard_normal((1, 4, SIDE // 8, SIDE // 8)).astype(np.float32)
    request = Request(prompt="a hut, (red) roof", steps=STEPS, guidance=4, scheduler=name, width=SIDE, height=SIDE)
    expected = pipeline(request, latents=noise).images.astype(float)
    other = genai.Text2ImagePipeline(str(folder), "CPU", INFERENCE_PRECISION_HINT="f32")
    about = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "height": SIDE, "width": SIDE}
    found = np.array(other.generate(request.prompt, generator=Given(noise), **about).data).astype(float)
    assert 10 * np.log10(255**2 / np.mean((found - expected) ** 2)) > LEAST_DB


def _rescheduled(bundle, config):
    """The bundle with other fields in its scheduler's config; None removes one."""
    path = bundle.folder / SCHEDULER
    fields = json.loads(path.read_text()) | config
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    info = FileInfo(sha256=sha256(path), bytes=path.stat().st_size)
    files = {**bundle.manifest.files, SCHEDULER: info}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DPMSolverMultistepScheduler"},
        {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
        {"prediction_type": "v_prediction"},
    ],
)
def test_a_scheduler_that_genai_lacks_is_replaced_with_a_notice(own_bundle, tmp_path, config):
    made = convert(_rescheduled(own_bundle(), config), tmp_path / "folder")
    written = json.loads((made.folder / SCHEDULER).read_text())
    assert (made.scheduler, len(made.notices)) == ("DDIMScheduler", 1)
    assert written["_class_name"] == "DDIMScheduler"
    assert written["beta_end"] == 0.012
    assert written.get("prediction_type") == config.get("prediction_type")


def test_zero_terminal_snr_is_refused(own_bundle, tmp_path):
    with pytest.raises(BundleError, match="zero terminal SNR"):
        convert(_rescheduled(own_bundle(), {"rescale_betas_zero_snr": True}), tmp_path / "folder")


def test_a_profile_is_refused(exported, refused, tmp_path):
    words = ("package", exported("sd1").folder, "--for", "openvino", "-p", PROFILE, "-o", tmp_path / "made", "-q")
    assert "Leave --profile out" in refused(*words)
