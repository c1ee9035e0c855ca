"""Scoring what pictures show, with a judge made on the spot: it sees nothing, and says so consistently."""

from dataclasses import replace

import numpy as np
import pytest

from latentc.benchmarks import meaning, score
from latentc.benchmarks.meaning import captions, meaning_of, open_judge, read, render_captions, shuffled
from latentc.benchmarks.subjects.profile import ProfileSubject
from latentc.compiler.build import build
from latentc.core.errors import LatentcError, RequestError, RuntimeMissing
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.scenes.caption import EACH, WHOLE, attributes
from latentc.scenes.judge import JUDGE, scores_by_attribute
from latentc.scenes.render import render
from latentc.scenes.world import EXAMINED, KINDS, sample

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    """A judge of the right form: random projections of the picture's mean colour."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shapes = {name: (len(values),) for name, values in WHOLE.items()}
    shapes |= {name: (len(KINDS), len(values) + (name == "count")) for name, values in EACH.items()}
    shapes["features"] = (112,)
    nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["colour3"], keepdims=0)]
    weights = [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")]
    for name, shape in shapes.items():
        flat = rng.standard_normal((3, int(np.prod(shape)))).astype(np.float32)
        weights.append(numpy_helper.from_array(flat, f"{name}.weight"))
        weights.append(numpy_helper.from_array(np.array([-1, *shape], np.int64), f"{name}.shape"))
        nodes.append(helper.make_node("MatMul", ["colour3", f"{name}.weight"], [f"{name}.flat"]))
        nodes.append(helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [name]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "judge",
        [info("image", TensorProto.FLOAT, ["batch", 3, 128, 128])],
        [info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in shapes.items()],
        weights,
    )
    path = tmp_path_factory.mktemp("judge") / "judge.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.slow
def test_the_shipped_judge_reads_what_is_rendered():
    """At least 99 percent of each attribute, of scenes that it wasn't trained on; of sides, which meet, 93."""
    assert JUDGE.stat().st_size < 2_000_000
    numbers = range(EXAMINED + 10_000, EXAMINED + 10_256)
    scenes = [sample(number, "any") for number in numbers]
    with open_judge() as judge:
        found = read(
            judge, np.stack([render(scene, 128, number) for scene, number in zip(scenes, numbers, strict=True)])
        )
    truth = [attributes(scene) for scene in scenes]
    right = scores_by_attribute(found.attributes, truth)
    assert right.pop("position") >= 0.93
    assert right.keys() == {"place", "sky", "light", "count", "colour", "size"}
    assert min(right.values()) >= 0.99, right
    invented = [key for shown, told in zip(found.attributes, truth, strict=True) for key in shown.keys() - told.keys()]
    assert len(invented) < 0.005 * sum(map(len, truth))


def test_captions_are_ones_that_training_never_saw():
    asked = captions(60)
    assert [caption.number for caption in asked] == list(range(EXAMINED, EXAMINED + 60))
    assert 0 < sum(caption.held_out for caption in asked) < 60
    for caption in asked:
        truth = attributes(caption.scene)
        assert caption.said
        assert all(truth[key] == value for key, value in caption.said.items())
    open_sky = captions(5, lambda caption: "sky" not in caption.said)
    assert len(open_sky) == 5
    assert not any("sky" in caption.said for caption in open_sky)


def test_a_right_reading_scores_one_and_another_caption_s_less():
    asked = captions(130)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((130, 112)).astype(np.float32)
    reading = meaning.Reading(tuple(attributes(caption.scene) for caption in asked), features)
    right = meaning_of(reading, asked, features)
    assert (right.scene_score, right.held_out_score, right.captions) == (1.0, 1.0, 130)
    assert set(right.by_attribute.values()) == {1.0}
    assert right.frechet_distance == pytest.approx(0.0, abs=1e-6)
    wrong = meaning_of(reading, shuffled(asked), features)
    assert wrong.scene_score < 0.4
    few = meaning_of(meaning.Reading(reading.attributes[:20], features[:20]), asked[:20], features)
    assert few.frechet_distance is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_runtime_reads_the_same(judge_file, runtime):
    pictures = render_captions(captions(18))
    with open_judge(judge_file) as judge:
        wanted = read(judge, pictures)
    with open_judge(judge_file, (runtime,)) as judge:
        found = read(judge, pictures)
    np.testing.assert_allclose(found.features, wanted.features, atol=1e-4)
    assert len(found.attributes) == 18


def test_without_a_judge_or_a_runtime_that_is_said(judge_file, tmp_path):
    with pytest.raises(LatentcError, match="Train it"), open_judge(tmp_path / "judge.onnx"):
        pass
    with pytest.raises(RuntimeMissing, match="Scoring captions needs one of"), open_judge(judge_file, ()):
        pass


@pytest.mark.slow
def test_a_bundle_is_scored_between_ceiling_and_floor(bundle, judge_file, monkeypatch):
    monkeypatch.setattr(score, "open_judge", lambda: open_judge(judge_file))
    monkeypatch.setattr(meaning, "REFERENCES", 8)
    opened, profile = bundle("scenes"), load_profile("cpu-onnxruntime")
    build(opened, profile)
    with Pipeline.open(opened, profile) as pipeline:
        found = score.score(pipeline, 3, [1.0, 4.0], steps=1, nights=2)
        assert found.drawn.keys() == found.floor.keys() == {1.0, 4.0}
        assert found.ceiling.captions == found.drawn[4.0].captions == 3
        assert found.nights.captions == 2
        assert found.engines["unet"].startswith("onnxruntime ")
        with pytest.raises(RequestError, match="nothing to score"):
            score.score(pipeline, 0, [4.0])
        monkeypatch.setattr(meaning, "open_judge", lambda: open_judge(judge_file))
        subject = ProfileSubject()
        subject._pipeline = pipeline
        told, wanted = subject.understand(3, 4.0, 1), found.drawn[4.0]
        assert (told.captions, told.scene_score, told.held_out_score, told.frechet_distance) == (
            3, pytest.approx(wanted.scene_score), wanted.held_out_score, None,
        )  # fmt: skip
    asked = captions(6)
    drawn = score.sheet(render_captions(asked), asked)
    assert drawn.width > 4 * 192
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 1000


@pytest.mark.slow
def test_the_command_refuses_before_it_draws(latentc, bundle, tmp_path):
    def score(*words):
        return latentc("score", bundle("sd1").folder, *words)

    assert "is not a valid list of guidance scales" in score("--guidance", "2,high").stderr
    assert "does not exist" in score("--output", tmp_path / "nowhere" / "x.json").stderr
    assert "must end in one of: .png" in score("--sheet", tmp_path / "sheet.gif").stderr
    refused = score("--profile", "null", "--json")
    assert refused.returncode == 1
    assert "a classifier that recognizes only images of scenes" in refused.stderr + refused.stdout


def test_scenes_is_known_by_its_words(bundle, tmp_path):
    meaning.require_scenes([bundle("scenes")])
    manifest = bundle("scenes").manifest
    trained = manifest.source.model_copy(update={"kind": "folder", "location": "trained"})
    meaning.require_scenes([replace(bundle("scenes"), manifest=manifest.model_copy(update={"source": trained}))])
    with pytest.raises(RequestError, match=r"latentc bench .* --suite --clip FOLDER"):
        meaning.require_scenes([bundle("scenes"), bundle("sd1")])
