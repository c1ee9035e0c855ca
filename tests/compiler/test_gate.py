"""What the gate catches: faults in graphs, in engines, in what is around them, and in how they are called."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from typer.main import get_command

from latentc.benchmarks.planted import FAULTS, larger, only, same_prompt, timestep
from latentc.benchmarks.power import opened_graph, plant, reseal
from latentc.cli.app import app
from latentc.compiler import proof
from latentc.compiler.build import build
from latentc.compiler.cache import Parity, keep
from latentc.compiler.cases import reference, stored_cases
from latentc.compiler.engines import load
from latentc.compiler.host_check import check_host
from latentc.compiler.parity import check_graphs, measure
from latentc.compiler.proof import Steps, check_floor, check_steps, prove_host
from latentc.compiler.targets import wanted
from latentc.compiler.trial import StepFigures, measure_steps
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, LatentcError, ParityError
from latentc.core.files import read_sealed, sha256, write_sealed
from latentc.core.manifest import FileInfo
from latentc.core.references import hide
from latentc.core.tensors import psnr_db, snr_db
from latentc.export.sessions import CpuSession
from latentc.export.texts import Frame, spread
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes import Target, runtime
from latentc.sampling.host import load_host

ONNXRUNTIME = load_profile("cpu-onnxruntime")
HOST_FAULTS = [fault for fault in FAULTS if fault.part == "host"]


@pytest.mark.parametrize("fault", HOST_FAULTS, ids=lambda fault: fault.name)
def test_what_the_host_reads_is_proved(own_bundle, fault):
    opened = own_bundle("scenes")
    assert prove_host(opened) > 100
    plant(fault, opened.folder)
    with pytest.raises(ParityError, match="diffusers' pipeline|other token ids"):
        prove_host(open_bundle(opened.folder))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_host_of_every_family_is_diffusers(exported, family):
    opened = exported(family)
    assert check_host(opened, load_host(opened)) > 100


def run_latentc(*words):
    return subprocess.run(
        [sys.executable, "-m", "latentc", *map(str, words)], capture_output=True, text=True, check=False
    )


PRECISIONS = {
    "f32": 'runtime = "onnxruntime"\n',
    "bf16": 'runtime = "openvino"\n[precision]\ndefault = ["bf16", "f32"]\n',
    "f16": 'runtime = "iree"\nopset = 18\ndevice = "gfx942"\n[precision]\ndefault = "f32"\nunet = "f16"\n'
    '[shapes]\nsizes = ["own"]\n',
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_unet_that_ignores_the_prompt_is_refused_from_the_command_line(own_bundle, tmp_path, precision):
    opened = own_bundle("scenes")
    with opened_graph(opened.folder, "unet") as graph:
        same_prompt(graph)
    profile = tmp_path / f"{precision}.toml"
    profile.write_text(f'title = "{precision}"\n{PRECISIONS[precision]}')
    done = run_latentc("build", opened.folder, "--profile", profile, "--quiet")
    assert done.returncode == 1
    assert "The graph of unet, run in f32, differs from what PyTorch computed at export" in done.stderr


@pytest.fixture(scope="module")
def sound(bundle):
    """A bundle of `scenes`, its engines, and a way to put other engines in their place."""
    opened = bundle("scenes")
    build(opened, ONNXRUNTIME)
    with load(opened, ONNXRUNTIME) as engines:
        yield opened, load_host(opened), engines


class Standing:
    """An engine that answers in another's place."""

    def __init__(self, engine, run=None, bind=None):
        self.engine, self.answer, self.fixed = engine, run or engine.run, bind

    def run(self, feeds):
        return self.answer(feeds)

    def bind(self, feeds):
        return self.fixed(feeds) if self.fixed else lambda others: self.run({**feeds, **others})

    def close(self):
        pass


def steps_with(sound, part, wrong):
    opened, host, engines = sound

    def engine(name, shapes):
        found = engines.engine(name, shapes)
        return wrong(found) if name == part else found

    return measure_steps(opened, host, "unet", engine, None, guided=True)


def changed(change):
    """An engine whose every answer is changed."""
    return lambda engine: Standing(
        engine, lambda feeds: {name: change(out, feeds) for name, out in engine.run(feeds).items()}
    )


def stale(engine):
    """Every call gives the first call's answer of its shape."""
    known = {}

    def run(feeds):
        key = tuple(array.shape for array in feeds.values())
        return {name: out.copy() for name, out in known.setdefault(key, engine.run(feeds)).items()}

    return Standing(engine, run)


def bound_last(engine):
    """All that was ever bound shares what was bound last."""
    held = {}

    def bind(feeds):
        held.update(feeds)
        return lambda others: engine.run({**{name: held[name] for name in feeds}, **others})

    return Standing(engine, bind=bind)


def test_sound_engines_pass(sound):
    opened, host, engines = sound
    found = measure_steps(opened, host, "unet", engines.engine, None, guided=True)
    assert found.step_db > 110
    assert len(found.differences) == 3
    assert all(db > 100 and share > 0.1 for db, share in found.differences)
    assert found.picture_db > 60


FAULTY = {
    "text moves nothing": lambda engine: Standing(
        engine, lambda feeds: engine.run({**feeds, "encoder_hidden_states": feeds["encoder_hidden_states"] * 0})
    ),
    "rows beyond the second": changed(lambda out, _: np.concatenate([out[:2], out[2:] * 0])),
    "a second chunk": changed(lambda out, feeds: out * (1.2 if feeds["encoder_hidden_states"].shape[1] > 77 else 1)),
    "one timestep": changed(lambda out, feeds: out * (1.5 if feeds["timestep"][0] < 300 else 1)),
    "not square": changed(lambda out, _: out * (1 if out.shape[2] == out.shape[3] else 1.2)),
    "one size": changed(lambda out, _: out * (1 if out.shape[2] == 16 else 1.2)),
    "5 % too large": changed(lambda out, _: out * np.float32(1.05)),
    "stale": stale,
    "bound last": bound_last,
}


@pytest.mark.parametrize("fault", FAULTY)
def test_what_a_denoiser_gets_wrong_in_one_place_fails_the_step(sound, fault):
    found = steps_with(sound, "unet", FAULTY[fault])
    assert found.step_db < 40
    _, engines = wanted(sound[0], ONNXRUNTIME, to_run=True)
    with pytest.raises(ParityError):
        check_steps(sound[0], ONNXRUNTIME, engines, Steps(denoisers={"unet": found}))


def test_a_text_that_moves_nothing_is_zero_db(sound):
    found = steps_with(sound, "unet", FAULTY["text moves nothing"])
    assert [db for db, _ in found.differences] == pytest.approx([0, 0, 0], abs=0.01)
    opened = sound[0]
    bf16 = load_profile("cpu-openvino").model_copy(update={"precision": {"default": ("bf16",)}})
    engines = wanted(opened, ONNXRUNTIME, to_run=True)[1]
    from dataclasses import replace

    narrow = [replace(want, target=replace(want.target, precision="bf16")) for want in engines]
    near = StepFigures(step_db=45.0, differences=((40.0, 0.5), (0.0, 0.5)), picture_db=40.0)

    def held(profile, figures):
        check_steps(opened, profile, narrow, Steps(denoisers={"unet": figures}))

    lax = bf16.model_copy(update={"parity_db": {**bf16.parity_db, "bf16": 20.0}})
    for profile in (bf16, lax):
        with pytest.raises(ParityError, match=r"The change that the prompt makes .* has an SNR of 0.0 dB"):
            held(profile, near)
        halved = near.model_copy(update={"differences": ((6.02, 0.5),)})
        with pytest.raises(ParityError, match=r"The change that the prompt makes .* has an SNR of 6.0 dB"):
            held(profile, halved)
        held(profile, near.model_copy(update={"differences": ((30.0, 0.5), (0.0, 0.001))}))


def cases_of(sound, part):
    opened, _, engines = sound
    cases = stored_cases(opened, part)
    return engines.engine(part, {name: array.shape for name, array in cases[0].feeds.items()}), cases


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda engine: Standing(engine, lambda feeds: {}), "returns nothing, but 'out_sample' was expected"),
        (changed(lambda out, _: out[:, :2]), r"returns 'out_sample' of shape .* PyTorch returned"),
        (lambda engine: Standing(engine, lambda feeds: {"other": 1}), r"returns \['other'\], but 'out_sample'"),
    ],
)
def test_answers_of_another_kind_are_errors_in_words(sound, wrong, says):
    engine, cases = cases_of(sound, "unet")
    with pytest.raises(ParityError, match=says):
        measure("unet", wrong(engine), "PyTorch, at export", cases, "sample")


@pytest.mark.parametrize("fault", ["rows beyond the second", "a second chunk", "one timestep", "not square", "stale"])
def test_a_part_is_compared_in_every_row_size_and_timestep(sound, fault):
    engine, cases = cases_of(sound, "unet")
    assert measure("unet", engine, "", cases, "sample").psnr_db > 110
    assert measure("unet", FAULTY[fault](engine), "", cases, "sample").psnr_db < 40


def shown(ids):
    """Ids of which none is hidden."""
    return np.where(ids < 0, -1 - ids, ids)


def test_every_id_of_a_small_vocabulary_is_fed(exported):
    opened = exported("scenes")
    ids = np.concatenate([shown(case.feeds["input_ids"]).ravel() for case in stored_cases(opened, "text_encoder")])
    size = len(json.loads((opened.folder / "tokenizer" / "vocab.json").read_text()))
    assert set(ids) >= set(range(size))


@pytest.mark.parametrize("family", ["sd1", "scenes"])
def test_an_engine_that_hides_other_words_would_not_pass(exported, family):
    opened = exported(family)
    case = next(case for case in stored_cases(opened, "text_encoder") if case.name == "vocabulary")
    ids, hidden = shown(case.feeds["input_ids"]), case.feeds["input_ids"] < 0
    assert hidden.any(axis=1).all()
    assert hidden[:, 1:-1].any(axis=0).all()
    assert not hidden[:, [0, -1]].any()
    others = {
        "none": hidden & False,
        "the next": np.roll(hidden, 1, axis=1),
        "the next row's": np.roll(hidden, 1, axis=0),
    }
    with CpuSession(opened.folder / "text_encoder" / "model.onnx") as session:
        for name, expected in case.outputs.items():
            assert psnr_db(expected, session.answer(case.feeds)[name]) > 110
            for what, other in others.items():
                assert psnr_db(expected, session.answer({"input_ids": hide(ids, other)})[name]) < 30, what


def test_a_manifest_that_differs_on_hidden_words_is_refused(own_bundle):
    from latentc.benchmarks.planted import manifest

    opened = own_bundle()
    manifest("model", "text_encoders", 0, "hides", value=False)(opened.folder)
    with pytest.raises(ParityError, match="text_encoder does not hide words .* by its references it does\\."):
        prove_host(open_bundle(opened.folder))


@pytest.mark.parametrize(
    ("frame", "size", "rows"), [(Frame(49406, 49407, 49407, 77), 49408, 16), (Frame(None, 1, 0, 256), 32128, 5)]
)
def test_ids_of_a_large_vocabulary_are_spread_over_it(frame, size, rows):
    """As many for T5, whose rows are longer and far more expensive, as for CLIP."""
    made = spread(frame, size, hides=frame.start is not None)
    ids = np.unique([shown(row["input_ids"]) for row in made])
    assert len(made) == rows
    assert len(ids) >= 1200
    assert np.diff(ids).max() < 2 * size / 1200
    assert ids[0] < 100
    assert ids[-1] >= size - 3


def test_static_engines_are_compared_with_pytorchs_own_answers(exported):
    """Their rows are taken from PyTorch's answers, however many they are."""
    opened = exported("sd1")
    for rows in (1, 2, 3, 6):
        shape = {"sample": (rows, 4, 16, 16), "timestep": (1,), "encoder_hidden_states": (rows, 77, 32)}
        found = reference(opened, "unet", shape)
        assert found.origin == "PyTorch, at export"
        assert len({float(case.feeds["timestep"][0]) for case in found.cases}) >= 3
        assert all(len(case.outputs["out_sample"]) == rows for case in found.cases)


def test_a_signal_to_noise_ratio():
    signal = np.array([3.0, 4.0])
    assert snr_db(signal, signal * 0) == 0
    assert snr_db(signal, signal * 0.9) == pytest.approx(20)
    assert snr_db(signal, signal) == 200
    assert snr_db(signal, signal * np.nan) == -np.inf


@contextmanager
def flipped(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    yield
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_flipped_bit_of_the_manifest_is_seen_or_changes_nothing(own_bundle):
    opened = own_bundle()
    path = opened.folder / "latentc.json"
    for bit in np.random.default_rng(3).integers(0, path.stat().st_size * 8, 400):
        with flipped(path, int(bit)):
            try:
                found = open_bundle(opened.folder)
            except LatentcError:
                continue
            assert found.manifest == opened.manifest


@pytest.mark.slow
def test_a_flipped_bit_of_a_reference_is_seen_or_changes_nothing(own_bundle):
    opened = own_bundle()
    shape = {"sample": (2, 4, 8, 24), "timestep": (1,), "encoder_hidden_states": (2, 77, 32)}
    sound = reference(opened, "unet", shape)
    (path,) = opened.engines.glob("reference-unet-*.npz")
    from latentc.core.arrays import read_sealed_arrays

    before = read_sealed_arrays(path, "")
    for bit in np.random.default_rng(3).integers(0, path.stat().st_size * 8, 400):
        with flipped(path, int(bit)):
            try:
                found = read_sealed_arrays(path, "Remove it.")
            except LatentcError:
                continue
            assert found.keys() == before.keys()
            assert all(np.array_equal(found[name], before[name]) for name in before)
    assert sound.cases


def test_a_manifest_says_which_graph_its_figure_is_of(own_bundle, monkeypatch):
    """A machine with nothing to run a graph takes the export's figure, unless the graph was changed since."""
    from latentc.core.errors import RuntimeMissing

    opened = own_bundle()
    monkeypatch.setattr("latentc.compiler.cases.REFEREES", {})
    monkeypatch.setattr("latentc.compiler.parity.recall", lambda *_: None)
    assert check_graphs(opened, ["unet"])["unet"] == opened.part("unet").psnr_db
    read = read_sealed(opened.folder / "latentc.json")
    read["parts"]["unet"]["proved"] = "0" * 64
    write_sealed(opened.folder / "latentc.json", read)
    with pytest.raises(RuntimeMissing, match="The graph of unet was changed since its export"):
        check_graphs(open_bundle(opened.folder), ["unet"])


@pytest.mark.slow
def test_tokens_reach_nothing_but_their_table(own_bundle):
    from latentc.benchmarks.planted import other_id

    opened = own_bundle()
    with opened_graph(opened.folder, "text_encoder") as graph:
        other_id(300, 301)(graph)
    with pytest.raises(ParityError, match="computes more of token ids"):
        build(open_bundle(opened.folder), ONNXRUNTIME)


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, -1])
def test_ids_are_hidden_in_no_other_way(own_bundle, before):
    opened = own_bundle()
    with opened_graph(opened.folder, "text_encoder") as graph:
        node = next(node for node in graph.model.graph.node if node.op_type == ("Sub" if before else "GreaterOrEqual"))
        node.input[1 + before] = graph.constant(before - 5, "int64")
    with pytest.raises(ParityError, match="computes more of token ids"):
        build(open_bundle(opened.folder), ONNXRUNTIME)


@pytest.mark.slow
def test_another_embedding_of_an_id_that_no_reference_feeds_is_seen(own_bundle):
    opened = own_bundle()
    cases = stored_cases(opened, "text_encoder")
    fed = {int(each) for case in cases for each in shown(case.feeds["input_ids"]).ravel()}
    unfed = next(number for number in range(40_000) if number not in fed)
    with opened_graph(opened.folder, "text_encoder") as graph:
        name = next(name for name in graph.weights if name.endswith("token_embedding.weight"))
        graph.weights[name][unfed] += 1
    with pytest.raises(ParityError, match="looks up token ids in another table"):
        build(open_bundle(opened.folder), ONNXRUNTIME)


@pytest.mark.parametrize("family", ["scenes", "sd1", "sdxl"])
def test_references_hold_what_the_gate_needs(exported, family):
    opened = exported(family)
    drawings = {
        one["name"]: one for one in json.loads((opened.folder / "reference/drawings.json").read_text())["drawings"]
    }
    assert set(drawings) == {"whole", "wide", "single", "long"}
    cases = {case.name: case for case in stored_cases(opened, "unet")}
    rows = {case.feeds["sample"].shape[0] for case in cases.values()}
    assert rows == {1, 2, 3, 4, 6}
    assert {case.feeds["encoder_hidden_states"].shape[1] for case in cases.values()} == {77, 154, 231}
    timesteps = sorted(float(case.feeds["timestep"][0]) for case in cases.values())
    assert timesteps[0] == 0
    assert timesteps[1] < 25
    assert max(np.diff(timesteps)) < 60
    assert timesteps[-1] == 999
    assert any(300 < timestep < 700 for timestep in timesteps)
    if family == "sdxl":
        assert len({tuple(case.feeds["time_ids"][0]) for case in cases.values()}) == 2
    assert any(case.feeds["sample"].shape[2] != case.feeds["sample"].shape[3] for case in cases.values())


def test_a_graph_of_another_name_is_refused(own_bundle):
    """Digests of a part are of `model.onnx`: another graph would be taken for proved."""
    opened = own_bundle()
    folder = opened.folder / "unet"
    (folder / "other.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"")
    read = read_sealed(opened.folder / "latentc.json")
    read["files"]["unet/other.onnx"] = read["files"]["unet/model.onnx"]
    read["parts"]["unet"]["path"] = "unet/other.onnx"
    write_sealed(opened.folder / "latentc.json", read)
    with pytest.raises(BundleError, match="lists a part 'unet' at 'unet/other.onnx'"):
        open_bundle(opened.folder)


@pytest.mark.slow
def test_files_of_the_host_have_to_be_in_the_manifest(own_bundle):
    opened = own_bundle()
    build(opened, ONNXRUNTIME)
    for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
        read = read_sealed(opened.folder / "latentc.json")
        del read["files"][name]
        write_sealed(opened.folder / "latentc.json", read)
        lacking = open_bundle(opened.folder)
        with pytest.raises(BundleError, match=f"does not list {name}"):
            prove_host(lacking)
        with pytest.raises(BundleError, match=f"does not list {name}"):
            Pipeline.open(lacking, ONNXRUNTIME)
        write_sealed(opened.folder / "latentc.json", opened.manifest.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("downscale", 16), ("default_size", 64), ("default_height", 64), ("latent_channels", 3)],
)
def test_sizes_of_the_manifest_are_proved(own_bundle, edit_manifest, key, value):
    opened = own_bundle()
    edit_manifest(opened, lambda read: read["model"].update({key: value, "preview": None}))
    with pytest.raises(ParityError, match="The manifest"):
        prove_host(open_bundle(opened.folder))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [None, 5, 1 << 20])
def test_how_many_token_ids_there_are_is_proved(own_bundle, edit_manifest, monkeypatch, tmp_path, rows):
    """An id without a row is refused by that number."""
    opened = own_bundle()
    edit_manifest(opened, lambda read: read["model"]["text_encoders"][0].update(vocabulary=rows))
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "elsewhere"))
    with pytest.raises(ParityError, match="another table than the checkpoint's"):
        check_graphs(open_bundle(opened.folder), ["text_encoder"])


def test_engines_of_other_rows_of_ids_have_other_keys(own_bundle, edit_manifest):
    opened = own_bundle()
    usual = {want.part: want.key for want in wanted(opened, ONNXRUNTIME, to_run=False)[1]}
    edit_manifest(opened, lambda read: read["model"].update(length=248))
    longer = {want.part: want.key for want in wanted(open_bundle(opened.folder), ONNXRUNTIME, to_run=False)[1]}
    assert longer["unet"] != usual["unet"]
    assert longer["text_encoder"] != usual["text_encoder"]


def test_references_that_lack_something_prove_nothing(own_bundle):
    opened = own_bundle()
    path = opened.folder / "reference" / "drawings.json"
    read = json.loads(path.read_text())
    for drawings in ([], read["drawings"][:2], [{**one, "name": f"x{one['name']}"} for one in read["drawings"]]):
        path.write_text(json.dumps({**read, "drawings": drawings}))
        reseal(opened.folder)
        with pytest.raises(BundleError, match="lacks"):
            prove_host(open_bundle(opened.folder))
    path.write_text(json.dumps(read))
    np.savez(opened.folder / "reference" / "unet.npz", allow_pickle=False)
    reseal(opened.folder)
    with pytest.raises(BundleError, match="lacks references of unet"):
        build(open_bundle(opened.folder), ONNXRUNTIME)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made_by", "says"),
    [
        ("Where", "computes GatherND of token ids"),
        ("Sub", "more of token ids"),
        ("GreaterOrEqual", "more of token ids"),
    ],
)
def test_token_ids_are_not_looked_up_elsewhere(own_bundle, made_by, says):
    """By GatherND, whose table nobody compares: the ids, what they are where they are hidden, and their signs."""
    opened = own_bundle()
    with opened_graph(opened.folder, "text_encoder") as graph:
        table = graph.constant(np.zeros((49408, 1)))
        ids = next(node.output[0] for node in graph.model.graph.node if node.op_type == made_by)
        ids = graph.cast(ids, 7) if made_by == "GreaterOrEqual" else ids
        index = graph.add("Unsqueeze", ids, graph.constant([2], "int64"))
        more = graph.add("GatherND", table, index)
        graph.add("Add", graph.output("last_hidden_state"), more, to="last_hidden_state")
    with pytest.raises(ParityError, match=says):
        build(open_bundle(opened.folder), ONNXRUNTIME)


@pytest.mark.slow
def test_an_engine_that_is_replaced_while_the_bundle_is_open_is_not_loaded(own_bundle):
    opened = own_bundle()
    built = build(opened, ONNXRUNTIME).engines
    unet = next(one.artifact for one in built if one.artifact.part == "unet")
    with load(opened, ONNXRUNTIME) as engines:
        data = opened.engines / unet.name / "engine.data"
        data.write_bytes(bytes(data.stat().st_size))
        files = {**unet.files, data.name: FileInfo(sha256=sha256(data), bytes=data.stat().st_size)}
        keep(opened.engines / unet.name / "key.json", unet.model_copy(update={"files": files}))
        with pytest.raises(BundleError, match="was replaced after it was proved"):
            engines.engine("unet", {})


@pytest.mark.slow
def test_what_is_guided_has_a_figure_of_its_own(own_bundle):
    """The same engines draw guided and unguided: what was proved of the one isn't of the other."""
    opened = own_bundle()
    plain = ONNXRUNTIME.shapes.model_copy(update={"sizes": ("128x128",)})
    unguided = plain.model_copy(update={"guided": False, "images": 2})
    first, second = (build(opened, ONNXRUNTIME.model_copy(update={"shapes": shapes})) for shapes in (unguided, plain))
    assert first.steps.denoisers["unet"].differences == ()
    assert second.steps.difference_db > 60


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer/tokenizer.json", lambda read: read["model"]["merges"].pop()),
        ("tokenizer/tokenizer.json", lambda read: read.update(normalizer={"type": "NFC"})),
        ("tokenizer/tokenizer.json", lambda read: read.update(normalizer=None)),
        ("scheduler/scheduler_config.json", lambda read: read.update(clip_sample=True)),
        ("scheduler/scheduler_config.json", lambda read: read.update(set_alpha_to_one=True)),
    ],
)
def test_no_setting_of_the_host_is_left_unproved(own_bundle, name, change):
    """Also what the references' own prompts, and the checkpoint's own scheduler, don't read."""
    opened = own_bundle("scenes")
    path = opened.folder / name
    read = json.loads(path.read_text())
    change(read)
    path.write_text(json.dumps(read))
    reseal(opened.folder)
    with pytest.raises(ParityError, match="other token ids|The scheduler config is not the one"):
        prove_host(open_bundle(opened.folder))


SHAPES = {
    "one row": larger("sample", 0, 1),
    "more than four rows": larger("sample", 0, 4),
    "three chunks": larger("encoder_hidden_states", 1, 154),
    "wider than its own size": larger("sample", 3, 16),
    "between the steps of a drawing": timestep(840, 910),
}


@pytest.mark.parametrize("fault", SHAPES)
def test_a_graph_that_is_wrong_in_shapes_that_no_drawing_has_is_refused(own_bundle, fault):
    opened = own_bundle("scenes")
    with opened_graph(opened.folder, "unet") as graph:
        condition = SHAPES[fault]
        wrong = only("out_sample", lambda of: of.add("Not", condition(of)) if fault == "one row" else condition(of))
        wrong(graph)
    with pytest.raises(ParityError, match="The graph of unet, run in f32"):
        check_graphs(open_bundle(opened.folder), ["unet"])


def test_a_reference_of_nan_proves_nothing():
    assert psnr_db(np.array([np.nan, 1.0]), np.array([0.0, 1.0])) == -np.inf
    assert snr_db(np.array([np.inf, 1.0]), np.array([0.0, 1.0])) == -np.inf


TF32 = {"default": ("f16",), "text_encoder": ("f32",), "decoder": ("tf32",), "encoder": ("tf32",)}


def test_a_graph_is_held_to_the_floor_of_its_own_types(exported):
    profile = load_profile("rtx-4090").model_copy(update={"precision": TF32})
    if reason := runtime(profile.runtime).unbuildable(profile.device):
        pytest.skip(reason)
    opened = exported("sd1")
    want = next(one for one in wanted(opened, profile, to_run=False)[1] if one.part == "vae_decoder")
    on_gpu = Parity(psnr_db=60, cosine=1, reference="PyTorch")
    check_floor(opened, profile, want, on_gpu)
    with pytest.raises(ParityError, match=r"60\.0 dB .*requires 90 dB"):
        check_floor(opened, profile, want, on_gpu.model_copy(update={"graph_run_by": "onnxruntime CPU"}))


def test_a_device_of_f16_only_has_a_way_out_for_each_part_that_is_known_to_overflow():
    """SDXL's VAE, and T5 of Stable Diffusion 3: no wider type is offered where the device has none."""
    profile = load_profile("snapdragon-x-elite")
    target = Target("onnxruntime", profile.device, "f16", {}, (), ())
    advice = proof._advice(profile, SimpleNamespace(part="text_encoder_3", target=target))
    named = set(re.findall(r"--[\w-]+", advice))
    assert named == {"--vae", "--without-t5"}
    assert named <= {name for one in get_command(app).commands["export"].params for name in one.opts}


def test_an_engine_that_was_changed_is_to_be_built_again(exported):
    opened, profile = exported("sd1"), load_profile("cpu-onnxruntime")
    want = next(one for one in wanted(opened, profile, to_run=False)[1] if one.part == "unet")
    found, built = (Parity(psnr_db=db, cosine=1, reference="PyTorch") for db in (79, 132))
    with pytest.raises(ParityError) as changed:
        check_floor(opened, profile, want, found, built)
    assert "its header says 132.0 dB: it was changed since it was built" in str(changed.value)
    assert f"Remove {opened.engines / want.name} and build it again" in str(changed.value)
    with pytest.raises(ParityError, match="Use another profile for unet, or lower") as below:
        check_floor(opened, profile, want, found, found)
    assert "wider" not in str(below.value), "there is none"
