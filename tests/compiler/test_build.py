"""Builds: keys, hits and misses, floors, damage, and several at once."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from latentc.cli import show
from latentc.compiler import cache, cases
from latentc.compiler import targets as asking
from latentc.compiler.apart import Measured
from latentc.compiler.build import build, why
from latentc.compiler.cache import Miss, artifacts, verify
from latentc.compiler.engines import Engines, load
from latentc.compiler.faults import faults
from latentc.compiler.parity import measure
from latentc.compiler.proof import Steps, proved_here
from latentc.compiler.states import Site, looked
from latentc.compiler.targets import wanted
from latentc.compiler.trial import StepFigures, check_host, measure_steps
from latentc.core.bundle import digest, open_bundle
from latentc.core.errors import BundleError, CompileError, ParityError, ProfileError, RuntimeMissing, ShapeError
from latentc.core.files import sha256
from latentc.core.locks import is_held
from latentc.core.manifest import FileInfo
from latentc.core.progress import quiet
from latentc.core.records import GraphFigure, graph_key, remember, state_folder
from latentc.core.references import stored_at
from latentc.profiles import load_profile
from latentc.runtimes import runtime
from latentc.runtimes.null import Null
from latentc.runtimes.onnxruntime import ONNXRuntime
from latentc.sampling.draw import load_host

NULL = load_profile("null")
OPENVINO = load_profile("cpu-openvino-f32")
ONNXRUNTIME = load_profile("cpu-onnxruntime")
OTHERWISE = {"session.set_denormal_as_zero": True}
"""An option that is in the key, and changes nothing of what is written."""


def of(profile, **changes):
    return profile.model_copy(update=changes)


def static(profile, *sizes, **changes):
    return of(profile, shapes=profile.shapes.model_copy(update={"sizes": sizes, **changes}))


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


@pytest.mark.slow
def test_one_engine_for_several_devices_is_compared_on_each(own_bundle, monkeypatch):
    here, profile = of_two_devices(monkeypatch)
    opened = own_bundle()
    first = build(opened, profile)
    assert {one.artifact.parity.compared_on for one in first.engines} == {"left"}
    load(opened, profile).close()
    here[:] = ["right"]
    adapter, found = runtime("null"), [one.artifact for one in first.engines]
    assert [proved_here(opened, adapter, one) for one in found] == [None] * 4
    again = build(opened, profile)
    assert all(one.hit for one in again.engines)
    assert all(proved_here(opened, adapter, one) for one in found)
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
    show.why(opened, [(profile, why(opened, profile))], as_json=False)
    assert capsys.readouterr().out.count("wasn't proved on this machine yet") == 4

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
        assert "weren't proved on this machine yet (the whole step)" in Engines(opened, NULL).unproved()
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
            assert "engines were proved before drawing" in engines.notices[0]
            assert f"because {folder} can't be written" in engines.notices[0]


@pytest.mark.slow
def test_a_forged_header_proves_nothing(own_bundle, monkeypatch, tmp_path):
    """An engine of other weights under the header of a sound one, in a bundle that came from elsewhere."""
    opened = own_bundle()
    built = build(opened, ONNXRUNTIME).engines
    decoder = next(one.artifact for one in built if one.artifact.part == "vae_decoder")
    data = opened.engines / decoder.name / "engine.data"
    values = np.frombuffer(data.read_bytes(), np.float32) * np.float32(1.02)
    data.write_bytes(values.tobytes())
    files = {**decoder.files, data.name: FileInfo(sha256=sha256(data), bytes=data.stat().st_size)}
    cache.keep(opened.engines / decoder.name / "key.json", decoder.model_copy(update={"files": files}))
    with pytest.raises(ParityError, match="vae_decoder in f32 through onnxruntime agrees with the reference to"):
        load(opened, ONNXRUNTIME)
    with pytest.raises(ParityError, match="vae_decoder"):
        build(opened, ONNXRUNTIME)
    other = copied(opened, "other")
    shutil.rmtree(other.engines)
    with pytest.raises(ParityError, match="vae_decoder"):
        build(other, ONNXRUNTIME, like=opened)
    assert "vae_decoder" not in {one.part for one in artifacts(other)}, "what was taken and isn't sound goes again"


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


def test_what_killed_builds_left_goes(own_bundle):
    opened = own_bundle()
    build(opened, NULL)
    sound = sorted(path.name for path in opened.engines.iterdir())
    (opened.engines / ".0123456789abcdef.tmp").write_text("half a header")
    (opened.engines / ".unet-0123456789abcdef.build.lock").touch()
    (opened.engines / ".unet-0123456789abcdef.lock").touch()
    (opened.engines / ".unet-0123456789abcdef.tmp").mkdir()
    for path in opened.engines.glob(".*"):
        os.utime(path, (0, 0))
    (opened.engines / ".fedcba9876543210.tmp").write_text("being written")
    build(opened, NULL)
    assert sorted(path.name for path in opened.engines.iterdir()) == sorted([*sound, ".fedcba9876543210.tmp"])


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


def new_unet(opened, edit_manifest):
    """The bundle with another UNet: the last bit of a weight differs."""
    data = opened.folder / "unet" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)

    def renamed(value):
        value["files"]["unet/model.onnx_data"]["sha256"] = sha256(data)
        files = {name: FileInfo(**info) for name, info in value["files"].items() if name.startswith("unet/")}
        value["parts"]["unet"]["digest"] = digest(files)

    edit_manifest(opened, renamed)
    return open_bundle(opened.folder)


def as_exported_here(opened):
    """Remember the UNet as this machine's own: it is then compiled in this process, where tests change functions."""
    key = graph_key(opened.part("unet").digest, opened.manifest.files[stored_at("unet")].sha256)
    remember(key, GraphFigure(psnr_db=120.0, worst="", run_by="a test", exported_here=True))
    return opened


def test_new_weights_rebuild_that_part_only(own_bundle, edit_manifest):
    opened = own_bundle()
    build(opened, NULL)
    changed = new_unet(opened, edit_manifest)
    differences = {want.part: found for want, found in why(changed, NULL) if isinstance(found, Miss)}
    assert list(differences) == ["unet"]
    assert list(differences["unet"].differences) == ["part digest"]
    assert [one.hit for one in build(changed, NULL).engines] == [True, False, True, True]


def copied(opened, name):
    return open_bundle(shutil.copytree(opened.folder, opened.folder.with_name(name)))


@pytest.mark.slow
def test_engines_of_parts_that_are_the_same_are_taken(own_bundle, edit_manifest):
    opened = own_bundle()
    tuned = new_unet(copied(opened, "tuned"), edit_manifest)
    made = build(opened, ONNXRUNTIME)
    found = build(tuned, ONNXRUNTIME, like=opened)
    assert [one.how for one in found.engines] == ["taken", "compiled", "taken", "taken"]
    for ours, theirs in zip(found.engines, made.engines, strict=True):
        verify(tuned, ours.artifact)
        assert (ours.artifact == theirs.artifact) == (ours.how == "taken")
        if ours.how == "taken":
            path = f"{ours.artifact.name}/engine.data"
            assert (tuned.engines / path).samefile(opened.engines / path), "on disk once"
    assert [one.how for one in build(tuned, ONNXRUNTIME, like=opened).engines] == ["there"] * 4
    shutil.rmtree(opened.folder)
    load(tuned, ONNXRUNTIME, ["unet"]).close()


@pytest.mark.slow
def test_a_damaged_engine_is_not_taken(own_bundle):
    opened = own_bundle()
    empty = copied(opened, "empty")
    built = build(opened, ONNXRUNTIME).engines[0].artifact
    path = opened.engines / built.name / "engine.data"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleError, match="is damaged"):
        build(empty, ONNXRUNTIME, like=opened)
    assert artifacts(empty) == []


@pytest.mark.slow
def test_what_is_taken_is_held_to_the_floor(own_bundle):
    opened = own_bundle()
    empty = copied(opened, "empty")
    build(opened, ONNXRUNTIME)
    with pytest.raises(ParityError, match="asks for 500 dB"):
        build(empty, of(ONNXRUNTIME, parity_db={"f32": 500.0}), like=opened)
    assert artifacts(empty) == []


@pytest.mark.slow
def test_what_is_not_compiled_from_the_graph_is_not_taken(own_bundle):
    opened = own_bundle()
    other = copied(opened, "other")
    build(opened, NULL)
    assert {one.how for one in build(other, NULL, like=opened).engines} == {"compiled"}


def refitting(monkeypatch, refit):
    """ONNX Runtime refits what has the shipped options. A class of its own: Python remembers which ones refit."""
    able = {"refits": lambda _, options: options == ONNXRUNTIME.options, "refit": refit}
    monkeypatch.setattr("latentc.compiler.targets.runtime", lambda _: type("Refitting", (ONNXRuntime,), able)())


@pytest.mark.slow
def test_where_only_weights_differ_the_engine_is_refitted(own_bundle, edit_manifest, monkeypatch, capsys):
    opened = own_bundle()
    tuned = as_exported_here(new_unet(copied(opened, "tuned"), edit_manifest))
    unet = next(one.artifact for one in build(opened, ONNXRUNTIME).engines if one.artifact.part == "unet")
    asked = []

    def refit(self, job, other, out):
        asked.append((job.part, other))
        self.compile(job, out, lambda *_: None)

    refitting(monkeypatch, refit)
    found = build(tuned, ONNXRUNTIME, like=opened)
    assert [one.how for one in found.engines] == ["taken", "refitted", "taken", "taken"]
    assert asked == [("unet", opened.engines / unet.name)]
    assert [one.artifact.refitted_from for one in found.engines] == [None, unet.key, None, None]
    show.builds([found], as_json=False)
    assert ", refitted" in capsys.readouterr().out
    load(tuned, ONNXRUNTIME).close()
    for other in (static(ONNXRUNTIME, "64x64"), of(ONNXRUNTIME, options=OTHERWISE)):
        assert "refitted" not in {one.how for one in build(tuned, other, like=opened).engines}
    assert len(asked) == 1, "one of another shape or with other options isn't refitted"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refused", "wrong", "damaged"])
def test_what_cannot_be_refitted_is_compiled_and_that_is_said(own_bundle, edit_manifest, monkeypatch, capsys, fault):
    opened = own_bundle()
    tuned = as_exported_here(new_unet(copied(opened, "tuned"), edit_manifest))
    donor = next(one.artifact for one in build(opened, ONNXRUNTIME).engines if one.artifact.part == "unet")
    if fault == "damaged":
        path = opened.engines / donor.name / "engine.data"
        path.write_bytes(bytes(path.stat().st_size))

    def refit(self, job, other, out):
        if fault == "refused":
            raise CompileError("The graph of unet differs.")
        self.compile(job, out, lambda *_: None)
        monkeypatch.setattr("latentc.compiler.proof.measure", wrong)

    def wrong(*asked):
        monkeypatch.setattr("latentc.compiler.proof.measure", measure)
        return measure(*asked).model_copy(update={"psnr_db": 12.0})

    refitting(monkeypatch, refit)
    found = build(tuned, ONNXRUNTIME, like=opened)
    unet = next(one for one in found.engines if one.artifact.part == "unet")
    assert unet.how == "compiled"
    assert {"refused": "differs", "wrong": "to 12.0 dB", "damaged": "is damaged"}[fault] in unet.note
    assert unet.artifact.refitted_from is None
    assert unet.artifact.parity.psnr_db > 60
    show.builds([found], as_json=False)
    assert "unet: It was compiled, not refitted: " in capsys.readouterr().out
    load(tuned, ONNXRUNTIME).close()


@pytest.mark.slow
def test_an_artifact_that_names_files_elsewhere_is_none(own_bundle):
    opened = own_bundle()
    other = copied(opened, "other")
    built = build(opened, ONNXRUNTIME).engines[0].artifact
    header = opened.engines / built.name / "key.json"
    manifest = opened.folder / "latentc.json"
    stray = FileInfo(sha256=sha256(manifest), bytes=manifest.stat().st_size)
    files = {**built.files, "../../latentc.json": stray}
    cache.keep(header, built.model_copy(update={"files": files}))
    before = (other.folder / "latentc.json").read_bytes()
    assert build(other, ONNXRUNTIME, like=opened).engines[0].how == "compiled"
    assert (other.folder / "latentc.json").read_bytes() == before
    assert built.key not in {one.key for one in artifacts(opened)}


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


def test_damaged_weights_are_found_before_anything_is_compiled(own_bundle):
    opened = own_bundle()
    data = opened.folder / "unet" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[5000] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="onnx_data was changed"):
        build(opened, NULL)
    assert [artifact.part for artifact in artifacts(opened)] == ["text_encoder"]


def test_an_engine_below_the_floor_is_not_kept(own_bundle):
    opened = own_bundle()
    strict = of(NULL, parity_db=NULL.parity_db | {"f32": 50.0})
    with pytest.raises(ParityError, match=r"text_encoder in f32 through null agrees .* asks for 50 dB"):
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
    with pytest.raises(ParityError, match="isn't what diffusers' pipeline computed at export: encoder_hidden_states"):
        build(open_bundle(opened.folder), NULL)


def test_inputs_that_diffusers_didnt_feed_are_refused(bundle):
    opened = bundle("sd1")
    host = load_host(opened)
    latents = host.model.model_copy(update={"wires": host.model.wires[:1]})
    with pytest.raises(ParityError, match=r"feeds the unet \[\], and diffusers' .* it \['encoder_hidden_states'\]"):
        check_host(opened, replace(host, model=latents))


def test_closed_engines_stay_closed(own_bundle):
    opened = own_bundle()
    build(opened, NULL)
    engines = load(opened, NULL)
    engines.close()
    with pytest.raises(RuntimeMissing, match="were closed"):
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
    with pytest.raises(ParityError, match="The graph of vae_decoder, run in f32, isn't what PyTorch computed"):
        build(open_bundle(opened.folder), OPENVINO)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "folder", "header", "figure"])
def test_a_damaged_artifact_is_never_loaded(own_bundle, damage):
    opened = own_bundle()
    built = build(opened, NULL)
    folder = opened.engines / built.engines[1].artifact.name
    name = next(iter(built.engines[1].artifact.files))
    content = (folder / name).read_bytes()
    if damage == "truncate":
        (folder / name).write_bytes(content[:-1])
    elif damage == "empty":
        (folder / name).write_bytes(b"")
    elif damage == "flip":
        (folder / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "folder":
        (folder / name).unlink()
        (folder / name).mkdir()
    elif damage == "figure":
        header = (folder / "key.json").read_text()
        assert json.loads(header.replace('"seconds": ', '"seconds": 1')) != json.loads(header)
        (folder / "key.json").write_text(header.replace('"seconds": ', '"seconds": 1'))
    else:
        (folder / "key.json").write_text("{")
    if damage == "flip":  # of the right size: only its digest tells
        with pytest.raises(BundleError, match="is damaged"), Engines(opened, NULL) as engines:
            engines.preload(["unet"])
        with pytest.raises(BundleError, match="is damaged"):
            verify(opened, built.engines[1].artifact)
    else:
        with pytest.raises(BundleError, match="is damaged.*Run: latentc build .* --profile null"):
            load(opened, NULL)
        told = {want.part: outcome for want, outcome in why(opened, NULL)}
        assert told["unet"] == Miss(built.engines[1].artifact.name, {}), "it is there, and not whole"
    (said,) = faults(opened)
    assert built.engines[1].artifact.name in said
    assert "is damaged" in said
    again = build(opened, NULL)
    assert [one.hit for one in again.engines] == [True, False, True, True]
    assert "was damaged" in again.engines[1].note
    assert faults(opened) == []
    load(opened, NULL).close()


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["sha256", "read_sealed"])
def test_what_cannot_be_read_is_not_replaced(own_bundle, monkeypatch, reader):
    opened = own_bundle()
    build(opened, NULL)

    def broken(path, *_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(f"latentc.compiler.cache.{reader}", broken)
    with pytest.raises(BundleError, match="can't be read \\(Input/output error\\)"):
        build(opened, NULL)
    assert sum("can't be read (Input/output error)" in said for said in faults(opened)) == 4
    monkeypatch.undo()
    assert all(one.hit for one in build(opened, NULL).engines)


def test_what_another_process_is_removing_is_no_fault_of_the_disk(own_bundle, monkeypatch):
    opened = own_bundle()
    built = build(opened, NULL).engines[0].artifact

    def gone(path, *_):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("latentc.compiler.cache.sha256", gone)
    with pytest.raises(BundleError, match="is damaged"):
        verify(opened, built)


@pytest.mark.slow
def test_what_replaces_a_damaged_engine_has_to_fit_too(own_bundle):
    opened = own_bundle()
    unet = build(opened, ONNXRUNTIME).engines[1].artifact
    path = opened.engines / unet.name / next(name for name, info in unet.files.items() if info.bytes > 1000)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CompileError, match="doesn't fit"):
        build(opened, of(ONNXRUNTIME, memory_gb=0.001))


def test_profiles_that_claim_an_engine_meanwhile_are_kept(own_bundle, monkeypatch):
    """Between looking for an engine and noting a profile with it, another build notes its own."""
    opened = own_bundle()
    build(opened, NULL)
    locked = cache.locked

    @contextmanager
    def late(bundle, name, on_progress=quiet):
        monkeypatch.setattr("latentc.compiler.build.locked", locked)
        build(opened, of(NULL, name="first"))
        with locked(bundle, name, on_progress):
            yield

    monkeypatch.setattr("latentc.compiler.build.locked", late)
    build(opened, of(NULL, name="second"))
    assert {frozenset(found.profiles) for found in artifacts(opened)} == {frozenset(("null", "first", "second"))}


def test_engines_of_a_bundle_that_cannot_be_written_are_found(own_bundle, monkeypatch):
    opened = own_bundle()
    build(opened, NULL)

    def refuse(*_):
        raise BundleError("It can't be written.")

    monkeypatch.setattr("latentc.compiler.build.locked", refuse)
    found = build(opened, of(NULL, name="other"))
    assert all(one.hit for one in found.engines)
    assert {one.artifact.profiles for one in found.engines} == {("null",)}


def test_every_fault_of_a_bundle_is_told(own_bundle):
    opened = own_bundle()
    built = build(opened, NULL)
    for one in built.engines[:2]:
        (opened.engines / one.artifact.name / next(iter(one.artifact.files))).unlink()
    (opened.folder / "vae_decoder" / "model.onnx").write_bytes(b"no graph")
    (opened.engines / "notes-1.txt").touch()
    shutil.copytree(opened.engines / built.engines[2].artifact.name, opened.engines / "vae_decoder-old")
    said = faults(opened)
    assert len(said) == 3
    assert "vae_decoder/model.onnx" in said[0]
    assert [any(one.artifact.name in fault for fault in said) for one in built.engines] == [True, True, False, False]


def test_engines_know_the_profiles_that_they_are_for(own_bundle):
    opened, other = own_bundle(), of(NULL, name="other")
    with pytest.raises(BundleError, match="`latentc inspect` lists what is built"):
        load(opened, NULL)
    first = build(opened, NULL)
    assert {one.artifact.profiles for one in first.engines} == {("null",)}
    with pytest.raises(BundleError, match=r"isn't built for profile cpu-openvino-f32.*Built in it: null\."):
        load(opened, OPENVINO)
    second = build(opened, other)
    assert all(one.hit for one in second.engines)
    assert {one.artifact.profiles for one in second.engines} == {("null", "other")}
    assert {found.profiles for found in artifacts(opened)} == {("null", "other")}
    shutil.rmtree(opened.engines / first.engines[1].artifact.name)
    with pytest.raises(BundleError, match=r"latentc why .* --profile null` says what changed"):
        load(opened, NULL)


def test_garbage_among_the_engines_is_passed_over(own_bundle):
    opened = own_bundle()
    built = build(opened, NULL)
    (opened.engines / "garbage").touch()
    (opened.engines / "unet-0123").mkdir()
    (opened.engines / "unet-0123" / "key.json").write_text(json.dumps({"part": "unet"}))
    target = opened.engines / built.engines[1].artifact.name
    shutil.rmtree(target)
    target.touch()
    assert len(artifacts(opened)) == 3
    assert not build(opened, NULL).engines[1].hit
    assert len(artifacts(opened)) == 4


def test_a_profile_may_name_a_text_encoder_that_a_bundle_has_not(own_bundle):
    """One profile serves models of one text encoder and of two."""
    assert len(build(own_bundle(), of(NULL, precision={"default": ("f32",), "text_encoder_2": ("f32",)})).engines) == 4


def test_unbuilt_and_unknown_are_said(own_bundle):
    opened = own_bundle()
    with pytest.raises(BundleError, match=r"latentc build .* --profile null"):
        load(opened, NULL)
    with pytest.raises(ProfileError, match="no runtime 'tensorflow'"):
        build(opened, of(NULL, runtime="tensorflow"))
    with pytest.raises(ProfileError, match="'unit', which is no role, and no part of .*Did you mean 'unet'"):
        build(opened, of(NULL, precision={"unit": ("f32",)}))
    with pytest.raises(RuntimeMissing, match="GPU"):
        build(opened, of(OPENVINO, device="GPU"))
    with pytest.raises(ProfileError, match=r"wants text_encoder in f16; this CPU has f32"):
        build(opened, of(ONNXRUNTIME, precision={"default": ("f16",)}))


BUILD = """
import json, sys
from latentc.compiler.build import build
from latentc.core.bundle import digest, open_bundle
from latentc.core.manifest import FileInfo
from latentc.core.files import sha256
from latentc.profiles import load_profile
built = build(open_bundle(sys.argv[1]), load_profile("null"))
print(json.dumps([one.hit for one in built.engines]))
"""

HOLD = """
import sys, time
from latentc.compiler.cache import locked
from latentc.core.bundle import digest, open_bundle
from latentc.core.manifest import FileInfo
with locked(open_bundle(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def started(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_several_builds_at_once_one_builds(own_bundle):
    opened = own_bundle()
    builders = [started(BUILD, opened.folder) for _ in range(4)]
    hits = [json.loads(builder.communicate(timeout=120)[0]) for builder in builders]
    assert [sum(not hit[part] for hit in hits) for part in range(4)] == [1, 1, 1, 1]


@pytest.mark.slow
def test_a_dead_owners_lock_is_free(own_bundle):
    opened = own_bundle()
    owner = started(HOLD, opened.folder, folder_of_unet(opened))
    assert owner.stdout.readline() == "held\n"
    builder = started(BUILD, opened.folder)
    with pytest.raises(subprocess.TimeoutExpired):
        builder.wait(timeout=3)  # it waits for the lock
    owner.kill()
    owner.communicate()
    assert json.loads(builder.communicate(timeout=120)[0]) == [False] * 4


def folder_of_unet(opened):
    from latentc.compiler.cache import folder_name

    return next(folder_name(want.part, want.key) for want, _ in why(opened, NULL) if want.part == "unet")


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
        with pytest.raises(ShapeError, match="builds 128x128, 192x64"):
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
@pytest.mark.parametrize("damage", [lambda raw: raw[:1000], lambda raw: raw[:-600] + bytes(600), lambda raw: b""])
def test_a_damaged_reference_is_named_or_made_again(own_bundle, monkeypatch, damage):
    opened = own_bundle()
    build(opened, static(NULL, "192x64"))
    (path,) = opened.engines.glob("reference-unet-*.npz")
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    (said,) = faults(opened)
    assert said.startswith(f"{path} isn't what was written. Remove it")
    shutil.rmtree(opened.engines / next(one for one in artifacts(opened) if one.part == "unet").name)
    with monkeypatch.context() as patch:
        patch.setattr(cases, "REFEREES", {})
        with pytest.raises(BundleError, match="Remove .*reference-unet"):
            build(opened, static(NULL, "192x64"))
    build(opened, static(NULL, "192x64"))
    assert faults(opened) == []


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
    with pytest.raises(RuntimeMissing, match="has no stored reference"):
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


@pytest.mark.parametrize("name", ["reference/drawings.npz", "tokenizer/tokenizer.json", "unet/model.onnx_data"])
def test_a_damaged_file_is_named_though_every_engine_is_there(name, own_bundle):
    opened = own_bundle()
    build(opened, NULL)
    path = opened.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{path} has .* bytes; the manifest says"):
        build(opened, NULL)
