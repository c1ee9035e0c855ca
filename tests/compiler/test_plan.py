"""Memory is predicted from the graph, and held against what builders report."""

import json
import re
from dataclasses import replace

import onnx
import pytest

from latentc.compiler.build import build
from latentc.compiler.memory import activation_bytes, looked_up
from latentc.compiler.plan import plan
from latentc.compiler.targets import job_of, wanted
from latentc.core.errors import CompileError
from latentc.core.progress import quiet
from latentc.profiles import load_profile, profile_names
from latentc.profiles.profile import Shapes
from latentc.runtimes import runtime
from latentc.runtimes.machine import Gpu


def graph(tmp_path, text):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {text}')
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


X = "g (float[8] x) => (float[8] z)"


@pytest.mark.parametrize(
    ("what", "text", "numbers"),
    [
        ("input and output", X + "{ z = Softmax(x) }", 16),
        ("in the place of its input", X + "{ z = Sigmoid(x) }", 8),
        ("not while that is needed", X + "{ y = Softmax(x) s = Sigmoid(y) z = Softmax(s) }", 16),
        ("a chain is one piece", X + "{ s = Sigmoid(x) y = Mul(x, s) z = Softmax(y) }", 16),
        ("what is kept for later", X + "{ a = Softmax(x) b = Softmax(a) z = Add(x, b) }", 24),
        ("views are free", X + "<int64[1] s = {8}> { y = Reshape(x, s) z = Softmax(y) }", 16),
        ("weights", X + "<float[8] w = {1,1,1,1,1,1,1,1}> { v = Softmax(w) y = Add(x, v) z = Softmax(y) }", 16),
        ("what nobody reads", X + "{ u = Softmax(x) z = Softmax(x) }", 16),
    ],
)
def test_values_alive_at_once(tmp_path, what, text, numbers):
    assert activation_bytes(graph(tmp_path, text), {"x": (8,)}, 2) == 2 * numbers, what


def test_what_a_node_holds_while_it_computes(tmp_path):
    attention = graph(tmp_path, "g (float[2,4,16,8] x) => (float[2,4,16,8] y) { y = Attention(x, x, x) }")
    shapes, size = {"x": (2, 4, 16, 8)}, 2 * 4 * 16 * 8
    assert activation_bytes(attention, shapes, 4) == 4 * 2 * size
    assert activation_bytes(attention, shapes, 4, scores=2) == 4 * (2 * size + 2 * 2 * 4 * 16 * 16)
    assert activation_bytes(attention, shapes, 4, per_value=1.5) == 4 * 3 * size


def test_a_norm_is_written_over_by_what_goes_number_by_number(tmp_path):
    text = "{ b = GroupNormalization<num_groups=1>(x, s, s) z = Sigmoid(b) y = Softmax(x) }"
    ends = "g (float[1,2,8,8] x) => (float[1,2,8,8] z, float[1,2,8,8] y) <float[2] s = {1, 1}>"
    path, shapes = graph(tmp_path, ends + text), {"x": (1, 2, 8, 8)}
    assert activation_bytes(path, shapes, 1) == 384, "x, z in the place of b, y"
    path = graph(tmp_path, ends + text.replace("y = Softmax(x)", "y = Sigmoid(x)"))
    assert activation_bytes(path, shapes, 1) == 256


def test_a_table_that_is_looked_up_in(tmp_path):
    text = "g (int64[4] i) => (float[4,2] z, float[8] s) <float[8,2] t = {%s}, float[8,2] u = {%s}>" % (
        (", ".join("1" * 16),) * 2
    )
    tail = "{ z = Gather(t, i) v = Gather(u, i) s = ReduceSum<keepdims=0, noop_with_empty_axes=0>(u) }"
    assert looked_up(graph(tmp_path, text.replace("float[8] s", "float s") + tail)) == 16, "the other is also summed"


def told(bundle, profile, part, folder):
    """What a builder says that an engine will hold."""
    from latentc.compiler.lower import lowered, needed_passes

    adapter, engines = wanted(bundle, profile, to_run=False)
    (want,) = (want for want in engines if want.part == part)
    folder.mkdir()
    passes = needed_passes(adapter, want.target)
    with lowered(bundle.graph(part), "plan", profile.opset, want.target.shape, passes) as path:
        adapter.compile(job_of(bundle, part, path, want.target), folder, quiet)
    return sum(json.loads((folder / "memory.json").read_text()).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part"),
    [("rtx-4090", "vae_decoder"), ("rtx-4090", "unet"), ("mi300x", "vae_decoder")],
)
def test_predictions_are_near_what_builders_report(bundle, tmp_path, name, part):
    """Within 20 percent, of models whose values weigh more than their weights."""
    profile = load_profile(name).model_copy(update={"shapes": Shapes(sizes=("768x768",))})
    if reason := runtime(profile.runtime).unbuildable(profile.device):
        pytest.skip(reason)
    (engine,) = (one for one in plan(bundle("scenes"), profile).engines if one.part == part)
    assert engine.held_bytes == pytest.approx(told(bundle("scenes"), profile, part, tmp_path / "out"), rel=0.2)


@pytest.mark.slow
def test_what_cannot_fit_is_refused_before_it_is_built(own_bundle, monkeypatch):
    opened = own_bundle("sd1")
    profile = load_profile("cpu-onnxruntime").model_copy(update={"memory_gb": 0.05})
    found = plan(opened, profile)
    assert found.measured
    assert found.held_bytes > found.device_bytes == 50_000_000
    (complaint,) = found.complaints
    assert re.match(
        r"Generating an image takes \d+ MB on CPU, which has \d+ MB: use --sequential, set narrower types", complaint
    )
    with pytest.raises(CompileError, match="Profile cpu-onnxruntime is predicted not to fit.*latentc build .* --force"):
        build(opened, profile)
    assert not [path for path in opened.engines.glob("*-*") if path.is_dir()]
    built = build(opened, profile, force=True)
    assert build(opened, profile).engines[0].hit, "what is there is not refused"
    after = plan(opened, profile)
    assert [one.built for one in after.engines] == [one.artifact for one in built.engines]
    assert (after.build_bytes, after.disk_bytes, after.build_seconds) == (0, 0, 0)


@pytest.mark.slow
def test_a_picture_has_one_size(bundle):
    profile = load_profile("cpu-onnxruntime")
    small, large = (
        plan(bundle("sd1"), profile.model_copy(update={"shapes": Shapes(sizes=sizes)}))
        for sizes in (("512x512",), ("256x256", "512x512", "64x64"))
    )
    assert len(large.engines) > len(small.engines)
    assert large.held_bytes == small.held_bytes


def test_what_compares_the_engine_is_counted(bundle, monkeypatch):
    """On the host it is called; for a device that isn't here its graph is compiled for the CPU."""
    profile = load_profile("cpu-onnxruntime").model_copy(update={"shapes": Shapes(sizes=("512x512",))})
    found = plan(bundle("sd1"), profile)
    assert found.build_bytes >= max(engine.held_bytes for engine in found.engines)
    iree, away = type(runtime("iree")), load_profile("mi300x")
    monkeypatch.setattr(iree, "unbuildable", lambda self, device: None)
    monkeypatch.setattr(iree, "missing", lambda self, device: None)
    here = plan(bundle("sd1"), away)
    monkeypatch.setattr(iree, "missing", lambda self, device: "It isn't here.")
    away_from_it = plan(bundle("sd1"), away)
    assert away_from_it.build_seconds > 1.5 * here.build_seconds
    for near, far in zip(here.engines, away_from_it.engines, strict=True):
        assert near.build_seconds == far.build_seconds
        assert near.compare_seconds < far.compare_seconds, "its graph is compiled and run on the CPU"
    sides = [Shapes(sizes=(size,)) for size in ("256x256", "512x512")]
    small, large = (plan(bundle("sd1"), away.model_copy(update={"shapes": one})).engines for one in sides)
    for one, other in zip(small, large, strict=True):
        assert one.build_seconds == other.build_seconds
        assert (one.compare_seconds < other.compare_seconds) == (one.part != "text_encoder"), "there is more to compute"


def test_of_what_is_mapped_the_table_is_not_held(bundle, monkeypatch):
    profile = load_profile("cpu-onnxruntime")
    adapter = type(runtime("onnxruntime"))
    costs = runtime("onnxruntime").costs("CPU", {}, free=True)
    (whole, mapped) = (
        monkeypatch.setattr(adapter, "costs", lambda *_, maps=maps, **__: replace(costs, maps=maps))
        or {one.part: one.held_bytes for one in plan(bundle("sd1"), profile).engines}
        for maps in (False, True)
    )
    table = looked_up(bundle("sd1").graph("text_encoder"))
    assert whole["text_encoder"] - mapped["text_encoder"] == pytest.approx(4 * table, abs=2)
    assert table > 0
    assert whole["vae_decoder"] == mapped["vae_decoder"]


def test_weights_that_stay_as_narrow_as_they_are_stored(bundle):
    """The random checkpoint's are f32; IREE keeps them so in f32, and f16 ones as well."""
    (wide, narrow) = (plan(opened, load_profile("mi300x")).engines[-1] for opened in (bundle("sd1"), bundle("scenes")))
    assert wide.precision == narrow.precision == "f32"
    assert wide.weights_bytes == 4 * bundle("sd1").part(wide.part).parameters
    assert narrow.weights_bytes == 2 * bundle("scenes").part(narrow.part).parameters


def test_where_sizes_are_fixed_values_take_more(bundle):
    free = load_profile("cpu-onnxruntime")
    own = free.model_copy(update={"shapes": Shapes(sizes=("own",))})
    one, other = (
        next(engine for engine in plan(bundle("scenes"), profile).engines if engine.part == "vae_decoder")
        for profile in (free, own)
    )
    assert one.shape == other.shape
    assert other.held_bytes - one.held_bytes == other.activation_bytes - one.activation_bytes > 0


@pytest.mark.slow
def test_the_last_build_says_what_the_next_takes(own_bundle):
    opened, profile = own_bundle("sd1"), load_profile("cpu-onnxruntime")
    at = {size: profile.model_copy(update={"shapes": Shapes(sizes=(size,))}) for size in ("64x64", "72x64")}
    before = plan(opened, at["72x64"])
    built = {one.artifact.part: one.artifact for one in build(opened, at["64x64"]).engines}
    after = plan(opened, at["72x64"])
    for old, new in zip(before.engines, after.engines, strict=True):
        if new.built is None:
            last = built[new.part]
            assert new.disk_bytes == pytest.approx(last.bytes, rel=1e-6), "the weights are the same"
            assert new.build_seconds == pytest.approx(last.seconds, rel=1e-6)
            assert (old.disk_bytes, old.build_seconds) != (new.disk_bytes, new.build_seconds)
            assert old.held_bytes == new.held_bytes, "it says nothing of that"
    assert any(new.built is None for new in after.engines)


def test_without_its_memory_pattern_onnx_runtime_holds_less(bundle):
    shipped = load_profile("cpu-onnxruntime")
    assert shipped.options == {"enable_mem_pattern": False}
    without, by_default = (plan(bundle("sd1"), one) for one in (shipped, shipped.model_copy(update={"options": {}})))
    for one, other in zip(without.engines, by_default.engines, strict=True):
        assert one.held_bytes < other.held_bytes


def test_the_memory_of_a_gpu_that_is_here_counts(bundle, monkeypatch):
    from latentc.compiler import plan as module

    gpu = Gpu(name="MI300X", vendor="AMD", architecture="gfx942", memory_bytes=64_000_000_000)
    here = module.machine().model_copy(update={"gpus": (gpu,)})
    monkeypatch.setattr(module, "machine", lambda: here)
    iree = type(runtime("iree"))
    monkeypatch.setattr(iree, "unbuildable", lambda self, device: None)
    monkeypatch.setattr(iree, "missing", lambda self, device: "It isn't here.")
    assert plan(bundle("sd1"), load_profile("mi300x")).device_bytes == 192_000_000_000
    monkeypatch.setattr(iree, "missing", lambda self, device: None)
    assert plan(bundle("sd1"), load_profile("mi300x")).device_bytes == 64_000_000_000


@pytest.mark.parametrize(
    ("profile", "room"),
    [("torch-f32", None), ("mi300x", 64_000_000_000), ("h100", 80_000_000_000), ("rtx", 12_000_000_000)],
)
def test_of_several_gpus_the_one_that_is_meant_counts(bundle, monkeypatch, profile, room):
    """A CPU's memory is none of theirs; and where it can't be known which is meant, the profile's word stands."""
    from latentc.compiler import plan as module

    gpus = (
        Gpu(name="RTX 3060", vendor="NVIDIA", architecture="sm_86", memory_bytes=12_000_000_000),
        Gpu(name="MI300X", vendor="AMD", architecture="gfx942", memory_bytes=64_000_000_000),
    )
    here = module.machine().model_copy(update={"gpus": gpus})
    monkeypatch.setattr(module, "machine", lambda: here)
    chosen = load_profile(profile)
    adapter = type(runtime(chosen.runtime))
    monkeypatch.setattr(adapter, "missing", lambda self, device: None)
    if profile == "h100":
        monkeypatch.setattr(adapter, "unbuildable", lambda self, device: "It isn't here.")
    else:
        monkeypatch.setattr(adapter, "unbuildable", lambda self, device: None)
    assert plan(bundle("sd1"), chosen).device_bytes == (room or here.memory_bytes)


def test_building_needs_memory_and_disk(bundle, monkeypatch):
    from latentc.compiler import plan as module

    here = module.machine().model_copy(update={"available_bytes": 1000})
    monkeypatch.setattr(module, "machine", lambda: here)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    profile = load_profile("cpu-onnxruntime").model_copy(update={"options": {"graph_optimization_level": "extended"}})
    memory, disk = plan(bundle("sd1"), profile).complaints
    assert re.match(r"Building takes \d+ MB of memory, and only 1\.0 kB are free", memory)
    assert "on disk, where only 10 B are free" in disk


def test_what_nobody_measured_says_so(own_bundle):
    opened = own_bundle("sd1")
    found = plan(opened, load_profile("torch-f32"))
    assert not found.measured
    assert found.build_seconds is found.build_bytes is found.disk_bytes is None
    assert found.held_bytes == sum(
        4 * part.parameters for name, part in opened.manifest.parts.items() if name != "vae_encoder"
    )


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_can_be_planned_for_wherever_one_is(bundle, name):
    opened, profile = bundle("sd1"), load_profile(name)
    found = plan(opened, profile)
    assert {engine.part for engine in found.engines} == opened.manifest.parts.keys()
    assert found.unbuildable == runtime(profile.runtime).unbuildable(profile.device)
    costs = runtime(profile.runtime).costs(profile.device, profile.options, free=not profile.shapes.sizes)
    mapped = ("text_encoder",) if costs and costs.maps else ()  # whose table isn't held
    weighed = [engine for engine in found.engines if engine.part not in mapped]
    assert all(engine.held_bytes >= engine.weights_bytes > 0 for engine in weighed) or name == "null"
    assert next(engine.precision for engine in found.engines if engine.part == "unet") in profile.wishes(
        "unet", "denoiser"
    )
