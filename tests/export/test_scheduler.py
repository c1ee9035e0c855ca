"""Which scheduler a bundle draws with: settled before any work, or refused in words."""

import json

import diffusers
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from latentc.checkpoints import open_checkpoint
from latentc.core.errors import CheckpointError
from latentc.export.export import export
from latentc.export.scheduler import settle
from latentc.sampling.schedulers import NEAREST, SCHEDULERS, samplers, schedule

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

DEIS = {"algorithm_type": "deis", "solver_type": "logrho", "solver_order": 2, "lower_order_final": True}


@pytest.fixture
def folder(own_folder):
    """`folder(cls, **config)`: a checkpoint whose index and scheduler config name this class."""

    def make(cls, **config):
        made = own_folder("sd3" if cls.startswith("FlowMatch") else "sd1")
        for name, changes in (
            ("model_index.json", {"scheduler": ["diffusers", cls]}),
            ("scheduler/scheduler_config.json", {"_class_name": cls, **config}),
        ):
            path = made / name
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return made

    return make


@pytest.fixture
def own_folder(checkpoint, tmp_path):
    import shutil

    return lambda family="sd1": shutil.copytree(checkpoint(family), tmp_path / "own")


@pytest.mark.parametrize(
    ("family", "cls", "config", "said"),
    [
        ("sd3", "EulerDiscreteScheduler", {}, "was trained by flow matching, but .* is not one of flow matching"),
        ("sd3", "DDIMScheduler", {"shift": 3.0}, "is not one of flow matching"),
        ("sd1", "FlowMatchEulerDiscreteScheduler", {}, "was trained without flow matching, but .* is one of flow"),
        (
            "sd1",
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
            "is one of flow matching",
        ),
    ],
)
@pytest.mark.parametrize("name", [None, "euler"])
def test_flow_matching_belongs_to_the_family(family, cls, config, said, name, own_folder):
    """Otherwise the images are noise, without an error."""
    made = own_folder(family)
    for file, changes in (
        ("model_index.json", {"scheduler": ["diffusers", cls]}),
        ("scheduler/scheduler_config.json", {"_class_name": cls, **config}),
    ):
        (made / file).write_text(json.dumps(json.loads((made / file).read_text()) | changes))
    with pytest.raises(CheckpointError, match=said):
        settle(open_checkpoint(str(made)), name)


def test_a_class_that_isnt_there_is_refused_with_the_nearest(folder, tmp_path):
    source = folder("DPMSolverSinglestepScheduler", solver_order=2)
    with pytest.raises(CheckpointError, match=r"DPMSolverSinglestepScheduler of diff.*--scheduler dpm\+\+2m .*unipc"):
        export(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cls", NEAREST)
def test_the_nearest_can_be_asked_for(cls, folder):
    """Every class of diffusers that isn't here, with all that its config says."""
    made = getattr(diffusers, cls)(num_train_timesteps=1000)
    config = {key: value for key, value in made.config.items() if not key.startswith("_")}
    opened = open_checkpoint(str(folder(cls, **json.loads(json.dumps(config, default=float)))))
    with pytest.raises(CheckpointError, match=f"export with --scheduler {NEAREST[cls].replace('+', '.')}"):
        settle(opened, None)
    settled = settle(opened, NEAREST[cls])
    name = samplers(opened.scheduler)[NEAREST[cls]].class_name
    assert settled.scheduler["_class_name"] == name
    assert settled.model_index["scheduler"] == ["diffusers", name]
    assert f"instead of {cls}" in settled.notices[-1]
    theirs = getattr(diffusers, name).from_config(settled.scheduler)
    theirs.set_timesteps(8)
    assert np.allclose(schedule(settled.scheduler, 8).timesteps, theirs.timesteps.numpy(), atol=1e-3)


def test_the_classes_of_other_models_have_no_nearest(folder):
    opened = open_checkpoint(str(folder("EDMDPMSolverMultistepScheduler")))
    with pytest.raises(
        CheckpointError, match="names the scheduler EDMDPMSolverMultistepScheduler, which is not supported"
    ):
        settle(opened, None)


@pytest.mark.parametrize(("cls", "meant"), [("DDIMSScheduler", "DDIM"), ("EulerDiscrete", "EulerDiscrete")])
def test_a_class_that_is_misspelled_suggests_the_one_meant(cls, meant, folder):
    with pytest.raises(
        CheckpointError, match=f"names the scheduler {cls}, which is not supported. Did you mean '{meant}'"
    ):
        settle(open_checkpoint(str(folder(cls))), None)


@pytest.mark.parametrize(
    ("config", "match", "other"),
    [
        ({"no_such_key": 1}, "unknown key, 'no_such_key'", False),
        ({"predict_epsilon": "yes"}, "unknown key, 'predict_epsilon'", False),
        ({"thresholding": True}, "thresholding = True, which is not supported", False),
        ({"use_flow_sigmas": True}, "flow-matching", False),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True, which PNDMScheduler does not support", True),
        ({"prediction_type": "sample"}, "does not support models of prediction_type 'sample'", True),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas for 1000", False),
    ],
)
def test_a_config_that_cant_be_honoured_is_refused_before_any_work(config, match, other, folder, tmp_path):
    source = folder("PNDMScheduler", **config)
    with pytest.raises(CheckpointError, match=match) as caught:
        export(str(source), tmp_path / "out")
    assert str(source) in str(caught.value)
    assert ("--scheduler and one of: ddim" in str(caught.value)) == other
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_none_is_refused(folder):
    with pytest.raises(CheckpointError, match="'dpm' is not a known scheduler"):
        settle(open_checkpoint(str(folder("PNDMScheduler"))), "dpm")


@pytest.mark.parametrize("name", ["ipndm", "dpm++2s-ancestral", "euler-sgm-uniform"])
def test_a_scheduler_that_no_config_expresses_is_refused(name, folder):
    with pytest.raises(CheckpointError, match="can't be the scheduler of a bundle"):
        settle(open_checkpoint(str(folder("PNDMScheduler"))), name)


@pytest.mark.parametrize("name", [*(name for name, row in SCHEDULERS.items() if row.in_diffusers), "dpm++2m-karras"])
def test_a_scheduler_that_is_asked_for_is_the_bundles_own(name, folder):
    settled = settle(open_checkpoint(str(folder("PNDMScheduler"))), name)
    assert (schedule(settled.scheduler, 8).timesteps == schedule(settled.scheduler, 8, name).timesteps).all()
    if name != "dpm++sde":  # which needs torchsde in diffusers
        theirs = getattr(diffusers, settled.scheduler["_class_name"]).from_config(settled.scheduler)
        theirs.set_timesteps(8)
        assert np.allclose(schedule(settled.scheduler, 8).timesteps, theirs.timesteps.numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "lcm"])
def test_one_that_is_asked_for_clips_where_the_checkpoint_says_so_alone(name, folder):
    source = folder("PNDMScheduler")
    path = source / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    del config["clip_sample"]
    path.write_text(json.dumps(config))
    settled = settle(open_checkpoint(str(source)), name).scheduler
    assert getattr(diffusers, str(settled["_class_name"])).from_config(settled).config["clip_sample"] is False


@pytest.mark.slow
def test_what_was_found_out_is_in_the_bundle(checkpoint, tmp_path):
    """An export of a folder of 2022 with another scheduler: its config, its size, and why."""
    import shutil

    source = shutil.copytree(checkpoint("sd1"), tmp_path / "source")
    path = source / "scheduler" / "scheduler_config.json"
    config = {
        key: value for key, value in json.loads(path.read_text()).items() if key not in ("clip_sample", "steps_offset")
    }
    own = "DPMSolverSinglestepScheduler"
    path.write_text(json.dumps(config | DEIS | {"_class_name": own, "predict_epsilon": True}))
    index = source / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", own]}))
    bundle = export(str(source), tmp_path / "out", spacing="trailing", size=64, scheduler="ddim")
    written = bundle.json("scheduler/scheduler_config.json")
    assert written["_class_name"] == bundle.json("model_index.json")["scheduler"][1] == "DDIMScheduler"
    assert (written["steps_offset"], written["clip_sample"], written["timestep_spacing"]) == (1, False, "trailing")
    assert bundle.manifest.model.default_size == 64
    assert {fact.name: fact.by for fact in bundle.manifest.trained_for} == {
        "timestep_spacing": "--spacing",
        "pixels": "--size",
    }
    assert any(f"instead of {own}" in notice for notice in bundle.manifest.notices)
    assert any("steps_offset" in notice for notice in bundle.manifest.notices)


def test_doubts_about_a_file_are_asked_before_any_work(single_file_of, tmp_path):
    with pytest.raises(CheckpointError, match="two values of prediction_type"):
        export(str(single_file_of("v_pred", {"modelspec.prediction_type": "epsilon"})), tmp_path / "out")


@pytest.fixture
def single_file_of(checkpoint, tmp_path):
    import torch

    from tests.checkpoints.conftest import original

    def make(mark, metadata):
        folder = checkpoint("sd1")
        files = {path.parent.name: path for path in folder.glob("*/*.safetensors")}
        configs = {name: json.loads((path.parent / "config.json").read_text()) for name, path in files.items()}
        tensors = original("sd1", {name: load_file(path) for name, path in files.items()}, configs)
        tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
        save_file(tensors | {mark: torch.tensor([])}, tmp_path / "model.safetensors", metadata=metadata)
        return tmp_path / "model.safetensors"

    return make


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scheduler", "dpm"), "'dpm' is not a known scheduler"),
        (("--spacing", "even"), "'even' is not a valid spacing"),
        (("--prediction", "x0"), "'x0' is not a valid prediction"),
        (("--size", 100), "100 pixels is not a supported size"),
        (("--zero-snr",), "rescale_betas_zero_snr = True, which PNDMScheduler does not support"),
        (("--prediction", "sample"), "prediction_type 'sample'"),
        (("--spacing", "trailing", "--scheduler", "lcm"), "has no timestep_spacing"),
    ],
)
def test_the_command_passes_what_is_said(words, said, folder, refused, tmp_path):
    assert said in refused("export", folder("PNDMScheduler"), "-o", tmp_path / "out", *words)


def test_run_passes_the_spacing(refused, tmp_path):
    assert "timestep_spacing" in refused("run", tmp_path, "a cat", "-p", "null", "--spacing", "even")
