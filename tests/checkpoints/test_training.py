"""What a single file was trained for, by all that it carries."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.statements import _SPREAD
from latentc.core.errors import CheckpointError
from latentc.sampling.schedulers import named, schedule

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

MODELSPEC = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-xl-v1-base"}
VELOCITY_YAML = (
    'model:\n  params:\n    linear_start: 0.00085\n    parameterization: "v"  # comment\n    image_size: 64\n'
)
SGM_YAML = "model:\n  params:\n    denoiser_config:\n      params:\n        scaling_config:\n          target: a.b.{}\n"


@pytest.fixture
def file(single_file, tmp_path):
    """`file(family, metadata, tensors, name, beside)`: an opened single file that carries these."""

    def make(family="sdxl", metadata=None, tensors=(), name="model", beside=None, **choices):
        path = tmp_path / f"{name}.safetensors"
        save_file(load_file(single_file(family)) | dict(tensors), path, metadata=metadata)
        for ending, text in (beside or {}).items():
            (tmp_path / f"{name}{ending}").write_text(text)
        return open_checkpoint(str(path), **choices)

    return make


def facts(opened):
    return {fact.name: fact.value for fact in opened.trained_for}


SAID = [
    # family, metadata, tensors, beside: what it was trained for
    ("sdxl", MODELSPEC | {"modelspec.prediction_type": "v"}, {}, {}, {"prediction_type": "v_prediction"}),
    ("sdxl", MODELSPEC | {"modelspec.predict_key": "v"}, {}, {}, {"prediction_type": "v_prediction"}),
    ("sdxl", {"modelspec.prediction_type": "velocity"}, {}, {}, {"prediction_type": "v_prediction"}),
    ("sdxl", {"modelspec.predict_key": "x0"}, {}, {}, {"prediction_type": "sample"}),
    ("sdxl", {"modelspec.resolution": "768x1280"}, {}, {}, {"pixels": 960}),
    ("sdxl", {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, {}, {},
     {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("sdxl", {"ss_zero_terminal_snr": "False", "ss_v2": "False"}, {}, {},
     {"prediction_type": "epsilon", "timestep_spacing": "leading"}),
    ("sdxl", {"modelspec.title": "Somebody's XL Turbo"}, {}, {}, {"timestep_spacing": "trailing"}),
    ("sdxl", {}, {"v_pred": torch.tensor([])}, {}, {"prediction_type": "v_prediction"}),
    ("sdxl", {}, {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, {},
     {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("sdxl", {}, {}, {".yaml": SGM_YAML.format("VScaling")}, {"prediction_type": "v_prediction"}),
    ("sdxl", {}, {}, {".json": json.dumps({"timestep_spacing": "trailing"})}, {"timestep_spacing": "trailing"}),
    ("sdxl", {}, {}, {".civitai.info": json.dumps({"baseModel": "SDXL Lightning"})}, {"timestep_spacing": "trailing"}),
    ("sd1", {}, {}, {".yaml": VELOCITY_YAML}, {"prediction_type": "v_prediction", "pixels": 512}),
    ("sd1", {"ss_base_model_version": "sd_v1_v", "ss_resolution": "(640, 640)"}, {}, {},
     {"prediction_type": "v_prediction", "pixels": 640}),
    ("sd1", {}, {"alphas_cumprod": torch.linspace(0.999, 0, 1000)}, {}, {"rescale_betas_zero_snr": True}),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, {}, {},
     {"prediction_type": "epsilon", "pixels": 512}),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, {}, {},
     {"prediction_type": "v_prediction", "pixels": 768}),
    ("sd2", {"modelspec.prediction_type": "epsilon", "modelspec.resolution": "512x512"}, {}, {},
     {"prediction_type": "epsilon", "pixels": 512}),
    ("sd2", {"ss_base_model_version": "sd_v2", "ss_resolution": "(512, 512)"}, {}, {},
     {"prediction_type": "epsilon", "pixels": 512}),
    ("sd2", {}, {}, {".json": json.dumps({"baseModel": "SD 2.1 768"})},
     {"prediction_type": "v_prediction", "pixels": 768}),
    ("sd2", {}, {"global_step": torch.tensor(875000)}, {}, {"prediction_type": "epsilon", "pixels": 512}),
    ("sd2", {}, {"global_step": torch.tensor(110000.0)}, {}, {"prediction_type": "v_prediction", "pixels": 768}),
    ("sd2", {}, {_SPREAD: torch.tensor([0.05, -0.05])}, {}, {"prediction_type": "epsilon", "pixels": 512}),
    ("sd2", {}, {_SPREAD: torch.tensor([0.2, -0.2], dtype=torch.bfloat16)}, {}, {"prediction_type": "v_prediction"}),
    ("sd2", {}, {}, {}, {"prediction_type": "v_prediction", "pixels": 768}),
    ("sd1", {}, {"global_step": torch.tensor(875000)}, {}, {"prediction_type": "epsilon", "pixels": 512}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(SAID)))
def test_all_that_it_carries_is_read(case, file):
    family, metadata, tensors, beside, expected = SAID[case]
    opened = file(family, metadata, tensors, beside=beside)
    found = facts(opened)
    assert expected.items() <= found.items()
    assert not opened.doubts
    assert opened.pixels == found["pixels"]
    assert opened.scheduler.get("prediction_type", "epsilon") == found["prediction_type"]
    assert opened.scheduler.get("timestep_spacing", "leading") == found["timestep_spacing"]
    assert opened.scheduler.get("rescale_betas_zero_snr", False) == found.get("rescale_betas_zero_snr", False)
    for fact in opened.trained_for:
        assert fact.assumed == (fact.by.startswith("default for") or fact.by == "zero terminal SNR")
    schedule(opened.scheduler, 20)


def test_the_training_step_means_what_diffusers_takes_it_for(file):
    import diffusers.loaders.single_file_utils as theirs

    source = __import__("inspect").getsource(theirs)
    assert 'prediction_type = "epsilon" if global_step == 875000 else "v_prediction"' in source


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("by", ["metadata", "choice"])
def test_what_is_usual_is_written_where_it_was_said(by, family, file):
    """DPM++ draws with linspace where a config doesn't say otherwise, and the others each with their own."""
    import diffusers

    said = {"metadata": {"timestep_spacing": "leading"}} if by == "metadata" else {"spacing": "leading"}
    config = named(file(family, **said).scheduler, "dpm++2m")
    theirs = diffusers.DPMSolverMultistepScheduler.from_config({**config, "timestep_spacing": "leading"})
    theirs.set_timesteps(7)
    assert config["timestep_spacing"] == "leading"
    assert schedule(config, 7).timesteps.tolist() == theirs.timesteps.tolist()


def test_where_nothing_tells_the_default_is_stated(file):
    opened = file("sd2")
    assert all(fact.assumed for fact in opened.trained_for)
    (notice,) = opened.notices
    assert "assumed: prediction_type v_prediction, timestep_spacing leading, pixels 768" in notice
    assert "--prediction, --spacing, --size" in notice
    said = file("sd2", prediction="epsilon", spacing="trailing", size=576)
    assert said.notices == ()
    assert said.pixels == 576
    assert {fact.by for fact in said.trained_for} == {"--prediction", "--spacing", "--size"}


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("sd_xl_turbo_1.0_fp16", "--spacing trailing"),
        ("sdxl_lightning_1step_x0", "--prediction sample"),
        ("noob-vpred", "--prediction v_prediction"),
    ],
)
def test_a_name_is_a_hint_and_no_statement(name, flag, file):
    opened = file("sdxl", name=name)
    assert any(flag in notice for notice in opened.notices)
    assert opened.scheduler["prediction_type"] == "epsilon"
    assert opened.scheduler["timestep_spacing"] == "leading"


@pytest.mark.parametrize(
    ("metadata", "tensors", "beside", "match"),
    [
        ({"modelspec.prediction_type": "epsilon"}, {"v_pred": torch.tensor([])}, {}, "two values of prediction_type"),
        ({"modelspec.prediction_type": "epsilon"}, {}, {".yaml": VELOCITY_YAML}, "and 'v_prediction' from model.yaml"),
        ({"modelspec.prediction_type": "quantum"}, {}, {}, "= 'quantum', which is not understood"),
    ],
)
def test_statements_that_differ_are_a_question(metadata, tensors, beside, match, file):
    (doubt,) = file("sdxl", metadata, tensors, beside=beside).doubts
    assert match in doubt
    assert "--prediction epsilon, v_prediction or sample" in doubt
    answered = file("sdxl", metadata, tensors, beside=beside, prediction="v_prediction")
    assert not answered.doubts
    assert answered.scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("metadata", "beside", "match"),
    [
        ({"modelspec.prediction_type": "edm"}, {}, "are not supported yet"),
        ({"modelspec.noise_process": "flow"}, {}, "flow matching is not supported yet"),
        ({}, {".yaml": SGM_YAML.format("EDMScaling")}, "EDM scaling is not supported yet"),
    ],
)
def test_other_kinds_of_models_are_refused(metadata, beside, match, file):
    with pytest.raises(CheckpointError, match=match):
        file("sdxl", metadata, beside=beside)


@pytest.mark.parametrize("name", ["edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"])
def test_tensors_of_edm_are_refused(name, file):
    with pytest.raises(CheckpointError, match="EDM scaling"):
        file("sdxl", None, {name: torch.ones(4)})


def test_files_beside_that_cant_be_read_are_named(file):
    opened = file("sd1", beside={".json": "[1, 2", ".yaml": "\x00{"})
    assert any(notice.startswith("model.json, next to the file, was ignored") for notice in opened.notices)
    assert opened.scheduler.get("prediction_type", "epsilon") == "epsilon"


def test_a_size_that_isnt_understood_is_noticed(file):
    opened = file("sd1", {"modelspec.resolution": "large"})
    assert any("modelspec.resolution = 'large', which is not understood" in notice for notice in opened.notices)
    assert opened.pixels == 512


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"prediction": "x0"}, "'x0' is not a valid prediction. Use one of: epsilon, v_prediction, sample"),
        ({"spacing": "even"}, "'even' is not a valid spacing"),
        ({"size": 100}, "100 pixels is not a supported size. Use a multiple of 8"),
        ({"size": 1 << 20}, "1048576 pixels is not a supported"),
    ],
)
def test_choices_that_cant_be_are_refused(choice, match, file):
    with pytest.raises(CheckpointError, match=match):
        file("sd1", **choice)


def test_a_model_that_predicts_the_original_is_sampled_as_diffusers_does(file):
    """SDXL-Lightning in one step."""
    import diffusers

    opened = file("sdxl", prediction="sample", spacing="trailing")
    theirs = diffusers.EulerDiscreteScheduler.from_config(opened.scheduler)
    theirs.set_timesteps(1)
    walk = schedule(opened.scheduler, 1)
    assert walk.timesteps.tolist() == theirs.timesteps.tolist() == [999.0]
    sample, output = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8), dtype=np.float32)
    sample *= walk.init_noise_sigma
    expected = theirs.step(torch.from_numpy(output), theirs.timesteps[0], torch.from_numpy(sample)).prev_sample
    assert np.allclose(walk.step(output, 0, sample, lambda: output), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("choices", [{"prediction": "sample"}, {"prediction": "v_prediction", "zero_snr": True}])
def test_a_scheduler_that_can_is_taken_where_the_familys_cant(choices, file):
    opened = file("sd1", **choices)
    assert opened.scheduler["_class_name"] == opened.model_index["scheduler"][1] == "DDIMScheduler"
    assert any("DDIM is used instead" in notice for notice in opened.notices)
    schedule(opened.scheduler, 20)
