"""Builds: keys, states, hits and misses, floors, steps and sizes."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from latentc.cli.why import why as show_why
from latentc.compiler import cache, cases
from latentc.compiler import targets as asking
from latentc.compiler.apart import Measured
from latentc.compiler.build import build, why
from latentc.compiler.cache import Miss, artifacts, verify
from latentc.compiler.engines import Engines, load
from latentc.compiler.host_check import check_host
from latentc.compiler.proof import Steps, proved_here
from latentc.compiler.states import Site, looked
from latentc.compiler.targets import wanted
from latentc.compiler.trial import StepFigures, measure_steps
from latentc.core.bundle import digest, open_bundle
from latentc.core.errors import BundleError, ParityError, ProfileError, RuntimeMissing, ShapeError
from latentc.core.files import sha256
from latentc.core.locks import is_held
from latentc.core.manifest import FileInfo
from latentc.core.progress import quiet
from latentc.core.records import state_folder
from latentc.runtimes import runtime
from latentc.runtimes.null import Null
from latentc.sampling.host import load_host

from .builds import NULL, ONNXRUNTIME, OPENVINO, OTHERWISE, copied, new_unet, of, static


def test_a_second_build_finds_everything(own_bundle):
    opened = own_bundle()
    first, second = build(opened, NULL), build(opened, NULL)
    assert [one.hit for one in first.engines] == [False] * 4
    assert [one.hit for one in second.engines] == [True] * 4
    assert first.step_psnr_db == second.step_psnr_db
    assert sorted(path.name for path in opened.engines.iterdir()) == sorted(one.artifact.name for one in first.engines)


def test_a_build_looks_at_each_engine_once(own_bundle, monkeypatch):
    opened, looks, asked = own_bundle(), [], []
    read, targets = cache._read, asking.targets
    monkeypatch.setattr(cache, "_read", lambda bundle, part, key: looks.append(part) or read(bundle, part, key))
    monkeypatch.setattr(asking, "targets", lambda *about: asked.append(about) or targets(*about))
    build(opened, NULL)
    assert (looks, len(asked)) == ([], 1), "there is nothing to look at"
    build(opened, NULL)
    assert (looks, len(asked)) == (sorted(opened.manifest.parts), 2)


def test_an_engine_is_in_one_state_and_locked_where_there_is_work(own_bundle, monkeypatch):
    here, profile = of_two_devices(monkeypatch)
    opened = own_bundle()

    def states(*, at_hand=True, like=None):
        adapter, engines = wanted(opened, profile, to_run=False)
        with looked(Site(opened, profile, adapter, engines, at_hand, like, quiet)) as (found, locks):
            held = {want.part for want in engines if is_held(opened.engines / f".{want.name}.build.lock")}
            assert locks.keys() == found.keys() == {want.key for want in engines}
        assert not list(opened.engines.glob(".*"))
        return {one.want.part: (one.state, one.damaged, one.want.part in held) for one in found.values()}

    parts = opened.manifest.parts
    assert states() == dict.fromkeys(parts, ("compile", False, True))
    built = build(opened, profile)
    assert states() == dict.fromkeys(parts, ("proved", False, False))
    assert states(at_hand=False) == dict.fromkeys(parts, ("absent device", False, False))
    here[:] = ["right"]
    assert states() == dict.fromkeys(parts, ("unproved", False, True))
    here[:] = ["left"]
    unet = next(one.artifact for one in built.engines if one.artifact.part == "unet")
    other = copied(opened, "other")
    (opened.engines / unet.name / "key.json").write_text("{")
    assert states() == dict.fromkeys(parts, ("proved", False, False)) | {"unet": ("compile", True, True)}
    assert states(like=other)["unet"] == ("compile", True, True), "what isn't compiled from a graph isn't taken"
    monkeypatch.setattr(Null, "facts", replace(Null.facts, reads_onnx=True))
    shutil.rmtree(opened.engines)
    built = build(opened, profile)
    other = copied(opened, "another")
    (opened.engines / built.engines[1].artifact.name / "key.json").unlink()
    assert states(like=other)["unet"] == ("take", True, True)


def of_two_devices(monkeypatch):
    """The null runtime, of whose devices `left` and `right` those in the list are here."""
    here = ["left"]

    def absent(_, device):
        return None if set(device.split("+")) & set(here) else f"There is no {device} here."

    monkeypatch.setattr(Null, "missing", absent)
    return here, of(NULL, device="right+left")


def test_after_an_update_of_the_driver_engines_stay_and_are_proved_again(own_bundle, monkeypatch):
    """What compiles at load isn't in an engine's key: PTX and SPIR-V, and MIGraphX's and TensorRT's own compilers."""
    installed = {"GPU": "driver 1"}
    monkeypatch.setattr(Null, "drivers", lambda self, device: installed if device == "left" else {})
    opened, profile = own_bundle(), of(NULL, device="left")
    first = build(opened, profile)
    assert Engines(opened, profile).unproved() is None
    installed["GPU"] = "driver 2"
    assert "are not proved on this machine yet (text_encoder" in (Engines(opened, profile).unproved() or "")
    again = build(opened, profile)
    assert [one.how for one in again.engines] == ["there"] * len(first.engines)
    assert Engines(opened, profile).unproved() is None
    installed["GPU"] = "driver 1"
    assert Engines(opened, profile).unproved() is None, "figures of both are remembered"


def test_with_another_variable_that_its_library_reads_engines_stay_and_are_proved_again(own_bundle, monkeypatch):
    """As `ORT_CUDA_GEMM_OPTIONS=compute_16f=1` has ONNX Runtime sum in f16; no option of a profile shows it."""
    monkeypatch.setattr(Null, "facts", replace(Null.facts, variables=("DSP_",)))
    monkeypatch.setenv("DSP_SUMS", "f32")
    opened, profile = own_bundle(), of(NULL)
    build(opened, profile)
    assert Engines(opened, profile).unproved() is None
    monkeypatch.setenv("DSP_SUMS", "f16")
    assert (Engines(opened, profile).unproved() or "").endswith(
        "With other values of DSP_SUMS in the environment, they are compared again."
    )
    assert all(one.hit for one in build(opened, profile).engines), "nothing is compiled"
    assert Engines(opened, profile).unproved() is None
    monkeypatch.setenv("OTHER_SUMS", "f16")
    monkeypatch.setenv("DSP_SUMS", "f32")
    assert Engines(opened, profile).unproved() is None, "figures of both are remembered"


def test_with_other_code_than_it_was_proved_with_an_engine_is_proved_again(own_bundle, monkeypatch):
    """What TensorRT for RTX compiled at load lies outside of the artifact, where it may be damaged or replaced."""
    code = {"text_encoder": "a"}
    monkeypatch.setattr(Null, "compiled", lambda self, folder, device: code.get(folder.name.rpartition("-")[0], ""))
    opened, profile = own_bundle(), of(NULL)
    build(opened, profile)
    assert Engines(opened, profile).unproved() is None
    for other in ({"text_encoder": "b"}, {}):
        code.clear()
        code.update(other)
        assert "(text_encoder). The first" in (Engines(opened, profile).unproved() or "")
        assert all(one.hit for one in build(opened, profile).engines)
        assert Engines(opened, profile).unproved() is None


@pytest.mark.slow
def test_one_engine_for_several_devices_is_compared_on_each(own_bundle, monkeypatch):
    here, profile = of_two_devices(monkeypatch)
    opened = own_bundle()
    first = build(opened, profile)
    assert {one.artifact.parity.compared_on for one in first.engines} == {"left"}
    load(opened, profile).close()
    here[:] = ["right"]
    adapter, found = runtime("null"), [one.artifact for one in first.engines]
    assert [proved_here(opened, adapter, one, profile.device) for one in found] == [None] * 4
    again = build(opened, profile)
    assert all(one.hit for one in again.engines)
    assert all(proved_here(opened, adapter, one, profile.device) for one in found)
    load(opened, profile).close()
    here[:] = ["left"]
    monkeypatch.setattr("latentc.compiler.engines.measured_apart", None)  # it is remembered
    load(opened, profile).close()
    here[:] = ["right"]
    load(opened, profile).close()


def test_what_fails_on_one_device_is_used_on_the_other(own_bundle, monkeypatch, capsys):
    here, profile = of_two_devices(monkeypatch)
    opened = own_bundle()
    build(opened, profile)
    here[:] = ["right"]
    show_why(opened, [profile], as_json=False)
    assert capsys.readouterr().out.count("not yet proved on this machine") == 4

    def wrong(bundle, profile, found, **_):
        return Measured({one.key: one.parity.model_copy(update={"psnr_db": -5.0}) for one in found}, None)

    monkeypatch.setattr("latentc.compiler.build.measured_apart", wrong)
    for _ in range(2):
        with pytest.raises(ParityError, match="-5.0 dB"):
            build(opened, profile)
    here[:] = ["left"]
    load(opened, profile).close()
    assert {one.hit for one in build(opened, profile).engines} == {True}


@pytest.mark.slow
def test_where_nodes_ran_is_told(own_bundle):
    opened = own_bundle()
    unet = next(one.artifact for one in build(opened, ONNXRUNTIME).engines if one.artifact.part == "unet")
    placed = {"WebGpuExecutionProvider": {"Conv": 20, "MatMul": 30}, "CPUExecutionProvider": {"Gather": 1}}
    (opened.engines / unet.name / "placement.json").write_text(json.dumps(placed))
    with load(opened, ONNXRUNTIME) as loaded:
        said = loaded.describe()
    assert said["unet"].endswith(" CPU f32, nodes: 50 WebGpuExecutionProvider, 1 CPUExecutionProvider")
    (opened.engines / unet.name / "placement.json").write_text("[")
    with load(opened, ONNXRUNTIME) as loaded, ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda _: loaded.describe(), range(8)))
    assert {tuple(one) for one in told} == {tuple(opened.manifest.parts)}
    assert told[0]["unet"].endswith(" CPU f32"), "loading it says what is damaged"
    assert said["vae_decoder"].endswith(" CPU f32")


@pytest.mark.slow
def test_what_two_artifacts_have_alike_is_on_disk_once(own_bundle, monkeypatch):
    monkeypatch.setattr("latentc.compiler.cache.SHARED_BYTES", 1000)
    opened = own_bundle()
    one, other = (
        {engine.artifact.part: opened.engines / engine.artifact.name / "engine.data" for engine in made.engines}
        for made in (
            build(opened, ONNXRUNTIME),
            build(opened, of(ONNXRUNTIME, options=OTHERWISE)),
        )
    )
    for part, path in one.items():
        assert path != other[part]
        assert path.samefile(other[part])
    shutil.rmtree(one["unet"].parent)
    verify(opened, next(found for found in artifacts(opened) if found.part == "unet"))
    copy = shutil.copytree(opened.folder, opened.folder.with_name("copy"))
    assert len(artifacts(open_bundle(copy))) == len(artifacts(opened)) == len(one) + len(other) - 1


def step_record():
    (path,) = (state_folder() / "proofs").glob("steps-*.json")
    return path


@pytest.mark.slow
def test_engines_whose_step_was_never_compared_are_proved_before_they_draw(own_bundle):
    opened = own_bundle()
    build(opened, NULL)
    step = step_record()
    whole = step.read_text()
    for damage in (None, "{", whole.replace('"step_db": ', '"step_db": 1')):
        step.write_text(damage) if damage else step.unlink()
        assert "are not proved on this machine yet (the whole step)" in Engines(opened, NULL).unproved()
        load(opened, NULL).close()
        assert step.read_text() == whole
        assert Engines(opened, NULL).unproved() is None


@pytest.mark.slow
def test_what_cannot_be_remembered_is_proved_at_every_start(own_bundle, monkeypatch):
    opened = own_bundle()
    folder = state_folder()
    shutil.rmtree(folder)
    folder.write_text("no folder")
    build(opened, NULL)
    for _ in range(2):
        with load(opened, NULL) as engines:
            assert "engines were proved before generation" in engines.notices[0]
            assert f"because {folder} is not writable" in engines.notices[0]


@pytest.mark.slow
def test_a_bundle_on_another_machine_is_proved_once_before_it_draws(own_bundle, monkeypatch, tmp_path):
    opened = own_bundle()
    build(opened, ONNXRUNTIME)
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "another machine"))
    said = []
    load(opened, ONNXRUNTIME, on_progress=lambda what, _=None: said.append(what)).close()
    assert [what for what in said if what.endswith(": compare")] == [
        "text_encoder: compare", "unet: compare", "vae_decoder: compare", "vae_encoder: compare", "step: compare",
    ]  # fmt: skip
    monkeypatch.setattr("latentc.compiler.engines.measured_apart", None)
    load(opened, ONNXRUNTIME).close()


@pytest.mark.slow
def test_a_second_build_needs_no_torch(own_bundle):
    opened = own_bundle()
    build(opened, OPENVINO)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from latentc.compiler.build import build; from latentc.core.bundle import open_bundle\n"
        "from latentc.profiles import load_profile\n"
        f"done = build(open_bundle({str(opened.folder)!r}), load_profile('cpu-openvino-f32'))\n"
        "assert all(one.hit for one in done.engines)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_new_weights_rebuild_that_part_only(own_bundle, edit_manifest):
    opened = own_bundle()
    build(opened, NULL)
    changed = new_unet(opened, edit_manifest)
    differences = {want.part: found for want, found in why(changed, NULL) if isinstance(found, Miss)}
    assert list(differences) == ["unet"]
    assert list(differences["unet"].differences) == ["part digest"]
    assert [one.hit for one in build(changed, NULL).engines] == [True, False, True, True]


def test_why_names_the_fields_that_missed(own_bundle):
    opened = own_bundle()
    never = [found for _, found in why(opened, NULL)]
    assert all(isinstance(found, Miss) and found.nearest is None for found in never)
    built = build(opened, NULL)
    other = static(of(NULL, precision={"default": ("f16",)}), "128x128")
    found = {want.part: outcome for want, outcome in why(opened, other)}
    assert found["text_encoder"].differences == {"precision": ("f32", "f16")}
    assert found["unet"].nearest == built.engines[1].artifact.name
    assert {"precision", "shape"} <= set(found["unet"].differences)


def test_an_engine_below_the_floor_is_not_kept(own_bundle):
    opened = own_bundle()
    strict = of(NULL, parity_db=NULL.parity_db | {"f32": 50.0})
    with pytest.raises(ParityError, match=r"text_encoder in f32 through null agrees .* requires 50 dB"):
        build(opened, strict)
    assert artifacts(opened) == []
    assert not list(opened.engines.iterdir())
    build(opened, NULL)
    with pytest.raises(ParityError, match="text_encoder"):
        build(opened, strict)
    with pytest.raises(ParityError, match="text_encoder"):  # what a laxer profile left isn't drawn with either
        load(opened, strict)


def test_a_wiring_mistake_is_refused(own_bundle, edit_manifest):
    opened = own_bundle()
    edit_manifest(opened, lambda value: value["model"]["wires"][1].update(empty="zeros"))
    with pytest.raises(ParityError, match="differs from diffusers' pipeline at export, most in encoder_hidden_states"):
        build(open_bundle(opened.folder), NULL)


def test_inputs_that_diffusers_didnt_feed_are_refused(bundle):
    opened = bundle("sd1")
    host = load_host(opened)
    latents = host.model.model_copy(update={"wires": host.model.wires[:1]})
    with pytest.raises(
        ParityError, match=r"gives the unet the inputs \[\], but diffusers' .* it \['encoder_hidden_states'\]"
    ):
        check_host(opened, replace(host, model=latents))


def test_closed_engines_stay_closed(own_bundle):
    opened = own_bundle()
    build(opened, NULL)
    engines = load(opened, NULL)
    engines.close()
    with pytest.raises(RuntimeMissing, match="are closed"):
        engines.engine("unet", {})


@pytest.mark.slow
def test_wrong_weights_are_caught_by_parity(own_bundle, edit_manifest):
    """A graph whose digest is right and whose arithmetic isn't: what a broken export or runtime would leave."""
    opened = own_bundle()
    import onnx_ir as ir

    graph = opened.graph("vae_decoder")
    model = ir.load(graph)
    name, value = next(
        (name, value) for name, value in model.graph.initializers.items() if name.endswith("conv_out.bias")
    )
    value.const_value = ir.tensor(value.const_value.numpy() + 0.25, name=name)
    ir.save(model, graph)

    def accept(manifest):
        manifest["files"]["vae_decoder/model.onnx"] = {"sha256": sha256(graph), "bytes": graph.stat().st_size}
        files = {name: FileInfo(**info) for name, info in manifest["files"].items() if name.startswith("vae_decoder/")}
        manifest["parts"]["vae_decoder"]["digest"] = digest(files)

    edit_manifest(opened, accept)
    with pytest.raises(ParityError, match="The graph of vae_decoder, run in f32, differs from what PyTorch computed"):
        build(open_bundle(opened.folder), OPENVINO)


def test_engines_know_the_profiles_that_they_are_for(own_bundle):
    opened, other = own_bundle(), of(NULL, name="other")
    with pytest.raises(BundleError, match="`latentc inspect` lists built engines"):
        load(opened, NULL)
    first = build(opened, NULL)
    assert {one.artifact.profiles for one in first.engines} == {("null",)}
    with pytest.raises(BundleError, match=r"is not built for profile cpu-openvino-f32.*Built profiles: null\."):
        load(opened, OPENVINO)
    second = build(opened, other)
    assert all(one.hit for one in second.engines)
    assert {one.artifact.profiles for one in second.engines} == {("null", "other")}
    assert {found.profiles for found in artifacts(opened)} == {("null", "other")}
    shutil.rmtree(opened.engines / first.engines[1].artifact.name)
    with pytest.raises(BundleError, match=r"latentc why .* --profile null` shows what changed"):
        load(opened, NULL)


def test_a_profile_may_name_a_text_encoder_that_a_bundle_has_not(own_bundle):
    """One profile serves models of one text encoder and of two."""
    assert len(build(own_bundle(), of(NULL, precision={"default": ("f32",), "text_encoder_2": ("f32",)})).engines) == 4


def test_unbuilt_and_unknown_are_said(own_bundle):
    opened = own_bundle()
    with pytest.raises(BundleError, match=r"latentc build .* --profile null"):
        load(opened, NULL)
    with pytest.raises(ProfileError, match="'tensorflow' is not a known runtime"):
        build(opened, of(NULL, runtime="tensorflow"))
    with pytest.raises(ProfileError, match="'unit', which is neither a role nor a part of .*Did you mean 'unet'"):
        build(opened, of(NULL, precision={"unit": ("f32",)}))
    with pytest.raises(RuntimeMissing, match="GPU"):
        build(opened, of(OPENVINO, device="GPU"))
    with pytest.raises(ProfileError, match=r"requires text_encoder in f16, but CPU supports f32"):
        build(opened, of(ONNXRUNTIME, precision={"default": ("f16",)}))


@pytest.mark.slow
@pytest.mark.parametrize("profile", [OPENVINO, ONNXRUNTIME], ids=lambda profile: profile.name)
def test_static_sizes_are_built_proved_and_kept_apart(own_bundle, profile):
    opened = own_bundle()
    sized = static(profile, "128x128", "192x64")
    built = build(opened, sized)
    assert sorted(one.artifact.part for one in built.engines) == sorted(
        ["text_encoder"] + 2 * ["unet", "vae_decoder", "vae_encoder"]
    )
    assert {one.artifact.parity.reference for one in built.engines} == {
        "PyTorch, at export",
        f"onnxruntime {onnxruntime.__version__}, the exported graph in f32",
    }
    assert all(one.artifact.parity.psnr_db > 60 for one in built.engines)
    assert built.step_psnr_db > 60
    with load(opened, sized) as engines:
        decoder = engines.engine("vae_decoder", {"latent_sample": (1, 4, 8, 24)})
        out = decoder.run({"latent_sample": np.zeros((1, 4, 8, 24), dtype=np.float32)})
        assert out["sample"].shape == (1, 3, 64, 192)
        with pytest.raises(ShapeError, match="built for size 128x128, 192x64"):
            engines.engine("vae_decoder", {"latent_sample": (1, 4, 8, 8)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ("192x64", {}),
        ("192x64", {"images": 2}),
        ("192x64", {"guided": False}),
        ("128x128", {"guided": False, "images": 2}),  # the stored step's shape, and not its meaning
    ],
)
def test_the_whole_step_is_compared_at_the_engines_own_size(own_bundle, monkeypatch, size, changes):
    """What draws at a size that the export stored no step of, as all static engines of a full-size model."""
    opened = own_bundle()
    sized = static(ONNXRUNTIME, size, **changes)
    monkeypatch.setattr(type(runtime("onnxruntime")), "takes_free_sizes", lambda *_: False)
    assert build(opened, sized).step_psnr_db > 60
    load(opened, sized).close()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["128x128", "192x64"])
def test_a_step_whose_prompts_are_swapped_fails(own_bundle, size):
    opened = own_bundle()
    sized = static(ONNXRUNTIME, size)
    build(opened, sized)
    _, engines = wanted(opened, sized, to_run=True)
    shape = next(want.target.shape for want in engines if want.part == "unet")
    with load(opened, sized) as loaded:

        def engine(part, shapes):
            found = loaded.engine(part, shapes)
            if part == "unet":
                return found
            return SimpleNamespace(run=lambda feeds: {name: out[::-1] for name, out in found.run(feeds).items()})

        host = load_host(opened)
        sound, swapped = (
            measure_steps(opened, host, "unet", one, shape, guided=True) for one in (loaded.engine, engine)
        )
    assert sound.step_db > 90
    assert min(db for db, _ in sound.differences) > 90
    assert swapped.step_db < 40
    assert max(db for db, _ in swapped.differences) < 0


@pytest.mark.slow
def test_an_engine_built_anew_has_its_step_compared_anew(own_bundle, monkeypatch):
    """A compiler that measures what is fastest may make another one of the same key."""
    opened = own_bundle()
    build(opened, ONNXRUNTIME)
    unet = next(one for one in artifacts(opened) if one.part == "unet")
    shutil.rmtree(opened.engines / unet.name)
    real = type(runtime("onnxruntime")).compile

    def otherwise(self, job, out, on_progress):
        real(self, job, out, on_progress)
        (out / "more").write_text("")

    monkeypatch.setattr(type(runtime("onnxruntime")), "compile", otherwise)
    bad = Steps(denoisers={"unet": StepFigures(step_db=5.0)})
    monkeypatch.setattr("latentc.compiler.build.prove_steps", lambda *_: bad)
    with pytest.raises(ParityError, match=r"The whole step .* agrees with the reference to 5.0 dB"):
        build(opened, ONNXRUNTIME)


@pytest.mark.slow
def test_a_step_that_overflows_is_said_and_remembered(own_bundle, monkeypatch):
    opened = own_bundle()
    bad = Steps(denoisers={"unet": StepFigures(step_db=float("-inf"))})
    monkeypatch.setattr("latentc.compiler.build.prove_steps", lambda *_: bad)
    for _ in range(2):
        with pytest.raises(ParityError, match="whole step .* outputs NaN or infinity"):
            build(opened, ONNXRUNTIME)
        monkeypatch.setattr("latentc.compiler.build.prove_steps", None)  # it isn't asked again


@pytest.mark.slow
def test_a_machine_without_referees_takes_the_references_that_came_along(own_bundle, monkeypatch):
    """As one with a GPU, for which the engines were built elsewhere."""
    opened, sized = own_bundle(), static(NULL, "192x64")
    build(opened, sized)
    for artifact in artifacts(opened):
        shutil.rmtree(opened.engines / artifact.name)
    monkeypatch.setattr(cases, "REFEREES", {})
    told = {one.artifact.part: one.artifact.parity.reference for one in build(opened, sized).engines}
    assert "the exported graph in f32" in told["unet"]
    with pytest.raises(RuntimeMissing, match="has no reference of unet"):
        build(opened, static(NULL, "64x192"))


@pytest.mark.slow
def test_a_change_of_an_adapter_is_another_key(own_bundle, monkeypatch):
    opened = own_bundle()
    build(opened, ONNXRUNTIME)
    adapter = type(runtime("onnxruntime"))
    monkeypatch.setattr(adapter, "facts", replace(adapter.facts, revision=99))
    for _, found in why(opened, ONNXRUNTIME):
        assert found.differences["adapter"][1] == 99


@pytest.mark.slow
def test_a_moved_bundle_keeps_its_engines(own_bundle, tmp_path):
    opened = own_bundle()
    build(opened, NULL)
    moved = shutil.copytree(opened.folder, tmp_path / "elsewhere")
    assert all(one.hit for one in build(open_bundle(moved), NULL).engines)
