"""Profiles with several precisions for a part: what is below its floor in one is built in the next, and said."""

import shutil

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from latentc.benchmarks.power import reseal
from latentc.cli.why import why as show_why
from latentc.compiler import build as building
from latentc.compiler.build import build
from latentc.compiler.cache import keep
from latentc.compiler.prune import prune
from latentc.compiler.refused import SUFFIX, refusals
from latentc.compiler.targets import wanted
from latentc.core.bundle import open_bundle
from latentc.core.errors import ParityError
from latentc.core.recipes import RECIPES
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import Shapes, load_profile
from latentc.runtimes import runtime
from latentc.runtimes.iree import IREE

from .builds import OPENVINO, copied, of

FLOORS = {name: recipe.floor_db for name, recipe in RECIPES.items()}
PART = "vae_decoder"
CONV = "decoder.conv_in.weight"
SEVERAL = of(OPENVINO, precision={"default": ("f32",), "decoder": ("bf16", "f32")})
STRICT = of(SEVERAL, parity_db={**FLOORS, "bf16": 190.0})
"""No engine in bf16 reaches its floor."""

narrow = pytest.mark.skipif(
    runtime("openvino").missing("CPU") is not None or "bf16" not in runtime("openvino").precisions("CPU"),
    reason="OpenVINO does not compute in bf16 here",
)
iree = pytest.mark.skipif(runtime("iree").missing("CPU") is not None, reason=str(runtime("iree").missing("CPU")))


def compiled(monkeypatch):
    """Precisions in which engines of the decoder are compiled from here on."""
    seen, make = [], building.make

    def noted(bundle, profile, adapter, want, *rest, **more):
        if want.part == PART:
            seen.append(want.target.precision)
        return make(bundle, profile, adapter, want, *rest, **more)

    monkeypatch.setattr(building, "make", noted)
    return seen


def overflowing(opened):
    """The decoder multiplies its latents by 2^20 and divides them again: in f32 they are the same to the bit."""
    path = opened.graph(PART)
    model = onnx.load(path, load_external_data=False)
    latents = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["planted.3" if name == latents else name for name in node.input]
    chain = [latents, *(f"planted.{index}" for index in range(4))]
    for index, factor in enumerate((1024, 1024, 1 / 1024, 1 / 1024)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), f"factor.{index}"))
        product = onnx.helper.make_node("Mul", [chain[index], f"factor.{index}"], [chain[index + 1]])
        model.graph.node.insert(index, product)
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(chain[index + 1], 1, None))
    path.write_bytes(model.SerializeToString())
    reseal(opened.folder)
    return open_bundle(opened.folder)


def precision_of(built):
    return {one.artifact.part: one.artifact.fields.precision for one in built.engines}[PART]


@narrow
def test_what_was_refused_is_said_and_not_compiled_again(own_bundle, monkeypatch, capsys):
    opened, seen = own_bundle(), compiled(monkeypatch)
    first = build(opened, STRICT)
    assert seen == ["bf16", "f32"]
    assert precision_of(first) == "f32"
    (note,) = (note for note in first.notes if "refused" in note)
    assert note.startswith("vae_decoder in bf16 was refused: it agrees with the reference to ")
    assert note.endswith("but 190 dB is required. vae_decoder is built in f32 instead.")
    second = build(opened, STRICT)
    assert seen == ["bf16", "f32"], "nothing is compiled again"
    assert all(one.hit for one in second.engines)
    assert note in second.notes
    show_why(opened, [STRICT], as_json=False)
    shown = capsys.readouterr().out
    assert note.partition(" vae_decoder is built")[0] in shown
    show_why(opened, [STRICT], as_json=True)
    assert '"refused"' in capsys.readouterr().out
    with Pipeline.open(opened, STRICT) as pipeline:
        assert pipeline.describe()[PART].endswith("f32")


@narrow
def test_the_record_holds_for_its_floor_and_goes_with_the_bundle(own_bundle, monkeypatch, tmp_path):
    opened, seen = own_bundle(), compiled(monkeypatch)
    build(opened, STRICT)
    assert precision_of(build(opened, SEVERAL)) == "bf16", "a lower floor is tried"
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "elsewhere"))
    del seen[:]
    other = copied(opened, "other")
    assert precision_of(build(other, STRICT)) == "f32"
    assert seen == []
    (path,) = refusals(other)
    path.write_text("{}")
    assert precision_of(build(other, STRICT)) == "f32"
    assert seen == [], "bf16 was built for the lower floor, and f32 before"


@narrow
def test_a_record_whose_figures_reach_the_floor_refuses_nothing(own_bundle):
    opened = own_bundle()
    build(opened, STRICT)
    ((path, found),) = refusals(opened).items()
    keep(path, found.model_copy(update={"floor_db": 1.0}))
    assert refusals(opened) == {path: None}
    _, engines = wanted(opened, STRICT, to_run=False)
    assert {want.part: want.target.precision for want in engines}[PART] == "bf16"


@narrow
def test_what_another_bundle_has_below_the_floor_is_refused_too(own_bundle, monkeypatch):
    opened = own_bundle()
    empty = copied(opened, "empty")
    build(opened, SEVERAL)
    seen = compiled(monkeypatch)
    built = build(empty, STRICT, like=opened)
    assert {one.artifact.part: one.how for one in built.engines}[PART] == "compiled"
    assert seen == ["f32"]
    assert any("vae_decoder in bf16 was refused" in note for note in built.notes)


@narrow
def test_the_last_precision_is_an_error(own_bundle):
    opened = own_bundle()
    hopeless = of(STRICT, precision={"default": ("bf16", "f32")}, parity_db={**FLOORS, "bf16": 190.0, "f32": 190.0})
    for _ in range(2):
        with pytest.raises(ParityError, match="text_encoder in f32 .* 190 dB") as refused:
            build(opened, hopeless)
        assert type(refused.value) is ParityError
    assert len(refusals(opened)) == 1


@narrow
def test_records_of_another_export_are_removed(own_bundle, monkeypatch):
    opened = own_bundle()
    build(opened, STRICT)
    (path,) = refusals(opened)
    assert prune(opened, dry_run=True).removed == ()
    assert prune(opened, dry_run=True).unknown == ()
    monkeypatch.setattr("latentc.compiler.prune.LOWERING_VERSION", -1)
    removed = {one.path: one.why for one in prune(opened).removed}
    assert removed[path] == "the record of a refused engine: built by another version of latentc"
    assert not list(opened.engines.glob(f"*{SUFFIX}"))


@narrow
def test_a_record_that_cannot_be_kept_ends_the_build(own_bundle, monkeypatch):
    opened = own_bundle()
    monkeypatch.setattr(building, "refuse", lambda *_: None)
    with pytest.raises(ParityError, match="vae_decoder in bf16") as refused:
        build(opened, STRICT)
    assert type(refused.value) is ParityError


def check_it_is_built_in_f32(opened, profile):
    profile = of(profile, precision={"default": ("f32",), "decoder": ("f16", "f32")})
    built = build(opened, profile)
    assert precision_of(built) == "f32"
    assert "vae_decoder in f16 was refused: it outputs NaN or infinity. vae_decoder is built in f32 instead." in (
        built.notes
    )
    assert all(one.hit for one in build(opened, profile).engines)
    _, engines = wanted(opened, profile, to_run=False)
    assert {want.part: want.target.precision for want in engines}[PART] == "f32"


@pytest.mark.slow
def test_a_decoder_that_overflows_in_f16_is_built_in_f32(checkpoint, tmp_path):
    """Each weight is one that f16 holds; what they make of a latent isn't."""
    folder = shutil.copytree(checkpoint("sd1"), tmp_path / "checkpoint")
    (path,) = (folder / "vae").glob("*.safetensors")
    tensors = load_file(path)
    save_file(tensors | {CONV: tensors[CONV] * 1e5}, path, {"format": "pt"})
    assert tensors[CONV].abs().max() * 1e5 < 65504
    check_it_is_built_in_f32(export(folder, tmp_path / "bundle"), load_profile("torch-f32"))


@pytest.mark.slow
@iree
def test_one_that_overflows_for_a_device_that_is_not_here_too(own_bundle, monkeypatch):
    """Engines of the other parts, which nothing loads, are empty: to compile them takes half a minute."""
    whole = IREE.compile

    def compiled(self, job, out, on_progress):
        return whole(self, job, out, on_progress) if job.part == PART else (out / "engine").write_bytes(b"")

    monkeypatch.setattr(IREE, "compile", compiled)
    profile = of(load_profile("mi300x"), shapes=Shapes(sizes=("64x64",)))
    check_it_is_built_in_f32(overflowing(own_bundle("sd1")), profile)
