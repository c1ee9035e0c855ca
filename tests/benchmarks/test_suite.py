"""The parity suite and its gate: what must pass passes, and each deliberate mistake fails by name."""

import hashlib
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.benchmarks.forced import Forced, Tapped, force, record
from latentc.benchmarks.quality import Figures, PictureSummary
from latentc.benchmarks.suite import (
    HOST_PSNR_DB,
    SCENES,
    SUITE,
    Picture,
    SuiteParity,
    failures,
    load_references,
    make_references,
    measure,
    references_path,
    requests,
    save_references,
    suite_for,
)
from latentc.compiler.build import build
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError
from latentc.core.recipes import RECIPES
from latentc.core.tensors import PERFECT_DB
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

SMALL = replace(SUITE, prompts=SUITE.prompts[:2], seeds=SUITE.seeds[:1], steps=6)
SIZE = (64, 64)
MIDDLE = "mid_block.attentions.0.proj_in.weight"
ENGINES = {"f32": "cpu-onnxruntime", "bf16": "cpu-openvino"}


def profile_of(name, **changes):
    """A profile that builds anything: here the suite's gate is to find what is wrong, not the build's."""
    profile = load_profile(name)
    return profile.model_copy(update={"parity_db": dict.fromkeys(profile.parity_db, -1000.0), **changes})


def opened(bundle, name, **changes):
    profile = profile_of(name, **changes)
    build(bundle, profile)
    return Pipeline.open(bundle, profile)


@pytest.fixture(scope="module")
def references(bundle):
    made = {}

    def make(family):
        if family not in made:
            with opened(bundle(family), "torch-f32") as pipeline:
                made[family] = make_references(pipeline, SMALL, SIZE)
        return made[family]

    return make


def verdict(pipeline, references):
    parity = measure(pipeline, references)
    return parity, " ".join(failures(parity))


# What must pass.


SOUND = [("cpu-onnxruntime", "f32"), ("cpu-openvino-f32", "f32"), ("torch-f32", "bf16")]


@pytest.mark.parametrize(
    ("family", "name", "precision"),
    [
        *[(family, *engines) for family in ("sd1", "sdxl") for engines in SOUND],
        ("sd1", "torch-f32", "f16"),  # of one family: PyTorch takes long in f16 on CPUs
    ],
)
@pytest.mark.slow
def test_sound_engines_pass_in_every_precision(bundle, references, family, name, precision):
    with opened(bundle(family), name, precision={"default": (precision,)}) as pipeline:
        parity, said = verdict(pipeline, references(family))
    assert said == ""
    assert parity.precisions["unet"] == precision
    assert parity.forced.host_psnr_db == PERFECT_DB
    denoiser = parity.forced.parts_psnr_db["unet"]
    assert len(denoiser) >= SMALL.steps
    assert (min(denoiser) < 100) == (precision != "f32"), "a narrower type was asked for, and f32 was computed"


@pytest.mark.slow
def test_openvino_s_own_precision_passes(bundle, references):
    with opened(bundle("sd1"), "cpu-openvino") as pipeline:
        assert verdict(pipeline, references("sd1"))[1] == ""


@pytest.mark.slow
def test_the_reference_is_its_own_equal(bundle, references):
    with opened(bundle("sd1"), "torch-f32") as pipeline:
        parity, said = verdict(pipeline, references("sd1"))
    assert said == ""
    assert parity.summary.worst == Figures(PERFECT_DB, 1.0, 0.0, 0.0)
    assert min(parity.forced.parts_psnr_db["unet"]) == PERFECT_DB
    assert parity.suite == "general 1"
    assert parity.reference.startswith("torch ")


# What must fail, in f32 and in bf16: the power of the gate.


@pytest.fixture(params=ENGINES)
def engine(request, bundle):
    """A pipeline in each precision, to be broken."""
    with opened(bundle("sd1"), ENGINES[request.param]) as pipeline:
        yield pipeline


@pytest.mark.slow
def test_swapped_halves_fail(engine, references):
    def swapped(part, inner, feeds):
        outputs = inner.run(feeds)
        if part != "unet":
            return outputs
        negative, positive = np.split(outputs["out_sample"], 2)
        return {"out_sample": np.concatenate([positive, negative])}

    _, said = verdict(engine.through(lambda engines: Tapped(engines, swapped)), references("sd1"))
    assert "unet in" in said
    assert "worst image's psnr_db" in said


def change_host(pipeline, **changes):
    pipeline._work = replace(pipeline._work, host=replace(pipeline._work.host, **changes))


class LessGuided(Pipeline):
    """Draws with a guidance of 7.0, whatever was asked."""

    def __call__(self, request, *arguments, **options):
        return super().__call__(request.model_copy(update={"guidance": 7.0}), *arguments, **options)


def test_guidance_of_7_0_for_7_5_fails(engine, references):
    mistaken = LessGuided(engine.bundle, engine._work.engines, engine.profile)
    _, said = verdict(mistaken, references("sd1"))
    assert "Host code differs from the reference" in said
    assert "sample of unet" in said


@pytest.mark.parametrize("change", [{"steps_offset": 0}, {"beta_end": 0.0121}])
def test_a_scheduler_off_by_one_fails(engine, references, change):
    assert engine._work.host.scheduler["steps_offset"] == 1
    change_host(engine, scheduler=engine._work.host.scheduler | change)
    _, said = verdict(engine, references("sd1"))
    assert "Host code differs from the reference" in said
    assert "of unet" in said


@pytest.mark.parametrize("difference", [-1, 1])
def test_one_step_more_or_less_fails(engine, references, difference):
    class Miscounted(Pipeline):
        def __call__(self, request, *arguments, **options):
            changed = request.model_copy(update={"steps": request.steps + difference})
            return super().__call__(changed, *arguments, **options)

    forced = force(Miscounted(engine.bundle, engine._work.engines, engine.profile), references("sd1").recording)
    assert forced.host_psnr_db == -np.inf
    assert "the reference has" in forced.host_worst


def test_a_wrong_vae_scale_fails(engine, references):
    model = engine._work.host.model
    assert model.scaling_factor == 0.18215
    change_host(engine, model=model.model_copy(update={"scaling_factor": 0.13025}))
    _, said = verdict(engine, references("sd1"))
    assert "latent_sample of vae_decoder" in said


@pytest.fixture
def unproved_graphs(monkeypatch):
    """A build that compiles any graph, and leaves it to the suite to find what is wrong."""
    monkeypatch.setattr("latentc.compiler.build.check_graphs", lambda *_: {})


@pytest.mark.slow
@pytest.mark.usefixtures("unproved_graphs")
@pytest.mark.parametrize("engine_name", ENGINES.values())
def test_one_wrong_weight_tensor_fails(own_bundle, perturb, references, engine_name):
    """The values of one tensor of about two hundred in another order, as after a wrong transposition."""
    broken = own_bundle("sd1")
    perturb(broken, "unet", MIDDLE, lambda values: np.random.default_rng(0).permutation(values))
    with opened(open_bundle(broken.folder), engine_name) as pipeline:
        assert "unet in" in verdict(pipeline, references("sd1"))[1]


@pytest.mark.slow
@pytest.mark.usefixtures("unproved_graphs")
@pytest.mark.parametrize("tensor", [MIDDLE, "mid_block.resnets.0.conv1.weight"])
def test_one_weight_tensor_off_by_a_twentieth_fails_in_f32(own_bundle, perturb, references, tensor):
    """In bf16 it is less than what rounding does: there no gate can tell, and this one doesn't say it can."""
    broken = own_bundle("sd1")
    perturb(broken, "unet", tensor, lambda values: values * np.float32(1.05))
    with opened(open_bundle(broken.folder), "cpu-onnxruntime") as pipeline:
        assert "unet in" in verdict(pipeline, references("sd1"))[1]


# Pictures that are none.


def test_pictures_of_nan_black_and_flat_ones_are_named(bundle, references):
    def painted(values):
        def tap(part, inner, feeds):
            outputs = inner.run(feeds)
            return outputs if part != "vae_decoder" else {"sample": np.full_like(outputs["sample"], values)}

        return lambda engines: Tapped(engines, tap)

    with opened(bundle("sd1"), "cpu-onnxruntime") as pipeline:
        for values, wanted in ((np.nan, {"not finite"}), (-1.0, {"black", "flat"}), (0.5, {"flat"})):
            parity, said = verdict(pipeline.through(painted(values)), references("sd1"))
            assert {fault.split(":")[0] for fault in parity.faults} == wanted
            assert all(f"An image is faulty: {name}: 'a lighthouse" in said for name in wanted)
        assert parity.summary is not None
        parity = measure(pipeline.through(painted(np.inf)), references("sd1"))
    assert parity.summary is None
    assert "No image could be compared." in failures(parity)


def test_a_flat_reference_shows_nothing_and_fails(bundle, references):
    flat = tuple(np.full_like(image, 90) for image in references("sd1").images)
    with opened(bundle("sd1"), "cpu-onnxruntime") as pipeline:
        _, said = verdict(pipeline, replace(references("sd1"), images=flat))
    assert "An image is faulty: reference flat" in said


# The gate, by itself.

GATE = {name: bound for name, bound in asdict(RECIPES["f32"].gate).items() if name != "part_psnr_db"}


@pytest.fixture
def passing():
    """Everything at its bound."""
    good = Figures(**GATE)
    return SuiteParity(
        suite="general 1",
        reference="torch",
        precisions={"unet": "f32", "text_encoder": "f32", "vae_decoder": "bf16"},
        denoiser="unet",
        forced=Forced(HOST_PSNR_DB, "", {"unet": (90.0, 95.0)}),
        pictures=(Picture("a", 1, good, ()),),
        summary=PictureSummary(good, good, 1),
    )


def test_every_bound_is_held_alone(passing):
    assert failures(passing) == ()
    good = Figures(**GATE)
    for name, value in asdict(good).items():
        for wrong in (value * (0.99 if name in ("psnr_db", "ssim") else 1.01), float("nan")):
            worse = replace(good, **{name: wrong})
            said = failures(replace(passing, summary=PictureSummary(good, worse, 1)))
            assert len(said) == 1
            assert name in said[0]
    for forced in (
        replace(passing.forced, host_psnr_db=99.0),
        replace(passing.forced, parts_psnr_db={"unet": (89.0, 95.0)}),
        replace(passing.forced, parts_psnr_db={}),
        replace(passing.forced, parts_psnr_db={"unet": (float("nan"),)}),
        replace(passing.forced, parts_psnr_db={"unet": (95.0,), "text_encoder": (89.0,), "vae_decoder": (26.0,)}),
    ):
        assert len(failures(replace(passing, forced=forced))) == 1


# The suite itself, and its references on disk.


@pytest.mark.parametrize(("suite", "kept"), [(SUITE, (1, "ec92ce13610c5f0c")), (SCENES, (1, "d1feb2ce976e2ba7"))])
def test_a_suite_is_the_version_it_says(suite, kept):
    """Who changes prompts, seeds or settings raises the version, and then writes its digest here."""
    assert len(suite.prompts) >= 8
    assert len(suite.seeds) >= 2
    drawn = [(each.prompt, each.negative_prompt, each.seed, each.steps, each.guidance) for each in requests(suite)]
    assert len(set(drawn)) == len(suite.prompts) * len(suite.seeds)
    assert (suite.version, hashlib.sha256(repr(drawn).encode()).hexdigest()[:16]) == kept


def test_scenes_is_asked_for_what_it_knows(bundle):
    assert suite_for(bundle("sd1")) == SUITE
    assert suite_for(bundle("scenes")) == SCENES


def test_references_come_back_as_they_were(references, tmp_path):
    made = references("sd1")
    path = tmp_path / "kept" / "suite.npz"
    save_references(path, made)
    again = load_references(path)
    assert (again.suite, again.engines, again.size) == (made.suite, made.engines, made.size)
    assert again.recording.request == made.recording.request
    assert (again.recording.latents == made.recording.latents).all()
    for mine, theirs in zip(made.recording.calls, again.recording.calls, strict=True):
        assert mine.part == theirs.part
        for one, other in ((mine.feeds, theirs.feeds), (mine.outputs, theirs.outputs)):
            assert one.keys() == other.keys()
            assert all(one[name].dtype == other[name].dtype and (one[name] == other[name]).all() for name in one)
    assert all((one == other).all() for one, other in zip(made.images, again.images, strict=True))
    assert [each.name for each in path.parent.iterdir()] == ["suite.npz"]


def test_damaged_references_are_refused(references, tmp_path):
    path = tmp_path / "suite.npz"
    with pytest.raises(BundleError, match="run bench again"):
        load_references(path)
    save_references(path, references("sd1"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BundleError, match="run bench again"):
        load_references(path)
    np.savez(path, about=np.array("{}"))
    with pytest.raises(BundleError, match="run bench again"):
        load_references(path)


def test_references_of_something_else_have_another_path(bundle):
    paths = {
        references_path(bundle("sd1"), SUITE, SIZE),
        references_path(bundle("sd1"), SMALL, SIZE),
        references_path(bundle("sd1"), SUITE, (128, 64)),
        references_path(bundle("sdxl"), SUITE, SIZE),
    }
    assert len({path.name for path in paths}) == 4
    assert references_path(bundle("sd1"), SUITE, SIZE).parent == bundle("sd1").engines


def test_a_recording_leaves_the_picture_as_it_is(bundle):
    with opened(bundle("sd1"), "cpu-onnxruntime") as pipeline:
        request = requests(SMALL, SIZE)[0]
        latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
        seen = []
        recording = record(pipeline, request, latents)
        drawn = pipeline(request, lambda step: seen.append(step.index), latents=latents)
    parts = [call.part for call in recording.calls]
    assert parts == ["text_encoder", *["unet"] * len(seen), "vae_decoder"]
    assert (recording.calls[-1].feeds["latent_sample"] == drawn.latents).all()


def test_references_are_of_the_models_own_width_and_height(bundle, monkeypatch):
    opened, drawn = bundle("sd1"), []
    model = opened.manifest.model.model_copy(update={"default_size": 128, "default_height": 64})
    wide = replace(opened, manifest=opened.manifest.model_copy(update={"model": model}))
    monkeypatch.setattr("latentc.benchmarks.suite.record", lambda _, request, latents: drawn.append(latents.shape))

    class Drawing:
        bundle, engines = wide, {}

        def __call__(self, request, latents):
            drawn.append((request.width, request.height))
            return SimpleNamespace(images=(None,), engines={})

    assert make_references(Drawing(), SMALL).size == (128, 64)
    assert drawn == [(1, 4, 8, 16), (128, 64), (128, 64)]
