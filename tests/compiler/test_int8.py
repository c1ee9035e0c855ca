"""int8: its calibration, its key, and whether a build refuses a fault in an int8 engine."""

import numpy as np
import pytest

from latentc.benchmarks.planted import PROMPT
from latentc.cli.why import why as show_why
from latentc.compiler import calibrate, make, traces
from latentc.compiler.build import build, why
from latentc.compiler.cache import Parity, artifacts
from latentc.compiler.calibrate import calibration
from latentc.compiler.cases import stored_cases, stored_drawings
from latentc.compiler.engines import load
from latentc.compiler.proof import check_floor
from latentc.compiler.targets import wanted
from latentc.compiler.traces import PROMPTS, TRACES
from latentc.compiler.way import BUILT, way
from latentc.core.errors import InexactError, ParityError, ProfileError, RuntimeMissing
from latentc.core.progress import quiet
from latentc.profiles import load_profile
from latentc.profiles.profile import FLOORS_DB
from latentc.runtimes import Calibration, openvino, quantize, runtime

from .builds import ONNXRUNTIME, of

INT8 = of(load_profile("cpu-openvino-int8"), parity_db=FLOORS_DB | {"int8": 25.0})
"""With a floor that few traces reach: that of random weights is low."""
EXACT = load_profile("cpu-openvino")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Two traces, and few groups of layers: `down_blocks` is one."""
    if "int8" not in runtime("openvino").precisions("CPU"):
        pytest.skip("this CPU has no int8")
    monkeypatch.setattr(calibrate, "TRACES", TRACES[:2])
    monkeypatch.setattr(quantize, "DEPTH", 1)


def test_no_prompt_of_a_trace_is_one_of_a_proof(bundle):
    drawings, _ = stored_drawings(bundle("sd1"))
    assert len(PROMPTS) == len({*PROMPTS} - {PROMPT} - {one.request.prompt for one in drawings.drawings})


def test_traces_are_calls_of_an_f32_engine_but_for_the_last(bundle):
    opened = bundle("sd1")
    found = calibration(opened, "unet", unet_wanted(opened).target, 30.0, quiet)
    times = {float(call.feeds["timestep"][0]) for call in found.calls}
    assert found.exact_below == 100
    assert (min(times), max(times)) == (100, 999)
    assert {len(call.feeds["sample"]) for call in found.calls} == {1, 2}
    assert {float(call.feeds["timestep"][0]) for call in found.judged} >= {100.0}


def test_a_model_for_inpainting_is_calibrated_on_images_that_it_changed(bundle):
    """The first call is of the whole image, grey; the second trace changes the left half of what became of it."""
    opened = bundle("sd1_inpainting")
    assert calibrate.uncalibrated(opened, "unet") is None
    found = calibration(opened, "unet", unet_wanted(opened).target, 30.0, quiet)
    first, last = (next(one for one in found.calls if len(one.feeds["sample"]) == rows) for rows in (2, 1))
    assert {call.feeds["sample"].shape[1] for call in found.calls} == {9}
    areas = [call.feeds["sample"][0, 4] for call in (first, last)]
    width = areas[0].shape[1]
    assert [[set(half.ravel()) for half in np.split(area, [width // 2], axis=1)] for area in areas] == [
        [{1.0}, {1.0}],
        [{1.0}, {0.0}],
    ]
    beside = [call.feeds["sample"][0, 5:] for call in (first, last)]
    assert np.abs(beside[0] - beside[1])[..., width // 2 + 1 :].mean() > 0.1, "the image before is seen"


def unet_wanted(opened):
    _, engines = wanted(opened, INT8, to_run=False)
    return next(one for one in engines if one.part == "unet")


@pytest.mark.parametrize(
    ("module", "constant", "other"),
    [
        (quantize, "DEPTH", 2),
        (quantize, "HARDEST", 3),
        (quantize, "MARGIN_DB", 4.0),
        (quantize, "REVISION", 0),
        (traces, "EXACT_SHARE", 0.2),
        (traces, "LACKING_DB", 6.0),
        (traces, "AREAS", traces.AREAS[:1]),
        (traces, "TRACES", TRACES[:2]),
        (traces, "REVISION", 0),
    ],
)
def test_what_decides_about_layers_is_in_the_key(bundle, monkeypatch, module, constant, other):
    before = unet_wanted(bundle("sd1"))
    monkeypatch.setattr(module, constant, other)
    assert unet_wanted(bundle("sd1")).key != before.key


@pytest.mark.parametrize(("timestep", "again"), [(83.0, False), (118.0, True)])
def test_an_engine_whose_worst_call_is_exact_is_not_built_again(bundle, timestep, again):
    """Its int8 layers are not the reason."""
    opened, want = bundle("sd1"), unet_wanted(bundle("sd1"))
    found = Parity(psnr_db=22.0, cosine=0.9, reference="PyTorch", worst="out_sample of ends.6", worst_timestep=timestep)
    given = Calibration((), (), 25.0, 100.0)
    assert (make._stricter(given, 25.0, found) is not None) == again
    with pytest.raises(ParityError, match="out_sample of ends.6.; profile .* requires 25 dB.") as refused:
        check_floor(opened, INT8, want, found)
    sentence = "That call, at timestep 83, is below 100, where an engine in int8 computes exactly"
    assert (sentence in str(refused.value)) != again


def unet_of(made):
    return next(one.artifact for one in made.engines if one.artifact.part == "unet")


@pytest.mark.slow
def test_an_int8_denoiser_reaches_its_floor_and_says_which_layers_are_exact(own_bundle, capsys):
    opened = own_bundle()
    unet = unet_of(build(opened, INT8))
    assert unet.fields.precision == "int8"
    assert unet.parity.psnr_db >= INT8.parity_db["int8"]
    assert unet.quantized is not None
    assert unet.quantized.layers > 0
    show_why(opened, [INT8], as_json=False)
    assert unet.quantized.statement in " ".join(capsys.readouterr().out.split())
    stricter = of(INT8, parity_db=INT8.parity_db | {"int8": 31.0})
    differences = [one.differences for want, one in why(opened, stricter) if want.part == "unet"]
    assert differences == [{"calibration.floor_db": (25.0, 31.0)}]
    assert way(opened, INT8).word == BUILT
    check_late(opened, unet.quantized)


def check_late(opened, quantized):
    """The last calls of a walk are those of an exact engine, in equal bytes; others are not."""
    assert (quantized.exact_below, "timesteps below 100 are exact" in quantized.statement) == (100, True)
    build(opened, EXACT)
    feeds = stored_cases(opened, "unet")[0].feeds
    shapes = {name: array.shape for name, array in feeds.items()}
    fixed = {name: array for name, array in feeds.items() if name != "timestep"}
    with load(opened, INT8, ["unet"]) as int8, load(opened, EXACT, ["unet"]) as exact:
        engine, other = (one.engine("unet", shapes) for one in (int8, exact))
        bound = engine.bind(fixed)
        for timestep, equal in ((0.0, True), (99.9, True), (100.0, False), (999.0, False)):
            given = {"timestep": np.array([timestep], np.float32)}
            found = [run["out_sample"].tobytes() for run in (engine.run(fixed | given), bound(given))]
            assert found[0] == found[1]
            assert (found[0] == other.run(fixed | given)["out_sample"].tobytes()) == equal, timestep


@pytest.mark.slow
def test_a_fault_in_an_int8_engine_is_refused(own_bundle, monkeypatch):
    """Its output is 1.3 times too large."""
    sound = quantize.quantized

    def faulty(*given):
        model, how = sound(*given)
        operators = openvino._library().opset15
        (result,) = model.get_results()
        source = result.input(0).get_source_output()
        names, larger = source.get_names(), operators.multiply(source, operators.constant(np.float32(1.3)))
        source.set_names(set())
        larger.output(0).set_names(names)
        result.input(0).replace_source_output(larger.output(0))
        return model, how

    monkeypatch.setattr(quantize, "quantized", faulty)
    opened = own_bundle()
    with pytest.raises(ParityError, match="unet in int8 through openvino agrees .* requires 25 dB"):
        build(opened, INT8)
    assert "unet" not in [one.part for one in artifacts(opened)]


def test_where_no_layer_can_be_in_int8_the_next_precision_is_built(own_bundle, monkeypatch):
    def none(*_):
        raise InexactError("No layer can be in int8: 30 dB are required. Set another precision.")

    monkeypatch.setattr(quantize, "quantized", none)
    opened = own_bundle()
    with pytest.raises(InexactError, match="No layer can be in int8"):
        build(opened, INT8)
    made = build(opened, of(INT8, precision=INT8.precision | {"denoiser": ("int8", "bf16", "f32")}))
    assert unet_of(made).fields.precision in ("bf16", "f32")
    assert made.notes[0] == (
        "unet in int8 was refused: No layer can be in int8: 30 dB are required. unet is built in "
        f"{unet_of(made).fields.precision} instead."
    )


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (INT8, "vae_encoder can't be built in int8: Calibration .* does not call this part"),
        (ONNXRUNTIME, "requires text_encoder in int8, but CPU supports f32 through onnxruntime"),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_where_int8_is_not_possible_the_build_says_so_at_once(own_bundle, profile, says):
    opened = own_bundle()
    with pytest.raises(ProfileError, match=says):
        build(opened, of(profile, precision={"default": ("int8",)}))
    assert artifacts(opened) == []


def test_without_nncf_nothing_is_built(own_bundle, monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    opened = own_bundle()
    with pytest.raises(RuntimeMissing, match=r"unet can't be built in int8: .*NNCF.*\[quantize\]"):
        build(opened, INT8)
    assert artifacts(opened) == []
