"""What is asked of the engines after their times were taken: of processes that answer from a table."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.benchmarks import referee
from latentc.benchmarks.contender import TIMEOUT_SECONDS, contenders_of
from latentc.benchmarks.plan import Plan, requests_of
from latentc.benchmarks.records import Figure, Likeness
from latentc.benchmarks.referee import MEASURES_MODULE, check_suite, compare, understand
from latentc.benchmarks.suite import SUITE
from latentc.core.errors import BundleError, LatentcError, RuntimeMissing
from latentc.core.progress import quiet
from latentc.profiles import load_profile

LIKENESS = Likeness(
    reference="torch 2",
    suite="general 1, against torch 2",
    forced_psnr_db={"unet": (100.0,)},
    host_psnr_db=120.0,
    pictures={"psnr_db": Figure(median=50.0, worst=45.0)},
).model_dump()
UNDERSTOOD = {"captions": 4, "scene_score": 0.5, "held_out_score": None, "frechet_distance": None}
SCORES = {"clip": [20.0, 30.0], "lpips": [0.1, 0.3], "fid": 2.5}
CHECKED = {"lpips": "alex"}
MEASURES = ("clip", "lpips", "fid")


class Answering:
    """A process that answers from a table; an error in it is raised, and `dies` says whether that was its end."""

    def __init__(self, dies=False, **answers):
        self.answers = {"compare": LIKENESS, "understand": UNDERSTOOD, "score": SCORES, "check": CHECKED} | answers
        self.dies, self.ended, self.closed, self.waits = dies, False, False, []

    def ask(self, verb, what, timeout_seconds):
        self.waits.append(timeout_seconds)
        answer = self.answers.get(verb, {})
        if isinstance(answer, Exception):
            self.ended = self.dies
            raise answer
        if verb == "compare" and what.get("keep"):
            Path(what["keep"]).touch()
        return answer

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def stage(bundle, tmp_path, monkeypatch):
    """`stage(processes, torch, clip, limit)`: contenders over these processes, what has the suite compared, the row."""

    def make(processes, torch=None, clip=None, limit=5.0):
        wanted = SimpleNamespace(
            suite=SUITE, size=(64, 64), images=(np.zeros((8, 8, 3), np.uint8),) * 2, engines={"unet": "torch 2 CPU f32"}
        )
        torch, clip_process = torch or Answering(), clip or Answering()
        monkeypatch.setattr(referee, "references_path", lambda *_: tmp_path / "references.npz")
        monkeypatch.setattr(referee, "load_references", lambda path: wanted)
        monkeypatch.setattr(
            referee, "Process", lambda python, module, *_: clip_process if module == MEASURES_MODULE else torch
        )
        plan = Plan(tuple(load_profile("cpu-onnxruntime") for _ in processes), sizes=((64, 64),), limit=limit)
        (setting,) = requests_of([bundle("sd1")], plan)
        found = contenders_of(bundle("sd1"), plan, setting, plan.profiles, (), tmp_path, "run")
        for contender, process in zip(found, processes, strict=True):
            contender.process = process

        def both(captions=0):
            measures = dict.fromkeys(MEASURES, tmp_path)
            compare(bundle("sd1"), setting, SUITE, measures, found, lambda _: nullcontext(), quiet)
            if captions:
                understand(captions, setting, found, lambda _: nullcontext(), quiet)
            return [contender.parity for contender in found]

        return found, both

    return make


@pytest.mark.parametrize(("limit", "waits"), [(5.0, TIMEOUT_SECONDS), (9000.0, 9000.0)])
def test_the_suite_may_take_an_hour_or_as_long_as_was_said(stage, limit, waits):
    engine, torch, clip = Answering(), Answering(), Answering()
    (parity,) = stage([engine], torch, clip, limit)[1](captions=4)
    assert parity.suite == "general 1, against torch 2"
    assert (parity.clip.median, parity.clip.worst, parity.clip.reference) == (25.0, 20.0, 25.0)
    assert (parity.clip.mean, parity.clip.reference_mean) == (25.0, 25.0)
    assert (parity.lpips.network, parity.lpips.mean, parity.lpips.worst) == ("alex", 0.2, 0.3)
    assert parity.fid.distance == 2.5
    assert parity.fid.pictures == len(SUITE.prompts) * len(SUITE.seeds)
    assert parity.fid.against == "2 images of torch 2 CPU f32"
    assert parity.meaning.scene_score == 0.5
    assert parity.failures == ()
    assert [len(process.waits) for process in (engine, torch, clip)] == [2, 2 * (3 + 1), 3]
    assert {*engine.waits, *torch.waits, *clip.waits} == {waits}


def test_what_fails_over_the_suite_leaves_the_times(stage):
    broken = LatentcError("It broke.")
    dead, refusing, garbled = Answering(dies=True, compare=broken), Answering(compare=broken), Answering(compare={})
    found, both = stage([dead, refusing, garbled, Answering()])
    parities = both(captions=4)
    assert [contender.error for contender in found] == [None] * 4
    assert [parity.suite is None for parity in parities] == [True, True, True, False]
    assert parities[0].failures == (
        "The suite could not be compared: It broke.",
        "Captions could not be generated and scored: The process ended during the suite.",
    )
    assert dead.closed
    assert len(dead.waits) == 1, "it can't be asked for captions"
    assert parities[1].failures == ("The suite could not be compared: It broke.",)
    assert parities[1].meaning.captions == 4, "it lives, and draws captions"
    assert parities[2].failures[0].startswith("The suite could not be compared: ")
    assert parities[3].failures == ()


def test_captions_that_fail_leave_the_likeness(stage):
    _, both = stage([Answering(understand=LatentcError("It broke."))])
    (parity,) = both(captions=4)
    assert parity.suite is not None
    assert parity.failures == ("Captions could not be generated and scored: It broke.",)
    assert parity.meaning is None


def test_without_a_reference_there_is_no_likeness(stage):
    found, both = stage([Answering(), Answering()], Answering(refer=LatentcError("No checkpoint.")))
    for parity in both():
        assert parity.failures == ("The suite could not be compared: No checkpoint.",)
        assert parity.suite is None
    assert [contender.error for contender in found] == [None, None]
    assert found[0].process.waits == []


def test_references_that_cant_be_read_leave_the_times(stage, monkeypatch):
    found, both = stage([Answering(), Answering()])

    def damaged(path):
        raise BundleError("It is damaged.")

    monkeypatch.setattr(referee, "load_references", damaged)
    for parity in both():
        assert parity.failures == ("The suite could not be compared: It is damaged.",)
    assert [contender.error for contender in found] == [None, None]


def test_clip_that_fails_leaves_the_likeness(stage):
    (parity,) = stage([Answering()], clip=Answering(score=LatentcError("It broke.")))[1]()
    assert parity.failures == ("CLIP and LPIPS and FID could not be computed: It broke.",)
    assert parity.pictures["psnr_db"].worst == 45.0
    assert parity.clip is parity.lpips is parity.fid is None


def test_what_the_suite_needs_is_looked_for_first(bundle, trained, tmp_path, monkeypatch):
    opened, here = bundle("sd1"), {"skimage", "flip_evaluator"}
    monkeypatch.setattr(referee, "find_spec", lambda name: name if name in here else None)
    path = tmp_path / "references.npz"
    monkeypatch.setattr(referee, "references_path", lambda *_: path)
    plan = Plan((), suite=True)
    settings = tuple(requests_of([opened], plan))
    with pytest.raises(RuntimeMissing, match=r"needs torch and diffusers and transformers.*\.\[export\]"):
        check_suite([opened], plan, settings)
    path.touch()
    with pytest.raises(RuntimeMissing, match="torch"):  # what one thread draws of them is missing
        check_suite([opened], plan, settings)
    path.with_suffix(referee.FLOOR).touch()
    check_suite([opened], plan, settings)  # the references were drawn before
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(RuntimeMissing, match="torch"):
        check_suite([trained(opened)], Plan((), suite=True, clip=tmp_path), settings)
    here.remove("skimage")
    with pytest.raises(RuntimeMissing, match=r"needs skimage\. .*\.\[bench\]"):
        check_suite([opened], plan, settings)
    check_suite([opened], Plan(()), settings)
