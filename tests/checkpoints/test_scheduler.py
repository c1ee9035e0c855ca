"""A folder's scheduler config, as diffusers' pipeline reads and repairs it when it loads the same folder."""

import inspect
import json

import diffusers
import numpy as np
import pytest

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.scheduler import repairs
from latentc.core.errors import CheckpointError
from latentc.export.scheduler import settle
from latentc.sampling.schedulers import SCHEDULERS, _settled, schedule

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
OF_2022 = BETAS | {"_diffusers_version": "0.3.0"}

FOLDERS = {
    "clip_sample is left out": ("sd1", "DDIMScheduler", OF_2022 | {"steps_offset": 1, "set_alpha_to_one": False}),
    "clip_sample is true": ("sd1", "DDIMScheduler", OF_2022 | {"steps_offset": 1, "clip_sample": True}),
    "clip_sample of DDPM": ("sd1", "DDPMScheduler", OF_2022 | {"variance_type": "fixed_small"}),
    "clip_sample of Heun": ("sd1", "HeunDiscreteScheduler", OF_2022 | {"clip_sample": True, "steps_offset": 1}),
    "steps_offset is left out": ("sd1", "PNDMScheduler", OF_2022 | {"skip_prk_steps": True}),
    "steps_offset is zero": ("sd2", "EulerDiscreteScheduler", OF_2022 | {"steps_offset": 0}),
    "an offset that means nothing": ("sd1", "LCMScheduler", BETAS | {"original_inference_steps": 50}),
    "nothing of XL is repaired": ("sdxl", "EulerDiscreteScheduler", BETAS | {"steps_offset": 0}),
    "XL clips": ("sdxl", "DDIMScheduler", BETAS | {"steps_offset": 0}),
    "another class is written": ("sd1", "PNDMScheduler", BETAS | {"_class_name": "DDIMScheduler", "steps_offset": 1}),
    "parallel": ("sd1", "DDIMParallelScheduler", BETAS | {"steps_offset": 1, "clip_sample": False}),
    "keys that nobody set": (
        *("sd1", "PNDMScheduler"),
        BETAS
        | {"skip_prk_steps": True, "steps_offset": 7, "_use_default_values": ["steps_offset", "set_alpha_to_one"]},
    ),
    "keys of another class": (
        *("sd1", "EulerDiscreteScheduler"),
        BETAS | {"skip_prk_steps": True, "solver_order": 3, "set_alpha_to_one": True, "thresholding": False},
    ),
    "keys of 2022": ("sd1", "PNDMScheduler", OF_2022 | {"tensor_format": "pt", "timestep_values": None}),
    "predicts epsilon": ("sd1", "DDIMScheduler", OF_2022 | {"predict_epsilon": True, "clip_sample": False}),
    "betas": ("sd1", "DDIMScheduler", BETAS | {"trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()}),
    "karras": ("sd1", "DPMSolverMultistepScheduler", BETAS | {"use_karras_sigmas": True, "steps_offset": 1}),
}


def write(folder, cls, config):
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", cls]}))
    config = {"_class_name": cls, **config}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def pipeline(folder, **parts):
    """The pipeline that diffusers makes of a folder, without what isn't passed in."""
    index = json.loads((folder / "model_index.json").read_text())
    cls = getattr(diffusers, index["_class_name"])
    known = inspect.signature(cls.__init__).parameters
    given = {name: None for name, one in known.items() if one.default is one.empty and name != "self"} | parts
    given["scheduler"] = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    return cls(**given, **({"requires_safety_checker": False} if "safety_checker" in known else {}))


@pytest.mark.parametrize("name", FOLDERS)
def test_it_is_read_as_diffusers_reads_it(name, own):
    family, cls, config = FOLDERS[name]
    folder = write(own(family), cls, config)
    theirs, ours = pipeline(folder).scheduler, open_checkpoint(str(folder)).scheduler
    assert ours["_class_name"] == type(theirs).__name__.replace("Parallel", "")
    sampler = next(one for one in SCHEDULERS.values() if one.class_name == ours["_class_name"])
    defaults = {key: one.default for key, one in inspect.signature(type(theirs).__init__).parameters.items()}
    for key in sampler.keys & set(theirs.config) & set(defaults):
        assert ours.get(key, defaults[key]) == theirs.config[key], key
    theirs.set_timesteps(20)
    walk = schedule(ours, 20)
    assert np.allclose(walk.timesteps, theirs.timesteps.numpy(), atol=1e-3)
    assert walk.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)
    again = type(theirs).from_config(ours)  # what the bundle holds, loaded by diffusers
    assert all(again.config[key] == theirs.config[key] for key in defaults if key in theirs.config)


@pytest.mark.parametrize(
    "cls", ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionPAGPipeline"]
)
def test_pipelines_that_repair_are_known(cls, own):
    folder = write(own(), "DDIMScheduler", OF_2022)
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": cls}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = pipeline(folder).scheduler.config
    assert repairs(index)
    assert (config.steps_offset, config.clip_sample) == (1, False)


@pytest.mark.parametrize("cls", ["LatentConsistencyModelPipeline", "StableDiffusionXLPipeline"])
def test_pipelines_that_dont_repair_are_known(cls):
    assert "clip_sample not set" not in inspect.getsource(getattr(diffusers, cls).__init__)
    assert not repairs({"_class_name": cls})


def test_what_is_repaired_is_noticed(own):
    notices = open_checkpoint(str(write(own(), "DDIMScheduler", OF_2022))).notices
    assert [notice.split(",")[0] for notice in notices] == [
        "scheduler_config.json has no steps_offset",
        "scheduler_config.json has no clip_sample",
    ]
    assert not open_checkpoint(str(own("sd2"))).notices


@pytest.mark.parametrize("family", ["sdxl", "sd1"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "lcm", "euler"])
def test_another_scheduler_clips_as_diffusers_makes_it(name, family, own):
    """Nothing repairs XL's and LCM's: what their config leaves out is left to the class that draws."""
    folder = write(own(family), "DDIMScheduler", BETAS | {"steps_offset": 1})
    if family == "sd1":
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = "LatentConsistencyModelPipeline"
        (folder / "model_index.json").write_text(json.dumps(index))
    opened = open_checkpoint(str(folder))
    cls = getattr(diffusers, SCHEDULERS[name].class_name)
    theirs = cls.from_config(pipeline(folder).scheduler.config).config.get("clip_sample", False)
    exported = settle(opened, name)
    assert _settled(opened.scheduler, name, None)[1].clip_sample is theirs
    assert _settled(exported.scheduler, None, None)[1].clip_sample is theirs
    assert cls.from_config(exported.scheduler).config.get("clip_sample", False) is theirs
    assert any("clips latents" in notice for notice in opened.notices)
    assert not any("clips latents" in notice for notice in exported.notices) or name == "ddim"


@pytest.mark.parametrize(
    ("cls", "config", "words", "choices", "name"),
    [
        ("DDIMScheduler", {"predict_epsilon": False}, "predict_epsilon", {"prediction": "v_prediction"}, None),
        ("PNDMScheduler", {"_class_name": "DDIMScheduler"}, "the former is used", {}, "euler"),
        ("DDIMScheduler", {"clip_sample": True}, "has clip_sample", {}, "euler"),
        ("PNDMScheduler", {"steps_offset": 0}, "has steps_offset", {}, "lcm"),
    ],
)
def test_a_notice_goes_with_what_it_is_about(cls, config, words, choices, name, own):
    folder = str(write(own(), cls, BETAS | {"steps_offset": 1, "clip_sample": False} | config))
    assert any(words in notice for notice in open_checkpoint(folder).notices)
    assert not any(words in notice for notice in settle(open_checkpoint(folder, **choices), name).notices)


def test_an_old_size_is_noticed_where_it_is_taken(own):
    folder = own()
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 32, "_diffusers_version": "0.6.0"}))
    assert any("64 is used" in notice for notice in open_checkpoint(str(folder)).notices)
    told = open_checkpoint(str(folder), size=256)
    assert (told.pixels, told.notices) == (256, ())


def test_a_mismatch_of_classes_is_noticed(own):
    folder = write(own(), "PNDMScheduler", BETAS | {"_class_name": "DDIMScheduler", "steps_offset": 1})
    assert "model_index.json names PNDMScheduler" in open_checkpoint(str(folder)).notices[0]


@pytest.mark.parametrize(("said", "predicts"), [(True, "epsilon"), (False, "sample")])
def test_predict_epsilon_is_the_prediction_type(said, predicts, own):
    folder = write(own(), "DDIMScheduler", OF_2022 | {"predict_epsilon": said})
    assert open_checkpoint(str(folder)).scheduler["prediction_type"] == predicts
    both = OF_2022 | {"predict_epsilon": said, "prediction_type": "v_prediction"}
    assert open_checkpoint(str(write(folder, "DDIMScheduler", both))).scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("family", "size", "version"),
    [
        *(("sd1", 32, version) for version in ("0.6.0", "0.8.1", "0.9.0.dev0", "0.10.2", None)),
        *(("sd1", 96, "0.6.0"), ("sd2", 48, "0.4.0.dev0"), ("sdxl", 32, "0.6.0")),
    ],
)
def test_the_size_is_what_diffusers_takes(family, size, version, own):
    folder = own(family)
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text()) | {"sample_size": size}
    path.write_text(json.dumps(config | ({"_diffusers_version": version} if version else {})))
    unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(path))
    if version is None:
        assert not hasattr(unet.config, "_diffusers_version")
    theirs = pipeline(folder, unet=unet).unet.config.sample_size
    opened = open_checkpoint(str(folder))
    assert opened.pixels == 8 * theirs
    assert bool(opened.notices) == (theirs != size)


def test_what_is_asked_for_replaces_what_a_folder_says(own):
    opened = open_checkpoint(str(own("sdxl")), prediction="v_prediction", spacing="trailing", zero_snr=True, size=768)
    assert opened.scheduler["prediction_type"] == "v_prediction"
    assert opened.scheduler["timestep_spacing"] == "trailing"
    assert opened.scheduler["rescale_betas_zero_snr"] is True
    assert opened.pixels == 768
    assert {fact.name: (fact.value, fact.by) for fact in opened.trained_for} == {
        "prediction_type": ("v_prediction", "--prediction"),
        "rescale_betas_zero_snr": (True, "--zero-snr"),
        "timestep_spacing": ("trailing", "--spacing"),
        "pixels": (768, "--size"),
    }


@pytest.mark.parametrize(
    "entry", ["DDIMScheduler", ["own_code", "DDIMScheduler"], ["diffusers", ["DDIMScheduler"]], ["DDIMScheduler"], 5]
)
def test_an_entry_that_isnt_a_class_of_diffusers_is_refused(entry, own):
    folder = own()
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": entry}))
    opened = open_checkpoint(str(folder))
    with pytest.raises(
        CheckpointError, match="names the scheduler .*, which is not supported.*export with --scheduler"
    ):
        settle(opened, None)
    assert settle(opened, "ddim").scheduler["_class_name"] == "DDIMScheduler"


@pytest.mark.parametrize("entry", [None, [None, None]])
def test_an_entry_that_says_nothing_leaves_the_class_to_the_config(entry, own):
    folder = write(own(), "DDIMScheduler", BETAS | {"steps_offset": 1, "clip_sample": False})
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": entry}))
    assert open_checkpoint(str(folder)).scheduler["_class_name"] == "DDIMScheduler"
