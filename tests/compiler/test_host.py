"""The host's part of a picture against diffusers' pipeline, for whatever a checkpoint's scheduler config says."""

import json
import shutil

import numpy as np
import pytest

from latentc.benchmarks.power import reseal
from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.parts import as_part, part_specs
from latentc.compiler.host_check import check_host
from latentc.compiler.proof import prove_host, unproved
from latentc.core.bundle import open_bundle
from latentc.core.errors import ParityError
from latentc.core.references import DRAWINGS, DRAWN, stored_at
from latentc.core.wires import SIZE
from latentc.export.reference import References
from latentc.sampling.host import load_host
from latentc.sampling.wires import SOURCES

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

SCHEDULERS = {
    "ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "ddpm": {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "fixed_small"},
    "lcm": {"_class_name": "LCMScheduler", "original_inference_steps": 50},
    "heun": {"_class_name": "HeunDiscreteScheduler"},
    "pndm": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
    "runge-kutta": {"_class_name": "PNDMScheduler", "skip_prk_steps": False, "steps_offset": 1},
    "unipc": {"_class_name": "UniPCMultistepScheduler"},
    "sde": {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
    "brownian": {"_class_name": "DPMSolverSDEScheduler"},
    "an old offset": {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": False},
    "old clipping": {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": True},
    "said nothing": {"_class_name": "DDIMScheduler"},
    "velocity": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False},
    "zero signal": {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "dpm2": {"_class_name": "KDPM2DiscreteScheduler", "use_karras_sigmas": True},
    "dpm2 ancestral": {"_class_name": "KDPM2AncestralDiscreteScheduler"},
    "deis": {"_class_name": "DEISMultistepScheduler", "solver_order": 3},
    "sa solver": {"_class_name": "SASolverScheduler"},
    "tcd": {"_class_name": "TCDScheduler"},
    "karras": {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
}


@pytest.fixture
def referenced(exported, checkpoint, tmp_path):
    """`referenced(config)`: a bundle whose references were drawn with that scheduler."""

    def make(config):
        source = shutil.copytree(checkpoint("sd1"), tmp_path / "checkpoint")
        path = source / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**BETAS, **config}))
        index = source / "model_index.json"
        names = {"scheduler": ["diffusers", config["_class_name"]]}
        index.write_text(json.dumps(json.loads(index.read_text()) | names))
        opened = open_checkpoint(str(source))
        folder = shutil.copytree(exported("sd1").folder, tmp_path / "bundle")
        references = References(opened)
        references.read_prompts()
        for spec in part_specs(opened):
            module = opened.module(spec.component)
            stored = references.take(spec, module, as_part(opened, spec, module))
            np.savez(folder / stored_at(spec.name), allow_pickle=False, **stored)
        np.savez(folder / DRAWN, allow_pickle=False, **references.drawn)
        (folder / DRAWINGS).write_text(references.made().model_dump_json())
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(references.scheduler))
        reseal(folder)
        return open_bundle(folder)

    return make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_host_takes_diffusers_steps(referenced, name):
    opened = referenced(SCHEDULERS[name])
    assert check_host(opened, load_host(opened)) > 80
    assert (name in ("brownian", "dpm2 ancestral")) == bool(unproved(opened))
    path = opened.folder / "scheduler" / "scheduler_config.json"
    for each in (path, opened.folder / DRAWINGS):
        each.write_text(each.read_text().replace("0.012", "0.013"))
    reseal(opened.folder)
    other = open_bundle(opened.folder)
    with pytest.raises(ParityError, match="differs from diffusers' pipeline"):
        check_host(other, load_host(other))


def test_a_source_of_wires_that_changes_is_proved_again(bundle, monkeypatch, tmp_path):
    """Other packages may bring sources, and latentc's own version says nothing of their code."""
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path))
    opened = bundle("sdxl")
    assert prove_host(opened) > 100

    def wrong(request, _width):
        return np.zeros(6, np.float32)

    monkeypatch.setitem(SOURCES, SIZE, wrong)
    with pytest.raises(ParityError, match="time_ids"):
        prove_host(opened)
